from __future__ import annotations

import re
from typing import Any

import pytest

from headwater.errors import DataError, UsageError
from headwater.examples import Columns, Example, Examples, TemplateChoice

USER = {"role": "user", "content": "Q"}
ASSISTANT = {"role": "assistant", "content": "A"}


def read(row: dict[str, Any], template: TemplateChoice = "auto", **names: str) -> Example:
    return Examples.from_rows([row], columns=Columns(**names) if names else None, template=template)[0]


@pytest.mark.parametrize(
    ("row", "kind", "prompt", "completion"),
    [
        ({"prompt": "p", "completion": "c"}, "completion", "p", "c"),
        ({"prompt": "", "completion": ""}, "completion", "", ""),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "chat", (USER,), (ASSISTANT,)),
        ({"prompt": [USER], "completion": "A"}, "chat", (USER,), (ASSISTANT,)),
        ({"messages": [USER, ASSISTANT]}, "messages", (), (USER, ASSISTANT)),
        ({"messages": '[{"role": "user", "content": "Q"}]'}, "messages", (), (USER,)),
        ({"conversations": [{"from": "human", "value": "Q"}]}, "messages", (), (USER,)),
        ({"conversations": [USER]}, "messages", (), (USER,)),
        ({"text": "words"}, "text", "", "words"),
    ],
)
def test_trl_columns(row: dict[str, Any], kind: str, prompt: object, completion: object) -> None:
    example = read(row)
    assert (example.kind, example.prompt, example.completion, example.metadata) == (kind, prompt, completion, {})


def test_precedence_is_trls() -> None:
    assert read({"prompt": "p", "completion": "c", "messages": [USER], "text": "t"}).kind == "completion"
    assert read({"prompt": "p", "messages": [USER], "text": "t"}).kind == "messages"
    assert read({"prompt": "p", "text": "t"}).metadata == {"prompt": "p"}


def test_alpaca_columns() -> None:
    row = {"instruction": "Name it.", "input": "A city.", "output": "Paris"}
    example = read(row)
    assert example.kind == "completion"
    assert str(example.prompt).endswith("### Instruction:\nName it.\n\n### Input:\nA city.\n\n### Response:")
    assert example.completion == "Paris"
    assert read(row, "plain").prompt == "Name it.\n\nA city."
    assert read(row, "chat").prompt == ({"role": "user", "content": "Name it.\n\nA city."},)
    assert read(row, "chat").completion == ({"role": "assistant", "content": "Paris"},)


@pytest.mark.parametrize("given", [{}, {"input": ""}, {"input": None}])
def test_alpaca_without_input(given: dict[str, Any]) -> None:
    example = read({"instruction": "Name it.", "output": "Paris", **given})
    assert "### Input" not in str(example.prompt)
    assert example.metadata == {}


def test_alpaca_beside_text_must_be_decided() -> None:
    row = {"instruction": "i", "output": "o", "text": "t"}
    with pytest.raises(DataError, match="both Alpaca columns"):
        read(row)
    assert read(row, "alpaca").completion == "o"
    assert read(row, text="text").completion == "t"


def test_template_chat_wraps_strings() -> None:
    example = read({"prompt": "p", "completion": "c"}, "chat")
    assert example.kind == "chat"
    assert example.prompt == ({"role": "user", "content": "p"},)
    assert example.completion == ({"role": "assistant", "content": "c"},)


def test_template_alpaca_wraps_strings() -> None:
    assert "### Instruction:\np\n\n### Response:" in str(read({"prompt": "p", "completion": "c"}, "alpaca").prompt)


@pytest.mark.parametrize(
    ("row", "template", "expected"),
    [
        ({"prompt": "p", "completion": "c"}, "auto", "plain"),
        ({"prompt": "p", "completion": "c"}, "chat", "chat"),
        ({"prompt": "p", "completion": "c"}, "alpaca", "alpaca"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "auto", "chat"),
        ({"messages": [USER]}, "auto", "chat"),
        ({"text": "t"}, "auto", "plain"),
        ({"instruction": "i", "output": "o"}, "auto", "alpaca"),
        ({"instruction": "i", "output": "o"}, "plain", "plain"),
        ({"instruction": "i", "output": "o"}, "chat", "chat"),
    ],
)
def test_template_of_the_rows(row: dict[str, Any], template: TemplateChoice, expected: str) -> None:
    assert Examples.from_rows([row], template=template).template == expected


