"""The sources of an output in the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headwater.report.terminal import number_format
from headwater.report.visible import visible
from headwater.sources import Sources


def sources_table(found: Sources, top: int = 20) -> Group:
    """Shares of the sources with their intervals, the largest first, and what is not known."""
    title = Text()
    title.append(f"{visible(found.method, one_line=True)}  ", "bold")
    title.append(f"{visible(found.target, one_line=True)}  by {visible(found.column, one_line=True)}")
    over_queries = any(one.share_over_queries is not None for one in found.sources)
    whole = any(one.rows is not None for one in found.sources)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("source", overflow="fold", min_width=14)
    names = [
        *(["rows", "of rows"] if whole else []),
        "score",
        *(["95 %"] if whole else []),
        *(["queries"] if over_queries else []),
        "against",
        *(["per row"] if whole else []),
        f"first {found.k}",
    ]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    shown = found.sources[:top]
    numbers = number_format([one.mean for one in shown if one.mean is not None])
    for one in shown:
        cells = [
            *([f"{one.rows:,.10g}", f"{one.row_share:.0%}"] if one.rows is not None else []),
            f"{one.share:.1%}",
            *([_percent(one.share_interval)] if whole else []),
            *([_percent(one.share_over_queries)] if over_queries else []),
            f"{one.opposing_share:.0%}",
            *([numbers(one.mean)] if one.mean is not None else []),
            f"{one.first:.10g}",
        ]
        table.add_row(
            Text(visible(one.name, one_line=True), style="dim" if one.missing else ""), *(Text(cell) for cell in cells)
        )
    parts: list[RenderableType] = [title, table]
    if len(found.sources) > len(shown):
        parts.append(Text(f"{len(found.sources) - len(shown)} more sources", style="dim"))
    legend = "score, against: share of the positive and of the negative score; 95 %: of other rows"
    parts.append(Text(legend + ("; queries: of other queries" if over_queries else ""), style="dim"))
    parts += [Text(line, style="dim") for line in found.unknown]
    return Group(*parts)


def _percent(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.0%}–{ends[1]:.0%}"
