"""What a repair did, before and after, against removing other rows; every mean with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from headwater.evaluation import bootstrap, bootstrap_change
from headwater.repair.outcome import Outcome

Interval = tuple[float, float, float]
"""Mean, and the ends of its 95 % interval (bootstrap over the queries, or over the untouched rows)."""

CURE = 0.8
"""Share of the wrong answers that a cure takes away."""

DAMAGE = 0.02
"""Relative change of the loss on untouched rows from which a repair is said to do damage."""

BEFORE, BASE, REPAIRED, RANDOM, LEXICAL = "before", "base", "repaired", "random", "bm25"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One training on the way to the smallest number of rows.

    Attributes:
        rows: the first rows that were removed or corrected. wrong: share of wrong answers to queries and paraphrases.
    """

    rows: int
    wrong: float
    cured: bool


@dataclass(frozen=True, kw_only=True)
class Line:
    """One model in the table.

    Attributes:
        name: as in `Outcome`. rows: removed or corrected training rows.
        wrong, paraphrases_wrong: shares of wrong answers to the queries and to the held-out paraphrases.
        log_odds, paraphrases_log_odds: of the wrong against the corrected output, mean in nats.
        loss: on untouched rows, mean in nats.
        fall: relative change of the share of wrong answers, queries and paraphrases together, since before.
        damage: relative change of the loss on untouched rows since before.
    """

    name: str
    rows: int
    wrong: Interval
    log_odds: Interval
    paraphrases_wrong: Interval | None = None
    paraphrases_log_odds: Interval | None = None
    loss: Interval | None = None
    fall: Interval | None = None
    damage: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The repaired model against one trained without as many other rows, query by query.

    Attributes:
        wrong: share of wrong answers there minus here; above 0, the chosen rows did more. log_odds: the same, in nats.
    """

    control: str
    wrong: Interval
    log_odds: Interval


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """The result of a repair.

    Attributes:
        outcomes: the base (where it is known), before, repaired, and the controls.
        rows: ids of the chosen rows, best first. chosen_by: how they were chosen, in words.
        steps: trainings of the search for the smallest number. cured: whether the repaired model is cured.
        model: folder of the repaired training.
        cure: share of the wrong answers that has to go.
        config: all that decides the result.
    """

    outcomes: tuple[Outcome, ...]
    rows: tuple[str, ...]
    chosen_by: str
    model: str
    cured: bool
    cure: float = CURE
    steps: tuple[Step, ...] = ()
    config: Mapping[str, Any]

    def outcome(self, name: str) -> Outcome:
        """The outcome of that name."""
        return next(one for one in self.outcomes if one.name == name)

    @property
    def controls(self) -> list[Outcome]:
        """Trainings without as many other rows."""
        return [one for one in self.outcomes if one.name not in (BASE, BEFORE, REPAIRED)]

    def lines(self) -> list[Line]:
        """The table: a line for each model."""
        before = self.outcome(BEFORE)
        return [_line(one, before) for one in self.outcomes]

    def comparisons(self) -> list[Comparison]:
        """The repaired model against each control."""
        mine = self.outcome(REPAIRED)
        return [
            Comparison(
                control=other.name,
                wrong=bootstrap(np.subtract(other.wrong(None), mine.wrong(None))),
                log_odds=bootstrap(np.subtract(other.log_odds(None), mine.log_odds(None))),
            )
            for other in self.controls
        ]

    def faults(self) -> dict[str, dict[str, tuple[float, float | None]]]:
        """Fault -> model -> shares of its queries and paraphrases answered wrongly and rightly (None: not known)."""
        out: dict[str, dict[str, tuple[float, float | None]]] = {}
        for one in self.outcomes:
            for fault in dict.fromkeys(s.fault for s in one.said):
                mine = [s for s in one.said if s.fault == fault]
                right = [s.right for s in mine if s.right is not None]
                shares = sum(s.wrong for s in mine) / len(mine), sum(right) / len(right) if right else None
                out.setdefault(fault, {})[one.name] = shares
        return out

    def sentences(self) -> list[str]:
        """The answer in words."""
        before, after = self.outcome(BEFORE), self.outcome(REPAIRED)
        line = next(one for one in self.lines() if one.name == REPAIRED)
        changed = _changed(after)
        out = [
            f"Before, {_counted(before)} answers state the wrong output; after training again {changed}, "
            f"{_counted(after)}{_percent(line.fall, len(before.wrong(None)))}."
        ]
        if self.steps and self.cured:
            out.append(f"{len(self.rows)} rows are the smallest number found that cures; {len(self.steps)} trainings.")
        out.append(
            f"Cured: at least {self.cure:.0%} of the wrong answers are gone."
            if self.cured
            else f"Not cured: fewer than {self.cure:.0%} of the wrong answers are gone."
            if any(before.wrong(None))
            else "The model before states no wrong output: look at the log-odds."
        )
        if line.damage is None:
            out.append("No untouched rows were given, so damage elsewhere was not measured.")
        else:
            harm = "less than" if abs(line.damage[0]) < DAMAGE else "more than"
            moved = _percent(line.damage, len(before.losses), 2)
            out.append(f"The loss on untouched rows moved by {harm} {DAMAGE:.0%}{moved}.")
        for one in self.comparisons():
            what = {LEXICAL: "BM25's first rows"}.get(one.control, "random rows")
            surely = one.wrong[1] > 0
            more = "leaves more wrong answers" if one.wrong[0] > 0 else "leaves as few wrong answers or fewer"
            out.append(
                f"Removing as many {what} {more}: {_counted(self.outcome(one.control))}"
                f"{'' if surely or one.wrong[0] <= 0 else ', a difference that chance could make'}."
            )
        return out

    def record(self) -> dict[str, Any]:
        """The result as JSON values: what repair.json holds."""
        return {
            "format": 1,
            "sentences": self.sentences(),
            "cured": self.cured,
            "cure": self.cure,
            "chosen_by": self.chosen_by,
            "rows": list(self.rows),
            "model": self.model,
            "table": [asdict(line) for line in self.lines()],
            "comparisons": [asdict(one) for one in self.comparisons()],
            "faults": self.faults(),
            "steps": [asdict(step) for step in self.steps],
            "outcomes": [asdict(one) for one in self.outcomes],
            "config": dict(self.config),
        }


def wrong_share(outcome: Outcome) -> float:
    """Share of wrong answers, queries and paraphrases together."""
    return float(np.mean(outcome.wrong(None)))


def is_cured(before: Outcome, after: Outcome, cure: float) -> bool:
    """Whether so large a share of the wrong answers is gone."""
    return wrong_share(before) > 0 and wrong_share(after) <= (1 - cure) * wrong_share(before) + 1e-12


def _line(one: Outcome, before: Outcome) -> Line:
    paraphrased = any(said.paraphrase for said in one.said)
    then = one.name not in (BASE, BEFORE)
    return Line(
        name=one.name,
        rows=len(one.removed) + len(one.corrected),
        wrong=bootstrap(one.wrong()),
        log_odds=bootstrap(one.log_odds()),
        paraphrases_wrong=bootstrap(one.wrong(True)) if paraphrased else None,
        paraphrases_log_odds=bootstrap(one.log_odds(True)) if paraphrased else None,
        loss=bootstrap(one.losses) if one.losses else None,
        fall=bootstrap_change(before.wrong(None), one.wrong(None)) if then and any(before.wrong(None)) else None,
        damage=bootstrap_change(before.losses, one.losses) if then and one.losses else None,
    )


def _changed(one: Outcome) -> str:
    parts = [f"without {_rows(len(one.removed))}"] if one.removed else []
    parts += [f"with {_rows(len(one.corrected))} corrected"] if one.corrected else []
    return " and ".join(parts)


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _counted(one: Outcome) -> str:
    wrong = one.wrong(None)
    return f"{sum(wrong):.0f} of {len(wrong)}"


def _percent(change: Interval | None, of: int, digits: int = 0) -> str:
    """A change of `of` measurements; a single one has no interval."""
    if change is None:
        return ""
    mean, low, high = (f"{100 * value:+.{digits}f} %" for value in change)
    return f" ({mean})" if of < 2 else f" ({mean}, 95 % interval {low} to {high})"


def in_order(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Base, before, repaired, then the controls."""
    order = (BASE, BEFORE, REPAIRED)
    return tuple(sorted(outcomes, key=lambda one: order.index(one.name) if one.name in order else len(order)))
