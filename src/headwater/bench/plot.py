"""The detection curves as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwater.bench.summary import Figure
from headwater.errors import UsageError
from headwater.run import write_whole

SHOWN = 8
"""Curves in colour, a method's the same in every panel; those of the other methods are grey."""


def require_plots() -> None:
    """Raises UsageError where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "plots without the package matplotlib",
            expected="it",
            cause="headwater was installed without the extra `bench`",
            fix='pip install "headwater[bench]"',
        ) from error


def draw_curves(figures: Sequence[Figure], file: Path, *, title: str) -> None:
    """Fraction of the culprits found against fraction of the rows inspected, mean over targets; a panel per kind.

    Raises:
        UsageError: matplotlib is not installed.
    """
    require_plots()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    kinds = list(dict.fromkeys(f.kind for f in figures))
    canvas = Canvas(figsize=(5.4 * len(kinds), 4.6), layout="constrained")
    FigureCanvasAgg(canvas)
    canvas.suptitle(title)
    colours: dict[str, str] = {}
    for number, kind in enumerate(kinds, 1):
        axes = canvas.add_subplot(1, len(kinds), number)
        curves = {
            method: np.mean([f.curve for f in figures if f.kind == kind and f.method == method], axis=0)
            for method in dict.fromkeys(f.method for f in figures if f.kind == kind)
        }
        first = next(iter(curves))
        order = sorted(curves, key=lambda method: (method != first, -float(curves[method].mean())))
        for method in order[:SHOWN]:
            colours.setdefault(method, f"C{len(colours)}")
        for place, method in reversed(list(enumerate(order))):
            style: dict[str, Any] = {"color": "0.85"}
            if place < SHOWN:
                style = {"color": colours[method], "label": method}
            axes.plot(np.linspace(0, 100, 101), 100 * curves[method], lw=2.6 if place == 0 else 1.3, **style)
        axes.plot([0, 100], [0, 100], color="0.6", ls=":", lw=1)
        axes.set(
            xlabel="rows inspected, %", ylabel="culprits found, %", title=f"per {kind}", xlim=(0, 100), ylim=(0, 101)
        )
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], loc="lower right", frameon=False, fontsize=8)
    sink = io.BytesIO()
    canvas.savefig(sink, format="png", dpi=120)
    write_whole(file, sink.getvalue())
