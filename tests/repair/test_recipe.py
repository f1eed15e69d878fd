"""What the files of a run say of its recipe, and what they do not."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import faulty
import pytest

import headwater as hw
from headwater.errors import UsageError
from headwater.repair import find_recipe, own_training
from headwater.repair.recipe import _batch_size, _of_card, _schedule, remaining
from headwater.training import MANIFEST, Recipe


def test_headwaters_own_manifest_says_everything(faulty_folder: Path) -> None:
    found = find_recipe(faulty.run_of(faulty_folder), faulty.rows())
    assert dict(found.values) == asdict(faulty.RECIPE)
    assert found.format == hw.TokenFormat()


def test_a_trainer_folder_gives_its_recipe_away(faulty_folder: Path, tmp_path: Path) -> None:
    """The same training as Trainer leaves it, without headwater's manifest."""
    import shutil

    last = faulty.run_of(faulty_folder).last
    shutil.copytree(last.location, tmp_path / "run" / Path(last.location).name)
    assert not (tmp_path / "run" / MANIFEST).exists()
    run = hw.TrainingRun.from_pretrained(tmp_path / "run", base=faulty_folder / "base")
    found = find_recipe(run, faulty.rows())
    wanted = asdict(faulty.RECIPE)
    assert {k: found.values[k] for k in ("epochs", "batch_size", "schedule")} == {
        k: wanted[k] for k in ("epochs", "batch_size", "schedule")
    }
    assert found.values["learning_rate"] == pytest.approx(wanted["learning_rate"])
    assert found.completed({"seed": 0}, "run") == replace(faulty.RECIPE, seed=0)


def test_what_is_not_said_is_asked_for(run_folder: Path) -> None:
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    state = json.loads((Path(run.last.location) / "trainer_state.json").read_text())
    assert "max_steps" not in state
    found = find_recipe(run, faulty.rows())
    with pytest.raises(UsageError, match="--epochs, --batch-size, --learning-rate"):
        own_training(run, found, format=hw.TokenFormat())
    given = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "schedule": "constant"}
    made = own_training(run, found, format=hw.TokenFormat(), given=given)
    assert made.recipe == Recipe(**given, seed=42)
    assert made.start == str(run_folder / "base")


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("offset", [0, 1])
def test_schedules_are_recognised_and_warm_up_is_not(name: str, offset: int) -> None:
    shape = {"linear": lambda s: 1 - s, "cosine": lambda s: 0.5 * (1 + math.cos(math.pi * s)), "constant": lambda s: 1}
    points = [(s, 3e-4 * shape[name]((s - offset) / 40)) for s in (10, 20, 30)]
    assert _schedule(points, 40) == {"learning_rate": 3e-4, "schedule": name}
    warm = [(5, 1e-4), (10, 2e-4), (20, 2e-4), (30, 1e-4)]
    assert _schedule(warm, 40) == {}
    assert _schedule(points[:1], 40) == {}


def test_batch_size_is_the_smallest_that_makes_the_steps() -> None:
    for rows, at_once, accumulated in ((30, 4, 2), (30, 8, 1), (101, 4, 4), (7, 8, 1)):
        steps = math.ceil(math.ceil(rows / at_once) / accumulated)
        found = _batch_size(rows, at_once, 3 * steps, 3)
        assert found is not None
        assert math.ceil(math.ceil(rows / at_once) / (found // at_once)) == steps
        assert found <= at_once * accumulated
    assert _batch_size(30, 4, 10, 3) is None  # stopped early, or by steps


def test_a_model_card_is_read() -> None:
    card = (
        "## Training\n- learning_rate: 5e-05\n- train_batch_size: 8\n- seed: 7\n- total_train_batch_size: 32\n"
        "- lr_scheduler_type: cosine\n- num_epochs: 3.0\n"
    )
    assert _of_card(card) == {
        "learning_rate": 5e-5, "batch_size": 32, "seed": 7, "schedule": "cosine", "epochs": 3,
    }  # fmt: skip
    assert "schedule" not in _of_card("- lr_scheduler_type: inverse_sqrt\n")


def test_an_early_checkpoint_leaves_the_rest_of_the_recipe(faulty_folder: Path) -> None:
    run = faulty.run_of(faulty_folder)
    early = run.checkpoints[3]
    rest = remaining(faulty.RECIPE, early)
    assert (rest.epochs, rest.learning_rate) == (6, pytest.approx(faulty.RECIPE.learning_rate * 0.6))
    made = own_training(run, find_recipe(run, faulty.rows()), format=hw.TokenFormat(), start=early.name)
    assert (made.start, made.recipe) == (early.location, rest)
    for checkpoint in (run.last, replace(early, epoch=None), replace(early, epoch=2.5)):
        with pytest.raises(UsageError, match="to go on from"):
            remaining(faulty.RECIPE, checkpoint)
