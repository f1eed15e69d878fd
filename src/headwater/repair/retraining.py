"""Two ways to train again: headwater's own loop by a recipe, or the user's own program."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from headwater import progress
from headwater.checkpoints import BASE, Checkpoint, TrainingRun
from headwater.errors import HeadwaterError, RunError, UsageError
from headwater.examples import Columns, Examples, TemplateChoice, TokenFormat
from headwater.repair.recipe import FoundRecipe, remaining
from headwater.repair.rows import Completion, write_rows
from headwater.training import Recipe, fine_tune

TRAIN_FILE, OUT = "{train_file}", "{out}"
PATIENCE = 10.0
"""Seconds that a program has to end after it was asked to."""
PAUSE = 0.1


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Training by `headwater.training.fine_tune`.

    Attributes:
        recipe: how. start: the model it starts from, the base or an early checkpoint: folder or hub id.
        adapter: folder of an adapter whose config a new one gets.
        format: how rows become tokens.
    """

    recipe: Recipe
    start: str
    adapter: str | None = None
    format: TokenFormat = field(default_factory=TokenFormat)

    def describe(self) -> dict[str, Any]:
        """What decides its result, as JSON values."""
        start = Checkpoint(name="start", location=self.start).fingerprint()
        return {"kind": "fine_tune", **asdict(self), "fingerprint": start}

    def train(self, rows: Examples, corrections: Mapping[str, Completion], folder: Path) -> None:
        """Trains into `folder`, which is there afterwards, whole.

        Raises:
            HeadwaterError: as `fine_tune`. RunError: the training died.
        """
        adapter = Path(self.adapter) if self.adapter else None
        try:
            fine_tune(self.start, rows, folder, self.recipe, format=self.format, adapter=adapter)
        except HeadwaterError:
            raise
        except Exception as error:
            raise RunError(
                f"the training of {folder.name} died ({type(error).__name__}: {_line(str(error))})",
                expected="a finished training",
                cause=_cause(error),
                fix="mend that and run the same command again: finished trainings are kept",
            ) from error


def own_training(
    run: TrainingRun,
    found: FoundRecipe,
    *,
    format: TokenFormat,
    given: Mapping[str, Any] | None = None,
    start: str | None = None,
) -> FineTuning:
    """The run's own training again.

    Args:
        found: what its files say of the recipe. given: fields of the recipe that they do not say, or say wrongly; of
            the whole run, also where it starts from an early checkpoint.
        start: name of an early checkpoint to go on from; by default the base.

    Raises:
        UsageError: an incomplete recipe, no base, a base in 4 or 8 bit, a checkpoint that is not early.
    """
    given = {key: value for key, value in (given or {}).items() if value is not None}
    if run.quantization is not None:
        raise UsageError(
            f"a run on a base in {run.quantization}",
            expected="a run that headwater can train again",
            cause="headwater trains in float32",
            fix="give your own program (--command)",
        )
    recipe = found.completed(given, run.last.location)
    if start is not None and start != BASE:
        early = run.named(start)
        return FineTuning(recipe=remaining(recipe, early), start=early.location, format=format)
    base = run.require_base("the run is trained again from it").location
    return FineTuning(recipe=recipe, start=base, adapter=None if "lora_rank" in given else found.adapter, format=format)


