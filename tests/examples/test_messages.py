from __future__ import annotations

import re

import pytest

from headwater.errors import DataError
from headwater.examples.messages import checked_messages, checked_text, conversation_text, message_text


def test_messages_become_a_tuple_and_keep_what_templates_read() -> None:
    turns = checked_messages(
        [
            {"role": "user", "content": "Hi", "name": "ann"},
            {"role": "assistant", "content": "Hello", "tool_calls": None},
        ],
        "a:1",
        "prompt",
    )
    assert turns == ({"role": "user", "content": "Hi", "name": "ann"}, {"role": "assistant", "content": "Hello"})


def test_sharegpt_turns_get_roles() -> None:
    turns = checked_messages(
        [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "a:1", "c"
    )
    assert [(turn["role"], turn["content"]) for turn in turns] == [("system", "S"), ("user", "Q"), ("assistant", "A")]


def test_the_input_is_left_as_it_was() -> None:
    given = [{"from": "human", "value": "Q"}]
    checked_messages(given, "a:1", "c")
    assert given == [{"from": "human", "value": "Q"}]


def test_parts_of_text_are_read_and_their_nulls_dropped() -> None:
    (turn,) = checked_messages(
        [{"role": "user", "content": [{"type": "text", "text": "a", "image": None}, {"type": "text", "text": "b"}]}],
        "a:1",
        "prompt",
    )
    assert turn["content"][0] == {"type": "text", "text": "a"}
    assert message_text(turn) == "ab"


def test_a_turn_may_be_nothing_but_tool_calls() -> None:
    (turn,) = checked_messages([{"role": "assistant", "content": None, "tool_calls": [{"f": 1}]}], "a:1", "m")
    assert "content" not in turn
    assert message_text(turn) == '[{"f": 1}]'


def test_conversation_text_names_the_speakers() -> None:
    assert conversation_text([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]) == (
        "user: Q\nassistant: A"
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("Hello", "'Hello' (str)"),
        (None, "None (NoneType)"),
        ({"role": "user", "content": "Q"}, "(dict)"),
        ([], "an empty list"),
        (["Hello"], "c[0] is 'Hello' (str)"),
        ([{"content": "Q"}], "c[0] has no role but the keys content"),
        ([{}], "the keys none"),
        ([{"role": "", "content": "Q"}], "no role"),
        ([{"role": 3, "content": "Q"}], "no role"),
        ([{"role": "user"}], 'c[0]["content"] is null'),
        ([{"role": "user", "content": 3}], 'c[0]["content"] is 3 (int)'),
        ([{"role": "user", "content": [{"type": "image"}]}], "not text"),
        ([{"role": "user", "content": ["words"]}], "not text"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "part 0 is null"),
    ],
)
def test_what_is_no_conversation_is_one_error_with_its_place(value: object, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        checked_messages(value, "data.jsonl:7", "c")
    assert str(caught.value).startswith("data.jsonl:7: ")
    assert "\n" not in str(caught.value)


def test_half_a_surrogate_pair_is_refused() -> None:
    assert checked_text("naïve 🙂", "a:1", "text") == "naïve 🙂"
    with pytest.raises(DataError, match="surrogate pair at character 3"):
        checked_text("ok \ud83d", "a:1", "text")


def test_long_values_are_shortened_in_errors() -> None:
    with pytest.raises(DataError) as caught:
        checked_text(list(range(1000)), "a:1", "text")
    assert len(str(caught.value)) < 250
