"""Progress of long work: one bar with an estimate of the time left, on stderr, or nothing when quiet; or to a listener,
such as a page that shows it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Listener = Callable[[str, float, float], None]
"""Called with what is being done, how much of it is done, and how much there is; for a note, with it and 0 of 0."""

_quiet: ContextVar[bool] = ContextVar("headwater_quiet", default=False)
_listener: ContextVar[Listener | None] = ContextVar("headwater_listener", default=None)


def set_quiet(quiet: bool) -> None:
    """Turns bars and notes off (or on) for the current context, threads started later included."""
    _quiet.set(quiet)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Bars and notes of the block go to the listener and nowhere else, quiet or not."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


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


class _Heard(Bar):
    """A bar that only tells a listener."""

    def __init__(self, listener: Listener, text: str, total: float, scale: float = 1.0) -> None:
        super().__init__(None, 0, scale)
        self._listener, self._total = listener, total
        self._at: list[Any] = [text, 0.0]
        self._tell()

    def scaled(self, scale: float) -> Bar:
        same = _Heard.__new__(_Heard)
        same.__dict__.update(self.__dict__, _scale=self._scale * scale)
        return same

    def advance(self, amount: float = 1) -> None:
        self._at[1] += amount * self._scale
        self._tell()

    def describe(self, text: str) -> None:
        self._at[0] = text
        self._tell()

    def _tell(self) -> None:
        self._listener(self._at[0], self._at[1], self._total)


@contextmanager
def bar(description: str, total: float) -> Iterator[Bar]:
    """Shows a bar while the block runs; silent when quiet."""
    listener = _listener.get()
    if listener is not None:
        yield _Heard(listener, description, total)
        return
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
    listener = _listener.get()
    if listener is not None:
        listener(text, 0, 0)
    elif not _quiet.get():
        Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers' own bars and notes are off while the block runs, for headwater shows its own; and so is a warning
    that peft raises in transformers, on whose names no user has a say."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
