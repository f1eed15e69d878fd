"""Text of unknown origin as it may be shown: nothing in it can steer a terminal or turn the direction of a page."""

from __future__ import annotations

import unicodedata

_TURNS = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))


def visible(text: str, *, one_line: bool = False) -> str:
    """The text with control characters as their pictures (␛) and marks that turn the direction as U+FFFD.

    Half surrogate pairs, which have no UTF-8 form, become U+FFFD too. Line breaks of all kinds become \\n.

    Args:
        one_line: show line breaks as ⏎ and tabs as a space.
    """
    if text.isprintable():
        return text
    return "".join(_shown(character, one_line) for character in text.replace("\r\n", "\n"))


def _shown(character: str, one_line: bool) -> str:
    if character in "\n\u2028\u2029\x85":
        return "⏎" if one_line else "\n"
    if character == "\t":
        return " " if one_line else "\t"
    if character < " ":
        return chr(0x2400 + ord(character))
    if character == "\x7f":
        return "␡"
    if unicodedata.category(character) in ("Cc", "Cs") or unicodedata.bidirectional(character) in _TURNS:
        return "\ufffd"
    return character