@dataclass(frozen=True, kw_only=True)
class Command:
    """The user's own training program.

    Attributes:
        template: a command line with {train_file}, where the rows will lie, and {out}, the folder in which it has to
            leave a model or a Trainer output folder. It is split into words as a shell would, but no shell runs it.
        file: the training file, whose name, format and columns {train_file} gets; by default it is JSONL.
        columns, template_of_rows: how `file` was read.
    """

    template: str
    file: str | None = None
    columns: Columns | None = None
    template_of_rows: TemplateChoice = "auto"

    def __post_init__(self) -> None:
        missing = [name for name in (TRAIN_FILE, OUT) if name not in self.template]
        if missing:
            raise UsageError(
                f"the command {_line(self.template)!r} without {' and '.join(missing)}",
                expected=f"both {TRAIN_FILE} and {OUT}: several trainings run, none may write over another",
                fix=f"such as 'python train.py --data {TRAIN_FILE} --output {OUT}'",
            )
        try:
            words = shlex.split(self.template)
        except ValueError as error:
            raise UsageError(
                f"the command {_line(self.template)!r} ({error})", expected="quotes that are closed", fix="close them"
            ) from None
        if shutil.which(words[0]) is None:
            raise UsageError(
                f"no program {words[0]!r}", expected="a program that can be run", fix="check its name, or give its path"
            )

    def describe(self) -> dict[str, Any]:
        """What decides its result, as JSON values; the program itself may change, which is not seen."""
        return {"kind": "command", **asdict(self)}

    def train(self, rows: Examples, corrections: Mapping[str, Completion], folder: Path) -> None:
        """Runs the program, which makes `folder`; its words are kept in <folder>.log.

        Raises:
            RunError: it ended with another exit code than 0, or left no model.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_program(folder.with_name(folder.name + ".running")) as held:
            if not folder.exists():  # finished by a headwater that was killed before it had asked the model
                self._train(rows, corrections, folder, held)
            shutil.rmtree(folder.with_name(folder.name + ".data"), ignore_errors=True)

    def _train(self, rows: Examples, corrections: Mapping[str, Completion], folder: Path, held: int) -> None:
        partial, log = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".log")
        if partial.exists():
            progress.note(f"Starting the interrupted training in {partial} anew")
            shutil.rmtree(partial)
        data = folder.with_name(folder.name + ".data")
        like = Path(self.file) if self.file else None
        file = write_rows(rows, corrections, data, like=like, columns=self.columns, template=self.template_of_rows)
        places = {TRAIN_FILE: str(file.resolve()), OUT: str(partial.resolve())}
        words = [_filled(word, places) for word in shlex.split(self.template)]
        with open(log, "wb") as said, progress.bar("Training by your command", 1) as bar:
            code = _run(words, said, held)
            bar.advance()
        if code != 0:
            how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
            raise RunError(
                f"the training command ended with {how} ({_last_line(log)})",
                expected="exit code 0",
                fix=f"see {log}, mend it and run the same command again: finished trainings are kept",
            )
        _require_model(partial, log)
        os.replace(partial, folder)


def _filled(word: str, places: Mapping[str, str]) -> str:
    for name, place in places.items():
        word = word.replace(name, place)
    return word


@contextmanager
def _only_program(file: Path) -> Iterator[int]:
    """A locked file, as a descriptor, for the program to hold too. A program of a headwater that was killed still holds
    it: that one is ended first, for it writes where the next one will.

    Raises:
        RunError: it does not end.
    """
    import fcntl

    held = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        for attempt in range(int(PATIENCE / PAUSE)):
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                process = int(os.pread(held, 20, 0) or 0)
                if attempt == 0:
                    progress.note(f"Ending the training of an interrupted repair (process {process})")
                if _holds(process, file):
                    with suppress(ProcessLookupError):
                        os.killpg(process, signal.SIGTERM if attempt * PAUSE < PATIENCE / 2 else signal.SIGKILL)
                time.sleep(PAUSE)
        else:
            raise RunError(
                f"the training program of an interrupted repair still runs and holds {file}",
                expected="one training into a folder at a time",
                fix="end it, and run the same command again",
            )
        yield held
        file.unlink(missing_ok=True)
    finally:
        os.close(held)


def _holds(process: int, file: Path) -> bool:
    """Whether a process has this file open, as far as the system tells: nobody else's process may be ended."""
    with suppress(OSError):
        return any(open.resolve() == file.resolve() for open in Path(f"/proc/{process}/fd").iterdir())
    return False


def _run(words: list[str], said: IO[bytes], held: int) -> int:
    """The exit code of a program in a group of processes of its own, which ends with the block, whatever ends it."""
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=(held,),
    )
    try:
        os.pwrite(held, b"%-20d" % process.pid, 0)
        return process.wait()
    except BaseException:
        for stop in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, stop)
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
                break
        raise


def _require_model(folder: Path, log: Path) -> None:
    try:
        TrainingRun.from_pretrained(folder, allow_pickle=True)
    except HeadwaterError as error:
        found = error.got if folder.exists() else f"nothing at {OUT}"
        raise RunError(
            f"the training command ended well and left no model ({found})",
            expected=f"a model, an adapter or checkpoint-* folders in {OUT}",
            cause=f"a program that writes elsewhere; its words are in {log}",
            fix=f"let it write to {OUT}, and run the same command again: finished trainings are kept",
        ) from error


def trained_run(folder: Path, like: TrainingRun) -> TrainingRun:
    """The training in `folder`, with the base and the permissions of the run that it repairs.

    Raises:
        ModelError: no model there.
    """
    return TrainingRun.from_pretrained(
        folder,
        base=like.base.location if like.base else None,
        trust_remote_code=like.trust_remote_code,
        allow_pickle=like.allow_pickle,
    )


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return f"its last words: {_line(lines[-1])}" if lines else "it said nothing"


def _line(text: str) -> str:
    line = " ".join((text.strip().splitlines() or [""])[0].split())
    return line if len(line) <= 160 else line[:157] + "..."


def _cause(error: Exception) -> str | None:
    text = str(error).lower()
    if "no space left" in text or "disk quota" in text or "os error 28" in text or "file write failed" in text:
        return "a full disk"
    return "too little memory" if isinstance(error, MemoryError) or "out of memory" in text else None
