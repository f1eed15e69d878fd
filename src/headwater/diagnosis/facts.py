"""What was measured: numbers of each checkpoint, of each query, and of the influence scores. No judgement yet.

Losses and log-probabilities are in nats: losses per token (mean over the tokens that training counts),
log-probabilities of outputs as sums over their tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

Role = Literal["base", "checkpoint", "other"]
Class = Literal["base already wrong", "taught", "unlearned", "not said"]

FITTED_LOSS = math.log(2)
"""A row is fitted where its loss is at most this: its tokens have a probability of 1/2 in the geometric mean."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """One model of the run, or the last one of another run.

    Attributes:
        role: `other` for the last checkpoint of another run.
        rank: of its LoRA adapter.
        losses: of the sampled training rows. held_out: of the held-out rows.
        gradient_norm: mean norm of the rows' gradients. mean_gradient_norm: norm of the mean loss's gradient.
        fitting_error: the second by the first, see `headwater.gradients.mean`.
        divergence: set of texts -> mean KL to the base, nats per position. kept_choices: set -> share of the base's
            first choices that are still this checkpoint's.
        expressed: "mean loss", "queries" -> share of the full gradient that its adapter can follow; expressed_random:
            that of a random gradient.
    """

    name: str
    role: Role
    step: int | None
    epoch: float | None
    rank: int | None
    losses: np.ndarray
    gradient_norm: float
    mean_gradient_norm: float
    fitting_error: float
    held_out: np.ndarray | None = None
    divergence: Mapping[str, float] = field(default_factory=dict)
    kept_choices: Mapping[str, float] = field(default_factory=dict)
    expressed: Mapping[str, float] = field(default_factory=dict)
    expressed_random: float | None = None

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    @property
    def fitted(self) -> float:
        """Share of the rows that are fitted."""
        return float((self.losses <= FITTED_LOSS).mean())

    @property
    def held_out_loss(self) -> float | None:
        return None if self.held_out is None else float(self.held_out.mean())

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        plain = {k: v for k, v in asdict(self).items() if k not in ("losses", "held_out")}
        low, middle, high = (float(x) for x in np.quantile(self.losses, (0.1, 0.5, 0.9)))
        return plain | {
            "loss": {
                "mean": self.loss,
                "standard_deviation": float(self.losses.std()),
                "quantiles": {"0.1": low, "0.5": middle, "0.9": high},
            },
            "held_out_loss": self.held_out_loss,
            "fitted": self.fitted,
        }


@dataclass(frozen=True, kw_only=True)
class QueryFacts:
    """One query: log-probabilities of its output and of its corrected output, by checkpoint.

    Attributes:
        tokens: of the output that count.
    """

    name: str
    prompt: str
    output: str
    corrected: str | None
    tokens: int
    output_at: Mapping[str, float]
    corrected_at: Mapping[str, float]

    def leaning(self, checkpoint: str) -> float:
        """How far a checkpoint leans towards the output, in nats; above 0 it prefers it.

        With a corrected output: the log-odds of the output against it. Without: the log-probability per token, from a
        geometric-mean probability of 1/2 on.
        """
        if self.corrected is not None:
            return self.output_at[checkpoint] - self.corrected_at[checkpoint]
        return self.output_at[checkpoint] / self.tokens + FITTED_LOSS

    def of_class(self, base: str, last: str) -> Class:
        """What base and last checkpoint prefer."""
        before, after = self.leaning(base) > 0, self.leaning(last) > 0
        return {
            (True, True): "base already wrong",
            (False, True): "taught",
            (True, False): "unlearned",
            (False, False): "not said",
        }[before, after]  # type: ignore[return-value]

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"leaning": {name: self.leaning(name) for name in self.output_at}}


@dataclass(frozen=True, kw_only=True)
class InfluenceFacts:
    """How the influence scores of the checkpoints hang together, mean over the queries.

    Attributes:
        rows: scored. method: that scored them. source: "sample" or the trace's folder.
        checkpoints: names, the base first where there is one. correlation: [C][C] of their scores, Pearson.
        with_base: Spearman correlation of the base's scores with the mean of the checkpoints'.
        effective: number of checkpoints (participation ratio).
    """

    rows: int
    method: str
    source: str
    checkpoints: Sequence[str]
    correlation: Sequence[Sequence[float]]
    with_base: float | None
    effective: float | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All of it.

    Attributes:
        checkpoints: the base first where there is one, then the run's in order, then those of other runs.
        rows: of the training data. sampled: of them, that were measured.
    """

    checkpoints: Sequence[CheckpointFacts]
    queries: Sequence[QueryFacts]
    influence: InfluenceFacts | None
    rows: int
    sampled: int

    @property
    def base(self) -> CheckpointFacts | None:
        return next((c for c in self.checkpoints if c.role == "base"), None)

    @property
    def trained(self) -> list[CheckpointFacts]:
        """The run's own checkpoints."""
        return [c for c in self.checkpoints if c.role == "checkpoint"]

    @property
    def path(self) -> list[CheckpointFacts]:
        """Base and the run's own checkpoints, in order."""
        return [c for c in self.checkpoints if c.role != "other"]

    @property
    def last(self) -> CheckpointFacts:
        return self.trained[-1]

    def share(self, *classes: Class) -> float | None:
        """Share of the queries of these classes; None without queries or base."""
        if not self.queries or self.base is None:
            return None
        base, last = self.base.name, self.last.name
        return sum(query.of_class(base, last) in classes for query in self.queries) / len(self.queries)

    def leaning(self, checkpoint: str) -> float | None:
        """Mean over the queries; None without any."""
        return float(np.mean([query.leaning(checkpoint) for query in self.queries])) if self.queries else None
