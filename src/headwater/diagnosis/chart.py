"""Charts as inline SVG: lines over the checkpoints or over ranks, and a table of correlations in shades.

A chart is 340 units wide and drawn at about that many pixels, so that its letters keep their size on a phone. Colours
come from the page's style sheet; every point has a title, so that its value can be read without a script.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

Tone = Literal["ink", "support", "oppose", "muted"]
TONES: tuple[Tone, ...] = ("ink", "support", "oppose", "muted")

WIDTH, HEIGHT = 340, 196
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 12, 34
MOST_LABELS = 7


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line; None where a point has no value.

    Attributes:
        name: in the legend; "" for lines that have no entry of their own.
        band: (low, high) of each point, shaded.
        dashed: for what is only a comparison.
    """

    name: str
    values: Sequence[float | None]
    tone: Tone = "ink"
    thin: bool = False
    dashed: bool = False
    band: Sequence[tuple[float, float]] = ()


def line_chart(lines: Sequence[Line], labels: Sequence[str], *, axis: str, title: str, share: bool = False) -> Markup:
    """Lines over labelled points.

    Args:
        labels: of the points. axis: what they are.
        share: the values lie between 0 and 1.
    """
    values = [v for line in lines for v in line.values if v is not None]
    values += [v for line in lines for pair in line.band for v in pair]
    low, high = (0.0, 1.0) if share else _range(values)
    ticks = _ticks(low, high)

    def x(n: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((n + 0.5) / len(labels) if len(labels) < 3 else n / (len(labels) - 1))

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *(
            f'<line class="{"zero" if tick == 0 and low < 0 else "grid"}" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
            f'y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_plain(tick, ticks, share)}</text>'
            for tick in ticks
        ),
    ]
    for n in _labelled(len(labels)):
        anchor = "start" if n == 0 and len(labels) > 2 else "end" if n == len(labels) - 1 and n > 1 else "middle"
        at = x(n) if anchor == "middle" else x(n) + (-4 if anchor == "start" else 4)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 18}" text-anchor="{anchor}">{escape(labels[n])}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 3}" text-anchor="middle">{escape(axis)}</text>')
    for line in lines:
        if line.band:
            edge = [f"{x(n):.1f},{y(high_):.1f}" for n, (_, high_) in enumerate(line.band)]
            edge += [f"{x(n):.1f},{y(low_):.1f}" for n, (low_, _) in reversed(list(enumerate(line.band)))]
            parts.append(f'<polygon class="band {line.tone}" points="{" ".join(edge)}"/>')
    for line in sorted(lines, key=lambda one: not one.thin):
        points = [(x(n), y(v), v, labels[n]) for n, v in enumerate(line.values) if v is not None]
        kind = f"{'thin ' if line.thin else ''}{'dashed ' if line.dashed else ''}path {line.tone}"
        if len(points) > 1:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in points)
            parts.append(f'<polyline class="{kind}" points="{path}"/>')
        if not line.thin and not line.dashed:
            parts += [
                f'<circle class="point {line.tone}" cx="{px:.1f}" cy="{py:.1f}" r="3"><title>'
                f"{escape(line.name)}, {escape(label)}: {_value(v, share)}</title></circle>"
                for px, py, v, label in points
            ]
    parts.append("</svg>")
    return Markup("".join(parts))


def shade_table(names: Sequence[str], matrix: Sequence[Sequence[float]], *, title: str) -> Markup:
    """Correlations as shaded squares: blue above 0, brown below."""
    count = len(names)
    left, top = 62, 6
    size = min(44.0, (WIDTH - left - RIGHT) / count)
    height = top + size * count + 20
    parts = [f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">']
    for i, row in enumerate(matrix):
        parts.append(
            f'<text x="{left - 6}" y="{top + size * (i + 0.5) + 4:.1f}" text-anchor="end">{escape(names[i][:9])}</text>'
        )
        for j, value in enumerate(row):
            px, py = left + size * j, top + size * i
            shade = 0.06 + 0.5 * min(1.0, abs(value))
            parts.append(
                f'<rect class="cell {"support" if value >= 0 else "oppose"}" x="{px:.1f}" y="{py:.1f}" '
                f'width="{size - 1:.1f}" height="{size - 1:.1f}" fill-opacity="{shade:.2f}">'
                f"<title>{escape(names[i])} and {escape(names[j])}: {value:.2f}</title></rect>"
            )
            if size >= 26:
                parts.append(
                    f'<text class="strong" x="{px + size / 2:.1f}" y="{py + size / 2 + 4:.1f}" text-anchor="middle">'
                    f"{value:.2f}</text>"
                )
    for j in _labelled(count, MOST_LABELS if size < 40 else count):
        at = f'x="{left + size * (j + 0.5):.1f}" y="{height - 6:.0f}"'
        parts.append(f'<text {at} text-anchor="middle">{escape(names[j][:6])}</text>')
    parts.append("</svg>")
    return Markup("".join(parts))


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min([0.0, *values]), max([0.0, *values])
    if high - low < 1e-9:
        return low, low + 1.0
    return low - (0.06 * (high - low) if low < 0 else 0.0), high + (0.06 * (high - low) if high > 0 else 0.0)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough)
    return [round(n * step, 10) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _labelled(count: int, most: int = MOST_LABELS) -> list[int]:
    if count <= most:
        return list(range(count))
    return sorted({round(n * (count - 1) / (most - 1)) for n in range(most)})


def _plain(tick: float, ticks: Sequence[float], share: bool) -> str:
    if share:
        return f"{tick:.0%}"
    digits = max(len(f"{one:g}".partition(".")[2]) for one in ticks)
    return f"{tick:.{digits}f}" if abs(tick) < 1e4 else f"{tick:.0e}"


def _value(value: float, share: bool) -> str:
    return f"{value:.1%}" if share else f"{value:.3g}"
