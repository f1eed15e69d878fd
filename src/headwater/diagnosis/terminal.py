"""The diagnosis in the terminal: verdicts first, then the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headwater.diagnosis.panels import shown

if TYPE_CHECKING:
    from rich.console import Group

    from headwater.diagnosis.diagnosis import Diagnosis

STYLES = {"no": "bold red", "care": "bold yellow", "good": "bold green", "note": "bold"}


def summary(diagnosis: Diagnosis) -> Group:
    """Verdicts that hold with their rule and what to do, what could not be judged, and the numbers."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(diagnosis.sentence, style="bold"), Text("")]
    for one in diagnosis.verdicts:
        if one.holds:
            parts.append(Text(one.words, style=STYLES[one.effect]))
            parts += [Padding(Text(one.rule, style="dim"), (0, 0, 0, 2)), Padding(Text(one.so), (0, 0, 0, 2))]
    passed = [one.words for one in diagnosis.verdicts if one.holds is False]
    if passed:
        parts.append(Text(f"Also judged: {'; '.join(passed)}."))
    parts += [Text(f"{one.words}. {one.so}") for one in diagnosis.verdicts if one.holds is None]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("number", ratio=2)
    table.add_column("base → last", justify="right", no_wrap=True)
    table.add_column("what it says", ratio=4)
    for number in diagnosis.numbers:
        written = shown(number, diagnosis.facts)
        table.add_row(written["title"], written["value"], written["means"])
    return Group(*parts, Text(""), table)
