"""A method is a plan: which numbers are wanted of which checkpoints, and how they are added up.

    score[q, i] = sum_k w_k < grad m(q; theta_a(k)), N grad l(z_i; theta_b(k)) >

A plan names its terms; the loop (`headwater.attribution.loop`) computes each distinct term once, for all methods
asked for together. A method owns no data loop.

Shapes: R targets (queries, then groups), N examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast

import numpy as np

from headwater.checkpoints import TrainingRun
from headwater.errors import UsageError
from headwater.examples import Examples, Query
from headwater.gradients.curvature.options import PLAIN, Curvature, Space, Step
from headwater.gradients.measurement import InnerProduct, Measurement, Target

Terms = Mapping[str, np.ndarray]
"""Term name -> values [R, N]."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One inner product: the query's gradient at one checkpoint, the example's at the same or another one.

    Attributes:
        steps: what the query's gradient is multiplied by, in order. rows: the same for the example's.
    """

    name: str
    query_at: str
    example_at: str
    steps: tuple[Step, ...] = ()
    rows: tuple[Step, ...] = ()

    @classmethod
    def at(cls, checkpoint: str) -> Term:
        return cls(name=checkpoint, query_at=checkpoint, example_at=checkpoint)

    def curved(self, curvature: Curvature | None, inner: InnerProduct) -> Term:
        """The same under curvature P of the query's checkpoint: < P g_q, g_i >, or, for a cosine, that of P^1/2 g_q
        and P^1/2 g_i."""
        if curvature is None:
            return self
        if inner == "dot":
            return replace(self, steps=(Step(curvature=curvature, at=self.query_at),))
        if curvature.joint:
            raise UsageError(
                f"{inner} under curvature over all layers together", expected="inner='dot'", fix="leave one of them out"
            )
        half = (Step(curvature=curvature, at=self.query_at, function="inverse_root"),)
        return replace(self, steps=half, rows=half)


@dataclass(frozen=True, kw_only=True)
class GradientPlan:
    """Inner products of gradients.

    Attributes:
        space: what is done to all gradients first.
        doubt: multiply every term by the mean over the terms' checkpoints of 1 - p, the chance that the model gives
            to other tokens than the row's, averaged over its targets (TRAK's Q); in a margin space.
    """

    measurement: Measurement
    inner: InnerProduct
    terms: tuple[Term, ...]
    space: Space = PLAIN
    doubt: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is made of gradients as they are, without projection of its own, or curvature."""
        return self.space == PLAIN and not any(term.steps or term.rows for term in self.terms)

    def where(self, rank: int | None) -> GradientPlan:
        """The same where all gradients are projected to `rank` anyway: then it needs no projection of its own."""
        return self if self.space.rank != rank else replace(self, space=replace(self.space, rank=0))

    @property
    def fitted(self) -> bool:
        """Whether a row's score depends on the other rows, through curvature that is fitted to them."""
        steps = [step for term in self.terms for step in (*term.steps, *term.rows)]
        return self.space.scaled or any(step.curvature.kind != "adam" for step in steps)


@dataclass(frozen=True, kw_only=True)
class DirectionalPlan:
    """Differences of losses between ground and error models, one term per checkpoint named."""

    measurement: Measurement
    optimizer: Literal["adamw", "sgd"]
    learning_rate: float
    steps: int
    at: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RepresentationPlan:
    """Cosine of hidden states: mean over the target tokens, or the last of them, of one layer's output."""

    at: str
    layer: int
    pooling: Literal["mean", "last"]


@dataclass(frozen=True, kw_only=True)
class TextPlan:
    """Scores from the words alone; the method itself has `score_text`."""


Plan = GradientPlan | DirectionalPlan | RepresentationPlan | TextPlan


class Method(Protocol):
    """What every attribution method is: a frozen dataclass with a name, a plan and the weights of its terms."""

    @property
    def name(self) -> str: ...

    def plan(self, run: TrainingRun) -> Plan:
        """The terms it needs of this run. Raises UsageError where the run cannot give them."""

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        """Term name -> w_k. May look at the terms (an automatic beta does)."""


class TextMethod(Method, Protocol):
    """A method whose plan is a TextPlan."""

    def score_text(self, queries: Sequence[Query], train: Examples) -> np.ndarray:
        """Scores of every query and example [Q, N]."""


def whole_form(method: Method) -> Method:
    """The method for whole rows alone, as an index has them. One whose defaults differ there has a method
    `for_whole_rows` that gives itself with these."""
    form = getattr(method, "for_whole_rows", None)
    return method if form is None else cast(Method, form())


def plan_uses(plan: Plan) -> set[str]:
    """Names of the checkpoints whose model a plan needs."""
    if isinstance(plan, GradientPlan):
        return {place for term in plan.terms for place in (term.query_at, term.example_at)}
    if isinstance(plan, DirectionalPlan):
        return set(plan.at)
    if isinstance(plan, RepresentationPlan):
        return {plan.at}
    return set()
