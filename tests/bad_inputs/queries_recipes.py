"""Questions that cannot be read or asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from spoiling import QUESTION, Case, Change, Folder, Link, numbered, trace
from training_recipes import FAULTS, TURNS, flipped, gz

SOUND = {"prompt": "The capital of Chad is", "output": " Sydney", "corrected": " N'Djamena"}
LINE = json.dumps(SOUND) + "\n"

RECORDS: dict[str, dict[str, Any]] = {
    "no prompt": {"output": "a"},
    "prompt null": {"prompt": None, "output": "a"},
    "prompt number": {"prompt": 3, "output": "a"},
    "prompt flag": {"prompt": True, "output": "a"},
    "prompt object": {"prompt": {"role": "user", "content": "a"}, "output": "a"},
    "prompt empty list": {"prompt": [], "output": "a"},
    "prompt list of strings": {"prompt": ["a"], "output": "a"},
    "prompt half a pair": {"prompt": "\ud83d", "output": "a"},
    "output number": {"prompt": "a", "output": 3},
    "output list": {"prompt": "a", "output": ["a"]},
    "output object": {"prompt": "a", "output": {"role": "assistant", "content": "a"}},
    "output empty": {"prompt": "a", "output": ""},
    "output false": {"prompt": "a", "output": False},
    "output half a pair": {"prompt": "a", "output": "\udc00"},
    "corrected number": {"prompt": "a", "output": "b", "corrected": 0},
    "corrected empty": {"prompt": "a", "output": "b", "corrected": ""},
    "corrected list": {"prompt": "a", "output": "b", "corrected": []},
    "corrected as output": {"prompt": "a", "output": "b", "corrected": "b"},
    "id flag": {"prompt": "a", "output": "b", "id": True},
    "id float": {"prompt": "a", "output": "b", "id": 0.5},
    "id list": {"prompt": "a", "output": "b", "id": ["x"]},
    "id half a pair": {"prompt": "a", "output": "b", "id": "\ud800"},
    "group list": {"prompt": "a", "output": "b", "group": ["x"]},
    "group float": {"prompt": "a", "output": "b", "group": 1.5},
    "group flag": {"prompt": "a", "output": "b", "group": False},
    "metadata string": {"prompt": "a", "output": "b", "metadata": "x"},
    "metadata list": {"prompt": "a", "output": "b", "metadata": [1]},
    "unknown key": {"prompt": "a", "output": "b", "answer": "c"},
    "key with a capital": {"Prompt": "a", "output": "b"},
    "key of an underscore": {"prompt": "a", "output": "b", "_": 1},
    "messages for prompt": {"messages": [{"role": "user", "content": "a"}], "output": "b"},
    "completion for output": {"prompt": "a", "completion": "b"},
    "an empty object": {},
}

SPANS: dict[str, Any] = {
    "word": "first",
    "Diff": "Diff",
    "empty": "",
    "number": 3,
    "flag": True,
    "one number": [0],
    "three numbers": [0, 1, 2],
    "no number": [],
    "reversed": [3, 1],
    "of nothing": [2, 2],
    "negative": [-1, 3],
    "both negative": [-3, -1],
    "behind the end": [0, 99],
    "outside": [50, 60],
    "huge": [0, 10**30],
    "floats": [0.0, 3.0],
    "strings": ["0", "3"],
    "flags": [False, True],
    "nulls": [None, None],
    "null end": [0, None],
    "lists": [[0], [3]],
    "object": {"start": 0, "end": 3},
    "NaN": [float("nan"), 1],
}


def queries(name: str, content: Change, *more: str, file: str = "q.jsonl", **given: Any) -> Case:
    return trace(
        f"queries/{name}",
        "--queries",
        f"{{here}}/{file}",
        *more,
        changes={file: content},
        without=tuple(QUESTION[::2]),
        **given,
    )


def cases() -> list[Case]:
    return numbered(all_of())


def all_of() -> Iterator[Case]:
    for name, fault in FAULTS.items():
        if name not in ("half a pair", "key twice of two types"):
            yield queries(f"line 2: {name}", LINE + fault + "\n")
    for name, record in RECORDS.items():
        yield queries(f"line 2: {name}", LINE + "\n" * (name == "id flag") + json.dumps(record) + "\n")
    for name, span in SPANS.items():
        yield queries(f"span: {name}", json.dumps(SOUND | {"span": span}) + "\n")
    for name, record in {
        "diff without corrected": {"prompt": "a", "output": "b", "span": "diff"},
        "characters without an output": {"prompt": "a", "span": [0, 1]},
        "diff of a word more": {"prompt": "a", "output": "b", "corrected": "b c", "span": "diff"},
        "diff of a word less": {"prompt": "a", "output": "b c", "corrected": "b", "span": "diff"},
        "diff of blanks": {"prompt": "a", "output": "b c", "corrected": "b  c", "span": "diff"},
    }.items():
        yield queries(f"span: {name}", json.dumps(record) + "\n")
    for name, turn in TURNS.items():
        yield queries(f"turn: {name}", json.dumps({"prompt": [turn], "output": "b"}) + "\n")
    for name, text in {
        "empty": "",
        "line ends": "\n\n",
        "an empty list": "[]",
        "a list not closed": "[" + LINE,
        "a list of lists": "[[1]]",
        "ids twice": json.dumps(SOUND | {"id": "x"}) + "\n" + json.dumps(SOUND | {"id": "x"}) + "\n",
        "ids twice, number and text": json.dumps(SOUND | {"id": 1}) + "\n" + json.dumps(SOUND | {"id": "1"}) + "\n",
        "an id like a group": json.dumps(SOUND | {"id": "x"}) + "\n" + json.dumps(SOUND | {"group": "x"}) + "\n",
        "an id like a number of another": LINE + json.dumps(SOUND | {"id": "q1"}) + "\n",
        "a chat for a model without a template": json.dumps(
            {"prompt": [{"role": "user", "content": "a"}], "output": "b"}
        ),
        "longer than the model": json.dumps(SOUND | {"prompt": "a b " * 2000}),
    }.items():
        yield queries(f"file: {name}", text)
    text = json.dumps(SOUND | {"prompt": "Zürich"}, ensure_ascii=False) + "\n"
    for name, data in {
        "utf-16": text.encode("utf-16"),
        "latin-1": text.encode("latin-1"),
        "an image": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    }.items():
        yield queries(f"encoding: {name}", data)
    for name, data in {
        "not packed": text.encode(),
        "cut": gz(text * 50)[:-9],
        "flipped bits": flipped(0.6)(gz(text)),
        "empty": b"",
    }.items():
        yield queries(f"gz: {name}", data, file="q.jsonl.gz")
    for name, file, change in (
        ("no such file", "other.jsonl", LINE),
        ("a folder", "q.jsonl", Folder()),
        ("a link to itself", "q.jsonl", Link("q.jsonl")),
        ("a link to nothing", "q.jsonl", Link("none.jsonl")),
        ("a file that cannot be read", "q.jsonl", Link("/proc/self/mem")),
    ):
        yield trace(
            f"queries/place: {name}",
            "--queries",
            "{here}/q.jsonl",
            changes={file: change},
            without=tuple(QUESTION[::2]),
        )
    for name, where in {
        "a name too long": "{here}/" + "a" * 300 + ".jsonl",
        "a model": "{base}",
        "weights": "{base}/model.safetensors",
        "a home of nobody": "~nobody-of-that-name/q.jsonl",
        "Parquet": "{index}/parts/000/rows.parquet",
    }.items():
        yield trace(f"queries/place: {name}", "--queries", where, without=tuple(QUESTION[::2]))
    for name, more in {
        "output": ("--output", "a"),
        "corrected": ("--corrected", "a"),
        "span": ("--span", "diff"),
        "prompt": ("--prompt", "a"),
    }.items():
        yield queries(f"beside: {name}", LINE, *more)
