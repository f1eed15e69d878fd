"""Which rule finds mislabelled rows?

    python benchmarks/clean.py --work WORKDIR [--seeds 0 1 2] [--exact]

The testbed `mislabel` (400 country facts, 40 of them with the answer of another country), SmolLM2-135M-Instruct fully
fine-tuned on it for 3 epochs. Every rule of `headwater.cleaning` and its variants (one checkpoint, or the mean of all;
every inner product; gradients projected to rank 16, or exact) ranks the rows; the figures are the shares of the
mislabelled rows among the first 10 and 20 per cent, AUC and average precision. Finished trainings and passes in
WORKDIR are used again. Writes benchmarks/results/clean.json and clean.md.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made import RESULTS, environment

import headwater as hw
from headwater.attribution.signals import SIGNALS, Signals, signals
from headwater.cleaning import DEFAULT, RULES, scores_of
from headwater.evaluation import bootstrap, evaluate_ranking
from headwater.testbeds import TESTBEDS, make_testbed, smollm2_135m
from headwater.training import fine_tune

FIGURES = ("found in first 20 %", "found in first 10 %", "auc", "average precision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--exact", action="store_true", help="beside projected gradients, exact ones")
    parser.add_argument("--checkpoints", type=int, default=3, help="measure only the first ones (the base always)")
    given = parser.parse_args()
    ranks = [16, None] if given.exact else [16]
    by_seed = {seed: judged(seed, given.work / f"seed-{seed}", ranks, given.checkpoints) for seed in given.seeds}
    names = list(next(iter(by_seed.values())))
    table = {
        name: {figure: bootstrap([seed[name][figure] for seed in by_seed.values()]) for figure in FIGURES}
        for name in names
    }
    record = {
        "command": "python benchmarks/clean.py --work WORKDIR --seeds "
        + " ".join(map(str, given.seeds))
        + " --exact" * given.exact
        + f" --checkpoints {given.checkpoints}",
        "environment": environment(torch.get_num_threads()),
        "date": time.strftime("%Y-%m-%d"),
        "default": DEFAULT,
        "checkpoints": given.checkpoints,
        "table": table,
        "by_seed": by_seed,
    }
    (RESULTS / "clean.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "clean.md").write_text(render(record))
    print(render(record))


def judged(seed: int, folder: Path, ranks: list[int | None], first: int) -> dict[str, dict[str, float]]:
    bed, recipe = make_testbed("mislabel", seed), replace(TESTBEDS["mislabel"].recipe, seed=seed)
    base = smollm2_135m()
    run = hw.TrainingRun.from_pretrained(fine_tune(base, bed.examples, folder / "run", recipe), base=base)
    run = replace(run, checkpoints=run.checkpoints[:first])
    wrong = np.isin([row.id for row in bed.examples], list(bed.all_culprits))
    figures = {}
    for rank in ranks:
        compute = hw.Compute(device="cpu", rank=rank)
        found = signals(run, bed.examples, compute=compute, out=folder / f"signals-{rank or 'exact'}-{first}")
        for name, score_N in rankings(found, [c.name for c in run.checkpoints]).items():
            figures[name if rank else f"{name}, exact"] = figures_of(score_N, wrong)
    return figures


def rankings(found: Signals, checkpoints: list[str]) -> dict[str, np.ndarray]:
    """Every signal at the base, the first and last checkpoint, and their mean; the rules; and rules together."""
    ranked = dict(scores_of(found, checkpoints))
    known = {(signal, where) for signal, _, where in RULES.values()}
    places = {"base": ["base"], "first": checkpoints[:1], "last": checkpoints[-1:], "mean": checkpoints}
    for signal in SIGNALS:
        sign = 1 if signal in ("loss", "own", "own_layers") else -1
        for where, names in places.items():
            if (signal, where) not in known:
                score_N = sign * np.mean([found.at[name][signal] for name in names], axis=0)
                ranked[f"{'minus ' if sign < 0 else ''}{signal} ({where})"] = score_N
    for pair in (("own-layers", "held-out"), ("own-layers", "loss-first"), ("loss-first", "held-out")):
        ranked[f"mean rank of {pair[0]} and {pair[1]}"] = sum(places_of(ranked[rule]) for rule in pair)
    return ranked


def places_of(score_N: np.ndarray) -> Any:
    return np.argsort(np.argsort(score_N))


def figures_of(score_N: np.ndarray, wrong_N: np.ndarray) -> dict[str, float]:
    tenth = len(score_N) // 10
    found = evaluate_ranking(score_N, wrong_N, ks=(tenth, 2 * tenth))
    values = (found.recall_at[2 * tenth], found.recall_at[tenth], found.auc, found.average_precision)
    return dict(zip(FIGURES, values, strict=True))


def render(record: dict[str, Any]) -> str:
    table, seeds = record["table"], len(record["by_seed"])
    several = seeds > 1
    of = f"mean over {seeds} seeds with the 95 % interval of that mean" if several else "one seed, no interval"
    lines = [
        f"Mislabelled rows found by each ranking: {of}; {record['date']}. Measured at the base and the first "
        f"{record['checkpoints']} checkpoints. The rules of `headwater clean` are in bold; the default is "
        f"`{record['default']}`.",
        "",
        "| ranking | " + " | ".join(FIGURES) + " |",
        "| --- " * (len(FIGURES) + 1) + "|",
    ]
    for name in sorted(table, key=lambda n: (-table[n][FIGURES[0]][0], -table[n]["average precision"][0])):
        shown = f"**{name}**" if name in RULES else name
        figures = [table[name][figure] for figure in FIGURES]
        cells = [f"{mean:.3f} [{low:.3f}, {high:.3f}]" if several else f"{mean:.3f}" for mean, low, high in figures]
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Command: `{record['command']}`", ""])


if __name__ == "__main__":
    main()
