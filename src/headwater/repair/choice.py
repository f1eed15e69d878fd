"""Which rows are to be removed, or to be said otherwise.

Rows of several questions are taken in turn: the best row of each, then the second of each, each row once. So the first
k rows are among the first k + 1, which bisection needs, and k counts rows, whatever the number of questions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headwater.errors import DataError, UsageError
from headwater.examples import Examples
from headwater.repair.rows import Completion
from headwater.scores import Scores


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Exactly one of `top`, `standing_out`, `q` and `ids`; or corrections alone, then the corrected rows are meant.

    Attributes:
        top: the first k rows of a trace.
        standing_out: the rows of a trace that stand out (`Scores.standing_out`).
        q: the rows of a trace made with placebo rows whose q-value is at most this.
        ids: these rows, the likeliest first.
        corrections: id -> the completion that it should have had. A chosen row with a correction gets it; a chosen row
            without one is removed.
        target: one query or group of the trace; by default every group, and every query that has none.
    """

    top: int | None = None
    standing_out: bool = False
    q: float | None = None
    ids: tuple[str, ...] = ()
    corrections: Mapping[str, Completion] = field(default_factory=dict)
    target: str | None = None

    def __post_init__(self) -> None:
        ways = [self.top is not None, self.standing_out, self.q is not None, bool(self.ids)]
        if sum(ways) > 1 or not (any(ways) or self.corrections):
            raise UsageError(
                f"{sum(ways) or 'no'} ways to choose rows",
                expected="one: the first k, those that stand out, a q-value, ids, or corrections alone",
                fix="give --top 20, for one",
            )
        if self.top is not None and self.top < 1:
            raise UsageError(f"the first {self.top} rows", expected="at least 1", fix="choose more")
        if self.q is not None and not 0 < self.q < 1:
            raise UsageError(f"a q-value of {self.q:g}", expected="above 0 and below 1", fix="give --q 0.05, for one")
        twice = len(set(self.ids)) < len(self.ids)
        if twice:
            raise DataError("an id is given twice", expected="each row once", fix="leave the second one out")

    @property
    def needs_scores(self) -> bool:
        """Whether a trace decides."""
        return self.top is not None or self.standing_out or self.q is not None

    def rows(self, train: Examples, scores: Scores | None) -> tuple[str, ...]:
        """Ids of the chosen rows, best first.

        Raises:
            UsageError: scores are needed and missing, or have no q-values. DataError: no row, or rows that are not
                there.
        """
        known = set(train.ids)
        for name, wanted in (("the rows chosen", self.ids), ("the corrections", tuple(self.corrections))):
            missing = [one for one in wanted if one not in known]
            if missing:
                raise DataError(
                    f"{len(missing)} of {len(wanted)} ids of {name} are not in {train.name} ({missing[0]!r} for one)",
                    expected="ids of training rows: their own id, or file:line",
                    fix="check the ids; headwater trace prints them",
                )
        if not self.needs_scores:
            return self.ids or tuple(one for one in train.ids if one in self.corrections)
        if scores is None:
            raise UsageError(
                "no trace to choose rows from", expected="a finished trace", fix="give its folder, or ids of rows"
            )
        found = ranked_rows(scores, self.target) if self.top is not None else self._significant(scores)
        if not found:
            raise DataError(
                f"no row of the trace {'stands out' if self.standing_out else f'has a q-value up to {self.q:g}'}",
                expected="at least one row to remove",
                cause="no row is responsible by more than chance, or too few rows are",
                fix="look at the report; give --top to remove the first rows all the same",
            )
        return tuple(found[: self.top])

    def _significant(self, scores: Scores) -> list[str]:
        held: set[str] = set()
        for target in fault_targets(scores, self.target):
            if self.standing_out:
                held |= {scores.train[i].id for i in scores.standing_out(target)}
                continue
            q_N = scores.q_values(target)
            if q_N is None:
                raise UsageError(
                    "q-values of a trace without placebo rows",
                    expected="a trace made with --placebo",
                    fix="trace with --placebo, or choose by --standing-out or --top",
                )
            held |= {scores.train[int(i)].id for i in np.flatnonzero(q_N <= float(self.q or 0))}
        return [one for one in ranked_rows(scores, self.target) if one in held]


