from __future__ import annotations

import pickle
import re
from dataclasses import replace

import pytest

from headwater.errors import DataError
from headwater.examples import Columns, Examples

ROWS = [{"prompt": f"p{number}", "completion": "c", "id": f"r{number}"} for number in range(5)]


def test_a_sequence_of_rows() -> None:
    examples = Examples.from_rows(ROWS, name="five")
    assert len(examples) == 5
    assert [row.id for row in examples] == examples.ids == ["r0", "r1", "r2", "r3", "r4"]
    assert examples[-1].prompt == "p4"
    assert (examples.name, examples.kind, examples.template) == ("five", "completion", "plain")
    assert examples[2] in examples
    assert repr(examples) == 'Examples("five", 5 rows of kind "completion", template "plain")'


def test_a_slice_is_examples_with_the_same_template() -> None:
    examples = Examples.from_rows([{"instruction": "i", "output": str(n)} for n in range(4)], name="four")
    part = examples[1:3]
    assert isinstance(part, Examples)
    assert part.ids == ["four:2", "four:3"]
    assert (part.name, part.template) == ("four", "alpaca")
    with pytest.raises(DataError, match="no rows"):
        examples[4:]


def test_examples_are_made_of_examples() -> None:
    examples = Examples.from_rows(ROWS, name="five")
    again = Examples.from_rows([row for row in examples if row.id != "r1"], name="four")
    assert again.ids == ["r0", "r2", "r3", "r4"]
    assert again.template == "plain"
    assert Examples(examples, name="five", template="alpaca").template == "alpaca"


def test_names_of_columns_reach_the_rows() -> None:
    examples = Examples.from_rows([{"q": "p", "a": "c"}], columns=Columns(prompt="q", completion="a"))
    assert examples[0].completion == "c"


def test_fingerprint_sees_order_ids_and_contents() -> None:
    examples = Examples.from_rows(ROWS)
    assert examples.fingerprint == Examples.from_rows(ROWS, name="elsewhere").fingerprint
    assert len(examples.fingerprint) == 32
    others = [
        Examples.from_rows(ROWS[::-1]),
        Examples.from_rows(ROWS[:4]),
        Examples.from_rows([{**ROWS[0], "id": "x"}, *ROWS[1:]]),
        Examples.from_rows([{**ROWS[0], "prompt": "x"}, *ROWS[1:]]),
        Examples.from_rows(ROWS, template="chat"),
    ]
    assert len({examples.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_duplicates_stay_rows_and_are_counted() -> None:
    examples = Examples.from_rows([{"text": text} for text in ("a", "b", "a", "a")])
    assert len(examples) == 4
    assert examples.duplicates == 2
    assert Examples.from_rows(ROWS).duplicates == 0


def test_the_same_id_twice_names_both_rows() -> None:
    with pytest.raises(DataError, match=re.escape('id "r0" twice: rows:1 and rows:3')):
        Examples.from_rows([ROWS[0], ROWS[1], ROWS[0]])


def test_an_integer_and_its_digits_are_the_same_id() -> None:
    with pytest.raises(DataError, match='id "7" twice'):
        Examples.from_rows([{"text": "a", "id": 7}, {"text": "b", "id": "7"}])


def test_mixed_kinds_are_refused() -> None:
    chat = [{"role": "user", "content": "Q"}]
    with pytest.raises(DataError, match='rows:2: a row of kind "chat" where rows:1 is of kind "completion"'):
        Examples.from_rows([{"prompt": "p", "completion": "c"}, {"prompt": chat, "completion": "c"}])


def test_no_rows() -> None:
    with pytest.raises(DataError, match="nothing: no rows"):
        Examples.from_rows([], name="nothing")


def test_a_row_that_is_no_object() -> None:
    with pytest.raises(DataError, match="rows:2: a row of type str"):
        Examples.from_rows([{"text": "a"}, "b"])  # type: ignore[list-item]


def test_examples_can_be_pickled_to_worker_processes() -> None:
    examples = Examples.from_rows(ROWS)
    again = pickle.loads(pickle.dumps(examples))
    assert again.fingerprint == examples.fingerprint
    assert again[0] == examples[0]
    assert replace(again[0], id="x") != examples[0]
