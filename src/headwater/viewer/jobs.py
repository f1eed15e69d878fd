"""Slow work, one job after the other, in a process of its own that keeps the models and may die.

Everything here runs in the thread of the server's event loop, but the thread that reads what the worker says.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from headwater.errors import RunError
from headwater.report.visible import visible
from headwater.viewer.opened import Place, place_record
from headwater.viewer.worker import error_record

KEPT = 50
"""Jobs that are remembered."""
WAITING = 20
"""Jobs that may wait at a time."""
PATIENCE = 5.0
"""Seconds that a cancelled job has to end before its process is ended."""

State = Literal["queued", "running", "done", "failed", "cancelled"]
Kind = Literal["generate", "tokens", "answer", "words", "repair"]
Finish = Callable[["Job", Any], Awaitable[Any]]
"""(job, what the worker returned) -> the job's result."""


@dataclass
class Job:
    """One piece of slow work.

    Attributes:
        task: for the worker. finish: makes the result of what the worker returns; None: it is the result.
        step: called when one of several methods is done.
    """

    id: str
    kind: Kind
    task: Mapping[str, Any]
    answer: str | None = None
    finish: Finish | None = None
    step: Callable[[], None] | None = None
    state: State = "queued"
    stage: str = ""
    done: float = 0.0
    total: float = 0.0
    notes: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None
    tokens: list[dict[str, Any]] = field(default_factory=list)
    result: Any = None
    started: float | None = None
    ended: float | None = None
    stage_started: float = 0.0
    cancelled: bool = False

    def record(self) -> dict[str, Any]:
        """The job as the page knows it."""
        now = self.ended or time.monotonic()
        left = None
        if self.state == "running" and self.total and 0 < self.done < self.total:
            left = round((now - self.stage_started) * (self.total - self.done) / self.done, 1)
        return {
            "id": self.id,
            "kind": self.kind,
            "state": self.state,
            "stage": visible(self.stage, one_line=True),
            "done": self.done,
            "total": self.total,
            "seconds_left": left,
            "seconds": 0.0 if self.started is None else round(now - self.started, 2),
            "notes": [visible(note) for note in self.notes],
            "error": self.error,
            "answer": self.answer,
            "tokens": self.tokens,
            "result": self.result,
        }


