"""Methods that follow the optimizer along training: LESS, RapidIn, SOURCE. All need the learning rates of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from headwater.attribution.plan import GradientPlan, Plan, Term, Terms
from headwater.checkpoints import TrainingRun
from headwater.errors import UsageError
from headwater.gradients.curvature.options import Curvature, Step
from headwater.gradients.measurement import Measurement, Target
from headwater.methods.gradient import learning_rates
from headwater.methods.influence import space_of


@dataclass(frozen=True, kw_only=True)
class LESS:
    """LESS: which row's Adam update is along the query's gradient.

        score[q, i] = sum_c eta_c cos( grad m(q; theta_c), Gamma(z_i; theta_c) ),
        Gamma = (b1 m + (1 - b1) g) / sqrt(b2 v + (1 - b2) g^2 + eps)

    Xia et al., ICML 2024, arXiv 2402.04333, definition 3.1 and the authors' code. Status C; D: nothing is projected
    (the authors' 8192 random directions approximate this cosine), and the weights are the merged ones.

    Attributes:
        learning_rates: eta_c, one per checkpoint, where the run has no log of them.
    """

    measurement: Measurement = "loss"
    learning_rates: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        return "less"

    def plan(self, run: TrainingRun) -> Plan:
        learning_rates(run, self.learning_rates, "LESS")
        adam = Curvature.named("adam")
        terms = tuple(
            replace(Term.at(c.name), rows=(Step(curvature=adam, at=c.name, function="direction"),))
            for c in run.checkpoints
        )
        return GradientPlan(measurement=self.measurement, inner="cosine", terms=terms)

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        rates = learning_rates(run, self.learning_rates, "LESS")
        return dict(zip((c.name for c in run.checkpoints), rates, strict=True))


@dataclass(frozen=True, kw_only=True)
class RapidIn:
    """Like RapidIn: layer-normalised, projected gradients, TracIn's sum over checkpoints.

    Lin et al., ACL 2024, arXiv 2405.11724, equation 6. Status S; D: a two-sided projection per layer in place of the
    authors' shuffles and random signs over whole gradients.

    Attributes:
        rank: project every layer to rank x rank.
        learning_rates: eta_c, one per checkpoint, where the run has no log of them.
    """

    measurement: Measurement = "loss"
    rank: int = 16
    learning_rates: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        return "rapidin"

    def plan(self, run: TrainingRun) -> Plan:
        learning_rates(run, self.learning_rates, "RapidIn")
        terms = tuple(Term.at(c.name) for c in run.checkpoints)
        return GradientPlan(
            measurement=self.measurement, inner="layer_cosine", terms=terms, space=space_of("fisher", self.rank)
        )

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        rates = learning_rates(run, self.learning_rates, "RapidIn")
        return dict(zip((c.name for c in run.checkpoints), rates, strict=True))


@dataclass(frozen=True, kw_only=True)
class SOURCE:
    """SOURCE: unrolled training, its segments the stretches between checkpoints, each with one Hessian.

        score[q, i] = sum_l < r_l S_l+1 ... S_L grad m(q; theta_L), grad l(z_i; theta_l) >,
        S_l = exp(-eta_l K_l H_l),   r_l = (1 - exp(-eta_l K_l H_l)) H_l^-1

    Bae et al., NeurIPS 2024, arXiv 2405.12186, equations 13 to 16. Status S; D: one checkpoint per segment, and K_l
    steps at the mean learning rate eta_l of plain gradient descent, also where Adam was used.

    Attributes:
        curvature: of H_l: "ekfac" as the authors', or "kfac", "diagonal", or "fisher" (projected).
        damping: in units of the mean eigenvalue of each layer.
        rank: as for an influence function.
        learning_rates: eta_l, one per checkpoint, where the run has no log of them.
    """

    measurement: Measurement = "loss"
    curvature: str = "ekfac"
    damping: float = 0.0
    rank: int | None = None
    learning_rates: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.curvature not in ("ekfac", "kfac", "diagonal", "fisher"):
            raise UsageError(
                f"SOURCE with curvature={self.curvature!r}",
                expected="ekfac, kfac, diagonal or fisher",
                fix="choose one of them",
            )

    @property
    def name(self) -> str:
        return "source"

    def plan(self, run: TrainingRun) -> Plan:
        rates = learning_rates(run, self.learning_rates, "SOURCE")
        curvature = Curvature.named(self.curvature, self.damping)  # type: ignore[arg-type]
        terms: list[Term] = []
        later: tuple[Step, ...] = ()
        before = [0, *(c.step or 0 for c in run.checkpoints[:-1])]
        for checkpoint, rate, previous in reversed(list(zip(run.checkpoints, rates, before, strict=True))):
            if checkpoint.step is None:
                raise UsageError(
                    f"SOURCE does not know at which step {checkpoint.name} was taken",
                    expected="trainer_state.json beside each checkpoint",
                    cause="models saved without their Trainer state",
                    fix="use another method",
                )
            steps = checkpoint.step - previous if checkpoint.step > previous else checkpoint.step
            step = Step(curvature=curvature, at=checkpoint.name, function="integral", amount=rate * steps)
            terms.append(
                Term(
                    name=checkpoint.name,
                    query_at=run.last.name,
                    example_at=checkpoint.name,
                    steps=(*later, step),
                )
            )
            later = (*later, replace(step, function="decay"))
        space = space_of(self.curvature, self.rank)
        return GradientPlan(measurement=self.measurement, inner="dot", terms=tuple(terms[::-1]), space=space)

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        return {c.name: 1.0 for c in run.checkpoints}
