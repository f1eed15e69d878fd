"""Rows that were marked as culprits: to drop, or to fix. Kept in the viewer's state, by id and content."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headwater.errors import DataError
from headwater.examples import Examples
from headwater.examples.messages import checked_text
from headwater.records import Rule, parsed
from headwater.report.visible import visible
from headwater.run import write_whole

FILE = "marks.json"
ACTIONS = ("drop", "fix")
SHOWN = 1000
"""Characters of a row's prompt and completion beside its mark."""


def _is_mark(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and all(isinstance(value, str) for value in found.values())
        and {"id", "content_hash", "action"} <= set(found)
        and found["action"] in ACTIONS
        and (found["action"] == "fix") == ("completion" in found)
    )


_MARK = Rule("a mark", _is_mark)


class Marks:
    """The marks of one viewer.

    Args:
        folder: of the viewer's state. train: the rows.
    """

    def __init__(self, folder: Path, train: Examples) -> None:
        self._file, self._train = folder / FILE, train
        self._lock = threading.Lock()
        self._others: list[dict[str, Any]] = []  # of rows that are not what they were: kept, not shown
        self._marks = self._read()

    @property
    def rows(self) -> dict[int, dict[str, Any]]:
        """Number of a row -> its mark as it is kept."""
        return dict(sorted(self._marks.items()))

    def record(self) -> dict[str, Any]:
        """As the page shows them, with the beginnings of the rows' texts."""
        found = {}
        for n, mark in self.rows.items():
            row = self._train[n]
            texts = {"prompt": visible(row.prompt_text[-SHOWN:]), "was": visible(row.completion_text[:SHOWN])}
            found[str(n)] = {key: visible(value) for key, value in mark.items() if key != "content_hash"} | texts
        return found

    def put(self, body: Mapping[str, Any]) -> None:
        """Marks rows.

        Raises:
            DataError: rows that are not there, another action, or a correction that a row cannot have.
        """
        rows, action = self._rows(body), body.get("action")
        if action not in ACTIONS:
            raise DataError("a mark without action", expected="drop or fix", fix="choose one of them")
        mark = {"action": action}
        for name in ("completion", "note"):
            if body.get(name) not in (None, ""):
                mark[name] = checked_text(body[name], "a mark", name)
        if (action == "fix") != ("completion" in mark):
            raise DataError(
                f"a mark to {action} a row " + ("without" if action == "fix" else "with") + " a completion",
                expected="a completion to fix a row, none to drop it",
                fix="say what the row should say, or drop it",
            )
        if action == "fix" and (len(rows) > 1 or self._train.kind in ("chat", "messages")):
            raise DataError(
                f"a correction of {len(rows)} rows of kind {self._train.kind}",
                expected="one row of text: conversations can be dropped, not fixed",
                fix="drop them, or fix them one by one in the file",
            )
        with self._lock:
            for n in rows:
                row = self._train[n]
                self._marks[n] = {"id": row.id, "content_hash": row.content_hash} | mark
            self._write()

    def delete(self, body: Mapping[str, Any]) -> None:
        """Takes marks away; rows without one are no mistake."""
        with self._lock:
            for n in self._rows(body):
                self._marks.pop(n, None)
            self._write()

    def _rows(self, body: Mapping[str, Any]) -> list[int]:
        rows = body.get("rows")
        known = isinstance(rows, Sequence) and not isinstance(rows, str) and bool(rows)
        if not known or any(type(n) is not int or not 0 <= n < len(self._train) for n in rows or ()):
            raise DataError(
                "rows that are not there", expected=f"numbers from 0 to {len(self._train) - 1}", fix="correct them"
            )
        return list(dict.fromkeys(rows or ()))

    def _read(self) -> dict[int, dict[str, Any]]:
        """What was kept, as far as the rows are still what they were."""
        message = {"what": "the marks of an earlier session", "fix": "mend or remove that file"}
        try:
            kept = parsed(self._file.read_bytes(), self._file, {"marks": [_MARK]}, **message)["marks"]
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise DataError(
                f"{self._file} cannot be read ({type(error).__name__})",
                expected=message["what"],
                fix=message["fix"],
            ) from None
        wanted = {(mark["id"], mark["content_hash"]): mark for mark in kept}
        rows = enumerate(self._train) if wanted else ()
        found = {n: wanted.pop(key) for n, row in rows if (key := (row.id, row.content_hash)) in wanted}
        self._others = list(wanted.values())
        return found

    def _write(self) -> None:
        text = json.dumps({"format": 1, "marks": [*self.rows.values(), *self._others]}, ensure_ascii=False, indent=1)
        write_whole(self._file, text.encode("utf-8", "surrogatepass"))
