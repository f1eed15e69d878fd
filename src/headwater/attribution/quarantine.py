"""Rows that are left out of an index: their gradient is not a number, or no process lives through them.

    quarantine.json   of a part: the rows, with the checkpoint and the reason
    attempt.json      of a part, while a chunk is under way: which, and how many processes died in it

A process that is killed leaves attempt.json behind. Where DEATHS processes have died in one chunk, the next one tries
its rows in a child process, halves by halves, until the rows are found that kill it alone. They are named and left
out; their numbers in the store are NaN, the manifest lists them, and queries do not score them.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from headwater import progress
from headwater.errors import HeadwaterError, NumericalError, RunError
from headwater.examples import Encoded, Examples
from headwater.index.folder import Folder

if TYPE_CHECKING:
    import torch

    from headwater.attribution.compute import Compute
    from headwater.checkpoints import TrainingRun

QUARANTINE, ATTEMPT = "quarantine.json", "attempt.json"
DEATHS = 2
"""So many processes may die in one chunk before its rows are tried one by one."""

NOT_FINITE, DEADLY = "its gradient is NaN or infinite", "the process that computes its gradient dies"


class Quarantine:
    """The rows of a part that are left out.

    Args:
        part: its folder. allowed: leave rows out whose gradient is not finite; otherwise they are refused.
    """

    def __init__(self, part: Folder, train: Examples, allowed: bool) -> None:
        self._part, self._train, self._allowed = part, train, allowed
        kept = json.loads(part.read_bytes(QUARANTINE)) if part.exists(QUARANTINE) else []
        self.records: dict[int, dict[str, Any]] = {record["row"]: record for record in kept}

    def __contains__(self, row: object) -> bool:
        return row in self.records

    def inside(self, start: int, stop: int) -> list[int]:
        """The rows from start to stop that are left out, counted from start."""
        return sorted(row - start for row in self.records if start <= row < stop)

    def add(self, row: int, checkpoint: str, reason: str) -> None:
        """Leaves a row out, from now on and for good."""
        example = self._train[row]
        self.records[row] = {
            "row": row,
            "id": example.id,
            "source": example.source,
            "checkpoint": checkpoint,
            "reason": reason,
        }
        records = [self.records[one] for one in sorted(self.records)]
        self._part.write_whole(QUARANTINE, json.dumps(records, indent=1, ensure_ascii=False).encode())
        progress.note(f'Row "{example.id}" ({example.source}) is left out at {checkpoint}: {reason}.')

    def broken(self, rows: Sequence[int], of: int, checkpoint: str) -> None:
        """Leaves rows out whose gradient is not finite.

        Args:
            of: how many rows the chunk has.

        Raises:
            NumericalError: they are not to be left out, or all rows of a chunk are like this.
        """
        first = self._train[rows[0]]
        others = f" and {len(rows) - 1} more rows" if len(rows) > 1 else ""
        if len(rows) == of > 1:
            raise NumericalError(
                f"the gradients of all {of} rows of a chunk are NaN or infinite at {checkpoint}",
                expected="finite numbers",
                cause="a checkpoint with broken weights, or half precision that overflows",
                fix="check the checkpoint, or use --dtype float32",
            )
        if not self._allowed:
            raise NumericalError(
                f'the gradient of row "{first.id}" ({first.source}){others} is NaN or infinite at {checkpoint}',
                expected="finite numbers",
                cause="a row that the model cannot follow, or half precision that overflows",
                fix="correct or remove the row, use --dtype float32, or leave such rows out with --quarantine",
            )
        for row in rows:
            self.add(row, checkpoint, NOT_FINITE)


def not_finite(g_CF: torch.Tensor, loss_C: torch.Tensor) -> list[int]:
    """The rows of a chunk whose gradient or loss is not finite."""
    import torch

    sound_C = torch.isfinite(g_CF).all(1) & torch.isfinite(loss_C)
    return [] if bool(sound_C.all()) else torch.nonzero(~sound_C)[:, 0].tolist()


class Attempts:
    """Which chunk is under way, and how many processes have died in it."""

    def __init__(self, part: Folder) -> None:
        self._part = part
        left = json.loads(part.read_bytes(ATTEMPT)) if part.exists(ATTEMPT) else None
        self._died = (left["checkpoint"], left["chunk"], left["deaths"] + 1) if left else ("", -1, 0)

    def deaths(self, checkpoint: str, chunk: int) -> int:
        """How many processes died in this chunk."""
        return self._died[2] if self._died[:2] == (checkpoint, chunk) else 0

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What is under way is forgotten at the end of the block, however it ends: only a death leaves it behind."""
        try:
            yield
        finally:
            self._part.remove(ATTEMPT)

    def begin(self, checkpoint: str, chunk: int) -> None:
        """Says that a chunk is under way."""
        record = {"checkpoint": checkpoint, "chunk": chunk, "deaths": self.deaths(checkpoint, chunk)}
        self._part.write_whole(ATTEMPT, json.dumps(record).encode())


