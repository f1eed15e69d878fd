"""A repair for people: a table in the terminal, report.md, and report.html, one file that loads nothing.

Nothing of the data is ever read as markup.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from headwater.examples import Examples
from headwater.repair.result import BASE, BEFORE, LEXICAL, REPAIRED, Interval, Line, Repaired
from headwater.report.visible import visible

if TYPE_CHECKING:
    from jinja2 import Template
    from rich.console import Group

NAMES = {
    BASE: "base model", BEFORE: "before", REPAIRED: "repaired", LEXICAL: "without BM25's first rows",
}  # fmt: skip

NOTE = (
    "Mean [95 % interval], resampled over queries or rows. One query, or answers that are all alike, have an interval "
    "without width: that is no certainty."
)
"""Below the tables."""

_COLUMNS: tuple[tuple[str, str, Callable[[Line], str]], ...] = (
    ("rows", "training rows removed or corrected", lambda line: f"{line.rows:,}" if line.rows else ""),
    ("wrong", "share of queries answered wrongly", lambda line: _share(line.wrong)),
    (
        "wrong, paraphrases",
        "share of held-out paraphrases answered wrongly",
        lambda line: _share(line.paraphrases_wrong),
    ),
    ("log-odds", "wrong against corrected output, nats, mean over queries", lambda line: _number(line.log_odds, 1)),
    (
        "log-odds, paraphrases",
        "the same over the held-out paraphrases",
        lambda line: _number(line.paraphrases_log_odds, 1),
    ),
    ("loss", "on untouched rows, nats per token, mean over rows", lambda line: _number(line.loss, 3)),
    ("loss moved", "since before", lambda line: _change(line.damage)),
)


def shown_name(name: str) -> str:
    """The name of a model in tables."""
    return NAMES.get(name, f"without random rows {name.removeprefix('random ')}" if name.startswith("random") else name)


def cells(result: Repaired) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Titles with what they mean, and a line for each model; columns without any number are left out."""
    lines = result.lines()
    table = [[read(line) for _, _, read in _COLUMNS] for line in lines]
    used = [c for c in range(len(_COLUMNS)) if any(row[c] for row in table)]
    titles = [("model", ""), *((_COLUMNS[c][0], _COLUMNS[c][1]) for c in used)]
    return titles, [[shown_name(line.name), *(row[c] for c in used)] for line, row in zip(lines, table, strict=True)]


def _share(value: Interval | None) -> str:
    return "" if value is None else f"{value[0]:.0%} [{100 * value[1]:.0f}, {100 * value[2]:.0f}]"


def _number(value: Interval | None, digits: int) -> str:
    return "" if value is None else f"{value[0]:.{digits}f} [{value[1]:.{digits}f}, {value[2]:.{digits}f}]"


def _change(value: Interval | None) -> str:
    if value is None:
        return ""
    return f"{100 * value[0]:+.1f} % [{100 * value[1]:+.1f}, {100 * value[2]:+.1f}]"


def markdown(result: Repaired) -> str:
    """The sentences and tables in Markdown."""
    titles, lines = cells(result)
    out = ["# Repair", "", *(f"- {sentence}" for sentence in result.sentences()), ""]
    out += [f"| {' | '.join(title for title, _ in titles)} |", "| --- " * len(titles) + "|"]
    out += [f"| {' | '.join(line)} |" for line in lines]
    out += ["", NOTE, ""]
    if result.steps:
        out += ["| rows | wrong | cured |", "| --- | --- | --- |"]
        out += [f"| {s.rows} | {s.wrong:.0%} | {'yes' if s.cured else 'no'} |" for s in result.steps]
        out.append("")
    return "\n".join(out)


def terminal(result: Repaired) -> Group:
    """The sentences and the table for the terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    titles, lines = cells(result)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for n, (title, _) in enumerate(titles):
        table.add_column(title, justify="left" if n == 0 else "right")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    shown: list[Any] = [Text(visible(sentence)) for sentence in result.sentences()]
    note = Text("Mean [95 % interval]; log-odds of the wrong against the corrected output, in nats.", "dim")
    return Group(*shown, Text(), table, note)


# ------------------------------------------------------------------------------------------------ the page


def html(result: Repaired, train: Examples) -> str:
    """The page: the answer, the table, what each model says, the rows, and how it was made."""
    from headwater.report.html import flattened

    titles, lines = cells(result)
    rows = {row.id: row for row in train}
    corrections = result.config.get("corrections", {})
    before = result.outcome(BEFORE)
    asked = [*result.config["queries"], *result.config["paraphrases"]]
    says = [
        {
            "prompt": visible(_text(asked[n]["prompt"])),
            "output": visible(str(asked[n]["output"])),
            "corrected": visible(str(asked[n].get("corrected") or "")),
            "paraphrase": said.paraphrase,
            "answers": [(visible(one.said[n].words), one.said[n].wrong, one.said[n].right) for one in result.outcomes],
        }
        for n, said in enumerate(before.said)
    ]
    hidden = ("queries", "paraphrases", "rows", "corrections")
    return _template().render(
        result=result,
        sentences=[visible(sentence) for sentence in result.sentences()],
        titles=titles,
        lines=lines,
        repaired=shown_name(REPAIRED),
        note=NOTE,
        names=[shown_name(one.name) for one in result.outcomes],
        bars=_bars(result),
        says=says,
        rows=[
            {
                "id": visible(rows[one].id),
                "prompt": visible(rows[one].prompt_text),
                "completion": visible(rows[one].completion_text),
                "corrected": visible(_text(corrections[one])) if one in corrections else "",
            }
            for one in result.rows
        ],
        provenance=[
            (visible(key), visible(value))
            for key, value in flattened({k: v for k, v in result.config.items() if k not in hidden})
        ],
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(f"{m.get('role')}: {m.get('content')}" for m in value)


def _bars(result: Repaired) -> list[dict[str, Any]]:
    """Share of wrong answers, queries and paraphrases together, of each model: for a bar with its interval."""
    from headwater.evaluation import bootstrap

    out = []
    for one in result.outcomes:
        mean, low, high = bootstrap(one.wrong(None))
        out.append({"name": shown_name(one.name), "mean": 100 * mean, "low": 100 * low, "high": 100 * high})
    return out


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files("headwater.repair").joinpath("page.html.j2").read_text("utf-8"))
