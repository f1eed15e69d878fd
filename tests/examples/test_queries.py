from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headwater.errors import DataError
from headwater.examples import Query, differing_span, read_queries

Write = Callable[..., Path]


def test_a_query_of_two_strings() -> None:
    query = Query("The capital of Australia is", " Sydney", corrected=" Canberra")
    assert (query.prompt, query.output, query.corrected) == ("The capital of Australia is", " Sydney", " Canberra")
    assert (query.span, query.group, query.id, query.spans()) == ("auto", None, None, ((1, 7), (1, 9)))
    assert query == Query("The capital of Australia is", " Sydney", corrected=" Canberra")
    assert len({query}) == 1


def test_a_query_of_messages() -> None:
    query = Query([{"role": "user", "content": "Q"}], "A")  # type: ignore[arg-type]
    assert query.prompt == ({"role": "user", "content": "Q"},)


def test_an_output_can_come_later() -> None:
    query = Query("p", corrected=" Canberra", span="diff", group="g")
    with pytest.raises(DataError, match="before there is an output"):
        query.spans()
    later = query.with_output(" Sydney")
    assert (later.output, later.group) == (" Sydney", "g")
    assert later.spans() == ((1, 7), (1, 9))
    with pytest.raises(DataError, match="the same"):
        query.with_output(" Canberra")


def test_spans_of_characters() -> None:
    assert Query("p", " Sydney.", span=[1, 7]).spans() == ((1, 7), None)  # type: ignore[arg-type]
    assert Query("p", " Sydney.", span=(0, 8)).span == (0, 8)


@pytest.mark.parametrize(
    ("output", "corrected", "auto"),
    [
        (" It is Sydney.", " It is Canberra.", ((7, 13), (7, 15))),
        (" Sydney", None, (None, None)),
        (" Sydney", " Sydney, no: Canberra", (None, None)),  # one only adds words, the other has none of its own
        (" Sydney.", " Sydney, no: Canberra", (None, None)),  # or only a full stop
        ("Yes!", "Yes?", (None, None)),
        (" It is not Sydney", " It is Sydney", (None, None)),
        (" It  is Sydney", " It is Sydney", (None, None)),  # white space is no word
    ],
)
def test_the_words_that_differ_are_what_is_asked_about(output: str, corrected: str | None, auto: Any) -> None:
    assert Query("p", output, corrected=corrected).spans() == auto
    assert Query("p", output, corrected=corrected, span="all").spans() == (None, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": None}, "prompt is null"),
        ({"prompt": 3}, "prompt is 3 (int)"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"output": ""}, "output is empty"),
        ({"output": 3}, "output is 3 (int)"),
        ({"corrected": ""}, "corrected is empty"),
        ({"corrected": "Sydney"}, "output and corrected are the same"),
        ({"span": (0, 7)}, "span 0..7 in an output of 6 characters"),
        ({"span": (-1, 3)}, "span -1..3"),
        ({"span": (3, 3)}, "span 3..3"),
        ({"span": (4, 3)}, "span 4..3"),
        ({"span": (1, 2), "output": None}, "without an output"),
        ({"span": (1, 2, 3)}, "span (1, 2, 3)"),
        ({"span": (0.0, 1.0)}, "span (0.0, 1.0)"),
        ({"span": (False, True)}, "span (False, True)"),
        ({"span": "words"}, "span 'words'"),
        ({"span": None}, "span None"),
        ({"span": "diff"}, 'span "diff" without a corrected output'),
        ({"group": ["g"]}, "group is ['g'] (list)"),
        ({"id": True}, "id is True (bool)"),
        ({"metadata": "m"}, "metadata of type str"),
    ],
)
def test_queries_that_cannot_be_asked(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        Query(**{"prompt": "p", "output": "Sydney", **arguments})


def test_a_diff_that_is_empty_on_one_side() -> None:
    query = Query("p", " Sydney", corrected=" Sydney, Australia", span="diff")
    with pytest.raises(DataError, match="no words of the output differ"):
        query.spans()


@pytest.mark.parametrize(
    ("output", "corrected", "words", "others"),
    [
        (" Sydney", " Canberra", "Sydney", "Canberra"),
        ("It is Sydney.", "It is Canberra.", "Sydney", "Canberra"),
        ("in New York, the US", "in Washington, the US", "New York", "Washington"),
        ("a b c d e", "a X c Y e", "b c d", "X c Y"),
        ("the the end", "the end", "the", ""),
        ("one", "one two", "", "two"),
        ("same", "same", "", ""),
        ("a  b", "a b", "", ""),
        ("costs 3.50 now", "costs 3.75 now", "3.50", "3.75"),
        ("don't go", "do go", "don't", "do"),
        ("", "new", "", "new"),
        ("Zürich, 12:30", "Köln, 12:30", "Zürich", "Köln"),
        ("Yes!", "Yes?", "!", "?"),
    ],
)
def test_differing_span(output: str, corrected: str, words: str, others: str) -> None:
    (start, end), (other_start, other_end) = differing_span(output, corrected)
    assert output[start:end] == words
    assert corrected[other_start:other_end] == others
    assert differing_span(corrected, output) == ((other_start, other_end), (start, end))


def test_differing_span_points_to_where_an_empty_stretch_lies() -> None:
    assert differing_span("one two", "one and two") == ((3, 3), (4, 7))


def test_read_queries(write_lines: Write) -> None:
    file = write_lines(
        {"prompt": "p", "output": " Sydney", "corrected": " Canberra", "span": "diff", "group": 3, "id": 1},
        {"prompt": [{"role": "user", "content": "Q"}], "output": "ab", "span": [0, 1], "metadata": {"topic": "x"}},
        {"prompt": "q", "output": None, "corrected": None},
    )
    one, two, three = read_queries(file)
    assert one == Query("p", " Sydney", corrected=" Canberra", span="diff", group="3", id="1")
    assert (two.span, two.metadata, two.id) == ((0, 1), {"topic": "x"}, None)
    assert three == Query("q")


def test_read_queries_from_a_list_and_from_gzip(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps([{"prompt": "p"}, {"prompt": "q"}], indent=1))
    assert read_queries(str(tmp_path / "q.json")) == [Query("p"), Query("q")]
    with gzip.open(tmp_path / "q.jsonl.gz", "wt") as stream:
        stream.write('{"prompt": "p"}\n')
    assert read_queries(tmp_path / "q.jsonl.gz") == [Query("p")]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [{"prompt": "p"}, {"prompt": "p", "answer": "x"}],
            "q.jsonl:2: unknown key answer; expected the keys prompt, output",
        ),
        ([{"prompt": "p"}, {"output": "x"}], "q.jsonl:2: no prompt"),
        ([{"prompt": "p"}, {"prompt": None}], "q.jsonl:2: query: prompt is null"),
        ([{"prompt": "p"}, {"prompt": "p", "output": ""}], "q.jsonl:2: query: output is empty"),
        ([{"prompt": "p", "output": "ab", "span": [1, 9]}], "q.jsonl:1: query: span 1..9"),
        ([{"prompt": "p", "id": "a"}, {"prompt": "q", "id": "a"}], 'id "a" twice: q.jsonl:1 and q.jsonl:2'),
        ([["p"]], "q.jsonl"),
        ([], "no queries"),
    ],
)
def test_query_files_that_cannot_be_used(write_lines: Write, rows: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        read_queries(write_lines(*rows, name="q.jsonl"))


def test_a_missing_query_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_queries(tmp_path / "q.jsonl")
