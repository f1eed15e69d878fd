"""The process that does the slow work for the server: `python -m headwater.viewer.worker`.

It reads lines of JSON and writes lines of JSON; what libraries print goes to stderr, which is kept as worker.log.

    in    {"place": {...}}  first;  {"job": ID, "kind": "generate" | "tokens" | "answer" | "words" | "repair", ...};
          {"cancel": ID};  the end of the input ends the process
    out   {"ready": true} or {"failed": error};
          {"job": ID, "event": "progress" | "note" | "token" | "method" | "done" | "failed" | "cancelled", ...}
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headwater import progress
from headwater.errors import HeadwaterError
from headwater.examples import Query
from headwater.viewer.answers import query_of

OFTEN = 0.2
"""Seconds between two reports of progress."""


class Cancelled(BaseException):
    """The job that is running is not wanted any more."""


class _Line:
    """The way back to the server."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def send(self, **record: Any) -> None:
        with self._lock:
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()


def main() -> None:
    """Works until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    line = _Line(out)
    todo: queue.Queue[dict[str, Any]] = queue.Queue()
    cancelled: set[str] = set()
    threading.Thread(target=_listen, args=(sys.stdin, todo, cancelled), daemon=True).start()
    first = todo.get()
    try:
        from headwater.viewer.opened import Opened, Place
        from headwater.viewer.tasks import Tasks

        tasks = Tasks(Opened.open(Place(**first["place"])))
    except HeadwaterError as error:
        line.send(failed=error_record(error))
        return
    line.send(ready=True)
    while True:
        task = todo.get()
        _do(task, tasks, line, cancelled)


def error_record(error: BaseException) -> dict[str, Any]:
    """An error as JSON values; anything but a HeadwaterError is a mistake of ours, whose traceback is in worker.log."""
    if isinstance(error, HeadwaterError):
        parts = {"got": error.got, "expected": error.expected, "cause": error.cause, "fix": error.fix}
        return {"message": str(error), **parts}
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0][:200]}"
    if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
        cause, fix = "not enough memory", "close other programs, or ask less at once"
    else:
        cause, fix = "a mistake of headwater", "see worker.log in the viewer's folder, and report it"
    return {"message": text, "got": text, "expected": "work without an error", "cause": cause, "fix": fix}


def _listen(stream: Any, todo: queue.Queue[dict[str, Any]], cancelled: set[str]) -> None:
    for text in stream:
        message = json.loads(text)
        if "cancel" in message:
            cancelled.add(message["cancel"])
        else:
            todo.put(message)
    os._exit(0)  # the server is gone


def _do(task: Mapping[str, Any], tasks: Any, line: _Line, cancelled: set[str]) -> None:
    job = str(task["job"])
    last: tuple[float, str] = (0.0, "")

    def check() -> None:
        if job in cancelled:
            raise Cancelled

    def heard(text: str, done: float, total: float) -> None:
        nonlocal last
        check()
        if not done and not total:
            line.send(job=job, event="note", text=text)
            return
        now = time.monotonic()
        if text != last[1] or done >= total or now - last[0] >= OFTEN:
            last = (now, text)
            line.send(job=job, event="progress", stage=text, done=done, total=total)

    try:
        check()
        with progress.listening(heard):
            result = _result(task, tasks, lambda **more: line.send(job=job, **more), lambda: job not in cancelled)
        check()
    except Cancelled:
        line.send(job=job, event="cancelled")
    except HeadwaterError as error:
        line.send(job=job, event="failed", error=error_record(error))
    except Exception as error:
        traceback.print_exc()
        line.send(job=job, event="failed", error=error_record(error))
    else:
        line.send(job=job, event="done", result=result)


def _result(
    task: Mapping[str, Any], tasks: Any, send: Callable[..., None], wanted: Callable[[], bool]
) -> dict[str, Any] | None:
    kind = task["kind"]
    found: dict[str, Any] | None = None
    if kind == "generate":

        def told(token: dict[str, Any]) -> bool:
            send(event="token", token=token)
            return wanted()

        found = tasks.generate(task["prompt"], task["max_new_tokens"], told)
    elif kind == "tokens":
        found = tasks.tokens(task["prompt"], task["output"])
    elif kind == "answer":
        for one in task["methods"]:
            tasks.answer(queries(task), one["name"], one["options"], Path(one["out"]))
            send(event="method", name=one["name"])
    elif kind == "words":
        wanted_words = {key: task[key] for key in ("name", "options", "target", "row", "weights", "dtype")}
        found = tasks.words(queries(task), **wanted_words)
    elif kind == "repair":
        from headwater.viewer.repairing import repaired

        found = repaired(tasks.opened, queries(task), task["ids"], task["corrections"], Path(task["out"]))
    return found


def queries(task: Mapping[str, Any]) -> list[Query]:
    """The queries of a task."""
    return [query_of(record) for record in task["queries"]]


if __name__ == "__main__":
    main()
