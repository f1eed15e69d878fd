"""How a bare string becomes a prompt: as it is, as one user turn, or in the Stanford Alpaca text."""

from __future__ import annotations

from typing import Literal

from headwater.examples.messages import Message

Template = Literal["plain", "chat", "alpaca"]
TEMPLATES: tuple[Template, ...] = ("plain", "chat", "alpaca")

# The words of stanford_alpaca/train.py: nothing after "### Response:", not even a newline.
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
_OPENINGS = tuple(text.partition("{")[0] for text in (_WITH_INPUT, _WITHOUT_INPUT))


def alpaca_prompt(instruction: str, given: str = "") -> str:
    """The Stanford Alpaca prompt, with its input part only where there is an input.

    A prompt that already is one, preamble to "### Response:", is returned as it is, so that a training row's own
    prompt can be asked again.
    """
    if not given and instruction.startswith(_OPENINGS) and instruction.endswith("### Response:"):
        return instruction
    # not str.format: instructions are full of braces
    text = _WITH_INPUT.replace("{input}", given, 1) if given else _WITHOUT_INPUT
    return text.replace("{instruction}", instruction, 1)


def plain_prompt(instruction: str, given: str = "") -> str:
    """Instruction and input with an empty line between them; the instruction alone where there is no input."""
    return f"{instruction}\n\n{given}" if given else instruction


def templated(prompt: str, template: Template) -> str | tuple[Message, ...]:
    """A bare prompt as rows of this template hold it: str for "plain" and "alpaca", one user turn for "chat"."""
    if template == "chat":
        return ({"role": "user", "content": prompt},)
    return alpaca_prompt(prompt) if template == "alpaca" else prompt
