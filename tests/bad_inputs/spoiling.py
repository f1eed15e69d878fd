"""A bad input: whole files and folders, one of them spoilt, and the command that is given them.

Recipes (`*_recipes.py`) make the same bytes every time, so that the corpus is small; `answers/*.json` hold what the
command line says. "…" in an answer stands for words of another library, which may change with its version.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

QUESTION = ("--prompt", "The capital of Australia is", "--output", " Sydney.", "--corrected", " Canberra.")
TOUCHED = "touched"
"""The file that a hidden payload would make where it runs."""


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Folder:
    """A folder without files."""


Change = bytes | str | None | Callable[[bytes], bytes] | Link | Folder
"""What a file becomes: new content, nothing (None), its old content changed, a link, a folder."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One bad input.

    Attributes:
        name: "area/what is wrong".
        arguments: of the command line, or ("load", folder) for `Scores.load`; {here} is the case's own folder, the
            names of the whole folders ({run}, {base}, {lora}, {train}, {index}, {traced}) stand for their paths.
        copies: whole folders that the case gets copies of, to spoil: {here}/<name>.
        changes: path in {here} -> what becomes of it.
        loads: a model has to be loaded to find the mistake.
    """

    name: str
    arguments: tuple[str, ...]
    copies: tuple[str, ...] = ()
    changes: Mapping[str, Change] = field(default_factory=dict)
    loads: bool = False

    def spoil(self, here: Path, whole: Mapping[str, Path]) -> list[str]:
        """Makes the files in `here` and returns the arguments."""
        here.mkdir()
        for name in self.copies:
            shutil.copytree(whole[name], here / name, copy_function=os.link, symlinks=True)
        for name, change in self.changes.items():
            _change(here / name, change, here)
        places = {name: str(place) for name, place in whole.items()} | {"here": str(here)}
        return [re.sub(r"\{(\w+)\}", lambda m: places[m[1]], one) for one in self.arguments]


def _change(path: Path, change: Change, here: Path) -> None:
    old = path.read_bytes() if callable(change) else b""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)  # never written in place: the file may be a link to a whole one
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(change, Link):
        path.symlink_to(change.target)
    elif isinstance(change, Folder):
        path.mkdir()
    elif callable(change):
        path.write_bytes(change(old))
    elif isinstance(change, str):
        path.write_text(change.replace("{here}", str(here)), "utf-8")
    elif change is not None:
        path.write_bytes(change.replace(b"{here}", str(here).encode()))


# Changes


def cut(keep: float) -> Callable[[bytes], bytes]:
    """Only the first part of a file, as an interrupted copy leaves it."""
    return lambda old: old[: int(len(old) * keep)]


def flipped(at: float) -> Callable[[bytes], bytes]:
    """One byte with all its bits turned."""

    def change(old: bytes) -> bytes:
        place = min(int(len(old) * at), len(old) - 1)
        return old[:place] + bytes([old[place] ^ 255]) + old[place + 1 :]

    return change


def with_value(path: str, value: Any) -> Callable[[bytes], bytes]:
    """A JSON file with one value replaced; `path` such as "config.checkpoints.0.name"; "" is the whole document."""
    return _edited(path, lambda parent, key: parent.__setitem__(key, value))


def without(path: str) -> Callable[[bytes], bytes]:
    """A JSON file without one key."""
    return _edited(path, lambda parent, key: parent.__delitem__(key))


def _edited(path: str, edit: Callable[[Any, Any], None]) -> Callable[[bytes], bytes]:
    def change(old: bytes) -> bytes:
        document = {"": json.loads(old)}
        parent: Any = document
        key: Any = ""
        for part in path.split(".") if path else ():
            parent = parent[key]
            key = int(part) if isinstance(parent, list) else part
        edit(parent, key)
        return json.dumps(document[""]).encode()

    return change


# Payloads: none of them may run


def pickled(place: str = "{here}/" + TOUCHED) -> bytes:
    """A pickle that would make `place`. The protocol with text lines, so that {here} can be filled in."""
    return f"cbuiltins\nopen\n(V{place}\nVw\ntR.".encode()


# What other libraries say


def stable(said: str, here: Path, whole: Mapping[str, Path]) -> str:
    """An answer without paths of this machine, also where one was cut off."""
    said = said.replace(str(here), "{here}")
    for name, place in sorted(whole.items(), key=lambda pair: -len(str(pair[1]))):
        said = said.replace(str(place), f"{{{name}}}")
    return re.sub(r'"/[^"]*?\.\.\.(?=[;,])', '"…', said)


def agrees(said: str, answer: str) -> bool:
    """Whether an answer is as expected, "…" standing for anything."""
    return re.fullmatch(".*".join(map(re.escape, answer.split("…"))), said) is not None


def answers(area: str) -> dict[str, str]:
    file = Path(__file__).parent / "answers" / f"{area}.json"
    found: dict[str, str] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return found


def trace(name: str, *more: str, without: tuple[str, ...] = (), loads: bool = False, **given: Any) -> Case:
    """A case of `headwater trace` with whole models and rows, where `more` says nothing else."""
    usual = {"--base": "{base}", "--checkpoints": "{run}", "--train": "{train}"}
    usual |= dict(zip(QUESTION[::2], QUESTION[1::2], strict=True))
    kept = [part for key, value in usual.items() if key not in (*more, *without) for part in (key, value)]
    arguments = ("trace", *kept, *more, "--out", "{here}/out", "--quiet")
    return Case(name=name, arguments=arguments, loads=loads, **given)


def numbered(cases: Iterator[Case], loaded: str = "$.") -> list[Case]:
    """The cases of an area; each name once.

    Args:
        loaded: regular expression of names whose mistake only the loaded model shows.
    """
    found = [replace(case, loads=case.loads or re.search(loaded, case.name) is not None) for case in cases]
    names = [case.name for case in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    assert not twice, twice
    return found


_FOREIGN = re.compile(
    r"(?<=broken JSON )\(.*?\)(?=;)"
    r"|(?<=broken gzip data after line \d )\(.*?\)(?=;)"
    r"|(?<=not readable as Parquet after row \d )\(.*?\)(?=;)"
    r"|(?<=datasets\.save_to_disk )\(.*?\)(?=;)"
    r"|(?<=cannot be (?:loaded|opened) )\(.*?\)(?=;)"
    r"|(?<=cannot be read )\(.*?\)(?=;)"
    r"|(?<=hub gives out )\(.*?\)(?=;)"
)


def foreign(said: str) -> str:
    """An answer with "…" for the reasons that other libraries give."""
    return _FOREIGN.sub("(…)", said)
