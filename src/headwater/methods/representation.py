"""Representation similarity: which rows the model sees as it sees the query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headwater.attribution.plan import Plan, RepresentationPlan, Terms
from headwater.checkpoints import TrainingRun
from headwater.gradients.measurement import Target


@dataclass(frozen=True, kw_only=True)
class RepresentationSimilarity:
    """Cosine of hidden states at the last checkpoint. Status C (RepSim, as DATE-LM and others compute it).

    Attributes:
        layer: which hidden state: -1 the last layer's, 0 the embeddings'.
        pooling: mean over the target tokens of output and completion, or the last of them.
    """

    layer: int = -1
    pooling: Literal["mean", "last"] = "mean"

    @property
    def name(self) -> str:
        return "repsim"

    def plan(self, run: TrainingRun) -> Plan:
        return RepresentationPlan(at=run.last.name, layer=self.layer, pooling=self.pooling)

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        return {run.last.name: 1.0}
