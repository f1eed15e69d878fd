"""Files to take away: marked rows, the rows of a view."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import Any

from headwater.examples import Examples
from headwater.report.contents import terms
from headwater.report.ranking import Ranking
from headwater.report.visible import visible
from headwater.viewer.marks import Marks

MOST_ROWS = 100_000
"""Of an exported view."""
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""With these a spreadsheet takes a text for a formula."""


def marked_lines(marks: Marks, action: str) -> str:
    """JSON lines of the rows to "drop" or to "fix", or of all "marks": as headwater repair reads them."""
    lines = [json.dumps(mark) for mark in marks.rows.values() if action in (mark["action"], "marks")]
    return "".join(f"{line}\n" for line in lines)


def records(
    ranking: Ranking, rows: Sequence[int], train: Examples, marks: Marks, numbers: Sequence[int] | None
) -> Iterator[dict[str, Any]]:
    """The rows of a view, all that is known of each.

    Args:
        numbers: of the rows of `train` among all rows of the data; None: their own.
    """
    scores, r, q_N, marked = ranking.scores, ranking.target, ranking.q_N, marks.rows
    names = terms(scores)
    for n in rows:
        number = ranking.number(n)
        row = train[number]
        yield {
            "rank": int(ranking.rank_N[n]),
            "row": number if numbers is None else numbers[number],
            "id": row.id,
            "source": row.source,
            "content_hash": row.content_hash,
            "score": float(ranking.score_N[n]),
            "percentile": 100 * (scores.rows - ranking.above(n)) / scores.rows,
            "deviations": float(ranking.deviations_N[n]),
            "q": None if q_N is None else float(q_N[n]),
            "stands_out": bool(ranking.rank_N[n] <= ranking.out),
            "mark": marked.get(number, {}).get("action"),
            **{f"{scores.method}/{name}": float(scores.terms[name][r, n]) for name in names},
            "prompt": row.prompt_text,
            "completion": row.completion_text,
        }


def json_lines(found: Iterator[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each."""
    for record in found:
        yield json.dumps(record, ensure_ascii=True) + "\n"


def csv_lines(found: Iterator[Mapping[str, Any]]) -> Iterator[str]:
    """A table, for people: its texts are made visible, and one that a spreadsheet would take for a formula gets an
    apostrophe in front. JSON lines are faithful."""
    for number, record in enumerate(found):
        buffer = StringIO()
        writer = csv.writer(buffer)
        if not number:
            writer.writerow(record)
        writer.writerow([_cell(value) for value in record.values()])
        yield buffer.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return "" if value is None else value
    text = visible(value)
    return f"'{text}" if text.startswith(_FORMULAS) else text
