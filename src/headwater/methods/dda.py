"""DDA: Debias and Denoise Attribution (Wu, Pang, Shen, Cheng, EMNLP 2024, arXiv 2410.01285).

The authors never released their code; what is known of their formulas, and how well, stands in docs/methods/dda.md.

    denoise   s_bar[q, i] = sum_c w_c < N grad m(q; theta_c), N grad l(z_i; theta_c) >,  w_c = 1/T by default     (S)
    debias    score level      s_bar[q, i] - beta < N grad m(q; theta_0), N grad l(z_i; theta_0) >                 (S)
              gradient level   s_bar[q, i] - beta sum_c w_c < N grad m(q; theta_c), N grad l(z_i; theta_0) >       (D)

theta_0 is the base model, theta_1 ... theta_T the fine-tuned checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from headwater.attribution.plan import DirectionalPlan, GradientPlan, Plan, Term, Terms
from headwater.checkpoints import BASE, TrainingRun
from headwater.errors import UsageError
from headwater.gradients.curvature.options import Curvature
from headwater.gradients.measurement import InnerProduct, Measurement, Target
from headwater.methods.influence import space_of
from headwater.scores import robust_deviations

COSINE_BETA = -0.5
"""The default where scores have one scale at every checkpoint: cosines, and losses after AdamW's steps. Dot products
have not: the base's gradients are larger, and any share of them costs."""

BETAS = np.round(np.arange(-1.0, 1.0001, 0.05), 2)
"""The grid `beta="auto"` chooses from."""

TOP_SHARE = 0.05
"""Share of the rows whose height above the rest `beta="auto"` looks at."""

FEWEST_ROWS = 100
"""Fewer rows have no bulk to stick out of: `beta="auto"` is 0."""


