"""A review of training data in the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headwater.cleaning import Review
from headwater.report.terminal import excerpt
from headwater.report.visible import visible

TEXT = 160
"""Characters of a row's text."""


def review_table(review: Review, top: int = 20) -> Group:
    """What was found, and the first rows with their reasons."""
    parts: list[RenderableType] = [Text(line) for line in review.sentences()]
    shown = review.rows[:top]
    if review.by is None:
        shown = tuple(row for row in review.rows if row.reason)[:top]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("row", overflow="fold", max_width=24)
    table.add_column("text, and why", overflow="fold")
    for row in shown:
        prompt, completion = excerpt(visible(row.prompt, one_line=True), visible(row.completion, one_line=True), TEXT)
        text = Text().append(prompt, "dim")
        if prompt and completion and not prompt[-1].isspace() and not completion[0].isspace():
            text.append(" ")
        text.append(completion, "bold")
        if row.reason:
            text.append("\n" + visible(row.reason, one_line=True), "italic")
        table.add_row(Text(str(row.rank)), Text(visible(row.source, one_line=True)), text)
    parts.append(table)
    by = f", ranked by {review.by}" if review.by else ""
    parts.append(Text(f"{len(shown):,} of {len(review.rows):,} rows{by}", style="dim"))
    return Group(*parts)
