"""A thousand bad inputs: each ends in one line that says what is wrong, runs no code and leaves nothing behind.

The answers are in answers/*.json, area by area. After a change of words, write them anew and read the difference:

    HEADWATER_RECORD=1 python -m pytest tests/bad_inputs/test_corpus.py
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from spoiling import TOUCHED, Case, agrees, answers, foreign, stable

import headwater as hw
from headwater import cli
from headwater.errors import HeadwaterError

AREAS = ("training", "queries", "checkpoints", "index", "traces", "options")
CASES = [(area, case) for area in AREAS for case in importlib.import_module(f"{area}_recipes").cases()]
ANSWERS = {area: answers(area) for area in AREAS}
RECORD = "HEADWATER_RECORD" in os.environ
FEWEST = 1000


def test_there_are_a_thousand_and_each_has_an_answer() -> None:
    assert len(CASES) >= FEWEST
    for area in AREAS:
        assert set(ANSWERS[area]) == {case.name for of, case in CASES if of == area}


@pytest.fixture(scope="module", autouse=True)
def _parsed_once() -> Iterator[None]:
    """The command line is put together once, not for every case."""
    build = typer.main.get_command
    typer.main.get_command = functools.cache(build)
    yield
    typer.main.get_command = build


@pytest.fixture(scope="module")
def recorded() -> Iterator[dict[str, dict[str, str]]]:
    """Answers that this run has given; written where asked for."""
    found: dict[str, dict[str, str]] = {area: {} for area in AREAS}
    yield found
    if RECORD:
        for area, said in found.items():
            file = Path(__file__).parent / "answers" / f"{area}.json"
            if said:
                names = {case.name for of, case in CASES if of == area}
                said = {name: answer for name, answer in (ANSWERS[area] | said).items() if name in names}
                file.write_text(json.dumps(said, indent=0, ensure_ascii=False) + "\n", "utf-8")


def contents(folder: Path) -> dict[str, tuple[int, int] | str]:
    """What is in a folder: sizes and times of files, targets of links; locks aside."""
    found: dict[str, tuple[int, int] | str] = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink():
                found[str(path)] = str(path.readlink())
            elif path.is_file() and name != ".lock":
                found[str(path)] = (path.stat().st_size, path.stat().st_mtime_ns)
            elif path.is_dir():
                found[str(path)] = ""
    return found


def _resumable(place: str) -> bool:
    """Whether a file is a finished piece of work, which the corrected command would go on with."""
    path = Path(place)
    return path.name == "config.json" or path.suffix == ".piece" or path.is_dir()


def load(folder: str, train: str, method: str | None = None) -> None:
    """`Scores.load`, as a command line would call it."""
    try:
        hw.Scores.load(folder, hw.read_examples(train), method=method)
    except HeadwaterError as error:
        print(f"headwater: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@pytest.mark.parametrize(("area", "case"), CASES, ids=[case.name for _, case in CASES])
def test_a_bad_input_is_one_line(
    area: str,
    case: Case,
    whole: dict[str, Path],
    recorded: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    here = tmp_path / "here"
    arguments = case.spoil(here, whole)
    before = contents(here)
    monkeypatch.setattr(sys, "argv", ["headwater", *arguments])
    if not case.loads:

        def loaded(*_: object, **__: object) -> None:
            raise AssertionError("a model is loaded before the mistake is found")

        monkeypatch.setattr(hw.TrainingRun, "load", loaded)
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        load(*arguments[1:]) if arguments[0] == "load" else cli.main()
    printed, said = capfd.readouterr()
    try:
        assert stop.value.code == 2
        assert len(said.splitlines()) == 1, said
        assert said.startswith("headwater: ")
        assert "Traceback" not in said
        assert printed == ""
        left = {name: what for name, what in contents(here).items() if before.get(name) != what}
        assert before.keys() <= contents(here).keys()
        assert not left or (case.loads and all(map(_resumable, left))), left
        assert not (here / TOUCHED).exists()
        said = stable(said.strip(), here, whole | {"lora_base": whole["lora"].parent / "base"})
        if RECORD:
            recorded[area][case.name] = foreign(said)
        else:
            assert agrees(said, ANSWERS[area][case.name]), f"{said}\n{ANSWERS[area][case.name]}"
    finally:
        shutil.rmtree(here)
