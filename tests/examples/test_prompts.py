from __future__ import annotations

from headwater.examples.prompts import alpaca_prompt, plain_prompt, templated

WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName it.\n\n### Response:"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName it.\n\n### Input:\nA city.\n\n### Response:"
)


def test_alpaca_prompt_is_the_stanford_text() -> None:
    assert alpaca_prompt("Name it.") == WITHOUT_INPUT
    assert alpaca_prompt("Name it.", "A city.") == WITH_INPUT


def test_alpaca_prompt_takes_any_text() -> None:
    assert "### Instruction:\n{input} {x}\n\n### Input:\n{instruction} {}\n" in alpaca_prompt(
        "{input} {x}", "{instruction} {}"
    )


def test_a_prompt_that_is_alpaca_already_is_left_alone() -> None:
    assert alpaca_prompt(WITHOUT_INPUT) == WITHOUT_INPUT
    assert alpaca_prompt(WITH_INPUT) == WITH_INPUT


def test_plain_prompt_joins_by_an_empty_line() -> None:
    assert plain_prompt("Name it.") == "Name it."
    assert plain_prompt("Name it.", "A city.") == "Name it.\n\nA city."


def test_templated() -> None:
    assert templated("Name it.", "plain") == "Name it."
    assert templated("Name it.", "alpaca") == WITHOUT_INPUT
    assert templated("Name it.", "chat") == ({"role": "user", "content": "Name it."},)
