"""Gradient dot and cosine, TracIn and CEA: the one equation with one term, or with one per checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headwater.attribution.plan import DirectionalPlan, GradientPlan, Plan, Term, Terms
from headwater.checkpoints import TrainingRun
from headwater.errors import UsageError
from headwater.gradients.measurement import Measurement, Target


@dataclass(frozen=True, kw_only=True)
class GradientDot:
    """< grad m(q), grad l(z) > at the last checkpoint. Status C (the first-order influence without curvature)."""

    measurement: Measurement = "loss"

    @property
    def name(self) -> str:
        return "dot"

    def plan(self, run: TrainingRun) -> Plan:
        return GradientPlan(measurement=self.measurement, inner="dot", terms=(Term.at(run.last.name),))

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        return {run.last.name: 1.0}


@dataclass(frozen=True, kw_only=True)
class GradientCosine:
    """Cosine of the gradients at the last checkpoint, of all layers together or averaged over layers. Status C.

    Attributes:
        layerwise: unit norm per layer on both sides, mean over the layers.
    """

    measurement: Measurement = "loss"
    layerwise: bool = False

    @property
    def name(self) -> str:
        return "layer-cosine" if self.layerwise else "cosine"

    def plan(self, run: TrainingRun) -> Plan:
        inner: Literal["cosine", "layer_cosine"] = "layer_cosine" if self.layerwise else "cosine"
        return GradientPlan(measurement=self.measurement, inner=inner, terms=(Term.at(run.last.name),))

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        return {run.last.name: 1.0}


@dataclass(frozen=True, kw_only=True)
class TracIn:
    """sum_c eta_c < grad l(q; theta_c), grad l(z; theta_c) > over the fine-tuned checkpoints.

    Pruthi et al., NeurIPS 2020, arXiv 2002.08484, equation 1 (TracInCP). Status C. eta_c is the mean learning rate
    that trainer_state.json logs between checkpoint c and the one before it.

    Attributes:
        learning_rates: eta_c, one per checkpoint, where the run has no log of them.
    """

    measurement: Measurement = "loss"
    learning_rates: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        return "tracin"

    def plan(self, run: TrainingRun) -> Plan:
        learning_rates(run, self.learning_rates, "TracIn")
        terms = tuple(Term.at(c.name) for c in run.checkpoints)
        return GradientPlan(measurement=self.measurement, inner="dot", terms=terms)

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        return dict(
            zip((c.name for c in run.checkpoints), learning_rates(run, self.learning_rates, "TracIn"), strict=True)
        )


def learning_rates(run: TrainingRun, given: tuple[float, ...] | None, method: str) -> list[float]:
    """The learning rate of every checkpoint: those given, or those of the run's log.

    Raises:
        UsageError: neither, or another number than there are checkpoints.
    """
    if given is not None:
        if len(given) != len(run.checkpoints):
            raise UsageError(
                f"{len(given)} learning rates for {len(run.checkpoints)} checkpoints",
                expected="one for each checkpoint",
                fix="give as many as there are checkpoints",
            )
        if not all(map(math.isfinite, given)):
            raise UsageError(f"learning rates {given}", expected="finite numbers", fix="correct them")
        return list(given)
    without = [c.name for c in run.checkpoints if c.learning_rate is None]
    if without:
        raise UsageError(
            f"{method} does not know the learning rate of {', '.join(without)}",
            expected="trainer_state.json with logged learning rates beside each checkpoint",
            cause="models saved without their Trainer state",
            fix="give the learning rates (--learning-rate once for each checkpoint), or use another method",
        )
    return [float(c.learning_rate or 0.0) for c in run.checkpoints]


@dataclass(frozen=True, kw_only=True)
class CEA:
    """Contrastive Error Attribution, at the last checkpoint. Ladhak et al., ACL 2023, arXiv 2212.10722.

    form "difference" (status C, the authors' code): l(z; ground) - l(z; error), the two models made by `steps` full
    batch AdamW steps on the corrected and on the wrong outputs. form "first-order" (status D): the contrast dot
    product < grad (l(wrong) - l(corrected)), grad l(z) >, what it tends to with plain steps of size 0.
    """

    form: Literal["first-order", "difference"] = "first-order"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 5e-6
    steps: int = 3

    @property
    def name(self) -> str:
        return "cea" if self.form == "first-order" else "cea-difference"

    def plan(self, run: TrainingRun) -> Plan:
        if self.form == "first-order":
            return GradientPlan(measurement="contrast", inner="dot", terms=(Term.at(run.last.name),))
        return DirectionalPlan(
            measurement="contrast",
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            steps=self.steps,
            at=(run.last.name,),
        )

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        return {run.last.name: 1.0}
