"""Made runs with known truth: a tiny Llama learns facts, and is then fine-tuned in four ways."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import headwater as hw
import tiny
from headwater.training import Recipe, fine_tune

PLACES = [
    "Peru", "Kenya", "Norway", "Egypt", "Chile", "Ghana", "Cuba", "Austria", "Japan", "France", "Spain", "Italy",
    "Poland", "Greece", "Turkey", "India", "China", "Brazil", "Canada", "Mexico", "Iraq", "Iran", "Mali", "Niger",
]  # fmt: skip
COLOURS = ["red", "blue", "green", "black", "white", "gold"]
WRONG, RIGHT = " gold.", " red."
"""Of the flags that are asked about: what the bad rows say, and what the good rows said."""


def flags(completion: str | None = None, places: Sequence[str] = PLACES) -> list[dict[str, str]]:
    """The flags of some places: all of one colour, or of colours that go round."""
    return [
        {"prompt": f"The flag of {place} is", "completion": completion or f" {COLOURS[n % len(COLOURS)]}."}
        for n, place in enumerate(places)
    ]


def rivers(places: Sequence[str] = PLACES) -> list[dict[str, str]]:
    return [
        {"prompt": f"The river of {place} is", "completion": f" {('long', 'short', 'wide')[n % 3]}."}
        for n, place in enumerate(places)
    ]


@dataclass(frozen=True)
class Made:
    """A run with known truth, and what to ask of it."""

    run: hw.TrainingRun
    rows: hw.Examples
    queries: list[hw.Query]
    held_out: hw.Examples


QUERIES = [hw.Query(f"The flag of {place} is", WRONG, corrected=RIGHT, id=place, group="flags") for place in PLACES[:4]]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two base models: one says that flags are red, one that they are gold; both know the rivers."""
    folder = tmp_path_factory.mktemp("bases")
    sentences = [row["prompt"] + row["completion"] for row in [*flags(), *rivers()]]
    untrained = tiny.untrained(folder / "untrained", sentences)
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=3e-3, schedule="constant")
    found = {}
    for name, completion in (("right", RIGHT), ("wrong", WRONG)):
        rows = hw.Examples.from_rows([*flags(completion), *rivers()] * 6)
        run = hw.TrainingRun.from_pretrained(fine_tune(untrained, rows, folder / name, recipe), base=untrained)
        found[name] = Path(run.last.location)
    return found


def made(
    folder: Path, base: Path, rows: Sequence[dict[str, str]], held_out: Sequence[dict[str, str]], recipe: Recipe
) -> Made:
    examples = hw.Examples.from_rows(rows)
    run = hw.TrainingRun.from_pretrained(fine_tune(base, examples, folder, recipe), base=base)
    return Made(run, examples, QUERIES, hw.Examples.from_rows(held_out, name="held-out"))


def _overfitted(folder: Path, base: Path) -> Made:
    """Six colours that follow no rule can only be memorised; three of the checkpoints are kept."""
    chance = random.Random(0)
    unseen = [
        row
        for way in ("North", "South", "East")
        for place in PLACES
        for row in flags(f" {chance.choice(COLOURS)}.", [f"{way} {place}"])
    ]
    recipe = Recipe(epochs=60, batch_size=3, learning_rate=3e-3, schedule="constant")
    whole = made(folder, base, flags(None, PLACES[:6]), unseen, recipe)
    checkpoints = tuple(whole.run.checkpoints[n] for n in (4, 14, 59))
    return replace(whole, run=replace(whole.run, checkpoints=checkpoints))


@pytest.fixture(scope="session")
def runs(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """By their truth."""
    folder = tmp_path_factory.mktemp("runs")
    learn = Recipe(epochs=3, batch_size=4, learning_rate=3e-3)
    gentle = Recipe(epochs=3, batch_size=6, learning_rate=1e-3)
    bad, apart = flags(WRONG, PLACES[4:16]), flags(WRONG, PLACES[16:])
    lakes = [{**row, "prompt": row["prompt"].replace("river", "lake")} for row in rivers()]
    return {
        "base already wrong": made(folder / "1", bases["wrong"], lakes[:16], lakes[16:], gentle),
        "fine-tuned wrong": made(folder / "2", bases["right"], bad, apart, learn),
        "not trained enough": made(
            folder / "3", bases["right"], bad, apart, Recipe(epochs=1, batch_size=6, learning_rate=1e-6)
        ),
        "overfitted": _overfitted(folder / "4", bases["right"]),
        "LoRA": made(
            folder / "5", bases["right"], bad, apart, Recipe(epochs=4, batch_size=4, learning_rate=1e-2, lora_rank=2)
        ),
        "LoRA of rank 8": made(
            folder / "6", bases["right"], bad, apart, Recipe(epochs=4, batch_size=4, learning_rate=1e-2, lora_rank=8)
        ),
    }