@dataclass(frozen=True, kw_only=True)
class DDA:
    """Debias and Denoise Attribution.

    Attributes:
        measurement: "contrast" (loss of the output minus loss of the corrected output, of the words that differ unless
            the query has another span) or "loss" (of the output alone).
        inner: inner product of the gradients: "dot", "cosine", "layer_cosine" (unit norm per layer), or "token_cosine"
            (layer cosine with the one position of the row where it is largest, `headwater.gradients.inner`; status D).
            None: the token cosine; the layer cosine from an index, under curvature and at gradient level, where whole
            gradients are needed. The directional engine has no such choice.
        beta: how much of the base model's influence is taken out (negative: put in, the base then counts as one more
            checkpoint). None: COSINE_BETA, by the token cosine within a point of the best AUC on every task of
            docs/study.md, or 0 for dot products of gradients. "auto" chooses without labels, see `choose_beta`. 0 needs
            no pass over the base model.
        level: debias the scores, or the examples' gradients.
        checkpoint_weights: w_c, one per checkpoint; None: 1/T each.
        engine: "gradient", or "directional": per checkpoint the difference of losses between a ground and an error
            model, the authors' own form (status C), with 3 AdamW steps at 5e-6 as in CEA's code.
        learning_rate: of the directional engine's steps.
        curvature: P on the query's side, at each checkpoint; None: the identity. With a cosine, both sides are
            multiplied by its inverse root. rank: project every layer first, as for an influence function.
        label: the name of the results; None: "dda", or "dda-difference" for the directional engine.
    """

    measurement: Measurement = "contrast"
    inner: InnerProduct | None = None
    beta: float | Literal["auto"] | None = None
    level: Literal["score", "gradient"] = "score"
    checkpoint_weights: tuple[float, ...] | None = None
    engine: Literal["gradient", "directional"] = "gradient"
    learning_rate: float = 5e-6
    curvature: Literal["fisher", "diagonal", "adam", "kfac", "ekfac", "datainf"] | None = None
    rank: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.engine == "directional" and self.inner is not None:
            raise UsageError(
                f"inner={self.inner!r} with the directional engine",
                expected="no choice: differences of losses are dot products with the step",
                fix="leave inner out, or use engine='gradient'",
            )
        if self.engine == "gradient" and self.learning_rate != 5e-6:
            raise UsageError(
                f"learning_rate={self.learning_rate} with the gradient engine",
                expected="no step: gradients are exact",
                fix="leave learning_rate out, or use engine='directional'",
            )
        if self.curvature is not None:
            Curvature.named(self.curvature)
        if self.engine == "directional" and self.rank is not None:
            raise UsageError(
                f"rank={self.rank} with the directional engine", expected="no projection", fix="leave it out"
            )
        if self.engine == "directional" and self.curvature is not None:
            raise UsageError(
                f"curvature={self.curvature!r} with the directional engine",
                expected="none: its steps are the optimizer's",
                fix="leave it out, or use engine='gradient'",
            )
        if self.inner == "token_cosine" and (self.curvature is not None or self.level == "gradient"):
            what = "debias at gradient level" if self.level == "gradient" else f"curvature={self.curvature!r}"
            raise UsageError(
                f"inner='token_cosine' with {what}",
                expected="gradients as they are: of a row it looks at one position, not at the whole gradient",
                fix="leave it out, or use inner='layer_cosine'",
            )
        if self.beta not in ("auto", None) and not (isinstance(self.beta, int | float) and np.isfinite(self.beta)):
            raise UsageError(f"beta={self.beta!r}", expected="a finite number or 'auto'", fix="correct beta")
        if self.engine == "directional" and self.level == "gradient":
            raise UsageError(
                "debias at gradient level with the directional engine",
                expected="score level: differences of losses have no gradient to debias",
                fix="use level='score' or engine='gradient'",
            )

    @classmethod
    def paper(cls, beta: float = 0.5) -> DDA:
        """The paper's form, read literally: dot products, mean over checkpoints, minus beta times the base's.

        Status S (second-hand). The paper's value of beta is unknown; 0.5 is the middle of the range [0, 1) that the
        derivation in docs/math.md gives.
        """
        return cls(inner="dot", beta=beta, label="dda-paper")

    @property
    def name(self) -> str:
        return self.label or ("dda" if self.engine == "gradient" else "dda-difference")

    @property
    def wanted_inner(self) -> InnerProduct:
        """The inner product, or the default where rows are at hand."""
        if self.inner is not None:
            return self.inner
        return "layer_cosine" if self.curvature is not None or self.level == "gradient" else "token_cosine"

    def for_whole_rows(self) -> DDA:
        """The same for whole rows alone (an index, a row's score for itself): the default is the layer cosine there."""
        tokens = self.engine == "gradient" and self.inner is None and self.wanted_inner == "token_cosine"
        return replace(self, inner="layer_cosine") if tokens else self

    @property
    def wanted_beta(self) -> float | Literal["auto"]:
        """Beta, or the default."""
        if self.beta is not None:
            return self.beta
        return 0.0 if self.inner == "dot" else COSINE_BETA

    @property
    def uses_base(self) -> bool:
        return self.wanted_beta != 0

    def plan(self, run: TrainingRun) -> Plan:
        tuned = [c.name for c in run.checkpoints]
        self._checkpoint_weights(run)
        if self.uses_base:
            run.require_base("DDA takes out what the base model believed; beta=0 would leave that step out")
        if self.engine == "directional":
            return DirectionalPlan(
                measurement=self.measurement,
                optimizer="adamw",
                learning_rate=self.learning_rate,
                steps=3,
                at=tuple(tuned + [BASE] * self.uses_base),
            )
        terms = [Term.at(name) for name in tuned]
        if self.uses_base and self.level == "score":
            terms.append(Term.at(BASE))
        elif self.uses_base:
            terms += [Term(name=f"{name} x {BASE}", query_at=name, example_at=BASE) for name in tuned]
        curvature = None if self.curvature is None else Curvature.named(self.curvature)
        return GradientPlan(
            measurement=self.measurement,
            inner=self.wanted_inner,
            terms=tuple(term.curved(curvature, self.wanted_inner) for term in terms),
            space=space_of(self.curvature, self.rank),
        )

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        tuned = dict(zip((c.name for c in run.checkpoints), self._checkpoint_weights(run), strict=True))
        if not self.uses_base:
            return tuned
        base = {BASE: 1.0} if self.level == "score" else {f"{name} x {BASE}": w for name, w in tuned.items()}
        if self.wanted_beta == "auto":
            queries = [r for r, target in enumerate(targets) if target.kind == "query"]
            tuned_QN = np.sum([w * terms[name][queries] for name, w in tuned.items()], axis=0)
            base_QN = np.sum([w * terms[name][queries] for name, w in base.items()], axis=0)
            beta = choose_beta(tuned_QN, base_QN)
        else:
            beta = float(self.wanted_beta)
        return tuned | {name: -beta * w for name, w in base.items()}

    def _checkpoint_weights(self, run: TrainingRun) -> list[float]:
        if self.checkpoint_weights is None:
            return [1 / len(run.checkpoints)] * len(run.checkpoints)
        if len(self.checkpoint_weights) != len(run.checkpoints):
            raise UsageError(
                f"{len(self.checkpoint_weights)} checkpoint weights for {len(run.checkpoints)} checkpoints",
                expected="one for each checkpoint",
                fix="give as many as there are checkpoints",
            )
        if not np.isfinite(self.checkpoint_weights).all():
            raise UsageError(
                f"checkpoint weights {self.checkpoint_weights}", expected="finite numbers", fix="correct them"
            )
        return list(self.checkpoint_weights)


def choose_beta(tuned_QN: np.ndarray, base_QN: np.ndarray) -> float:
    """The beta of the grid at which the first rows stick out most, on average over the queries.

    Few rows are responsible for what a model says, and where the scores are right those rows stick out: the
    criterion is the mean robust z-score, (score - median) / (1.4826 x median absolute deviation), of the top TOP_SHARE
    of the rows. One beta for the whole query set; no labels. Status D. Ties go to the beta nearest to 0, and fewer
    than FEWEST_ROWS rows to 0. What else was tried, and why skewness was given up, stands in docs/log/2026-11-24.md.

    Args:
        tuned_QN: denoised scores of the queries, base_QN: scores of the base model.
    """
    if tuned_QN.shape[1] < FEWEST_ROWS:
        return 0.0
    count = round(TOP_SHARE * tuned_QN.shape[1])

    def height(beta: float) -> float:
        score_QN = tuned_QN - beta * base_QN
        return float(np.mean([np.sort(robust_deviations(score_N))[-count:].mean() for score_N in score_QN]))

    heights = [height(float(beta)) for beta in BETAS]
    best = max(heights)
    candidates = [float(beta) for beta, value in zip(BETAS, heights, strict=True) if value >= best - 1e-9]
    return min(candidates, key=abs) + 0.0
