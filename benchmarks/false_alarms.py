"""How often rows stand out of queries that no row is responsible for, and how often the culprits do.

    HEADWATER_DATA=... python benchmarks/false_alarms.py --case facts --work WORKDIR [--seeds 0 1 2]

The runs of benchmarks/study.py (trained on the first call), asked the testbed's own queries and innocent ones: held-out
prompts with a wrong answer that no row teaches. DDA as it is and of whole rows, with projected gradients (rank 16),
against placebo rows (headwater.significance), and beside it the fixed threshold that is used without them. Writes
benchmarks/results/false_alarms-<case>.json and .md.
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
from study import CASES

import headwater as hw
from headwater.testbeds import smollm2_135m
from headwater.training import fine_tune

METHODS = [hw.DDA(), hw.DDA(inner="layer_cosine", label="dda layers")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    make, recipe = CASES[given.case]
    base = smollm2_135m()
    seeds = [
        judged(make(seed), base, given.work / given.case / f"seed-{seed}", replace(recipe, seed=seed))
        for seed in given.seeds
    ]
    counts = {name: {key: sum(one[name][key] for one in seeds) for key in seeds[0][name]} for name in seeds[0]}
    record = {
        "command": f"HEADWATER_DATA=... python benchmarks/false_alarms.py --case {given.case} --work WORKDIR --seeds "
        + " ".join(map(str, given.seeds)),
        "environment": environment(torch.get_num_threads()),
        "date": time.strftime("%Y-%m-%d"),
        "counts": counts,
        "by_seed": dict(zip(map(str, given.seeds), seeds, strict=True)),
    }
    file = RESULTS / f"false_alarms-{given.case}"
    file.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    file.with_suffix(".md").write_text(render(record))
    print(render(record))


def judged(bed: Any, base: Path, folder: Path, recipe: Any) -> dict[str, dict[str, int]]:
    """Method -> what was counted."""
    run = hw.TrainingRun.from_pretrained(fine_tune(base, bed.examples, folder / "run", recipe), base=base)
    answers = hw.trace_all(
        run,
        bed.examples,
        [*bed.queries, *bed.innocent],
        methods=METHODS,
        compute=hw.Compute(rank=16),
        placebo=bed.placebo,
        out=folder / "false-alarms",
    )
    return {name: counted(bed, scores) for name, scores in answers.items()}


def counted(bed: Any, scores: hw.Scores) -> dict[str, int]:
    plain = replace(scores, placebo=None)
    ids = [row.id for row in bed.examples]
    planted = {name for culprits in bed.culprits.values() for name in culprits}
    found: dict[str, int] = {"innocent queries": len(bed.innocent), "placebo rows": len(bed.placebo)}
    for rule, answer in (("q-value", scores), ("deviations", plain)):
        for kind in ("innocent", "query", "group"):
            asked = [
                r
                for r, target in enumerate(scores.targets)
                if (kind == "group") == (target.kind == "group")
                and (kind == "innocent") == (target.kind == "query" and scores.queries[target.members[0]].group is None)
            ]
            out = {r: answer.standing_out(r) for r in asked}
            found[f"{kind}: asked"] = len(asked)
            found[f"{kind}: any row stands out, {rule}"] = sum(bool(rows) for rows in out.values())
            found[f"{kind}: rows that stand out, {rule}"] = sum(map(len, out.values()))
            if kind == "innocent":
                found[f"{kind}: planted errors that stand out, {rule}"] = sum(
                    ids[i] in planted for rows in out.values() for i in rows
                )
            else:
                guilty = [bed.culprits[str(scores.queries[scores.targets[r].members[0]].group)] for r in asked]
                found[f"{kind}: culprits that stand out, {rule}"] = int(
                    np.sum([sum(ids[i] in g for i in rows) for rows, g in zip(out.values(), guilty, strict=True)])
                )
                found[f"{kind}: culprits"] = sum(map(len, guilty))
    return found


def render(record: dict[str, Any]) -> str:
    c = next(iter(record["counts"].values()))
    lines = [
        f"{c['innocent: asked']} innocent queries, {c['query: asked']} guilty ones, {c['group: asked']} groups of "
        f"these; {c['placebo rows']} placebo rows; {record['date']}.",
        "",
        "| method | rule | innocent queries with any row that stands out | planted errors among these rows | "
        "guilty queries | groups | culprits found, per query | innocent rows among the found | "
        "culprits found, per group | innocent rows among the found |",
        "| --- " * 10 + "|",
    ]
    for name, c in record["counts"].items():
        for rule in ("q-value", "deviations"):
            cells = [
                f"{c[f'{k}: any row stands out, {rule}']} of {c[f'{k}: asked']}" for k in ("innocent", "query", "group")
            ]
            rows = c[f"innocent: rows that stand out, {rule}"]
            cells.insert(1, f"{c[f'innocent: planted errors that stand out, {rule}']} of {rows}")
            for kind in ("query", "group"):
                hits, rows = c[f"{kind}: culprits that stand out, {rule}"], c[f"{kind}: rows that stand out, {rule}"]
                cells += [f"{hits} of {c[f'{kind}: culprits']}", f"{rows - hits} of {rows}"]
            lines.append(f"| {name} | {rule} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Command: `{record['command']}`", ""])


if __name__ == "__main__":
    main()
