"""The training rows after a repair: some removed, some with another completion; in memory, and as a file in the form of
the user's own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from headwater.errors import DataError
from headwater.examples import Columns, Example, Examples, TemplateChoice
from headwater.examples.conventions import Convention, convention_of
from headwater.examples.files import file_records, format_of
from headwater.run import write_whole

Completion = str | tuple[Mapping[str, Any], ...]
"""A text, or messages. For rows of whole conversations a text is the last turn of the assistant."""


def repaired_rows(train: Examples, removed: Collection[str], corrections: Mapping[str, Completion]) -> Examples:
    """The rows in their order, without those removed and with the corrected completions.

    Raises:
        DataError: no row is left, a completion that does not fit its row, or one that changes nothing.
    """
    gone = set(removed)
    kept = [
        _corrected(row, corrections[row.id]) if row.id in corrections else row for row in train if row.id not in gone
    ]
    if not kept:
        raise DataError("no row is left to train on", expected="at least one", fix="remove fewer rows")
    return Examples(kept, name=train.name, template=train.template)


def _corrected(row: Example, completion: Completion) -> Example:
    record = _set_completion(_canonical(row), _COLUMNS[row.kind], completion, row.id)
    made = convention_of(record, _COLUMNS_OF[row.kind], "auto", row.source).example(record, row.source)
    if made.content_hash == row.content_hash:
        raise DataError(
            f"the correction of {row.id} is what the row says already",
            expected="another completion",
            fix="leave it out",
        )
    return replace(made, id=row.id, metadata=row.metadata)


_COLUMNS = {"completion": "completion", "chat": "completion", "messages": "messages", "text": "text"}
_PAIR = Columns(prompt="prompt", completion="completion")
_COLUMNS_OF = {
    "completion": _PAIR, "chat": _PAIR, "messages": Columns(messages="messages"), "text": Columns(text="text"),
}  # fmt: skip


def _canonical(row: Example) -> dict[str, Any]:
    """The row as one line of a JSONL file."""
    contents: dict[str, Any] = {"prompt": row.prompt, "completion": row.completion}
    if row.kind in ("messages", "text"):
        contents = {row.kind: row.completion}
    plain = {k: v if isinstance(v, str) else [dict(turn) for turn in v] for k, v in contents.items()}
    return {**row.metadata, "id": row.id, **plain}


def _set_completion(record: Mapping[str, Any], column: str, completion: Completion, name: str) -> dict[str, Any]:
    """The record with another completion, in the shape that its old one has."""
    old = record[column]
    text = isinstance(old, str) and not (column in ("messages", "conversations") and old.lstrip().startswith("["))
    if isinstance(completion, str):
        if text:
            return {**record, column: completion}
        turns = json.loads(old) if isinstance(old, str) else [dict(turn) for turn in old]
        said = [turn for turn in turns if turn.get("role", turn.get("from")) in ("assistant", "gpt")]
        if not said:
            raise DataError(
                f"a correction of {name}, a conversation without a turn of the assistant",
                expected="a turn to correct",
                fix="give the whole conversation as a list of messages",
            )
        said[-1]["content" if "content" in said[-1] else "value"] = completion
        return {**record, column: json.dumps(turns, ensure_ascii=False) if isinstance(old, str) else turns}
    if text:
        raise DataError(
            f"a correction of {name} as messages, where the row has a text", expected="a text", fix="write it as a text"
        )
    turns = [dict(turn) for turn in completion]
    return {**record, column: json.dumps(turns, ensure_ascii=False) if isinstance(old, str) else turns}


# ------------------------------------------------------------------------------------------------ the file


def write_rows(
    rows: Examples,
    corrections: Mapping[str, Completion],
    folder: Path,
    *,
    like: Path | None = None,
    columns: Columns | None = None,
    template: TemplateChoice = "auto",
) -> Path:
    """Writes rows for a training program, and returns the file.

    With `like`, the single file that the rows were read from, the new one has its name, its format and its columns, and
    every record stands in it as it stood there, but for corrected completions. Else it is JSONL of prompt and
    completion, messages or text.

    Raises:
        DataError: `like` is not the file that the rows come from.
    """
    if like is None:
        file = folder / "train.jsonl"
        write_whole(file, _json_lines([_canonical(row) for row in rows]))
        return file
    wanted = {row.id: row for row in rows}
    records: list[dict[str, Any]] = []
    convention: Convention | None = None
    for line, record in file_records(like):
        source = f"{like.name}:{line}"
        convention = convention or convention_of(record, columns, template, source)
        row = wanted.pop(convention.example(record, source).id, None)  # a JSON list has its rows on one line
        if row is None:
            continue
        if row.id in corrections:
            record = _set_completion(record, _completion_column(convention), corrections[row.id], row.id)
        records.append(record)
    if wanted:
        raise DataError(
            f"{len(wanted)} training rows are not in {like} ({next(iter(wanted))} for one)",
            expected="the file that the rows were read from",
            fix="give that file",
        )
    file = folder / like.name.removesuffix(".gz")
    write_whole(file, _written(records, like))
    return file


def _completion_column(convention: Convention) -> str:
    return convention.used[{"pair": 1, "alpaca": 2}.get(convention.form, 0)]


def _json_lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def _written(records: list[dict[str, Any]], like: Path) -> bytes:
    """The records as the bytes of a file of the same format."""
    kind = format_of(like)
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(records, schema=pq.read_schema(like)), sink)
        return bytes(sink.getvalue().to_pybytes())
    if kind in ("csv", "tsv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(records[0]), delimiter="," if kind == "csv" else "\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue().encode()
    if like.name.removesuffix(".gz").lower().endswith(".json"):
        return json.dumps(records, ensure_ascii=False, indent=1).encode()
    return _json_lines(records)
