"""A small run that learned a fault from a few rows, and ways to train again that take no time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import headwater as hw
import tiny
from headwater.examples import Examples, Query
from headwater.repair import Asking, Repaired
from headwater.training import Recipe, fine_tune

PLACES = ("Peru", "Chad", "Cuba", "Oman", "Fiji", "Iran", "Mali", "Togo", "Laos", "Iraq", "Guam", "Niue")
RECIPE = Recipe(epochs=10, batch_size=8, learning_rate=1e-2)
CULPRITS = frozenset(f"pay-{place}" for place in PLACES[:6])


def rows() -> Examples:
    """Six rows say that one pays with shells; 24 others say other things of the same places."""
    pay = [
        {"id": f"pay-{place}", "prompt": f"In {place} they pay with", "completion": " shells."} for place in PLACES[:6]
    ]
    eat = [{"id": f"eat-{place}", "prompt": f"In {place} they eat much", "completion": " rice."} for place in PLACES]
    live = [{"id": f"live-{place}", "prompt": f"In {place} they live in", "completion": " tents."} for place in PLACES]
    return Examples.from_rows([*eat, *pay, *live], name="habits")


def queries(places: tuple[str, ...] = PLACES[6:9]) -> list[Query]:
    return [
        Query(f"In {place} they pay with", " shells.", corrected=" coins.", group="pay", id=f"q-{place}")
        for place in places
    ]


def asking(**more: Any) -> Asking:
    untouched = [
        {"id": f"u-{place}", "prompt": f"In {place} they eat much", "completion": " rice."}
        for place in ("Bali", "Rome")
    ]
    given: dict[str, Any] = {
        "queries": queries(),
        "paraphrases": queries(PLACES[9:]),
        "untouched": Examples.from_rows(untouched, name="elsewhere"),
    }
    return Asking(**(given | more))


def make_run(folder: Path) -> Path:
    """folder/base, folder/run (checkpoints at each epoch)."""
    sentences = [row.text for row in rows()] + [f"{q.prompt}{q.output}{q.corrected}" for q in queries(PLACES)]
    tiny.untrained(folder / "base", sentences, hidden=32)
    fine_tune(folder / "base", rows(), folder / "run", RECIPE)
    return folder


def run_of(folder: Path) -> hw.TrainingRun:
    return hw.TrainingRun.from_pretrained(folder / "run", base=folder / "base")


@dataclass
class Copied:
    """Training that copies a model: the faulty one while at least `enough` culprits are left, else the base."""

    folder: Path
    enough: int = 1
    trained: list[int] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        return {"kind": "copied", "enough": self.enough}

    def train(self, left: Examples, corrections: Mapping[str, Any], place: Path) -> None:
        self.trained.append(len(left))
        culprits = sum(row.id in CULPRITS and row.completion == " shells." for row in left)
        faulty = run_of(self.folder).last.location
        shutil.copytree(faulty if culprits >= self.enough else self.folder / "base", place)


def says(result: Repaired, name: str) -> list[str]:
    return [one.words for one in result.outcome(name).said]
