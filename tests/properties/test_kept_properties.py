"""Files that a training, a repair and the viewer leave and read again: any change is refused or harmless."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from any_values import changed, values
from hypothesis import given
from hypothesis import strategies as st

import headwater as hw
import tiny
from headwater.errors import HeadwaterError
from headwater.repair import find_recipe
from headwater.repair.choice import read_corrections, read_ids
from headwater.training import MANIFEST, Recipe
from headwater.viewer.app import Viewer
from headwater.viewer.opened import Opened, Place

TRAIN = hw.Examples.from_rows(tiny.FACTS, name="facts")
RECIPE = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "seed": 1, "lora_rank": None, "schedule": "linear"}
MADE = {
    "rows": {"fingerprint": TRAIN.fingerprint},
    "recipe": RECIPE | {"warmup_ratio": 0.1, "weight_decay": 0.0},
    "format": {"loss_on": "auto", "max_length": 64, "keep": "start", "add_eos": True},
}
STATE = {
    "num_train_epochs": 2,
    "max_steps": 6,
    "train_batch_size": 4,
    "global_step": 6,
    "epoch": 2.0,
    "log_history": [{"step": n, "learning_rate": 1e-3 * (6 - n) / 6} for n in range(1, 6)],
}


@pytest.fixture(scope="module")
def trained(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> hw.TrainingRun:
    """A run that the test may write beside."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copytree(run_folder, folder, dirs_exist_ok=True)
    return hw.TrainingRun.from_pretrained(folder / "run", base=folder / "base")


def tried(run: hw.TrainingRun) -> Any:
    """The recipe that is found and completed; None where that is refused in one line."""
    try:
        found = find_recipe(run, TRAIN)
        return found.completed({}, "here") if found.values.keys() >= RECIPE.keys() else found
    except HeadwaterError as error:
        assert "\n" not in str(error) and "Next: " in str(error)
        return None


@given(found=changed(MADE))
def test_any_change_of_a_trainings_manifest_is_refused_or_harmless(found: Any, trained: hw.TrainingRun) -> None:
    file = Path(trained.last.location).parent / MANIFEST
    file.write_text(json.dumps(MADE))
    assert tried(trained) == Recipe(**MADE["recipe"])
    file.write_text(json.dumps(found))
    assert isinstance(tried(trained), Recipe | None) or found != MADE
    file.unlink()


@given(found=changed(STATE))
def test_any_change_of_a_trainers_state_is_refused_or_harmless(found: Any, trained: hw.TrainingRun) -> None:
    file = Path(trained.last.location) / "trainer_state.json"
    file.write_text(json.dumps(STATE))
    whole = find_recipe(trained, TRAIN).values
    assert whole == {"epochs": 2, "batch_size": 4, "learning_rate": pytest.approx(1e-3), "schedule": "linear"}
    file.write_text(json.dumps(found))
    tried(trained)


@given(lines=st.lists(st.one_of(values.map(json.dumps), st.text(max_size=20)), max_size=4))
def test_any_ids_and_corrections_are_read_or_refused(lines: list[str], tmp_path: Path) -> None:
    file = tmp_path / "given.jsonl"
    file.write_text("\n".join(lines), "utf-8", "surrogatepass")
    for read in (read_ids, lambda file: read_corrections(file, TRAIN)):
        try:
            assert all(isinstance(one, str) for one in read(file))
        except HeadwaterError as error:
            assert "\n" not in str(error)


QUESTION = {
    "asked": "2026-11-24T20:15:00+00:00",
    "queries": [{"prompt": "The capital of Peru is", "output": " Quito.", "span": [1, 3], "group": "g"}],
    "methods": [{"name": "bm25", "options": {}}],
}
MARKS = {"format": 1, "marks": [{"id": TRAIN[3].id, "content_hash": TRAIN[3].content_hash, "action": "drop"}]}


@pytest.fixture(scope="module")
def opened(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tmp_path_factory.mktemp("kept")
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    hw.build_index(run, TRAIN, out=folder / "index", compute=hw.Compute(rank=2))
    return Opened.open(Place(folder=str(folder / "index")))


@given(question=changed(QUESTION), marks=changed(MARKS))
def test_any_change_of_the_viewers_files_is_refused_or_harmless(question: Any, marks: Any, opened: Opened) -> None:
    name = "0123456789abcdef"
    file = opened.state / "answers" / name / "question.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    for asked, marked in ((QUESTION, MARKS), (question, marks)):
        file.write_text(json.dumps(asked))
        (opened.state / "marks.json").write_text(json.dumps(marked))
        try:
            session = Viewer(opened, "token").session()
        except HeadwaterError as error:
            assert "\n" not in str(error) and "marks.json" in str(error)
            continue
        json.dumps(session)
        assert asked is not QUESTION or (
            [one["id"] for one in session["answers"]] == [name] and "3" in session["marks"]
        )
