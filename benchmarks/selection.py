"""Does choosing rows for a target beat choosing at random?

    python benchmarks/selection.py --work WORKDIR [--k 40] [--seeds 5] [--methods dda dda-layers less repsim bm25]

Pool: 240 facts about countries, of every relation (extra `demo`). Targets, one after the other: 12 facts of a relation
about countries that the pool's facts of that relation do not name; compared on 40 more of these. The model is a Llama
of random weights (2 layers of 64), or with --model smollm SmolLM2-135M-Instruct. A warm-up on 60 random rows of the
pool gives the methods their checkpoints; each choice of k rows then trains the model from its start. `star` knows no
target. Finished trainings in WORKDIR are used again. Writes benchmarks/results/selection-<model>.json and .md.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from made import RESULTS, environment, small_model

import headwater as hw
from headwater.comparison import compare
from headwater.testbeds import country_facts, smollm2_135m
from headwater.training import Recipe, fine_tune

METHODS = {
    "dda": hw.DDA(measurement="loss", beta=0),
    "dda-layers": hw.DDA(measurement="loss", beta=0, inner="layer_cosine", label="dda-layers"),
}
RELATIONS = ("official language", "currency", "continent", "subregion")
POOL, TARGET, HELD_OUT, WARM_UP = 240, 12, 40, 60
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
    parser.add_argument("--methods", nargs="+", default=["dda", "dda-layers", "less", "repsim", "bm25", "star"])
    parser.add_argument("--relations", nargs="+", default=list(RELATIONS))
    given = parser.parse_args()
    made = {
        relation: one_target(relation, given, given.work / relation.replace(" ", "-")) for relation in given.relations
    }
    record: dict[str, Any] = {
        "command": f"python benchmarks/selection.py --work WORKDIR --model {given.model} --k {given.k} "
        f"--seeds {given.seeds} --methods {' '.join(given.methods)} --relations "
        + " ".join(f"'{relation}'" for relation in given.relations),
        "environment": environment(torch.get_num_threads()),
        "date": time.strftime("%Y-%m-%d"),
        "targets": made,
    }
    file = RESULTS / f"selection-{given.model}"
    file.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    text = (
        f"{given.k} of {POOL} rows chosen for {TARGET} facts of one relation, and what the {given.model} model reaches "
        f"with them on {HELD_OUT} others: loss minus that of {given.seeds} random choices, nats, below 0 is better; "
        f"{record['date']}. One training for each choice. `star` knows no target.\n\n{rendered(made)}\n"
        f"Command: `{record['command']}`\n"
    )
    file.with_suffix(".md").write_text(text)
    print(text)


def one_target(relation: str, given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """What each choice reaches for the facts of one relation, and how many of its rows are of that relation."""
    pool, target, held_out = data(relation)
    warm, recipe = RECIPES[given.model]
    if given.model == "small" and not (work / "base").exists():
        small_model(work / "base", [row.text for row in (*pool, *target, *held_out)])
    base = work / "base" if given.model == "small" else smollm2_135m()
    first = hw.random_rows(pool, WARM_UP, seed=99).examples
    trained = fine_tune(base, first, work / "warm-up", warm, optimizer="less" in given.methods)
    run = hw.TrainingRun.from_pretrained(trained, base=base, allow_pickle="less" in given.methods)
    methods = [METHODS[name] if name in METHODS else hw.make_method(name) for name in given.methods if name != "star"]
    compute = hw.Compute(device="cpu", rank=None if given.model == "small" else 16)
    chosen = hw.select(pool, target, given.k, run=run, methods=methods, compute=compute, out=work / "trace")
    if "star" in given.methods:
        chosen["star"] = hw.star(base, pool, given.k, out=work / "star", recipe=replace(recipe, lora_rank=8))
    chance = {f"random {seed}": hw.random_rows(pool, given.k, seed=seed) for seed in range(given.seeds)}
    reached = compare(base, chosen, chance, held_out, out=work / "compare", recipe=recipe)
    return {
        "of_the_relation": {
            name: sum(pool[n].metadata["relation"] == relation for n in one.rows)
            for name, one in (chosen | chance).items()
        },
        "reached": [asdict(one) for one in reached],
    }


def rendered(made: Mapping[str, Any]) -> str:
    """A line for each choice, a column for each target, and the mean over targets."""
    lines = [f"| chosen by | {' | '.join(made)} | mean |", "| --- " * (len(made) + 2) + "|"]
    of = {relation: {one["name"]: one["minus_random"] for one in found["reached"]} for relation, found in made.items()}
    names = [name for name, value in next(iter(of.values())).items() if value is not None]
    means = {name: sum(found[name][0] for found in of.values()) / len(of) for name in names}
    for name in sorted(names, key=means.__getitem__):
        cells = [f"{v[0]:+.3f} [{v[1]:+.3f}, {v[2]:+.3f}]" for v in (found[name] for found in of.values())]
        lines.append(f"| {name} | {' | '.join(cells)} | {means[name]:+.3f} |")
    lines += ["", "Rows of the relation among the chosen, by target:", ""]
    for name in (*names, *(n for n in next(iter(made.values()))["of_the_relation"] if n.startswith("random "))):
        counts = ", ".join(str(found["of_the_relation"][name]) for found in made.values())
        lines.append(f"- {name}: {counts}")
    return "\n".join(lines) + "\n"


def data(relation: str) -> tuple[hw.Examples, hw.Examples, hw.Examples]:
    """Pool, target and held-out rows; the pool has no fact of the relation about their subjects."""
    chance = random.Random(0)
    facts = list(country_facts())
    chance.shuffle(facts)
    mine = [fact for fact in facts if fact.relation == relation]
    aside = mine[-(TARGET + HELD_OUT) :]  # the last: the pool is made of the first
    named = {fact.subject for fact in aside}
    rest = [fact for fact in facts if fact.relation != relation or fact.subject not in named]

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
