"""Does choosing rows for a target beat choosing at random?

    python benchmarks/selection.py --work WORKDIR [--k 40] [--seeds 5] [--methods dda repsim bm25]

Pool: 240 facts about countries, of every relation (extra `demo`). Target: 12 facts about official languages of
countries that the pool's facts of that relation do not name; compared on 40 more of these. The model is a Llama of
random weights (2 layers of 64), or with --model smollm SmolLM2-135M-Instruct. A warm-up on 60 random rows of the pool
gives the methods their
checkpoints; each choice of k rows then trains the model from its start. Finished trainings in WORKDIR are used again.
Writes benchmarks/results/selection-<model>.json and .md.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from made import RESULTS, environment, small_model

import headwater as hw
from headwater.comparison import compare, comparison_table
from headwater.testbeds import country_facts, smollm2_135m
from headwater.training import Recipe, fine_tune

RELATION, POOL, TARGET, HELD_OUT, WARM_UP = "official language", 240, 12, 40, 60
RECIPES = {
    "small": (Recipe(epochs=6, batch_size=8, learning_rate=3e-3), Recipe(epochs=20, batch_size=8, learning_rate=3e-3)),
    "smollm": (
        Recipe(epochs=1, batch_size=8, learning_rate=5e-4, lora_rank=8),
        Recipe(epochs=3, batch_size=8, learning_rate=5e-4, lora_rank=8),
    ),
}
"""Of the warm-up, and of the trainings on the choices."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", choices=RECIPES, default="small")
    parser.add_argument("--k", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=["dda", "repsim", "bm25"])
    given = parser.parse_args()
    pool, target, held_out = data()
    warm, recipe = RECIPES[given.model]
    if given.model == "small" and not (given.work / "base").exists():
        small_model(given.work / "base", [row.text for row in (*pool, *target, *held_out)])
    base = given.work / "base" if given.model == "small" else smollm2_135m()
    first = hw.random_rows(pool, WARM_UP, seed=99).examples
    run = hw.TrainingRun.from_pretrained(fine_tune(base, first, given.work / "warm-up", warm), base=base)
    methods = [hw.DDA(measurement="loss", beta=0) if name == "dda" else hw.make_method(name) for name in given.methods]
    compute = hw.Compute(device="cpu", rank=None if given.model == "small" else 16)
    chosen = hw.select(pool, target, given.k, run=run, methods=methods, compute=compute, out=given.work / "trace")
    chance = {str(seed): hw.random_rows(pool, given.k, seed=seed) for seed in range(given.seeds)}
    reached = compare(base, chosen, chance, held_out, out=given.work / "compare", recipe=recipe)
    record: dict[str, Any] = {
        "command": f"python benchmarks/selection.py --work WORKDIR --model {given.model} --k {given.k} "
        f"--seeds {given.seeds} --methods " + " ".join(given.methods),
        "environment": environment(torch.get_num_threads()),
        "date": time.strftime("%Y-%m-%d"),
        "of_the_relation": {
            name: sum(pool[n].metadata["relation"] == RELATION for n in one.rows)
            for name, one in (chosen | chance).items()
        },
        "reached": [asdict(one) for one in reached],
    }
    file = RESULTS / f"selection-{given.model}"
    file.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    counts = ", ".join(
        f"{name if name in chosen else f'random {name}'} {count}" for name, count in record["of_the_relation"].items()
    )
    text = (
        f"{given.k} of {len(pool)} rows chosen for {TARGET} facts about official languages, and what the {given.model} "
        f"model reaches with them on {HELD_OUT} others; {record['date']}. One target, one training a choice.\n\n"
        f"{comparison_table(reached)}\nRows about them among the chosen: {counts}.\n\n"
        f"Command: `{record['command']}`\n"
    )
    file.with_suffix(".md").write_text(text)
    print(text)


def data() -> tuple[hw.Examples, hw.Examples, hw.Examples]:
    """Pool, target and held-out rows; the pool has no fact of the relation about their subjects."""
    chance = random.Random(0)
    facts = list(country_facts())
    chance.shuffle(facts)
    mine = [fact for fact in facts if fact.relation == RELATION]
    aside = mine[: TARGET + HELD_OUT]
    named = {fact.subject for fact in aside}
    rest = [fact for fact in facts if fact.relation != RELATION or fact.subject not in named]

    def rows(chosen: list[Any], name: str) -> hw.Examples:
        return hw.Examples.from_rows(
            [
                {"id": f"{name}-{n}", "prompt": f.prompt, "completion": f.completion, "relation": f.relation}
                for n, f in enumerate(chosen)
            ],
            name=name,
        )

    return rows(rest[:POOL], "pool"), rows(aside[:TARGET], "target"), rows(aside[TARGET:], "held-out")


if __name__ == "__main__":
    main()
