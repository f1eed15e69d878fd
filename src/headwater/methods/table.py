"""The table of methods: name, recipe, what it computes, what it costs, how well its formula is known.

Status: C confirmed from the authors' own text or code, S second-hand, D derived by us (docs/methods/).
Cost in passes over the training rows; T is the number of checkpoints, R of queries and groups. A gradient pass is a
forward and an activation-only backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from headwater.attribution.plan import Method
from headwater.errors import UsageError
from headwater.methods.along_training import LESS, SOURCE, RapidIn
from headwater.methods.dda import DDA
from headwater.methods.embedding import EmbeddingSimilarity
from headwater.methods.gradient import CEA, GradientCosine, GradientDot, TracIn
from headwater.methods.influence import DataInf, InfluenceFunction, LoGra
from headwater.methods.lexical import BM25
from headwater.methods.representation import RepresentationSimilarity
from headwater.methods.trak import TRAK, TrackStar
from headwater.methods.verbatim import Verbatim

_MOST = 1 << 62
"""Whole numbers from here on are no option of anything, and too large for a float."""


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
            computes="mean over checkpoints of the layer-wise cosine of the contrast's gradient with that of the row's "
            "best position (from an index: of the whole row), minus beta x the base model's (beta -0.5)",
            cost="T + 1 gradient passes",
            status="S (debias, denoise), D (beta -0.5, cosines)",
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
            fixed=frozenset(
                {"measurement", "inner", "level", "checkpoint_weights", "engine", "learning_rate", "curvature", "rank"}
            ),
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
            fixed=frozenset({"engine", "inner", "level", "curvature", "rank"}),
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
            name="influence",
            make=InfluenceFunction,
            computes="influence function at the last checkpoint, with EK-FAC's inverse on the query's gradient",
            cost="3 gradient passes (2 fit the curvature)",
            status="C",
            source="Grosse et al. 2023, arXiv 2308.03296; George et al. 2018, arXiv 1806.03884",
            fixed=frozenset({"curvature"}),
        ),
        MethodInfo(
            name="influence-kfac",
            make=lambda **options: InfluenceFunction(curvature="kfac", **options),
            computes="the same with K-FAC's inverse",
            cost="2 gradient passes (1 fits the curvature)",
            status="C",
            source="Martens and Grosse 2015, arXiv 1503.05671",
            fixed=frozenset({"curvature"}),
        ),
        MethodInfo(
            name="influence-diagonal",
            make=lambda **options: InfluenceFunction(curvature="diagonal", **options),
            computes="the same with the inverse of the mean squared gradient of each weight",
            cost="2 gradient passes (1 fits the curvature)",
            status="C",
            source="Koh and Liang 2017, arXiv 1703.04730, with a diagonal Fisher",
            fixed=frozenset({"curvature"}),
        ),
        MethodInfo(
            name="influence-adam",
            make=lambda **options: InfluenceFunction(curvature="adam", **options),
            computes="the gradient dot product in Adam's metric: divided by the root of its second moment",
            cost="1 gradient pass; optimizer.pt of the last checkpoint",
            status="D",
            source="Adam's preconditioner, Kingma and Ba 2015, arXiv 1412.6980",
            fixed=frozenset({"curvature"}),
        ),
        MethodInfo(
            name="logra",
            make=LoGra,
            computes="influence function of projected gradients with their raw Fisher matrix per layer",
            cost="2 gradient passes (1 fits the curvature)",
            status="C, D (rank 16)",
            source="Choe et al. 2024, arXiv 2405.13954",
        ),
        MethodInfo(
            name="datainf",
            make=DataInf,
            computes="influence function with the mean of the rows' rank-one inverses, per layer, projected",
            cost="3 gradient passes (2 fit the curvature)",
            status="C, D (projected whole weights)",
            source="Kwon et al. 2024, arXiv 2310.00902",
        ),
        MethodInfo(
            name="trak",
            make=TRAK,
            computes="projected gradients of the margin log(p/(1-p)), their kernel inverted over all layers, times the "
            "row's mean 1 - p; mean over checkpoints",
            cost="2 T gradient passes",
            status="C, D (several tokens)",
            source="Park et al. 2023, arXiv 2303.14186",
        ),
        MethodInfo(
            name="trackstar",
            make=TrackStar,
            computes="cosine of gradients divided by Adafactor's second moment, projected and whitened per layer",
            cost="3 gradient passes (2 fit)",
            status="C, D (Hessian of the rows alone)",
            source="Chang et al. 2024, arXiv 2410.17413",
        ),
        MethodInfo(
            name="less",
            make=LESS,
            computes="sum over checkpoints of learning rate x cosine of the query's gradient and the row's Adam update",
            cost="T gradient passes; optimizer.pt of every checkpoint",
            status="C, D (no projection)",
            source="Xia et al. 2024, arXiv 2402.04333",
        ),
        MethodInfo(
            name="rapidin",
            make=RapidIn,
            computes="sum over checkpoints of learning rate x layer-wise cosine of projected gradients",
            cost="T gradient passes",
            status="S, D (projection)",
            source="Lin et al. 2024, arXiv 2405.11724",
        ),
        MethodInfo(
            name="source",
            make=SOURCE,
            computes="unrolled training: the query's gradient carried back through each segment's curvature",
            cost="3 T gradient passes (2 T fit the curvature)",
            status="S, D (a checkpoint per segment)",
            source="Bae et al. 2024, arXiv 2405.12186",
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
            name="verbatim",
            make=Verbatim,
            computes="shared runs of words, long and rare ones first",
            cost="no model",
            status="D",
            source="span rarity of Liu et al. 2025, arXiv 2504.07096",
        ),
        MethodInfo(
            name="embedding",
            make=EmbeddingSimilarity,
            computes="cosine of sentence embeddings, of a sentence-transformers model",
            cost="1 forward pass of the embedding model (all-MiniLM-L6-v2 unless told)",
            status="C",
            source="Reimers and Gurevych 2019, arXiv 1908.10084",
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
        UsageError: no such method, an option that it does not have, or a value of another type.
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
    hints = get_type_hints(type(METHODS[name].make()))
    for option, value in options.items():
        if not _fits(value, hints[option]):
            raise UsageError(
                f"{option} {str(value)[:40]!r} for {name}",
                expected=_in_words(hints[option]),
                fix="correct it, or leave it out",
            )
    return METHODS[name].make(**options)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type of a recipe's field."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return isinstance(value, str) and value in parts
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(one, parts[0]) for one in value)
    if parts:
        return any(_fits(value, part) for part in parts)
    if hint in (int, float):
        size: Any = value
        if isinstance(value, bool) or not isinstance(value, Integral if hint is int else Real):
            return False
        return not isinstance(value, Integral) or -_MOST < size < _MOST
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return " or ".join(parts)
    if kind is tuple:
        return "several numbers"
    if parts:
        return " or ".join(_in_words(part) for part in parts if part is not type(None))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]
