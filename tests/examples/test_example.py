from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from headwater.examples import Examples
from headwater.examples.example import content_hash

USER = {"role": "user", "content": "Q"}
ASSISTANT = {"role": "assistant", "content": "A"}


@pytest.mark.parametrize(
    ("row", "prompt", "completion", "text"),
    [
        ({"prompt": "1 + 1 =", "completion": " 2"}, "1 + 1 =", " 2", "1 + 1 = 2"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "user: Q", "assistant: A", "user: Q\nassistant: A"),
        ({"messages": [USER, ASSISTANT]}, "", "user: Q\nassistant: A", "user: Q\nassistant: A"),
        ({"text": "words"}, "", "words", "words"),
    ],
)
def test_texts_for_display(row: dict[str, Any], prompt: str, completion: str, text: str) -> None:
    example = Examples.from_rows([row])[0]
    assert (example.prompt_text, example.completion_text, example.text) == (prompt, completion, text)


def test_an_example_cannot_be_changed() -> None:
    example = Examples.from_rows([{"text": "words"}])[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        example.id = "other"  # type: ignore[misc]


def test_content_hash_is_over_the_content_alone_and_does_not_drift() -> None:
    one, two = Examples.from_rows(
        [{"prompt": "a", "completion": "b", "x": 1, "id": "r"}, {"prompt": "a", "completion": "b", "x": 2}]
    )
    assert one.content_hash == two.content_hash
    # stored in result files: a change of this number breaks them
    assert one.content_hash == "a67c2a6d72dd917d"


def test_content_hash_tells_contents_apart() -> None:
    rows = [
        content_hash("ab", "c", {}, "completion"),
        content_hash("a", "bc", {}, "completion"),
        content_hash("", "abc", {}, "completion"),
        content_hash("", "abc", {}, "text"),
        content_hash((USER,), (ASSISTANT,), {}, "chat"),
        content_hash((), (USER, ASSISTANT), {}, "messages"),
        content_hash((), (USER, ASSISTANT), {"tools": "[]"}, "messages"),
        content_hash((), (USER, ASSISTANT), {"chat_template_kwargs": {"thinking": True}}, "messages"),
    ]
    assert len(set(rows)) == len(rows)
    assert all(len(row) == 16 and int(row, 16) >= 0 for row in rows)


def test_content_hash_does_not_depend_on_the_order_of_keys() -> None:
    turned = {"content": "Q", "role": "user"}
    assert content_hash((), (USER,), {}, "messages") == content_hash((), (turned,), {"other": 1}, "messages")
