"""The verdicts: what the numbers say in words, each by a rule whose number and threshold are stated.

All rules stand in one table, `RULES`. A rule has a number that the facts give (or do not give: then it is not judged,
and `needs` says what would be needed), a threshold, and what the two together say. The last verdict, whether
attribution can be trusted, is made of the others (`trust_in`).

Status of the thresholds: D. They were set on the made runs of tests/diagnosis and benchmarks/diagnose.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headwater.diagnosis.facts import CheckpointFacts, Facts
from headwater.diagnosis.measuring import QUERIES

MOST = 0.5
"""Share of the queries, or of a lean."""

FELL, ROSE = 0.10, 0.05
"""Share by which training lowers its loss at least; nats per token by which the held-out loss may rise."""

STATIONARY, REPEATED, FEWEST_CHECKPOINTS, EXPRESSED = 0.10, 0.90, 1.2, 0.10
"""Fitting error, rank correlation with the base's scores, effective checkpoints, share that an adapter can express."""

Effect = Literal["no", "care", "good", "note"]
Trust = Literal["yes", "with care", "no"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One question to the facts.

    Attributes:
        name: the verdict where it holds. otherwise: where it does not.
        number: what is compared, in words. shown: how it is written.
        value: the number, or None where the facts do not have it. needs: what would give it.
        holds: `at least` or `below` the threshold.
        effect: of a verdict that holds on the trust in attribution.
        so: what it means and what to do, where it holds.
    """

    name: str
    otherwise: str
    number: str
    value: Callable[[Facts], float | None]
    needs: str
    holds: Literal["at least", "below"]
    threshold: float
    effect: Effect
    so: str
    shown: str = "{:.2f}"

    def judge(self, facts: Facts) -> Verdict:
        """Applies the rule."""
        value = self.value(facts)
        rule = f"{self.number}: {self.holds} {self.shown.format(self.threshold)}"
        if value is None:
            return Verdict(
                name=self.name, holds=None, words=f"Not judged: {self.name}", value=None, rule=rule, effect="note",
                so=f"It needs {self.needs}.",
            )  # fmt: skip
        holds = value >= self.threshold if self.holds == "at least" else value < self.threshold
        return Verdict(
            name=self.name,
            holds=holds,
            words=self.name if holds else self.otherwise,
            value=value,
            rule=f"{rule}; here {self.shown.format(value)}",
            effect=self.effect if holds else "note",
            so=self.so if holds else "",
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a rule said.

    Attributes:
        holds: None where it could not be judged.
        words: the verdict as it is shown.
        rule: number, threshold and value in words.
    """

    name: str
    holds: bool | None
    words: str
    value: float | None
    rule: str
    effect: Effect
    so: str


def loss_fall(facts: Facts) -> float | None:
    """By what share the training loss fell, from the base to the last checkpoint."""
    if facts.base is None or facts.base.loss <= 0:
        return None
    return 1 - facts.last.loss / facts.base.loss


def best_held_out(facts: Facts) -> CheckpointFacts:
    """The checkpoint of the lowest held-out loss, base included."""
    return min((c for c in facts.path if c.held_out is not None), key=lambda c: c.held_out_loss or 0.0)


def held_out_rise(facts: Facts) -> float | None:
    """By how much the held-out loss rose from its best checkpoint to the last, nats per token: the lower end of the
    95 % interval of the paired difference over the held-out rows. 0 where the last is the best."""
    if facts.last.held_out is None or len(facts.path) < 2:
        return None
    best = best_held_out(facts)
    difference_M = facts.last.held_out - np.asarray(best.held_out)
    error = float(difference_M.std(ddof=1)) / math.sqrt(len(difference_M)) if len(difference_M) > 1 else math.inf
    return max(0.0, float(difference_M.mean()) - 1.96 * error)


def base_lean(facts: Facts) -> float | None:
    """Share of the queries that the base model already got wrong, by MOST of the last checkpoint's lean or more."""
    if facts.base is None or not facts.queries:
        return None
    base, last = facts.base.name, facts.last.name
    wrong = [q for q in facts.queries if q.of_class(base, last) == "base already wrong"]
    return sum(q.leaning(base) >= MOST * q.leaning(last) for q in wrong) / len(facts.queries)


RULES: tuple[Rule, ...] = (
    Rule(
        name="Base already wrong",
        otherwise="The base model was not wrong already",
        number="share of the queries whose output base and fine-tuned model both prefer",
        value=lambda facts: facts.share("base already wrong"),
        needs="queries and a base model",
        holds="at least",
        threshold=MOST,
        effect="care",
        so="No training row needs to have taught it. Look at the base model's own data, or correct it by new rows; "
        "rows that rank first only resemble what the base model knew.",
    ),
    Rule(
        name="The lean is the base model's own",
        otherwise="The lean is not mostly the base model's own",
        number="share of the queries of which the base model had half of the fine-tuned model's lean or more",
        value=base_lean,
        needs="queries and a base model",
        holds="at least",
        threshold=MOST,
        effect="no",
        so="Half of the lean or more was there before training. Do not remove rows for it.",
    ),
    Rule(
        name="Fine-tuning taught it",
        otherwise="Fine-tuning did not teach it to most queries",
        number="share of the queries whose output the fine-tuned model prefers and the base model did not",
        value=lambda facts: facts.share("taught"),
        needs="queries and a base model",
        holds="at least",
        threshold=MOST,
        effect="good",
        so="Rows are responsible. Trace them, remove or correct the first ones, and train again.",
    ),
    Rule(
        name="The fine-tuned model does not say it",
        otherwise="The fine-tuned model prefers the output",
        number="share of the queries whose output the fine-tuned model does not prefer",
        value=lambda facts: facts.share("unlearned", "not said"),
        needs="queries and a base model",
        holds="at least",
        threshold=MOST,
        effect="no",
        so="There is nothing to explain: check the queries, or ask what the model really says (leave the output out).",
    ),
    Rule(
        name="Not trained enough",
        otherwise="The training rows were learned",
        number="fall of the mean training loss from the base to the last checkpoint, as a share of the base's",
        value=loss_fall,
        needs="a base model",
        holds="below",
        threshold=FELL,
        effect="no",
        so="The model is nearly the base model still. Train longer or at a higher learning rate before you trace; what "
        "it says is the base model's.",
    ),
    Rule(
        name="Overfitted",
        otherwise="Not overfitted",
        number="rise of the held-out loss from its best checkpoint to the last, nats per token, lower end of its 95 % "
        "interval",
        value=held_out_rise,
        needs="held-out rows, and a base model or two checkpoints",
        holds="at least",
        threshold=ROSE,
        effect="care",
        so="The last checkpoints memorise rows, whose gradients vanish. Trace the checkpoints up to the one of the "
        "lowest held-out loss, and train shorter.",
    ),
    Rule(
        name="Near a stationary point",
        otherwise="Not at a stationary point",
        number="fitting error at the last checkpoint",
        value=lambda facts: facts.last.fitting_error,
        needs="",
        holds="below",
        threshold=STATIONARY,
        effect="note",
        so="The rows' gradients cancel out: what influence functions assume holds here.",
    ),
    Rule(
        name="The scores repeat the base model's",
        otherwise="The scores are not the base model's",
        number="rank correlation of the rows' scores at the base with those of the checkpoints",
        value=lambda facts: None if facts.influence is None else facts.influence.with_base,
        needs="queries (or a trace) and a base model",
        holds="at least",
        threshold=REPEATED,
        effect="care",
        so="The order of the rows says what resembles the queries to the base model, not what was learned. Compare "
        "--beta 0 with a positive beta.",
    ),
    Rule(
        name="The checkpoints say the same",
        otherwise="The checkpoints differ enough to be averaged",
        number="effective number of checkpoints",
        value=lambda facts: None if facts.influence is None else facts.influence.effective,
        needs="queries (or a trace) and two checkpoints",
        holds="below",
        threshold=FEWEST_CHECKPOINTS,
        effect="note",
        so="The mean over checkpoints removes little noise. One of them would do; more epochs apart would help more.",
    ),
    Rule(
        name="The adapter cannot follow the queries",
        otherwise="The adapter can follow the queries' gradient",
        number="share of the queries' full gradient in the adapter's tangent space",
        value=lambda facts: facts.last.expressed.get(QUERIES),
        needs="queries and a LoRA run",
        holds="below",
        threshold=EXPRESSED,
        effect="care",
        so="Scores use the full gradient, most of which this adapter could not have learned along. Rows that rank "
        "first may owe it to directions that training never took; a higher rank would say more.",
    ),
)
"""The one table of verdicts."""


def verdicts(facts: Facts) -> list[Verdict]:
    """Of every rule, in the table's order."""
    return [rule.judge(facts) for rule in RULES]


def trust_in(found: Sequence[Verdict], facts: Facts) -> tuple[Trust, list[str]]:
    """Whether attribution can be trusted, and why: "no" where any verdict that holds says so, else "with care" where
    any says so or what decides is not known."""
    no = [one.name for one in found if one.effect == "no"]
    care = [one.name for one in found if one.effect == "care"]
    if no:
        return "no", [_lower(name) for name in (*no, *care)]
    unknown = []
    if facts.base is None:
        unknown.append("without a base model it is not known whether fine-tuning did it")
    elif not facts.queries:
        unknown.append("without queries only the training run was judged, not what the model says")
    good = [one.name for one in found if one.effect == "good"]
    if care or unknown or (facts.queries and not good):
        mixed = ["the queries are of several kinds"] if facts.queries and facts.base and not good and not care else []
        return "with care", [*map(_lower, care), *unknown, *mixed]
    return "yes", [_lower(name) for name in good]


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def trust_sentence(trust: Trust, reasons: Sequence[str]) -> str:
    """The verdict on attribution in words."""
    return f"Attribution can be trusted: {trust}, because {'; '.join(reasons)}."
