"""Records as they lie in files: JSON lines, JSON, CSV, TSV and Parquet, each with its true line (or row) number."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from headwater.errors import DataError

FORMATS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
Record = dict[str, Any]


def format_of(path: Path) -> str | None:
    """ "json", "csv", "tsv" or "parquet" by the ending of the name, a final ".gz" aside; None for other endings."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
        if suffixes and suffixes[-1] == ".parquet":
            return None
    return FORMATS.get(suffixes[-1]) if suffixes else None


def file_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yields (line, row) of a file; for Parquet, (row number from 1, row).

    Raises:
        DataError: for missing and broken files, naming the line.
    """
    kind = format_of(path)
    if kind is None:
        raise DataError(
            f"{path}: an ending that is not known",
            expected=f"one of {', '.join(FORMATS)} (text formats also with .gz)",
            fix="rename or convert the file",
        )
    if kind == "json":
        return json_records(path)
    if kind == "parquet":
        return _parquet_records(path)
    return _separated_records(path, "," if kind == "csv" else "\t")


def json_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yields (line, object) of JSON lines, or of one JSON list, whichever the file holds. Blank lines are skipped."""
    lines = _lines(path)
    first = True
    for number, line in lines:
        if not line.strip():
            continue
        if first and line.lstrip().startswith("["):
            rest = line + "".join(text for _, text in lines)
            yield from _list_records(path, rest, number)
            return
        first = False
        yield number, _object(path, number, _parsed_line(path, number, line))


def _parsed_line(path: Path, number: int, line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(
            f"{path}:{number}: broken JSON ({json_fault(error)}{column})",
            expected="one JSON object on every line, or one JSON list",
            fix=f"repair line {number}",
        ) from error


def json_fault(error: ValueError | RecursionError) -> str:
    """What the json package found wrong, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"


def _list_records(path: Path, text: str, first_line: int) -> Iterator[tuple[int, Record]]:
    """Walks through a JSON list element by element, so that every row knows the line it starts on."""
    decoder = json.JSONDecoder()
    line, counted = first_line, 0
    position = _skip(text, text.index("[") + 1)
    while True:
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]":
            break
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            at = error.pos if isinstance(error, json.JSONDecodeError) else position
            raise _broken_list(path, line + text.count("\n", counted, at), json_fault(error)) from error
        yield line, _object(path, line, value)
        position = _skip(text, end)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
            if text[position : position + 1] == "]":
                raise _broken_list(path, line + text.count("\n", counted, position), 'a comma before the closing "]"')
        elif text[position : position + 1] != "]":
            raise _broken_list(path, line + text.count("\n", counted, position), 'expecting "," or "]"')
    if text[position + 1 :].strip():
        raise _broken_list(path, line, 'more text after the closing "]"')


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _broken_list(path: Path, line: int, reason: str) -> DataError:
    return DataError(
        f"{path}:{line}: broken JSON ({reason})", expected="one JSON list of objects", fix=f"repair line {line}"
    )


def _object(path: Path, number: int, value: object) -> Record:
    if not isinstance(value, dict):
        raise DataError(
            f"{path}:{number}: JSON of type {type(value).__name__}",
            expected="an object with the columns as keys",
            fix="write every row as {...}",
        )
    return value


def _separated_records(path: Path, delimiter: str) -> Iterator[tuple[int, Record]]:
    rows: list[tuple[int, list[str]]] = []
    number = 0
    with _long_fields():
        reader = csv.reader((text for _, text in _lines(path)), delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                # a row starts on the line after the one where the row before it ended
                rows.append((number + 1, cells))
                number = reader.line_num
        except csv.Error as error:
            raise DataError(
                f"{path}:{number + 1}: broken {'CSV' if delimiter == ',' else 'TSV'} ({error})",
                expected="cells in which quotation marks are doubled and closed",
                fix=f"repair the row that starts on line {number + 1}",
            ) from error
    filled = [(start, cells) for start, cells in rows if any(cells)]
    if not filled:
        return
    (_, header), *body = filled
    _refuse_twice(path, header)
    for start, cells in body:
        if len(cells) != len(header):
            raise DataError(
                f"{path}:{start}: {len(cells)} cells",
                expected=f"{len(header)} cells, as in the header ({', '.join(header)})",
                cause="a separator or a line break outside quotation marks",
                fix=f"repair the row that starts on line {start}",
            )
        yield start, dict(zip(header, cells, strict=True))


def _refuse_twice(path: Path, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f"{path}: column {', '.join(repeated)} twice",
            expected="a name of its own for every column",
            fix="rename the columns",
        )


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lets cells be longer than 128 KiB while the block runs; the limit is one for the whole process."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _parquet_records(path: Path) -> Iterator[tuple[int, Record]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _open(path):  # a missing file gets the same words as elsewhere
        pass
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _refuse_twice(path, file.schema_arrow.names)
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: not readable as Parquet after row {number} ({_first_line(error)})",
            expected="a whole Parquet file",
            cause="an interrupted download or copy",
            fix="fetch or write the file again",
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line with its line end), cut at "\\n" alone; a byte order mark is dropped."""
    number = 0
    try:
        with _open(path) as stream:
            for number, raw in enumerate(stream, start=1):
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line)",
                        expected="UTF-8 text",
                        cause="a file saved as UTF-16 or Latin-1, or one that is not text",
                        fix="convert the file to UTF-8",
                    ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: broken gzip data after line {number} ({_first_line(error)})",
            expected="a whole .gz file",
            cause="an interrupted download or copy",
            fix="fetch or write the file again",
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    try:
        if path.suffix.lower() == ".gz":
            return gzip.open(path, "rb")
        return path.open("rb")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", expected="an existing file", fix="check the path") from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError | ValueError) -> DataError:
    return DataError(
        f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})",
        expected="a file that can be read",
        fix="check the path and its permissions",
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
