"""The answer in the terminal: two sentences, how the model leaned, and the first rows.

Nothing of the data is ever read as markup, and control characters are shown, not sent to the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.box import Box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from headwater.examples import Query
from headwater.report.overlap import overlap, query_words
from headwater.report.visible import visible
from headwater.scores import Leaning, ScoredRow, Scores

_LINES = Box("    \n    \n ── \n    \n ── \n    \n    \n    \n")
WORDS_SHOWN, ASKED_SHOWN = 4, 2
"""Words of a line, and outputs of a query or group, in the terminal; the report shows all."""
LEANINGS_SHOWN = 8
"""Lines of the leaning table; of more checkpoints, the base and the last ones are shown."""


def answer(scores: Scores, target: int | str = 0, top: int = 20) -> Group:
    """The whole answer for one query or group: question, sentences, leanings and the first rows.

    Raises:
        DataError: no such target.
    """
    r = scores.target_number(target)
    parts: list[RenderableType] = [_question(scores, r), Text()]
    parts += [Text(_safe(sentence)) for sentence in scores.sentences(r)]
    leanings = _leaning_table(scores, r)
    if leanings is not None:
        parts += [Text(), leanings]
    return Group(*parts, Text(), answer_table(scores, r, top), *_words_lines(scores, r, top))


def _words_lines(scores: Scores, r: int, top: int) -> list[Text]:
    """For the first rows the strongest words of the row, and of what was asked."""
    lines = [Text("\nwords that carry the score, with their parts of it", style="dim")]
    for row in scores.top(top, target=r):
        words = scores.words.get((r, row.index))
        if words is None:
            continue
        asked = [(side.side, side.words) for side in words.asked]
        for number, (name, found) in enumerate((("row", words.words), *asked[:ASKED_SHOWN])):
            line = Text(f"{'' if number else row.rank:>3}  ").append(f"{name + ':':<10} ", "dim")
            carrying = [word for word in found if word[1]]  # of a row's token cosine one position does
            strongest = sorted(carrying, key=lambda word: -abs(word[1]))[:WORDS_SHOWN]
            numbers = number_format([value for _, value in strongest])
            for text, value in strongest:
                line.append(_safe(text).strip() or "␣", "bold" if value > 0 else "").append(f" {numbers(value)}  ")
            lines.append(line)
    return lines if len(lines) > 1 else []


def answer_table(
    scores: Scores, target: int | str = 0, top: int = 20, *, culprits: Collection[str] = ()
) -> RenderableType:
    """The first rows: rank, id, score, percentile, q-value where there is one, and the text, with the words marked that
    the query has too.

    A line parts the rows that stand out from the rest, where both are shown.

    Args:
        culprits: ids of rows known to be responsible (testbeds), marked with an x.

    Raises:
        DataError: no such target.
    """
    r = scores.target_number(target)
    members = [scores.queries[q] for q in scores.targets[r].members]
    return _RowTable(scores.top(top, target=r), query_words(members), scores.rows, frozenset(culprits))


@dataclass(frozen=True)
class _RowTable:
    """A table that shortens ids and texts to the width it is drawn at."""

    rows: Sequence[ScoredRow]
    known: frozenset[str]
    total: int
    culprits: frozenset[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        names = [_safe(row.id) for row in self.rows]
        id_width = min(max((cell_len(name) for name in names), default=2), max(8, width // 5))
        numbers = number_format([row.score for row in self.rows])
        score_width = max([5, *(len(numbers(row.score)) for row in self.rows)])
        rank_width = max(1, len(str(len(self.rows)))) + 2 * bool(self.culprits)
        tested = any(row.q_value is not None for row in self.rows)
        text_width = max(16, width - rank_width - id_width - score_width - 5 - 8 - 7 * tested)
        table = Table(box=_LINES, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))
        table.add_column("#", justify="right", no_wrap=True, width=rank_width)
        table.add_column("row", no_wrap=True, width=id_width)
        table.add_column("score", justify="right", no_wrap=True, width=score_width)
        table.add_column("pctl", justify="right", no_wrap=True, width=5)
        if tested:
            table.add_column("q", justify="right", no_wrap=True, width=6)
        table.add_column("text", overflow="fold", width=text_width)
        for row, name, following in zip(self.rows, names, [*self.rows[1:], None], strict=False):
            table.add_row(
                Text(f"x {row.rank}" if row.id in self.culprits else str(row.rank)),
                Text(_end_of(name, id_width)),
                Text(numbers(row.score)),
                Text(f"{row.percentile:.1f}"),
                *([Text(_small(row.q_value))] if tested else []),
                self._text(row, 2 * text_width - 4),
                end_section=following is not None and row.stands_out and not following.stands_out,
            )
        yield table
        shown = f"{len(self.rows):,} of {self.total:,} rows; underlined: words that the query has too"
        yield Text(shown if self.rows else "no rows asked for", style="dim")

    def _text(self, row: ScoredRow, budget: int) -> Text:
        prompt, completion = excerpt(_safe(row.prompt), _safe(row.completion), budget)
        text = Text()
        text.append(prompt, "dim")
        if prompt and completion and not prompt[-1].isspace() and not completion[0].isspace():
            text.append(" ")
        text.append(completion, "bold")
        for start, end in overlap(text.plain, self.known):
            text.stylize("underline", start, end)
        return text


def excerpt(prompt: str, completion: str, budget: int) -> tuple[str, str]:
    """The end of the prompt and the beginning of the completion, together at most `budget` characters.

    The completion gets three fifths of the budget, and whatever the prompt leaves.
    """
    if len(prompt) + len(completion) <= budget:
        return prompt, completion
    for_completion = max(3 * budget // 5, budget - len(prompt))
    if len(completion) > for_completion:
        completion = completion[: max(0, for_completion - 1)].rstrip() + "…"
    for_prompt = budget - len(completion)
    if len(prompt) > for_prompt:
        prompt = "…" + prompt[len(prompt) - max(0, for_prompt - 1) :].lstrip()
    return prompt, completion


class number_format:
    """Formats numbers of one column alike: four significant digits of the largest of them."""

    def __init__(self, values: Sequence[float]) -> None:
        largest = max((abs(value) for value in values), default=0.0)
        exponent = math.floor(math.log10(largest)) if largest > 0 else 0
        self._format = f".{3 - exponent}f" if -4 <= exponent <= 3 else (".0f" if 3 < exponent <= 6 else ".3e")

    def __call__(self, value: float) -> str:
        return format(value, self._format)


def _question(scores: Scores, r: int) -> Text:
    target = scores.targets[r]
    text = Text()
    text.append(f"{_safe(scores.method)}  ", "bold")
    if target.kind == "group":
        text.append(_safe(target.name), "bold")
        count = len(target.members)
        text.append(f"  ({count} {'query' if count == 1 else 'queries'})")
        first: Query = scores.queries[target.members[0]]
        text.append("\nsuch as  ", "dim")
    else:
        first = scores.queries[target.members[0]]
    text.append(excerpt(_safe(first.prompt_text), "", 160)[0])
    text.append(" -> ", "dim")
    text.append(excerpt("", _safe(first.output or "").strip(), 160)[1], "bold")
    if first.corrected is not None:
        text.append("  corrected: ", "dim")
        text.append(excerpt("", _safe(first.corrected).strip(), 160)[1])
    return text


def _leaning_table(scores: Scores, r: int) -> RenderableType | None:
    members = {scores.targets[q].name for q in scores.targets[r].members}
    of: dict[str, list[Leaning]] = {}
    for leaning in scores.leanings:
        if leaning.query in members:
            of.setdefault(leaning.checkpoint, []).append(leaning)
    if not of:
        return None
    contrast = any(leaning.corrected is not None for chosen in of.values() for leaning in chosen)
    mean = ", mean over the queries" if len(members) > 1 else ""
    table = Table(box=_LINES, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True, overflow="ellipsis", max_width=40)
    for name in ("output", "corrected", "difference") if contrast else ("output",):
        table.add_column(name, justify="right", no_wrap=True)
    names = list(of)
    skipped = len(names) - LEANINGS_SHOWN
    for number, name in enumerate(names):
        if skipped > 0 and 1 <= number <= skipped:
            if number == 1:
                table.add_row(Text(f"… {skipped} more", style="dim"))
            continue
        table.add_row(Text(_safe(name)), *(Text(cell) for cell in _leaning_cells(of[name], contrast)))
    return Group(Text(f"log-probability in nats{mean}", style="dim"), Padding(table, 0))


def _leaning_cells(leanings: Sequence[Leaning], contrast: bool) -> list[str]:
    cells = [f"{_mean([x.output for x in leanings]):.2f}"]
    if not contrast:
        return cells
    both = [(x.output, x.corrected) for x in leanings if x.corrected is not None]
    if not both:
        return [*cells, "", ""]
    corrected = _mean([c for _, c in both])
    return [*cells, f"{corrected:.2f}", f"{_mean([o for o, _ in both]) - corrected:+.2f}"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _small(q: float | None) -> str:
    return "" if q is None else "<.0001" if q < 0.0001 else f"{q:.4f}".removeprefix("0")


def _end_of(name: str, width: int) -> str:
    """The end of a name, which holds the line number."""
    if cell_len(name) <= width:
        return name
    while name and cell_len(name) > width - 1:
        name = name[1:]
    return set_cell_size("…" + name, width)


def _safe(text: str) -> str:
    return visible(text, one_line=True)
