"""The table of methods: name, recipe, what it computes, what it costs, how well its formula is known.

Status: C confirmed from the authors' own text or code, S second-hand, D derived by us (docs/methods/).
Cost in passes over the training rows; T is the number of checkpoints, R of queries and groups. A gradient pass is a
forward and an activation-only backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from headwater.attribution.plan import Method
from headwater.errors import UsageError
from headwater.methods.dda import DDA
from headwater.methods.gradient import CEA, GradientCosine, GradientDot, TracIn
from headwater.methods.lexical import BM25
from headwater.methods.representation import RepresentationSimilarity


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """One row of the table.

    Attributes:
        name: on the command line. make: builds the method from options.
        status: of the formula. needs_base: whether its defaults compare with the base model.
        fixed: options of the recipe that this entry decides.
    """

    name: str
    make: Callable[..., Method]
    computes: str
    cost: str
    status: str
    source: str
    needs_base: bool = False
    fixed: frozenset[str] = frozenset()

    def options(self) -> frozenset[str]:
        """Names of the options that this entry leaves open."""
        recipe: Any = type(self.make())
        return frozenset(entry.name for entry in fields(recipe)) - self.fixed - {"label"}


def _paper(**options: Any) -> Method:
    return DDA.paper(**options)


METHODS: Mapping[str, MethodInfo] = {
    info.name: info
    for info in (
        MethodInfo(
            name="dda",
            make=DDA,
            computes="mean over checkpoints of the layer-wise cosine of contrast and row gradients, minus beta x the "
            "base model's",
            cost="T + 1 gradient passes",
            status="S (debias, denoise), D (automatic beta, layer-wise cosine)",
            source="Wu et al. 2024, arXiv 2410.01285",
            needs_base=True,
        ),
        MethodInfo(
            name="dda-paper",
            make=_paper,
            computes="the paper's form read literally: mean over checkpoints of the contrast dot product, minus beta x "
            "the base model's (beta 0.5)",
            cost="T + 1 gradient passes",
            status="S",
            source="Wu et al. 2024, arXiv 2410.01285",
            needs_base=True,
            fixed=frozenset({"measurement", "inner", "level", "checkpoint_weights", "engine", "learning_rate"}),
        ),
        MethodInfo(
            name="dda-difference",
            make=lambda **options: DDA(engine="directional", **options),
            computes="per checkpoint, loss under a model nudged to the corrected outputs minus loss under one nudged "
            "to the wrong outputs; then denoise and debias",
            cost="2 R (T + 1) forward passes",
            status="C (the authors' read-me), S (debias)",
            source="Wu et al. 2024, arXiv 2410.01285",
            needs_base=True,
            fixed=frozenset({"engine", "inner", "level"}),
        ),
        MethodInfo(
            name="tracin",
            make=TracIn,
            computes="sum over checkpoints of learning rate x gradient dot product",
            cost="T gradient passes",
            status="C",
            source="Pruthi et al. 2020, arXiv 2002.08484",
        ),
        MethodInfo(
            name="cea",
            make=CEA,
            computes="contrast dot product at the last checkpoint (first order)",
            cost="1 gradient pass",
            status="D (first order of C)",
            source="Ladhak et al. 2023, arXiv 2212.10722",
            fixed=frozenset({"form", "optimizer", "learning_rate", "steps"}),
        ),
        MethodInfo(
            name="cea-difference",
            make=lambda **options: CEA(form="difference", **options),
            computes="the authors' own pair: loss under the corrected model minus loss under the error model, 3 AdamW "
            "steps each",
            cost="2 R forward passes",
            status="C",
            source="Ladhak et al. 2023, arXiv 2212.10722",
            fixed=frozenset({"form"}),
        ),
        MethodInfo(
            name="dot",
            make=GradientDot,
            computes="gradient dot product at the last checkpoint",
            cost="1 gradient pass",
            status="C",
            source="Charpiat et al. 2019, arXiv 2102.05262",
        ),
        MethodInfo(
            name="cosine",
            make=GradientCosine,
            computes="gradient cosine at the last checkpoint, all layers together",
            cost="1 gradient pass",
            status="C",
            source="Charpiat et al. 2019, arXiv 2102.05262",
        ),
        MethodInfo(
            name="layer-cosine",
            make=lambda **options: GradientCosine(layerwise=True, **options),
            computes="gradient cosine per layer at the last checkpoint, mean over layers",
            cost="1 gradient pass",
            status="C",
            source="as cosine, unit norm per layer",
            fixed=frozenset({"layerwise"}),
        ),
        MethodInfo(
            name="bm25",
            make=BM25,
            computes="shared words, rare ones first (BM25 of prompt and output)",
            cost="no model",
            status="C",
            source="Robertson and Zaragoza 2009; bm25s, arXiv 2407.03618",
        ),
        MethodInfo(
            name="repsim",
            make=RepresentationSimilarity,
            computes="cosine of the last layer's hidden states, mean over target tokens, at the last checkpoint",
            cost="1 forward pass",
            status="C",
            source="Hanawa et al. 2021, arXiv 2006.04528",
        ),
    )
}


def make_method(name: str, **options: Any) -> Method:
    """The method of that name; options are fields of its recipe.

    Raises:
        UsageError: no such method, or an option that it does not have.
    """
    if name not in METHODS:
        raise UsageError(f"method {name!r}", expected=f"one of {', '.join(METHODS)}", fix="see headwater methods")
    known = METHODS[name].options()
    unknown = sorted(set(options) - known)
    if unknown:
        raise UsageError(
            f"option {', '.join(unknown)} for {name}",
            expected=f"options of {name}: {', '.join(sorted(known)) or 'none'}",
            fix="leave it out, or choose another method",
        )
    return METHODS[name].make(**options)