def fault_targets(scores: Scores, target: str | None = None) -> list[str]:
    """The questions that are answered for: the one given; else every group, and every query that has none."""
    if target is not None:
        return [scores.targets[scores.target_number(target)].name]
    grouped = {q for t in scores.targets if t.kind == "group" for q in t.members}
    return [t.name for t in scores.targets if t.kind == "group" or t.members[0] not in grouped]


def ranked_rows(scores: Scores, target: str | None = None) -> list[str]:
    """Ids of all rows, best first; of several questions in turn."""
    numbers = [scores.target_number(name) for name in fault_targets(scores, target)]
    return in_turn(scores.values[numbers], scores.train)


def in_turn(score_RN: np.ndarray, train: Examples) -> list[str]:
    """Ids of all rows by their best rank for any question. Ties: the question of the smaller number, the first row."""
    order_RN = np.argsort(-score_RN, axis=1, kind="stable")
    return list(dict.fromkeys(train[i].id for i in order_RN.T.ravel().tolist()))


def read_ids(file: Path) -> tuple[str, ...]:
    """Ids of a file: one a line, or JSON lines with the key "id".

    Raises:
        DataError: a file that cannot be read, or without ids.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} cannot be read ({error})", expected="a text file with an id a line", fix="check the path"
        ) from error
    found = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text.startswith("{"):
            record = _object(text)
            if not isinstance(record.get("id"), str | int):
                raise DataError(f"{file.name}:{number}: no id", expected='an object with the key "id"', fix="add it")
            text = str(record["id"])
        if text:
            found.append(text)
    if not found:
        raise DataError(f"{file}: no ids", expected="an id a line", fix="check the file")
    return tuple(dict.fromkeys(found))


def _object(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read_corrections(file: Path, train: Examples) -> dict[str, Completion]:
    """Id -> completion, of JSON lines: {"id", "completion"}; or {"prompt", "completion"}, which corrects every row of
    that prompt; or one object that maps ids to completions.

    Raises:
        DataError: a file that cannot be read, a line without these keys, a prompt that no row has, a row twice.
    """
    from headwater.examples.files import json_records

    records = list(json_records(file))
    if len(records) == 1 and not {"id", "prompt", "completion"} & set(records[0][1]):
        return {str(name): _completion(value, f"{file.name}:1") for name, value in records[0][1].items()}
    by_prompt: dict[Any, list[str]] = {}
    for row in train:
        by_prompt.setdefault(_prompt_key(row.prompt), []).append(row.id)
    found: dict[str, Completion] = {}
    for line, record in records:
        where = f"{file.name}:{line}"
        if "completion" not in record or not {"id", "prompt"} & set(record):
            raise DataError(
                f"{where}: the keys {', '.join(record) or '(none)'}",
                expected='"id" and "completion", or "prompt" and "completion"',
                fix="write every line so",
            )
        ids: Sequence[str] = [str(record["id"])] if "id" in record else by_prompt.get(_prompt_key(record["prompt"]), [])
        if not ids:
            raise DataError(
                f"{where}: no row of {train.name} has this prompt", expected="the prompt of a row", fix="give its id"
            )
        for one in ids:
            if one in found:
                raise DataError(f"{where}: {one} is corrected twice", expected="once", fix="leave one of them out")
            found[one] = _completion(record["completion"], where)
    if not found:
        raise DataError(f"{file}: no corrections", expected="at least one line", fix="check the file")
    return found


def _prompt_key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps([dict(m) for m in prompt], sort_keys=True)


def _completion(value: Any, where: str) -> Completion:
    turns = isinstance(value, list) and value and all(isinstance(one, dict) for one in value)
    if not (isinstance(value, str) and value) and not turns:
        raise DataError(
            f"{where}: a completion of type {type(value).__name__}",
            expected="a text, or a list of messages",
            fix="write the completion out, leading space included, as it stands in training rows",
        )
    return value if isinstance(value, str) else tuple(value)
