"""What the page shows: panels of numbers with a chart each, and the queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from headwater.diagnosis.chart import TONES, Line, Tone, line_chart, shade_table
from headwater.diagnosis.facts import CheckpointFacts, Facts
from headwater.diagnosis.measuring import HELD_OUT, PROBES, QUERIES
from headwater.diagnosis.numbers import Number
from headwater.report.visible import visible

if TYPE_CHECKING:
    from headwater.diagnosis.diagnosis import Diagnosis

TONE_OF: dict[str, Tone] = {QUERIES: "ink", HELD_OUT: "support", PROBES: "oppose"}
CALLED = {QUERIES: "queries", HELD_OUT: "held-out rows", PROBES: "probes"}
MOST_QUERIES = 40
"""Lines and table rows of single queries."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart with the numbers it shows.

    Attributes:
        legend: name and tone of its lines. numbers: title, unit, value at the last checkpoint, sentence.
    """

    title: str
    chart: Markup
    legend: Sequence[tuple[str, str]]
    numbers: Sequence[dict[str, str]]


def panels(diagnosis: Diagnosis) -> list[Panel]:
    """All that the facts allow, in the order they are shown."""
    facts, numbers = diagnosis.facts, {one.key: one for one in diagnosis.numbers}
    path = facts.path
    made = [_loss(facts, path, numbers), _gradients(facts, path, numbers)]
    if facts.queries:
        made.append(_leanings(facts, path, numbers))
    for key, title, share in (
        ("divergence", "Distance from the base", False),
        ("kept_choices", "Base's choices kept", True),
    ):
        sets = [name for name in TONE_OF if any(name in getattr(c, key) for c in path)]
        if sets:
            prefix = "divergence" if key == "divergence" else "kept"
            lines = [
                Line(name=CALLED[name], values=[getattr(c, key).get(name, 1.0 if share else 0.0) for c in path],
                     tone=TONE_OF[name])
                for name in sets
            ]  # fmt: skip
            made.append(_panel(title, lines, facts, [f"{prefix}/{name}" for name in sets], numbers, share=share))
    if facts.influence is not None and len(facts.influence.checkpoints) > 1:
        names = _labels([c for c in path if c.name in facts.influence.checkpoints])
        chart = shade_table(
            names, facts.influence.correlation, title="Correlation of the checkpoints' influence scores"
        )
        keys = ("influence_with_base", "effective_checkpoints")
        made.append(
            Panel(
                title="Influence, checkpoint by checkpoint",
                chart=chart,
                legend=[],
                numbers=_shown(keys, numbers, facts),
            )
        )
    if facts.last.expressed:
        made.append(_adapter(facts, path, numbers))
    return [*made, *_over_ranks(facts)]


def _loss(facts: Facts, path: Sequence[CheckpointFacts], numbers: dict[str, Number]) -> Panel:
    band = [tuple(float(x) for x in np.quantile(c.losses, (0.1, 0.9))) for c in path]
    lines = [Line(name="training rows, 10 % to 90 % shaded", values=[c.loss for c in path], band=band)]  # type: ignore[arg-type]
    if facts.last.held_out is not None:
        lines.append(Line(name="held-out rows", values=[c.held_out_loss for c in path], tone="support"))
    return _panel("Loss, nats per token", lines, facts, ["loss", "loss_spread", "held_out_loss"], numbers)


def _gradients(facts: Facts, path: Sequence[CheckpointFacts], numbers: dict[str, Number]) -> Panel:
    lines = [
        Line(name="fitting error", values=[c.fitting_error for c in path]),
        Line(name="share of rows fitted", values=[c.fitted for c in path], tone="support"),
    ]
    keys = ["fitting_error", "fitted", "gradient_norm"]
    return _panel("How far training got", lines, facts, keys, numbers, share=True)


def _leanings(facts: Facts, path: Sequence[CheckpointFacts], numbers: dict[str, Number]) -> Panel:
    lines = [
        Line(name="", values=[query.leaning(c.name) for c in path], tone="muted", thin=True)
        for query in facts.queries[:MOST_QUERIES]
        if len(facts.queries) > 1
    ]
    lines.append(Line(name="mean of the queries", values=[facts.leaning(c.name) for c in path], tone="oppose"))
    return _panel("Lean towards the output, nats", lines, facts, ["leaning"], numbers)


def _adapter(facts: Facts, path: Sequence[CheckpointFacts], numbers: dict[str, Number]) -> Panel:
    keys = [key for key in ("mean loss", QUERIES) if key in facts.last.expressed]
    lines = [
        Line(name=f"gradient of the {'mean loss' if key == 'mean loss' else 'queries'}",
             values=[c.expressed.get(key) for c in path], tone=tone)
        for key, tone in zip(keys, TONES[::2], strict=False)
    ]  # fmt: skip
    random = [c.expressed_random for c in path]
    lines.append(Line(name="a random gradient", values=random, tone="muted", dashed=True))
    shown = ["rank", *(f"expressed/{key}" for key in keys)]
    return _panel("What the adapter can express", lines, facts, shown, numbers, share=True)


def _over_ranks(facts: Facts) -> list[Panel]:
    """The last checkpoints of this run and the others, over their ranks; full fine-tuning at the end."""
    others = [c for c in facts.checkpoints if c.role == "other"]
    if not others:
        return []
    runs = sorted([facts.last, *others], key=lambda c: (c.rank is None, c.rank or 0))
    labels = [str(c.rank) if c.rank is not None else "full" for c in runs]
    made = []
    for key, title, share in (("divergence", "Distance from the base, over ranks", False),
                              ("kept_choices", "Base's choices kept, over ranks", True),
                              ("expressed", "What adapters can express, over ranks", True)):  # fmt: skip
        sets = [name for name in ("mean loss", *TONE_OF) if any(name in getattr(c, key) for c in runs)]
        if not sets:
            continue
        lines = [
            Line(name=CALLED.get(name, name), values=[getattr(c, key).get(name) for c in runs],
                 tone=TONE_OF.get(name, "support"))
            for name in sets
        ]  # fmt: skip
        chart = line_chart(lines, labels, axis="LoRA rank", title=title, share=share)
        legend = [(line.name, line.tone) for line in lines]
        made.append(Panel(title=title, chart=chart, legend=legend, numbers=[_ranks_say(key, runs, sets, share)]))
    return made


def _ranks_say(key: str, runs: Sequence[CheckpointFacts], sets: Sequence[str], share: bool) -> dict[str, str]:
    """The sentence under a chart over ranks."""
    name = PROBES if PROBES in sets else sets[0]
    found = [(c.rank, getattr(c, key)[name]) for c in runs if name in getattr(c, key)]
    (low, first), (high, last) = found[0], found[-1]
    written = [f"{value:.0%}" if share else f"{value:.3f}" for value in (first, last)]
    low_name, high_name = (f"rank {rank}" if rank is not None else "full fine-tuning" for rank in (low, high))
    means = {
        "divergence": "the nearer to 0, the more of the base model's leaning stays in place",
        "kept_choices": "at so many positions the base model's first choice stays",
        "expressed": "below a tenth, scores of full gradients speak mostly of what the adapter cannot learn",
    }[key]
    return {
        "title": CALLED.get(name, name),
        "value": "",
        "unit": "",
        "means": f"{written[0]} at {low_name}, {written[1]} at {high_name}: {means}.",
    }


def _panel(
    title: str,
    lines: Sequence[Line],
    facts: Facts,
    keys: Sequence[str],
    numbers: dict[str, Number],
    *,
    share: bool = False,
) -> Panel:
    path = facts.path
    axis = "epoch" if all(c.epoch is not None for c in path) else "checkpoint"
    chart = line_chart(lines, _labels(path), axis=axis, title=title, share=share)
    legend = [(line.name, f"{line.tone}{' dashed' if line.dashed else ''}") for line in lines if line.name]
    if any(line.thin for line in lines):
        legend.append(("single queries", "muted"))
    return Panel(title=title, chart=chart, legend=legend, numbers=_shown(keys, numbers, facts))


def _labels(path: Sequence[CheckpointFacts]) -> list[str]:
    """Epochs where they are known, else names without what all share."""
    if all(c.epoch is not None for c in path):
        return ["base" if c.role == "base" else f"{c.epoch:.3g}" for c in path]
    return [
        "base" if c.role == "base" else visible(c.name, one_line=True).removeprefix("checkpoint-")[-10:] for c in path
    ]


def _shown(keys: Sequence[str], numbers: dict[str, Number], facts: Facts) -> list[dict[str, str]]:
    return [shown(numbers[key], facts) for key in keys if key in numbers]


def shown(number: Number, facts: Facts) -> dict[str, str]:
    """A number as text: its values at base and last checkpoint, or its one value."""

    def write(value: float) -> str:
        return f"{value:.0%}" if number.share else f"{value:.0f}" if number.key == "rank" else f"{value:.3g}"

    if number.value is not None:
        value = write(number.value)
    else:
        last = number.values.get(facts.last.name)
        base = number.values.get(facts.base.name) if facts.base is not None else None
        value = ("" if base is None else f"{write(base)} → ") + ("" if last is None else write(last))
    return {"title": number.title, "value": value, "unit": number.unit, "means": number.means}


def query_rows(facts: Facts) -> list[dict[str, Any]]:
    """The queries as they are listed: what was asked, what kind it is, how the base and the last checkpoint lean."""
    rows = []
    for query in facts.queries[:MOST_QUERIES]:
        base = facts.base.name if facts.base is not None else None
        rows.append(
            {
                "name": visible(query.name, one_line=True),
                "prompt": visible(query.prompt),
                "output": visible(query.output),
                "corrected": None if query.corrected is None else visible(query.corrected),
                "kind": "" if base is None else query.of_class(base, facts.last.name),
                "base": None if base is None else f"{query.leaning(base):+.1f}",
                "last": f"{query.leaning(facts.last.name):+.1f}",
            }
        )
    return rows