class Jobs:
    """The jobs of one server.

    Args:
        place: what the worker opens. log: file for what it prints.
        publish: (event, data) tells every page.
    """

    def __init__(self, place: Place, log: Path, publish: Callable[[str, Any], None]) -> None:
        self._place, self._log, self._publish = place, log, publish
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._message: str | None = None
        self._ready = False
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int | None:
        """Of the worker process."""
        return None if self._process is None else self._process.pid

    def records(self) -> list[dict[str, Any]]:
        return [job.record() for job in self._jobs.values()]

    def worker(self) -> dict[str, Any]:
        """How the worker process is."""
        if self._process is None:
            state = "stopped" if self._message else "idle"
        elif not self._ready:
            state = "starting"
        else:
            state = "busy" if self._running is not None else "idle"
        return {"state": state, "message": self._message}

    def get(self, name: str) -> Job:
        """The job of that id.

        Raises:
            UnknownJob: there is none (any more).
        """
        if name not in self._jobs:
            raise UnknownJob(name)
        return self._jobs[name]

    def submit(
        self,
        kind: Kind,
        task: Mapping[str, Any],
        *,
        answer: str | None = None,
        finish: Finish | None = None,
        step: Callable[[], None] | None = None,
    ) -> Job:
        """Queues a job; the same work that is queued or running already is joined.

        Raises:
            RunError: too many are waiting.
        """
        for job in self._jobs.values():
            if job.state in ("queued", "running") and not job.cancelled and (job.kind, job.task) == (kind, task):
                return job
        if len(self._waiting) >= WAITING:
            raise RunError(
                f"{len(self._waiting)} jobs are waiting", expected=f"fewer than {WAITING}", fix="wait, or cancel some"
            )
        self._count += 1
        job = Job(id=f"j{self._count}", kind=kind, task=task, answer=answer, finish=finish, step=step)
        self._jobs[job.id] = job
        for name in [j.id for j in self._jobs.values() if j.ended is not None][: max(0, len(self._jobs) - KEPT)]:
            del self._jobs[name]
        self._waiting.append(job)
        self._tell(job)
        self._next()
        return job

    def cancel(self, name: str) -> Job:
        """Cancels a job: one that waits at once, one that runs at its next step, or else with its process."""
        job = self.get(name)
        if job.state == "queued":
            self._waiting.remove(job)
            self._end(job, "cancelled")
        elif job.state == "running" and not job.cancelled:
            job.cancelled = True
            self._send({"cancel": job.id})
            asyncio.get_running_loop().call_later(PATIENCE, self._insist, job)
        return job

    def warm(self) -> None:
        """Starts the worker before it is needed."""
        if self._process is None:
            self._start()

    def close(self) -> None:
        """Ends the worker."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if self._reader is not None:
                self._reader.join(1)

    def _insist(self, job: Job) -> None:
        if job.state == "running" and self._process is not None:
            self._process.kill()

    def _next(self) -> None:
        if self._running is not None or not self._waiting:
            return
        job = self._waiting.popleft()
        self._running = job
        job.state, job.started = "running", time.monotonic()
        job.stage_started = job.started
        job.stage = "Working" if self._ready else "Starting the worker"
        if self._process is None:
            self._start()
        self._send({"job": job.id, "kind": job.kind, **job.task})
        self._tell(job)
        self._tell_worker()

    def _start(self) -> None:
        self._message, self._ready = None, False
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "headwater.viewer.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=os.name == "posix",  # Ctrl-C is for the server alone
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        loop = asyncio.get_running_loop()
        self._reader = threading.Thread(target=self._listen, args=(self._process, loop), daemon=True)
        self._reader.start()
        self._send({"place": place_record(self._place)})

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has died: the thread that reads from it says so

    def _listen(self, process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: what a worker says, and its end."""
        assert process.stdout is not None and process.stdin is not None
        with process.stdout as said, suppress(RuntimeError):  # the loop is closed: the server ends
            for line in said:
                loop.call_soon_threadsafe(self._heard, process, json.loads(line))
        code = process.wait()
        with suppress(OSError):
            process.stdin.close()
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._died, process, code)

    def _heard(self, process: subprocess.Popen[bytes], message: Mapping[str, Any]) -> None:
        if process is not self._process:
            return
        if "ready" in message:
            self._ready = True
            self._tell_worker()
            return
        job = self._running
        if "failed" in message:  # it could not open the place, and ends
            self._process, self._message = None, message["failed"]["message"]
            if job is not None:
                self._end(job, "failed", error=message["failed"])
            return
        if job is None or message.get("job") != job.id:
            return
        event = message["event"]
        if event == "progress":
            if message["done"] < job.done or message["total"] != job.total:
                job.stage_started = time.monotonic()
            job.stage, job.done, job.total = message["stage"], message["done"], message["total"]
            self._tell(job)
        elif event == "note":
            job.notes.append(message["text"])
            self._tell(job)
        elif event == "token":
            token = message["token"] | {"text": visible(message["token"]["text"])}
            job.tokens.append(token)
            self._publish("token", {"job": job.id, "n": len(job.tokens) - 1, "token": token})
        elif event == "method" and job.step is not None:
            job.step()
        elif event == "done":
            self._later(self._finish(job, message["result"]))
        elif event == "failed":
            self._end(job, "failed", error=message["error"])
        elif event == "cancelled":
            self._end(job, "cancelled")

    async def _finish(self, job: Job, result: Any) -> None:
        try:
            job.result = result if job.finish is None else await job.finish(job, result)
            if job.kind in ("generate", "tokens"):
                job.tokens = [token | {"text": visible(token["text"])} for token in job.result["tokens"]]
                job.result = job.result | {"tokens": job.tokens}
            self._end(job, "done")
        except Exception as error:
            self._end(job, "failed", error=error_record(error))

    def _died(self, process: subprocess.Popen[bytes], code: int) -> None:
        if process is not self._process:
            return
        self._process, self._ready = None, False
        job = self._running
        if job is not None and job.cancelled:
            self._end(job, "cancelled")
            return
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        error = RunError(
            f"the worker process has ended ({how})",
            expected="it to go on until the page is closed",
            cause="not enough memory" if code == -9 else "a crash; see worker.log in the viewer's folder",
            fix="ask again: a new worker is started, and finished work is kept",
        )
        self._message = str(error)
        if job is not None:
            self._end(job, "failed", error=error_record(error))
        self._tell_worker()

    def _end(self, job: Job, state: State, *, error: dict[str, Any] | None = None) -> None:
        if job.ended is not None:
            return
        job.state, job.error, job.ended = state, error, time.monotonic()
        if job is self._running:
            self._running = None
        self._tell(job)
        self._next()
        self._tell_worker()

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tell(self, job: Job) -> None:
        self._publish("job", job.record())

    def _tell_worker(self) -> None:
        self._publish("worker", self.worker())


class UnknownJob(RunError):
    """No job of that id."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"no job {visible(name, one_line=True)[:20]}",
            expected=f"one of the last {KEPT}",
            cause="the server was started again",
            fix="ask again: answers are kept",
        )
