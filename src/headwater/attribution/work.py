"""What a set of methods needs, checkpoint by checkpoint: each distinct number once.

Shapes: R targets, N examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from headwater.attribution.plan import DirectionalPlan, GradientPlan, Plan, RepresentationPlan
from headwater.checkpoints import BASE, TrainingRun
from headwater.gradients.curvature.options import PASSES, Curvature, Source, Space
from headwater.gradients.directional import Step
from headwater.gradients.inner import Product
from headwater.gradients.kept import Passes
from headwater.gradients.measurement import Measurement


@dataclass(frozen=True)
class Difference:
    """A difference of losses between ground and error model at one checkpoint."""

    measurement: Measurement
    step: Step


@dataclass
class Visit:
    """All that is wanted of one checkpoint: its model is loaded once for all of it.

    Attributes:
        curvatures: to be fitted here.
        keep_sides: forms in which the queries' gradients here are wanted at a later visit: in which space, and whether
            they must be matrices.
    """

    checkpoint: str
    products: set[Product] = field(default_factory=set)
    differences: set[Difference] = field(default_factory=set)
    representations: set[RepresentationPlan] = field(default_factory=set)
    curvatures: set[tuple[Space, Curvature]] = field(default_factory=set)
    keep_sides: set[tuple[Space, bool]] = field(default_factory=set)

    def passes(self, blocks: Mapping[Space, int]) -> dict[Source, Passes]:
        """Passes over the rows' gradients here.

        Args:
            blocks: of the queries, in each space.
        """
        count: dict[Source, int] = {}
        whole: set[Source] = set()
        for space, curvature in self.curvatures:
            source = Source.of(space, curvature)
            count[source] = count.get(source, 0) + PASSES[curvature.kind]
            if curvature.kind in ("kfac", "ekfac"):
                whole.add(source)
        whole |= {Source.of(product.space) for product in self.products if product.inner == "token_cosine"}
        for space, _ in {(product.space, product.rows) for product in self.products}:
            source = Source.of(space)
            count[source] = count.get(source, 0) + blocks.get(space, 1)
        return {source: Passes(number, source in whole) for source, number in count.items()}


@dataclass(frozen=True)
class Doubt:
    """1 - p of every row's targets, on average."""


Key = tuple[str, Product | Difference | RepresentationPlan | Doubt]
"""Checkpoint of the example's side, and the number wanted there."""


def visits(run: TrainingRun, plans: Sequence[Plan]) -> list[Visit]:
    """The checkpoints to visit: the last first, the base at the end, so that cross terms with the base find the
    queries' gradients of every checkpoint made already. The last checkpoint and the base are always visited, to
    say how they lean."""
    by_name = {name: Visit(name) for name in (run.last.name, *([BASE] if run.base else []))}
    for plan in plans:
        for _, (place, wanted) in keys(plan):
            visit = by_name.setdefault(place, Visit(place))
            if isinstance(wanted, Product):
                visit.products.add(wanted)
                if wanted.query_at != place:
                    kept = (wanted.space, bool(wanted.steps))
                    by_name.setdefault(wanted.query_at, Visit(wanted.query_at)).keep_sides.add(kept)
                for step in (*wanted.steps, *wanted.rows):
                    there = by_name.setdefault(step.at, Visit(step.at))
                    there.curvatures.add((wanted.space, fitted_form(step.curvature)))
            elif isinstance(wanted, Difference):
                visit.differences.add(wanted)
            elif isinstance(wanted, RepresentationPlan):
                visit.representations.add(wanted)
    order = [c.name for c in reversed(run.checkpoints)] + [BASE]
    return [by_name[name] for name in order if name in by_name]


def keys(plan: Plan) -> list[tuple[str, Key]]:
    """Term name and key of every term of a plan."""
    if isinstance(plan, GradientPlan):
        return [
            (t.name, (t.example_at, Product(plan.measurement, plan.inner, t.query_at, plan.space, t.steps, t.rows)))
            for t in plan.terms
        ]
    if isinstance(plan, DirectionalPlan):
        step = Step(optimizer=plan.optimizer, learning_rate=plan.learning_rate, steps=plan.steps)
        return [(name, (name, Difference(plan.measurement, step))) for name in plan.at]
    if isinstance(plan, RepresentationPlan):
        return [(plan.at, (plan.at, plan))]
    return []


def terms(plan: Plan, done: Mapping[Key, np.ndarray]) -> dict[str, np.ndarray]:
    """Term name -> values [R, N] of a plan, from everything that was computed."""
    found = {name: done[key] for name, key in keys(plan)}
    if isinstance(plan, GradientPlan) and plan.doubt:
        places = dict.fromkeys(term.example_at for term in plan.terms)
        doubt_N = np.mean([done[place, Doubt()] for place in places], axis=0)
        found = {name: values_RN * doubt_N for name, values_RN in found.items()}
    return found


def fitted_form(curvature: Curvature) -> Curvature:
    """What decides a fit: damping is added later."""
    return replace(curvature, damping=0.0, relative=True)
