"""Influence functions, and their relatives that approximate the same inverse: DataInf and LoGra.

    score[q, i] = < (H + lambda)^-1 grad m(q), grad l(z_i) >           Koh and Liang 2017, arXiv 1703.04730, equation 2

with H in one of the forms of `headwater.gradients.curvature`. As a cosine, both gradients are multiplied by the
inverse root of H and divided by their lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headwater.attribution.plan import GradientPlan, Plan, Term, Terms
from headwater.checkpoints import TrainingRun
from headwater.errors import UsageError
from headwater.gradients.curvature.options import Curvature, Space
from headwater.gradients.measurement import Measurement, Target

PROJECTED = ("fisher", "datainf")
"""Kinds that are whole matrices, so that gradients must be projected first."""

RANK = 16
"""Of that projection where none is given: 256 numbers of each layer."""


def space_of(curvature: str | None, rank: int | None) -> Space:
    """The space in which a kind of curvature can be fitted.

    Raises:
        UsageError: a rank below 1, or any with Adam's moments, which are of gradients as they are.
    """
    if rank is not None and curvature == "adam":
        raise UsageError(
            f"Adam's moments with gradients projected to rank {rank}",
            expected="gradients as they are",
            fix="leave the rank out, or choose another curvature",
        )
    if rank is not None and rank < 1:
        raise UsageError(f"a projection of rank {rank}", expected="at least 1", fix="raise the rank")
    return Space(rank=RANK if rank is None and curvature in PROJECTED else rank or 0)


@dataclass(frozen=True, kw_only=True)
class InfluenceFunction:
    """Influence function at the last checkpoint.

    Attributes:
        curvature: "fisher", "diagonal", "adam", "kfac", "ekfac" or "datainf". The name of the results is the
            curvature's, but for "influence", EK-FAC's own.
        damping: of the eigenvalues, in units of their mean in each layer (of 1 for "adam"). None: 0.1 (1e-8).
        rank: project every layer to rank x rank first; None: 16 for "fisher" and "datainf", else no projection.
    """

    measurement: Measurement = "loss"
    inner: Literal["dot", "cosine", "layer_cosine"] = "dot"
    curvature: Literal["fisher", "diagonal", "adam", "kfac", "ekfac", "datainf"] = "ekfac"
    damping: float | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        Curvature.named(self.curvature, self.damping)

    @property
    def name(self) -> str:
        return "influence" if self.curvature == "ekfac" else f"influence-{self.curvature}"

    def plan(self, run: TrainingRun) -> Plan:
        curvature = Curvature.named(self.curvature, self.damping)
        return GradientPlan(
            measurement=self.measurement,
            inner=self.inner,
            terms=(Term.at(run.last.name).curved(curvature, self.inner),),
            space=space_of(self.curvature, self.rank),
        )

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        return {run.last.name: 1.0}


@dataclass(frozen=True, kw_only=True)
class DataInf:
    """DataInf: the mean of the rows' rank-one inverses in place of the inverse of their mean, layer by layer.

        r = 1/(n lambda) sum_i (v - (v . g_i) / (lambda + |g_i|^2) g_i),  score = < r, g_k >,
        lambda = 0.1 mean_i mean(g_i^2)

    Kwon et al., ICLR 2024, arXiv 2310.00902, equation 5. Status C. The authors' use LoRA matrices to keep gradients
    small; here the gradients of the whole (merged) weights are projected.

    Attributes:
        rank: project every layer to rank x rank.
    """

    measurement: Measurement = "loss"
    rank: int = RANK

    @property
    def name(self) -> str:
        return "datainf"

    def plan(self, run: TrainingRun) -> Plan:
        term = Term.at(run.last.name).curved(Curvature.named("datainf", 0.0), "dot")
        return GradientPlan(
            measurement=self.measurement, inner="dot", terms=(term,), space=space_of("fisher", self.rank)
        )

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        return {run.last.name: 1.0}


@dataclass(frozen=True, kw_only=True)
class LoGra:
    """LoGra: the influence function of gradients projected on both sides, with their raw Fisher matrix per layer.

    Choe et al. 2024, arXiv 2405.13954, sections 3.2 and 3.3. Status C (projection and Fisher); D: the projection is
    random (the authors also start it from principal components), and its rank is 16 where theirs is 64, whose Fisher
    matrices of 4,096 x 4,096 per layer need an accelerator.

    Attributes:
        rank: project every layer to rank x rank.
        damping: in units of the mean eigenvalue of each layer.
    """

    measurement: Measurement = "loss"
    rank: int = RANK
    damping: float = 0.1

    @property
    def name(self) -> str:
        return "logra"

    def plan(self, run: TrainingRun) -> Plan:
        term = Term.at(run.last.name).curved(Curvature.named("fisher", self.damping), "dot")
        return GradientPlan(
            measurement=self.measurement, inner="dot", terms=(term,), space=space_of("fisher", self.rank)
        )

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        return {run.last.name: 1.0}
