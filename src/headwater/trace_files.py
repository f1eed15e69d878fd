"""The files of a finished trace as they come back: read, checked, and refused in one line where they are damaged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwater.errors import RunError
from headwater.examples import Examples
from headwater.records import Rule, among, fault, maybe, number, parsed, record, text, whole

FORMAT = 1
"""Of trace.json."""

LEANING = ("query", "checkpoint", "output", "corrected")
_MANIFEST = {
    "rows": whole(1),
    "targets": [{"name": text, "kind": among("query", "group"), "queries": [whole(0)]}],
    "queries": [record],
    "methods": [{"name": text, "weights": record}],
    "leanings": [{"query": text, "checkpoint": text, "output": number, "corrected": maybe(number)}],
    "provenance": record,
}
_WORDS = [Rule("a word and a number", lambda v: isinstance(v, list) and len(v) == 2 and number.holds(v[1]))]
_ROW_WORDS = [
    {"target": whole(0), "row": whole(0), "words": _WORDS, "asked": [{"query": text, "side": text, "words": _WORDS}]}
]
_AGAIN = "trace again into a new folder"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The trace.json of a finished trace.

    Raises:
        RunError: there is none, or it is damaged.
    """
    file = folder / "trace.json"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RunError(
            f"{folder} holds no finished trace ({error.strerror or error})",
            expected="a folder with a trace.json",
            cause="the trace was interrupted",
            fix="run the same command again: it goes on where it stopped",
        ) from None
    message = {"what": "the manifest of a finished trace", "fix": _AGAIN}
    manifest: dict[str, Any] = parsed(data, file, {"format": whole(0)}, **message)
    if manifest["format"] != FORMAT:
        raise RunError(
            f"{file}: format {manifest['format']}",
            expected=f"format {FORMAT}",
            cause="a trace of another version of headwater",
            fix=_AGAIN,
        )
    parsed(data, file, _MANIFEST, **message)
    said = _contradiction(manifest)
    if said:
        raise damaged(file, said)
    return manifest


def _contradiction(manifest: Mapping[str, Any]) -> str | None:
    """What in a manifest does not fit together."""
    for key in ("targets", "queries", "methods"):
        if not manifest[key]:
            return f"no {key}"
    names = [target["name"] for target in manifest["targets"]]
    if len(set(names)) < len(names):
        return "two targets of one name"
    if any(q >= len(manifest["queries"]) for target in manifest["targets"] for q in target["queries"]):
        return "a target of a query that is not there"
    for method in manifest["methods"]:
        for term, weight in method["weights"].items():
            if not number.holds(weight):
                return f"the weight {weight!r} of {term}"
    scored = manifest.get("scored_rows", manifest["rows"])
    return None if whole(manifest["rows"]).holds(scored) else f"scored_rows {scored!r}"


class Table:
    """A Parquet file of a trace.

    Args:
        rows: how many it must have.

    Raises:
        RunError: here and in every method: the file is damaged, or a column missing or of another type.
    """

    def __init__(self, file: Path, rows: int | None = None) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._file = file
        try:
            self._table = pq.ParquetFile(file).read()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise damaged(file, (str(error).splitlines() or [""])[0][:160]) from None
        if rows is not None and len(self._table) != rows:
            raise damaged(file, f"{len(self._table)} lines, not {rows}")

    @property
    def names(self) -> list[str]:
        return list(self._table.column_names)

    @property
    def rows(self) -> int:
        return len(self._table)

    def texts(self, name: str) -> list[Any]:
        return list(self._column(name).to_pylist())

    def numbers(self, name: str) -> np.ndarray:
        """A column of finite numbers."""
        import pyarrow as pa

        column = self._column(name)
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)) or column.null_count:
            raise damaged(self._file, f"column {name} of {column.type} with {column.null_count} nulls")
        found: np.ndarray = column.to_numpy()
        if not np.isfinite(found).all():
            raise damaged(self._file, f"column {name} holds NaN or infinity")
        return found

    def stacked(self, names: Sequence[str]) -> np.ndarray:
        """Columns of finite numbers, one below the other [names, rows]."""
        return np.stack([self.numbers(name) for name in names])

    def terms(self, method: str, weights: Iterable[str], targets: int) -> dict[str, np.ndarray]:
        """Term name -> its values [targets, rows of each], of a table with a line for each target and row; at least
        those that have weights."""
        prefix = f"{method}/"
        kept = [name.removeprefix(prefix) for name in self.names if name.startswith(prefix)]
        return {name: self.numbers(prefix + name).reshape(targets, -1) for name in dict.fromkeys([*kept, *weights])}

    def rows_of(self, train: Examples, count: int) -> Examples:
        """Of all rows of the training data those that the first `count` lines name."""
        numbers = self.numbers("row")[:count].astype(np.int64)
        if count and not 0 <= numbers.min() <= numbers.max() < len(train):
            raise damaged(self._file, f"a row that is none of {len(train)}")
        return Examples([train[n] for n in numbers.tolist()], name=train.name, template=train.template)

    def _column(self, name: str) -> Any:
        if self.names.count(name) != 1:
            raise damaged(self._file, f"no column {name}")
        return self._table.column(name)


def damaged(file: Path, why: str) -> RunError:
    return RunError(
        f"{file} cannot be read ({why})",
        expected="the file as the trace wrote it",
        cause="damage, or a change by hand",
        fix=_AGAIN,
    )


def read_words(file: Path, method: str, targets: int, rows: int) -> list[dict[str, Any]]:
    """The records of words.json of a method; none where there is no such file.

    Raises:
        RunError: it is damaged, or speaks of other targets and rows.
    """
    if not file.exists():
        return []
    try:
        data = file.read_bytes()
    except OSError as error:
        raise damaged(file, error.strerror or str(error)) from None
    message = {"what": "the words that a trace wrote", "fix": _AGAIN}
    found = parsed(data, file, record, **message).get(method, [])
    said = fault(found, _ROW_WORDS, method)
    if said is None and any(one["target"] >= targets or one["row"] >= rows for one in found):
        said = "a target or row that the scores do not have"
    if said:
        raise damaged(file, said)
    return list(found)
