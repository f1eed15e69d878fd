"""JSON records as they must be: manifests and documents that lie on disk, where anybody can change them.

What is wanted is written as the record itself would be: {"rows": whole(1), "layers": [{"name": plain_name}]}.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from headwater.errors import RunError


class Rule:
    """What a value must be.

    Args:
        words: in words, for the message. holds: whether a value is so.
    """

    def __init__(self, words: str, holds: Callable[[Any], bool]) -> None:
        self.words, self.holds = words, holds


def whole(least: int) -> Rule:
    """An integer of at least `least`."""
    return Rule(f"an integer of at least {least}", lambda v: type(v) is int and v >= least)


def among(*values: object) -> Rule:
    """One of some values."""
    return Rule(f"one of {', '.join(map(str, values))}", lambda v: v in values)


def maybe(rule: Rule) -> Rule:
    """Null, or what the rule says."""
    return Rule(f"null or {rule.words}", lambda v: v is None or rule.holds(v))


text = Rule("text", lambda v: isinstance(v, str))
number = Rule("a finite number", lambda v: type(v) in (int, float) and math.isfinite(v))
record = Rule("an object", lambda v: isinstance(v, dict))
plain_name = Rule(
    "a name without folders",
    lambda v: (
        isinstance(v, str)
        and v not in ("", ".", "..")
        and PurePosixPath(v).name == v
        and PureWindowsPath(v).name == v
        and "\0" not in v
    ),
)
"""Names become files; none may lead out of its folder."""


def fault(found: object, wanted: Any, where: str = "") -> str | None:
    """The first place where a record is not as wanted, in words; None where all is well.

    Args:
        wanted: a Rule; a dict of keys that must be there, others are free; a list of one form for all elements.
    """
    if isinstance(wanted, Rule):
        return None if wanted.holds(found) else f"{where or 'it'} is {_short(found)}, not {wanted.words}"
    if not isinstance(found, type(wanted)):
        return f"{where or 'it'} is {_short(found)}, not {'an object' if isinstance(wanted, dict) else 'a list'}"
    if isinstance(wanted, dict):
        for key, inner in wanted.items():
            place = f"{where}.{key}" if where else key
            if key not in found:
                return f"{place} is missing"
            said = fault(found[key], inner, place)
            if said:
                return said
        return None
    said_of_each = (fault(one, wanted[0], f"{where}[{number}]") for number, one in enumerate(found))
    return next(filter(None, said_of_each), None)


def parsed(data: bytes, place: object, wanted: Any, *, what: str, fix: str) -> Any:
    """A JSON document that is as wanted.

    Args:
        place: where it lies, for the message. what: what it should be, for the message.

    Raises:
        RunError: it is no JSON, or not as wanted.
    """
    try:
        found = json.loads(data.decode("utf-8"))
        said = fault(found, wanted)
    except (ValueError, RecursionError) as error:
        said = f"no JSON: {(str(error).splitlines() or [''])[0][:160]}"
    if said:
        raise RunError(
            f"{place} cannot be read ({said})",
            expected=what,
            cause="damage, another version of headwater, or a change by hand",
            fix=fix,
        )
    return found


def _short(value: object) -> str:
    shown = json.dumps(value, ensure_ascii=True, default=str)
    return shown if len(shown) <= 40 else shown[:37] + "..."