def deadly(rows: Sequence[int], survives: Callable[[Sequence[int]], bool]) -> list[int]:
    """The rows that a process does not survive alone, by halving.

    Args:
        survives: whether a process lives through these rows.
    """
    if not rows or survives(rows):
        return []
    if len(rows) == 1:
        return list(rows)
    half = len(rows) // 2
    return deadly(rows[:half], survives) + deadly(rows[half:], survives)


def find_deadly(
    checkpoint: str, rows: Sequence[int], survives: Callable[[Sequence[int]], bool], quarantine: Quarantine
) -> None:
    """Finds the rows that kill a process, and leaves them out.

    Raises:
        RunError: processes die of these rows together, and of none alone.
    """
    progress.note(f"{DEATHS} processes died in one chunk of {checkpoint}: its {len(rows):,} rows are tried in halves.")
    tried: dict[tuple[int, ...], bool] = {}

    def once(some: Sequence[int]) -> bool:
        key = tuple(some)
        if key not in tried:
            tried[key] = survives(some)
        return tried[key]

    found = deadly(rows, once)
    for row in found:
        quarantine.add(row, checkpoint, DEADLY)
    if not found and not once(rows):
        raise RunError(
            f"processes die again and again in {len(rows)} rows of {checkpoint}, and in none of them alone",
            expected="rows that fit in memory together",
            cause="the system ended the process because memory was full",
            fix="lower --batch-tokens or --chunk-rows, or free memory",
        )


class Child:
    """A process that computes gradients of rows, and may die of it."""

    def __init__(self, run: TrainingRun, compute: Compute, checkpoint: str, batch_tokens: int) -> None:
        self._given = (run, compute, checkpoint, batch_tokens)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def survives(self, encoded: Sequence[Encoded]) -> bool:
        """Whether it lives through these rows.

        Raises:
            HeadwaterError: what is wrong in another way.
        """
        if self._process is None:
            program = "from headwater.attribution.quarantine import serve; serve()"
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            if not self._say(self._given):
                return False
        return self._say(list(encoded))

    def _say(self, what: Any) -> bool:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump(what, self._process.stdin)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):  # it is dead
            self._end()
            return False
        if isinstance(answer, HeadwaterError):
            raise answer
        return True

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def serve() -> None:
    """The child's side: reads what it is given from its parent, answers True after each.

    The two are one program and talk through pipes that nobody else holds, so they may pickle, as multiprocessing does;
    nothing of the user's files is unpickled.
    """
    told, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print goes nowhere
    progress.set_quiet(True)

    def say(what: Any) -> None:
        pickle.dump(what, answers)
        answers.flush()

    try:
        _serve(told, say)
    except EOFError:
        return
    except HeadwaterError as error:
        say(error)


def _serve(told: IO[bytes], say: Callable[[Any], None]) -> None:
    from headwater.attribution.chunks import ChunkGradients
    from headwater.attribution.models import Models

    run, compute, checkpoint, batch_tokens = pickle.load(told)
    place = Models(run, compute, (), {"layers": ""}).load(checkpoint)
    say(True)
    while True:
        encoded = pickle.load(told)
        gradients = ChunkGradients(place, encoded, batch_tokens)
        with gradients.hooks.attached():
            gradients(0, len(encoded), progress.Bar(None, 0))
        say(True)
