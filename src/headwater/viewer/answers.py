"""What was asked and what was answered: a folder of the viewer's state for each question, found again after a restart.

    answers/ID/question.json   what was asked, when, and by which methods
    answers/ID/METHOD/         an ordinary run directory of each method

ID follows from the question and from what was opened, so that the same question has the same answer. The answer `trace`
is the opened trace; only further methods of it are kept here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from headwater.errors import DataError, HeadwaterError, RunError, UsageError
from headwater.examples import Query
from headwater.gradients.measurement import targets_of
from headwater.records import parsed, text
from headwater.records import record as an_object
from headwater.report.visible import visible
from headwater.run import digest, remove_partial, versions, write_whole
from headwater.scores import Scores, query_record, written_query
from headwater.viewer.opened import Opened, label

TRACE = "trace"
"""Id of the answer that is the opened trace."""
KEPT = 8
"""Answers held in memory."""
MOST_QUERIES = 200
REMOVED = ".removed"
"""Ends the name of an answer's folder while its files are removed."""
_ID = re.compile(r"[0-9a-f]{16}")
_QUESTION = {"asked": text, "queries": [{"output": text}], "methods": [an_object]}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A method and its options."""

    name: str
    options: Mapping[str, Any]

    @property
    def label(self) -> str:
        """How its answer is called."""
        return label(self.name, self.options)

    @property
    def folder(self) -> str:
        """Name of its run directory."""
        if not self.options:
            return self.name
        return f"{self.name}-{digest(json.dumps(self.options, sort_keys=True).encode())[:8]}"

    @classmethod
    def of(cls, value: Any) -> Asked:
        """From a name, or {"name", "options"}. Raises UsageError for anything else."""
        record: Any = {"name": value} if isinstance(value, str) else value
        if (
            not isinstance(record, Mapping)
            or not isinstance(record.get("name"), str)
            or not isinstance(record.get("options", {}), Mapping)
        ):
            raise UsageError("a method that is no name", expected='"dda", or {"name", "options"}', fix="correct it")
        return cls(name=record["name"], options=dict(record.get("options", {})))


class Answers:
    """The answers of one viewer.

    Args:
        opened: what they are about.
    """

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.folder = opened.state / "answers"
        self._loaded: OrderedDict[str, list[Scores]] = OrderedDict()
        self._lock = threading.RLock()

    def ask(self, body: Mapping[str, Any]) -> tuple[str, list[Asked]]:
        """Keeps a question. Returns its id, and the methods that have not answered it yet.

        Raises:
            HeadwaterError: a question or a method that cannot be used.
        """
        queries = queries_of(body)
        wanted = body.get("methods") or ["dda"]
        if not isinstance(wanted, list):
            raise UsageError("methods of another form", expected="a list of methods", fix="correct it")
        methods = [Asked.of(one) for one in wanted]
        for method in methods:
            self.opened.method(method.name, method.options)
        record = {"queries": [query_record(query) for query in queries]}
        stamp = json.dumps([record, self.opened.fingerprint, versions()], sort_keys=True, ensure_ascii=False)
        name = digest(stamp.encode("utf-8", "surrogatepass"))
        with self._lock:
            kept = self._question(name) or {"asked": datetime.now(UTC).isoformat(timespec="seconds")} | record
            self._keep(name, kept, methods)
        return name, [method for method in methods if not self._finished(name, method)]

    def also(self, name: str, method: Asked) -> bool:
        """Adds a method to a question; whether it is to be computed."""
        self.opened.method(method.name, method.options)
        with self._lock:
            record = self.question(name)
            if name == TRACE and method.label in [m["name"] for m in (self.opened.manifest or {})["methods"]]:
                return False
            self._keep(name, record, [method])
        return not self._finished(name, method)

    def question(self, name: str) -> dict[str, Any]:
        """The record of a question.

        Raises:
            RunError: there is none.
        """
        found = self._question(name)
        if found is None:
            raise UnknownAnswer(name)
        return found

    def queries(self, name: str) -> list[Query]:
        """What was asked."""
        return [query_of(record) for record in self.question(name)["queries"]]

    def scores(self, name: str) -> list[Scores]:
        """The answers of all methods that are done, in the order in which they were asked for.

        Raises:
            RunError: no such answer, or none of its methods is done.
        """
        with self._lock:
            if name in self._loaded:
                self._loaded.move_to_end(name)
                return self._loaded[name]
            found = self._stored(name) + [
                replace(Scores.load(self.folder_of(name, method), self.opened.train), method=method.label)
                for method in self._methods(name)
                if self._finished(name, method)
            ]
            if not found:
                raise NotYet(name)
            self._loaded[name] = found
            while len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)
            return found

    def numbers(self, scores: Scores) -> np.ndarray | None:
        """Of each row of a method's answer its number among the opened rows; None where it has all of them."""
        return None if len(scores.train) == len(self.opened.train) else scores.numbers

    def forget(self, name: str) -> None:
        """Reads an answer anew when it is wanted next: a method of it has finished."""
        with self._lock:
            self._loaded.pop(name, None)

    def replace(self, name: str, method: int, scores: Scores) -> None:
        """Keeps more about one method's answer in memory, such as words."""
        with self._lock:
            if name in self._loaded:
                self._loaded[name][method] = scores

    def delete(self, name: str) -> None:
        """Removes an answer. Raises RunError for the opened trace and for one that is not there."""
        self.question(name)
        if name == TRACE:
            raise RunError(
                "the opened trace cannot be removed here", expected="an answer of the viewer", fix="leave it as it is"
            )
        with self._lock:
            self._loaded.pop(name, None)
            gone = self.folder / f"{name}{REMOVED}"  # renamed first: half of an answer would be neither there nor not
            os.replace(self.folder / name, gone)
            shutil.rmtree(gone, ignore_errors=True)

    def tidy(self) -> None:
        """Removes what a server that was killed had begun to write or to remove; the caller holds the state's lock."""
        remove_partial(self.opened.state, deep=False)
        for one in self.folder.iterdir() if self.folder.is_dir() else ():
            if one.name.endswith(REMOVED):
                shutil.rmtree(one, ignore_errors=True)
            else:
                remove_partial(one, deep=False)

    def summaries(self) -> list[dict[str, Any]]:
        """All answers, newest first; the opened trace at the end."""
        names = [one.name for one in self.folder.iterdir()] if self.folder.is_dir() else []
        found = [self.summary(name) for name in names if _ID.fullmatch(name) and self._question(name)]
        found.sort(key=lambda one: one["asked"], reverse=True)
        return found + ([self.summary(TRACE)] if self.opened.manifest is not None else [])

    def summary(self, name: str) -> dict[str, Any]:
        """One answer in short."""
        record = self.question(name)
        ready = self._stored_names(name) + [m.label for m in self._methods(name) if self._finished(name, m)]
        first = record["queries"][0]
        group = first.get("group")
        title = group or f"{_text(first['prompt'])} → {first.get('output', '').strip()}"
        return {
            "id": name,
            "title": visible(" ".join(title.split())[:200], one_line=True),
            "asked": record["asked"],
            "queries": len(record["queries"]),
            "group": None if group is None else visible(group),
            "methods": [visible(label) for label in ready],
            "state": "ready" if ready else "unfinished",
        }

    def folder_of(self, name: str, method: Asked) -> Path:
        """The run directory of a method."""
        return self.folder / name / method.folder

    def _question(self, name: str) -> dict[str, Any] | None:
        file = self.folder / name / "question.json"
        if name == TRACE and self.opened.manifest is not None:
            more = (_kept(file) or {"methods": []})["methods"]
            queries = [written_query(query) for query in self.opened.manifest["queries"]]
            when = datetime.fromtimestamp((Path(self.opened.place.folder) / "trace.json").stat().st_mtime, UTC)
            return {"asked": when.isoformat(timespec="seconds"), "queries": queries, "methods": more}
        return _kept(file) if _ID.fullmatch(name) else None

    def _keep(self, name: str, record: Mapping[str, Any], methods: Sequence[Asked]) -> None:
        known = list(record.get("methods", []))
        for method in methods:
            one = {"name": method.name, "options": dict(method.options)}
            known += [] if one in known else [one]
        text = json.dumps(dict(record) | {"methods": known}, ensure_ascii=False, indent=1)
        write_whole(self.folder / name / "question.json", text.encode("utf-8", "surrogatepass"))

    def _methods(self, name: str) -> list[Asked]:
        return [Asked.of(record) for record in self.question(name).get("methods", [])]

    def _finished(self, name: str, method: Asked) -> bool:
        return (self.folder_of(name, method) / "trace.json").exists()

    def _stored_names(self, name: str) -> list[str]:
        if name != TRACE or self.opened.manifest is None:
            return []
        return [str(method["name"]) for method in self.opened.manifest["methods"]]

    def _stored(self, name: str) -> list[Scores]:
        folder, train = Path(self.opened.place.folder), self.opened.train
        return [Scores.load(folder, train, method=method) for method in self._stored_names(name)]


