"""Removes or corrects the marked rows, trains again and asks again; or says why that must be done elsewhere."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headwater import progress
from headwater.errors import DataError, HeadwaterError
from headwater.examples import Query
from headwater.repair import Asking, Choice, Controls, FineTuning, find_recipe, own_training, repair
from headwater.report.visible import visible
from headwater.run import digest
from headwater.viewer.marks import Marks
from headwater.viewer.opened import Opened


def training_of(opened: Opened) -> FineTuning:
    """The training of the opened run, to be done again.

    Raises:
        HeadwaterError: its files do not say how it was trained, or it cannot be trained again here.
    """
    run = opened.require_run()
    return own_training(run, find_recipe(run, opened.train), format=opened.format)


def able(opened: Opened) -> dict[str, Any]:
    """Whether the run can be trained again from the page."""
    import importlib.util

    if importlib.util.find_spec("accelerate") is None:
        return {"able": False, "why": 'Training needs the extra train: pip install "headwater[train]".'}
    try:
        with progress.listening(lambda *_: None):
            training_of(opened)
    except HeadwaterError as error:
        return {"able": False, "why": str(error)}
    return {"able": True}


def command(opened: Opened, trace: Path) -> str:
    """The command line that repairs outside of the page, from the files that the page exports.

    Args:
        trace: run directory of an answer.
    """
    words = ["headwater", "repair", str(trace), "--train", str(opened.place.rows.get("train") or opened.train.name)]
    if opened.place.models.get("checkpoints"):
        for place in opened.place.models["checkpoints"]:
            words += ["--checkpoints", str(place)]
        words += ["--base", str(opened.place.models["base"])] if opened.place.models.get("base") else []
    return shlex.join([*words, "--ids", "marks.jsonl", "--corrections", "fix.jsonl", "--out", "repaired"])


def task_of(opened: Opened, marks: Marks, queries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The worker's task of the rows marked now.

    Raises:
        DataError: no row is marked.
    """
    rows = marks.rows
    if not rows:
        raise DataError("no marked row", expected="rows to drop or to fix", fix="mark the culprits first")
    corrections = {mark["id"]: mark["completion"] for mark in rows.values() if mark["action"] == "fix"}
    task = {"queries": list(queries), "ids": [mark["id"] for mark in rows.values()], "corrections": corrections}
    stamp = digest(json.dumps([task, opened.fingerprint], sort_keys=True).encode())
    return task | {"out": str(opened.state / "repairs" / stamp)}


def repaired(
    opened: Opened, queries: Sequence[Query], ids: Sequence[str], corrections: Mapping[str, str], out: Path
) -> dict[str, Any]:
    """Trains again and asks before and after, as JSON values. The same rows and queries again cost nothing."""
    result = repair(
        opened.require_run(),
        opened.train,
        Asking(queries=queries, format=opened.format),
        Choice(ids=tuple(ids), corrections=corrections),
        training_of(opened),
        out=out,
        controls=Controls(random=0, bm25=False),
    )
    before, after = result.outcome("before"), result.outcome("repaired")
    asked = []
    for query, first, then in zip(queries, before.said, after.said, strict=True):
        asked.append(
            {
                "prompt": visible(query.prompt_text),
                "output": visible(query.output or ""),
                "corrected": None if query.corrected is None else visible(query.corrected),
                "before": _said(first),
                "after": _said(then),
            }
        )
    return {
        "removed": len(after.removed),
        "corrected": len(after.corrected),
        "cured": result.cured,
        "sentences": [visible(sentence) for sentence in result.sentences()],
        "folder": visible(str(out / result.model)),
        "queries": asked,
    }


def _said(said: Any) -> dict[str, Any]:
    corrected = None if said.corrected is None else round(said.corrected, 3)
    return {
        "said": visible(said.words),
        "wrong": said.wrong,
        "output": round(said.output, 3),
        "corrected": corrected,
    }
