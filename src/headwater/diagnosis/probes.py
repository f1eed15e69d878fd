"""Probe sentences: what is said about the base model's leaning is said on these.

A probe is a plain sentence; every token of it is a position, each predicted from those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headwater.errors import DataError
from headwater.examples import Encoded, Encoder, Examples, TokenFormat, read_examples

TEXT_ENDINGS = (".txt", ".text")


def read_probes(path: str | Path) -> list[str]:
    """Reads probes: a .txt file with one sentence on each line, or rows of any kind that `read_examples` reads (prompt
    and completion in one).

    Raises:
        DataError: no such file, or none in it.
    """
    file = Path(path)
    if file.suffix not in TEXT_ENDINGS:
        return [row.text for row in read_examples(file)]
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} cannot be read ({type(error).__name__})",
            expected="a text file in UTF-8 with one sentence on each line",
            fix="check the path",
        ) from None
    found = [line for line in lines if line]
    if not found:
        raise DataError(f"{file}: no sentence", expected="one on each line", fix="write some, or leave --probes out")
    return found


def encode_probes(probes: Sequence[str], tokenizer: Any, format: TokenFormat) -> list[Encoded]:
    """Tokens of the sentences, every one a target but the first.

    Raises:
        DataError: an empty sentence, or none with two tokens.
    """
    if not probes:
        return []
    if not all(isinstance(text, str) and text.strip() for text in probes):
        raise DataError("an empty probe", expected="sentences", fix="leave it out")
    rows = Examples.from_rows([{"text": text} for text in probes], name="probes")
    plain = Encoder(tokenizer, replace(format, loss_on="auto", add_eos=False), "plain")
    encoded = [one for one in map(plain.example, rows) if one.targets]
    if not encoded:
        raise DataError("probes of one token each", expected="sentences of two tokens or more", fix="write longer ones")
    return encoded
