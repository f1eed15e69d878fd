"""Progress of long work: one bar with an estimate of the time left, on stderr, or nothing when quiet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_quiet: ContextVar[bool] = ContextVar("headwater_quiet", default=False)


def set_quiet(quiet: bool) -> None:
    """Turns bars and notes off (or on) for the current context, threads started later included."""
    _quiet.set(quiet)


class Bar:
    """A running bar; `advance` moves it, `describe` renames it."""

    def __init__(self, progress: Progress | None, task: int, scale: float = 1.0) -> None:
        self._progress, self._task, self._scale = progress, task, scale

    def scaled(self, scale: float) -> Bar:
        """The same bar, moved by a share of each advance."""
        return Bar(self._progress, self._task, self._scale * scale)

    def advance(self, amount: float = 1) -> None:
        if self._progress is not None:
            self._progress.advance(self._task, amount * self._scale)  # type: ignore[arg-type]

    def describe(self, text: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, description=text)  # type: ignore[arg-type]


@contextmanager
def bar(description: str, total: float) -> Iterator[Bar]:
    """Shows a bar while the block runs; silent when quiet."""
    if _quiet.get():
        yield Bar(None, 0)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Bar(progress, progress.add_task(description, total=total))


def note(text: str) -> None:
    """One line on stderr for what the user should know and did not ask; silent when quiet."""
    if not _quiet.get():
        Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers' own bars and notes are off while the block runs: headwater shows its own."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
