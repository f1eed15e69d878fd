"""Readers: what is written comes back; whatever else lies there is refused by a HeadwaterError, never by another."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from any_values import keys, rows, texts, values
from hypothesis import example, given
from hypothesis import strategies as st

import headwater as hw
from headwater.errors import HeadwaterError
from headwater.examples import Columns, Examples, Query, differing_span, read_queries
from headwater.examples.files import FORMATS
from headwater.scores import query_record

pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=4)


def written(form: str, table: list[dict[str, str]]) -> bytes:
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table).encode()
    if form == "json":
        return json.dumps(table, indent=1).encode()
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(table), sink)
        return sink.getvalue()
    text = io.StringIO()
    writer = csv.DictWriter(text, table[0].keys(), delimiter="," if form == "csv" else "\t", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("packed", [False, True])
@given(found=pairs)
def test_rows_come_back_as_they_were_written(
    form: str, packed: bool, found: list[tuple[str, str]], tmp_path: Path
) -> None:
    if form == "parquet" and packed:
        return
    if form in ("csv", "tsv"):  # a line of empty cells is no row: spreadsheets leave many behind
        found = [pair for pair in found if any(pair)] or [("a", "b")]
    file = tmp_path / (f"rows.{form}" + ".gz" * packed)
    data = written(form, [{"prompt": prompt, "completion": said} for prompt, said in found])
    file.write_bytes(gzip.compress(data) if packed else data)
    examples = hw.read_examples(file)
    assert [(row.prompt, row.completion) for row in examples] == found
    assert len(set(examples.ids)) == len(found)
    assert examples.duplicates == len(found) - len(set(found))


@pytest.mark.parametrize("ending", [*FORMATS, ".jsonl.gz", ".csv.gz"])
@given(data=st.one_of(st.binary(max_size=60), st.text(max_size=40).map(lambda t: t.encode("utf-8", "surrogatepass"))))
@example(data=b"PAR1")
@example(data=b"\xef\xbb\xbf[")
def test_any_bytes_are_rows_or_one_error(ending: str, data: bytes, tmp_path: Path) -> None:
    file = tmp_path / f"rows{ending}"
    file.write_bytes(data)
    try:
        assert len(hw.read_examples(file)) > 0
    except HeadwaterError as error:
        assert "\n" not in str(error) and "Next: " in str(error)


@given(table=rows, prompt=st.none() | keys, text=st.none() | keys, id=st.none() | keys)
def test_any_records_are_rows_or_one_error(
    table: list[Any], prompt: str | None, text: str | None, id: str | None
) -> None:
    try:
        found = Examples.from_rows(table, columns=Columns(prompt=prompt or None, text=text or None, id=id or None))
    except HeadwaterError as error:
        assert "\n" not in str(error)
        return
    assert len(found) == len(table)
    for row in found:
        row.text.encode()  # what a tokenizer needs


@given(
    row=st.fixed_dictionaries({"prompt": texts, "completion": texts}), more=st.dictionaries(st.text(max_size=4), values)
)
def test_other_columns_and_their_order_change_nothing(row: dict[str, Any], more: dict[str, Any]) -> None:
    more = {key: value for key, value in more.items() if key not in ("prompt", "completion", "id")}
    plain, crowded = Examples.from_rows([row])[0], Examples.from_rows([more | dict(reversed(row.items()))])[0]
    assert (plain.prompt, plain.completion, plain.content_hash) == (
        crowded.prompt,
        crowded.completion,
        crowded.content_hash,
    )
    assert dict(crowded.metadata).keys() == more.keys()


@given(
    prompt=values, output=values, corrected=values, span=st.one_of(values, st.tuples(st.integers(), st.integers())),
    group=values, id=values,
)  # fmt: skip
def test_any_values_are_a_query_or_one_error(**given: Any) -> None:
    try:
        query = Query(given.pop("prompt"), given.pop("output"), **given)
    except HeadwaterError as error:
        assert "\n" not in str(error)
        return
    if query.span not in (None, "diff"):
        start, end = query.span  # type: ignore[misc]
        assert 0 <= start < end <= len(query.output or "")


@given(data=st.data())
def test_queries_come_back_as_they_were_written(data: st.DataObject, tmp_path: Path) -> None:
    asked = []
    for number in range(data.draw(st.integers(1, 3))):
        output = data.draw(texts.filter(bool))
        corrected = data.draw(st.none() | texts.filter(lambda t: bool(t) and t != output))  # noqa: B023
        start = data.draw(st.integers(0, len(output) - 1))
        names = st.sampled_from(["auto", "diff", "all"] if corrected else ["auto"])
        span = data.draw(names | st.just((start, data.draw(st.integers(start + 1, len(output))))))
        given = {"corrected": corrected, "span": span, "group": data.draw(st.none() | texts), "id": f"q{number}"}
        asked.append(Query(data.draw(texts), output, **given))  # type: ignore[arg-type]
    file = tmp_path / "queries.jsonl"
    file.write_text("".join(json.dumps(query_record(query)) + "\n" for query in asked), "utf-8")
    assert read_queries(file) == asked


@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(["prompt", "output", "corrected", "span", "id", "group", "x"]), values)
    )
)
def test_any_file_of_queries_is_read_or_one_error(rows: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "queries.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    try:
        assert len(read_queries(file)) == len(rows)
    except HeadwaterError as error:
        assert "\n" not in str(error)


words = st.lists(st.sampled_from(["a", "b", "ça", "1.5", ",", "don't"]), max_size=6)


@given(some=words, others=words)
def test_outside_the_differing_span_both_say_the_same(some: list[str], others: list[str]) -> None:
    one, other = " ".join(some), " ".join(others)
    (start, end), (first, last) = differing_span(one, other)
    assert 0 <= start <= end <= len(one) and 0 <= first <= last <= len(other)
    assert one[:start].split() == other[:first].split()
    assert one[end:].split() == other[last:].split()
    assert differing_span(other, one) == ((first, last), (start, end))
    if one == other:
        assert (start, first) == (end, last)
