"""Facets: the columns of the training rows that have few values, such as their source, and the files they are from.

Shapes: N rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from headwater.examples import Examples

MOST_VALUES = 50
LONGEST = 80
"""Characters of a value; a column with longer ones is no facet."""
NONE = "(none)"
FILE = "file"


@dataclass(frozen=True, kw_only=True)
class Facet:
    """One column.

    Attributes:
        values: the different values as text, most frequent first. counts: rows of each.
        code_N: number of each row's value.
    """

    name: str
    values: tuple[str, ...]
    counts: tuple[int, ...]
    code_N: np.ndarray

    def of(self, row: int) -> str:
        """A row's value."""
        return self.values[int(self.code_N[row])]


def facets(train: Examples) -> tuple[Facet, ...]:
    """The columns of the rows with 2 to MOST_VALUES different short values, by name; also `file`, where rows are from
    several. A row without the column has the value NONE.
    """
    found: dict[str, list[str]] = {}
    seen: dict[str, set[str]] = {}
    refused: set[str] = set()
    for n, row in enumerate(train):
        columns = [(str(name), value) for name, value in row.metadata.items() if str(name) not in refused]
        file = row.source.rpartition(":")[0]
        if FILE not in row.metadata and FILE not in refused and file:
            columns.append((FILE, file))
        for name, value in columns:
            text = _text(value)
            values = seen.setdefault(name, set())
            if text is None or (text not in values and len(values) >= MOST_VALUES):
                refused.add(name)
                found.pop(name, None)
                continue
            values.add(text)
            column = found.setdefault(name, [])
            column += [NONE] * (n - len(column))
            column.append(text)
    made = [_facet(name, [*column, *[NONE] * (len(train) - len(column))]) for name, column in sorted(found.items())]
    return tuple(facet for facet in made if 2 <= len(facet.values) <= MOST_VALUES + 1)


def _text(value: object) -> str | None:
    """A value as text; None where it cannot be a facet's."""
    if value is None or value == "":
        return NONE
    text = value if isinstance(value, str) else str(value) if isinstance(value, bool | int) else None
    return text if text is not None and len(text) <= LONGEST and "\n" not in text else None


def _facet(name: str, column: list[str]) -> Facet:
    counted = Counter(column).most_common()
    number = {value: n for n, (value, _) in enumerate(counted)}
    return Facet(
        name=name,
        values=tuple(value for value, _ in counted),
        counts=tuple(count for _, count in counted),
        code_N=np.fromiter((number[value] for value in column), np.int16, len(column)),
    )
