"""TRAK and TrackStar: random projections of gradients, corrected by the inverse of their Fisher matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from headwater.attribution.plan import GradientPlan, Plan, Term, Terms
from headwater.checkpoints import TrainingRun
from headwater.gradients.curvature.options import Curvature
from headwater.gradients.measurement import Measurement, Target
from headwater.methods.influence import space_of


@dataclass(frozen=True, kw_only=True)
class TRAK:
    """TRAK: an after-kernel regression, averaged over checkpoints.

        f(z) = log(p / (1 - p)) of the right token, mean over an example's tokens;  phi = P grad f
        score[q, i] = mean_c phi_q' (Phi' Phi + lambda)^-1 phi_i  x  mean_c (1 - p_i)

    Park et al., ICML 2023, arXiv 2303.14186, equations 13 to 17. Status C; D: for examples of several tokens f and
    1 - p are means over the tokens, the projection has two sides per layer, the ensemble is one run's checkpoints, and
    lambda is in units of the mean eigenvalue.

    Attributes:
        rank: project every layer to rank x rank. The matrix is over all layers together, so this is small.
        damping: lambda; the authors use none where rows outnumber features.
    """

    measurement: Measurement = "loss"
    rank: int = 4
    damping: float = 0.01

    @property
    def name(self) -> str:
        return "trak"

    def plan(self, run: TrainingRun) -> Plan:
        kernel = Curvature(kind="fisher", damping=self.damping, joint=True)
        return GradientPlan(
            measurement=self.measurement,
            inner="dot",
            terms=tuple(Term.at(c.name).curved(kernel, "dot") for c in run.checkpoints),
            space=replace(space_of("fisher", self.rank), margin=True),
            doubt=True,
        )

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        return {c.name: 1 / len(run.checkpoints) for c in run.checkpoints}


@dataclass(frozen=True, kw_only=True)
class TrackStar:
    """TrackStar: gradients divided by the root of Adafactor's second moment, projected, whitened per layer, as unit
    vectors.

        score = cos( R^-1/2 P (g_q / sqrt(V)), R^-1/2 P (g_i / sqrt(V)) )

    Chang et al. 2024, arXiv 2410.17413, section 3. Status C; D: V is fitted to the rows' gradients (an optimizer's
    state is not needed), and R is the rows' alone: the authors mix in that of a large set of queries, which one's own
    few queries cannot replace.

    Attributes:
        rank: project every layer to rank x rank.
        damping: of R, in units of the mean eigenvalue of each layer.
    """

    measurement: Measurement = "loss"
    rank: int = 16
    damping: float = 0.1

    @property
    def name(self) -> str:
        return "trackstar"

    def plan(self, run: TrainingRun) -> Plan:
        term = Term.at(run.last.name).curved(Curvature.named("fisher", self.damping), "cosine")
        space = replace(space_of("fisher", self.rank), scaled=True)
        return GradientPlan(measurement=self.measurement, inner="cosine", terms=(term,), space=space)

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        return {run.last.name: 1.0}