class UnknownAnswer(RunError):
    """No answer of that id."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"no answer {visible(name, one_line=True)[:40]}",
            expected="the id of an answer",
            cause="it was removed, or belongs to another index",
            fix="ask again",
        )


class NotYet(RunError):
    """An answer that no method has finished."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the answer {name} is not finished",
            expected="a method that is done",
            cause="it was cancelled, or is still computed",
            fix="ask again: it goes on where it stopped",
        )


def _kept(file: Path) -> dict[str, Any] | None:
    """A question as it was kept; None where it is not there, or damaged: asked again, it is written anew."""
    try:
        found: dict[str, Any] = parsed(file.read_bytes(), file, _QUESTION, what="a question", fix="ask again")
        found["queries"] = [written_query(query) for query in found["queries"]]
        for query in found["queries"]:
            query_of(query)
        for method in found["methods"]:
            Asked.of(method)
    except (HeadwaterError, OSError):
        return None
    return found if found["queries"] else None


def queries_of(body: Mapping[str, Any]) -> list[Query]:
    """The queries of a request, checked.

    Raises:
        DataError: a query that cannot be used.
    """
    records = body.get("queries")
    if not isinstance(records, list) or not 1 <= len(records) <= MOST_QUERIES:
        raise DataError(
            "no queries" if not records else "queries of another form",
            expected=f"a list of 1 to {MOST_QUERIES} queries",
            fix="ask about at least one output",
        )
    group = body.get("group")
    found = []
    for record in records:
        if not isinstance(record, Mapping) or "prompt" not in record or not record.get("output"):
            raise DataError("a query without prompt or output", expected="both", fix="generate or paste an output")
        known = ("prompt", "output", "corrected", "span", "id")
        given = {key: record[key] for key in known if record.get(key) is not None}
        found.append(query_of(given | ({"group": group} if group else {})))
        found[-1].spans()  # refuses a "diff" of outputs that only add words
    targets_of(found)  # refuses two queries of one name
    return found


def query_of(record: Mapping[str, Any]) -> Query:
    given = dict(record)
    if isinstance(given.get("span"), list):
        given["span"] = tuple(given["span"])
    try:
        return Query(**given)
    except (TypeError, ValueError) as error:
        if isinstance(error, HeadwaterError):
            raise
        raise DataError(f"a query that cannot be read ({error})", expected="text", fix="correct it") from None


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
