from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from headwater.errors import DataError
from headwater.examples.files import file_records, format_of, json_records


def records(file: Path, text: str | bytes) -> list[tuple[int, dict[str, Any]]]:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(file_records(file))


def test_format_is_told_by_the_ending() -> None:
    endings = ["a.jsonl", "a.JSON", "a.ndjson", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.v2.csv.gz"]
    assert [format_of(Path(name)) for name in endings] == [
        "json", "json", "json", "csv", "tsv", "parquet", "json", "csv",
    ]  # fmt: skip
    assert [format_of(Path(name)) for name in ("a", "a.txt", "a.gz", "a.parquet.gz", "json")] == [None] * 5


def test_json_lines_keep_their_numbers_over_blank_lines(tmp_path: Path) -> None:
    rows = records(tmp_path / "a.jsonl", '\ufeff{"a": 1}\n\n   \n{"a": 2}\r\n{"a": "\u2028"}')
    assert rows == [(1, {"a": 1}), (4, {"a": 2}), (5, {"a": "\u2028"})]


def test_json_lines_under_the_ending_json(tmp_path: Path) -> None:
    assert records(tmp_path / "a.json", '{"a": 1}\n{"a": 2}\n') == [(1, {"a": 1}), (2, {"a": 2})]


def test_a_json_list_keeps_the_lines_its_rows_start_on(tmp_path: Path) -> None:
    text = '\n[\n  {"a": 1,\n   "b": "x\\ny"}, {"a": 2},\n\n  {"a": 3}\n]\n'
    assert [(line, row["a"]) for line, row in records(tmp_path / "a.json", text)] == [(3, 1), (4, 2), (6, 3)]
    assert records(tmp_path / "a.json", "[]") == []
    dumped = json.dumps([{"a": [1, {"b": "]"}]}, {"a": 2}])
    assert records(tmp_path / "a.json", dumped) == [(1, {"a": [1, {"b": "]"}]}), (1, {"a": 2})]


def test_gzip(tmp_path: Path) -> None:
    assert records(tmp_path / "a.jsonl.gz", gzip.compress(b'\n{"a": 1}\n')) == [(2, {"a": 1})]
    assert records(tmp_path / "a.csv.gz", gzip.compress(b"a\n1\n")) == [(2, {"a": "1"})]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}\n\n{"a": 1\n', "a.jsonl:3: broken JSON (Expecting ',' delimiter, column 1)"),
        ('{"a": 1}\n{"a": 1} {"b"', "a.jsonl:2: broken JSON (Extra data, column 10)"),
        ('{"a": 1}\nwords\n', "a.jsonl:2: broken JSON (Expecting value, column 1)"),
        ('{"a": 1}\n[1]\n', "a.jsonl:2: JSON of type list"),
        ('{"a": 1}\n3\n', "a.jsonl:2: JSON of type int"),
        ("{\n" * 1 + '"a": 1\n}', "a.jsonl:1: broken JSON"),
        ('{"a":' + "[" * 200_000, "a.jsonl:1: broken JSON (nested too deeply"),
        ('[\n{"a": 1},\n{"a" 2}]', "a.jsonl:3: broken JSON (Expecting ':' delimiter)"),
        ('[{"a": 1}\n{"a": 2}]', 'a.jsonl:2: broken JSON (expecting "," or "]")'),
        ('[{"a": 1},\n', "a.jsonl:2: broken JSON (Expecting value)"),
        ('[{"a": 1}]\n{"a": 2}', 'a.jsonl:1: broken JSON (more text after the closing "]")'),
        ('[{"a": 1},\n 3]', "a.jsonl:2: JSON of type int"),
        (b'{"a": 1}\n{"a": "caf\xe9"}\n', "a.jsonl:2: not UTF-8 (byte 11 of the line)"),
        ('{"a": 1}\n'.encode("utf-16"), "a.jsonl:1: not UTF-8"),
    ],
)
def test_broken_json_is_named_by_its_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        records(tmp_path / "a.jsonl", text)


def test_csv_lines_are_those_of_the_file(tmp_path: Path) -> None:
    text = '\ufeffa,b\r\n1,"two\r\nlines ""quoted"", with comma"\r\n\r\n3,\r\n,\r\n'
    assert records(tmp_path / "a.csv", text) == [
        (2, {"a": "1", "b": 'two\r\nlines "quoted", with comma'}),
        (5, {"a": "3", "b": ""}),
    ]


def test_tsv(tmp_path: Path) -> None:
    assert records(tmp_path / "a.tsv", "a\tb\nx, y\t2\n") == [(2, {"a": "x, y", "b": "2"})]


def test_long_cells_are_read_and_the_limit_of_the_process_is_left(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = "x" * (before + 1)
    assert records(tmp_path / "a.csv", f"a\n{long}\n") == [(2, {"a": long})]
    assert csv.field_size_limit() == before


def test_csv_without_rows(tmp_path: Path) -> None:
    assert records(tmp_path / "a.csv", "") == []
    assert records(tmp_path / "a.csv", "a,b\n") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('a,b\n"1\n2",x\n3\n', "a.csv:4: 1 cells; expected 2 cells, as in the header (a, b)"),
        ("a,b\n1,2,3\n", "a.csv:2: 3 cells"),
        ("a,b,a\n1,2,3\n", "column a twice"),
        ('a\n1\n"open\n\n', "a.csv:3: broken CSV (unexpected end of data)"),
        ('a\n"x"y\n', "a.csv:2: broken CSV"),
        (b"a\nb\ncaf\xe9\n", "a.csv:3: not UTF-8 (byte 4 of the line)"),
    ],
)
def test_broken_csv_is_named_by_its_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        records(tmp_path / "a.csv", text)


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [{"a": "x", "b": [{"role": "user", "content": "Q"}]}, {"a": None, "b": []}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(file_records(tmp_path / "a.parquet")) == [(1, rows[0]), (2, rows[1])]


def test_broken_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="not readable as Parquet"):
        records(tmp_path / "a.parquet", b"PAR1 and no more")
    with pytest.raises(DataError, match="no such file"):
        list(file_records(tmp_path / "b.parquet"))


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(json_records(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match="Is a directory"):
        list(json_records(tmp_path))
    with pytest.raises(DataError, match="an ending that is not known"):
        records(tmp_path / "a.txt", "words")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-12], lambda data: b"words", lambda data: data[:20] + b"\xff" * 30]
)
def test_broken_gzip(tmp_path: Path, damage: Any) -> None:
    with pytest.raises(DataError, match="broken gzip data after line"):
        records(tmp_path / "a.jsonl.gz", damage(gzip.compress(b'{"a": 1}\n' * 50)))