@pytest.mark.parametrize(
    ("row", "template"),
    [
        ({"text": "t"}, "chat"),
        ({"text": "t"}, "alpaca"),
        ({"messages": [USER]}, "plain"),
        ({"messages": [USER]}, "alpaca"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "plain"),
        ({"prompt": "p", "completion": "c"}, "llama"),
    ],
)
def test_templates_that_do_not_fit_the_rows_are_refused(row: dict[str, Any], template: Any) -> None:
    with pytest.raises(UsageError, match=f'template "{template}"'):
        read(row, template)


def test_named_columns() -> None:
    row = {"question": "p", "answer": "c", "uid": 7, "id": "x", "prompt": "other"}
    example = read(row, prompt="question", completion="answer", id="uid")
    assert (example.prompt, example.completion, example.id) == ("p", "c", "7")
    assert example.metadata == {"id": "x", "prompt": "other"}
    assert read({"prompt": "p", "answer": "c"}, completion="answer").completion == "c"
    assert read({"body": "t"}, text="body").kind == "text"
    assert read({"chat": [USER]}, messages="chat").kind == "messages"


def test_named_columns_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="text and prompt/completion at once"):
        Columns(text="t", prompt="p")


def test_extra_columns_are_metadata() -> None:
    example = read({"prompt": "p", "completion": "c", "id": "a", "topic": {"x": [1]}, "page": None})
    assert example.metadata == {"topic": {"x": [1]}, "page": None}


@pytest.mark.parametrize(
    ("value", "expected"), [("a", "a"), (7, "7"), (0, "0"), (None, "rows:1"), ("", "rows:1"), (-3, "-3")]
)
def test_ids(value: object, expected: str) -> None:
    example = read({"text": "t", "id": value})
    assert example.id == expected
    assert example.source == "rows:1"


@pytest.mark.parametrize("value", [1.5, True, ["a"]])
def test_ids_that_are_no_ids(value: object) -> None:
    with pytest.raises(DataError, match=re.escape(f"is {value!r} ({type(value).__name__})")):
        read({"text": "t", "id": value})


def test_a_chosen_id_column_must_be_filled() -> None:
    rows = [{"text": "t", "uid": "a"}, {"text": "t", "uid": None}]
    with pytest.raises(DataError, match='rows:2: no id in column "uid"'):
        Examples.from_rows(rows, columns=Columns(id="uid"))


@pytest.mark.parametrize(
    ("row", "names", "words"),
    [
        ({"question": "p", "answer": "c"}, {}, "rows:1: the columns question, answer; expected prompt + completion"),
        ({"prompt": "p"}, {}, "the columns prompt"),
        ({}, {}, "the columns (none)"),
        (
            {"prompt": "p", "completion": "c"},
            {"prompt": "q"},
            'no column "q"; expected one of the columns that exist: prompt',
        ),
        ({"q": "p"}, {"prompt": "q"}, 'no column "completion"; expected one of the columns that exist: q'),
        ({"text": "t"}, {"id": "uid"}, 'no column "uid"; expected one of the columns that exist: text'),
        ({"prompt": "p", "completion": None}, {}, 'column "completion" is null'),
        ({"prompt": "p", "completion": 3}, {}, 'column "completion" is 3 (int)'),
        ({"prompt": None, "completion": "c"}, {}, 'column "prompt" is null'),
        ({"prompt": "p", "completion": [ASSISTANT]}, {}, 'column "completion" is'),
        ({"prompt": [USER], "completion": None}, {}, 'column "completion" is null'),
        ({"instruction": None, "output": "o"}, {}, 'column "instruction" is null'),
        ({"instruction": "i", "input": 3, "output": "o"}, {}, 'column "input" is 3 (int)'),
        ({"messages": None}, {}, 'column "messages" is None'),
        ({"messages": "[broken"}, {}, 'column "messages" is'),
        ({"text": None}, {}, 'column "text" is null'),
    ],
)
def test_rows_that_cannot_be_used(row: dict[str, Any], names: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        read(row, **names)


def test_a_later_row_that_lacks_a_column_is_named() -> None:
    rows = [{"prompt": "p", "completion": "c"}, {"prompt": "p", "response": "c"}]
    with pytest.raises(DataError, match=re.escape('rows:2: no column "completion"') + ".*prompt, response"):
        Examples.from_rows(rows)
