"""Whether streaming, index and directional engine give the same answer on a real language model.

    HEADWATER_DATA=... python benchmarks/agreement.py --work WORKDIR

The facts of benchmarks/facts.py (same run, same work folder). The index is compared with streaming under the same
projection, for every type that features are stored in; the directional engine with exact streaming, for dot products
at the last checkpoint and a few queries. Writes benchmarks/results/agreement.json and agreement.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from facts import RESULTS, run_versions
from scipy.stats import pearsonr, spearmanr

import headwater as hw
from headwater.testbeds import smollm2_135m, wikidata_testbed
from headwater.training import Recipe, fine_tune

RANK = 16
TOP = 20
FEW = 4
"""Queries of the directional engine: each costs two forward passes over all rows."""
TYPES = ("float32", "float16", "int8")
METHODS = (
    hw.DDA(inner="layer_cosine", beta=0.25),
    hw.DDA(inner="dot", beta=0.5, label="dda-dot"),
    hw.TracIn(),
    hw.GradientCosine(),
)


def compared(reference: hw.Scores, found: hw.Scores) -> dict[str, float]:
    """Over the queries: correlations (smallest), shared part of the first rows (mean), answers with the same first
    rows (as sets, and in the same order)."""
    rows: dict[str, list[float]] = {"pearson": [], "spearman": [], "shared": [], "same": [], "order": []}
    for r, target in enumerate(reference.targets):
        if target.kind != "query":
            continue
        one_N, other_N = reference.values[r], found.values[r]
        first, second = (np.argsort(-values, kind="stable")[:TOP].tolist() for values in (one_N, other_N))
        rows["pearson"].append(float(pearsonr(one_N, other_N).statistic))
        rows["spearman"].append(float(spearmanr(one_N, other_N).statistic))
        rows["shared"].append(len(set(first) & set(second)) / TOP)
        rows["same"].append(float(set(first) == set(second)))
        rows["order"].append(float(first == second))
    return {
        "queries": len(rows["same"]),
        "pearson": min(rows["pearson"]),
        "spearman": min(rows["spearman"]),
        "shared": float(np.mean(rows["shared"])),
        "same": sum(rows["same"]),
        "order": sum(rows["order"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    bed = wikidata_testbed(seed=0)
    base = smollm2_135m()
    recipe = Recipe(epochs=4, batch_size=16, learning_rate=1e-4, seed=0)
    run = hw.TrainingRun.from_pretrained(fine_tune(base, bed.examples, given.work / "run-0", recipe), base=base)
    work = given.work / "agreement"
    queries = list(bed.queries)
    projected = hw.Compute(rank=RANK)
    table: list[dict[str, Any]] = []

    streamed = hw.trace_all(run, bed.examples, queries, methods=METHODS, compute=projected, out=work / "streamed")
    for features in TYPES:
        index = hw.build_index(run, bed.examples, out=work / features, compute=projected, features=features)
        found = hw.trace_index(index, queries, methods=METHODS)
        table += [
            {"what": f"index, {features}", "method": name} | compared(scores, found[name])
            for name, scores in streamed.items()
        ]
    exact = hw.trace(run, bed.examples, queries[:FEW], method=hw.CEA(), out=work / "exact")
    differences = hw.Compute(engine="directional")
    found = {"cea": hw.trace(run, bed.examples, queries[:FEW], method=hw.CEA(), compute=differences, out=work / "diff")}
    table.append({"what": "directional engine", "method": "cea"} | compared(exact, found["cea"]))

    result = {
        "command": "HEADWATER_DATA=... python benchmarks/agreement.py --work WORKDIR",
        "date": time.strftime("%Y-%m-%d"),
        "environment": run_versions(),
        "rows": len(bed.examples),
        "rank": RANK,
        "table": table,
    }
    (RESULTS / "agreement.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "agreement.md").write_text(render(result))
    print(render(result))


def render(result: dict[str, Any]) -> str:
    lines = [
        f"{result['rows']} rows of facts, SmolLM2-135M, {result['date']}. Index against streaming, both with rank "
        f"{result['rank']}; directional engine against exact gradients. Correlations: of all rows' scores, the "
        f"smallest over the queries. First {TOP}: the mean shared part, and how many queries have the same rows there.",
        "",
        f"| engine | method | queries | Pearson | Spearman | first {TOP} shared | same {TOP} rows | same order |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['what']} | {row['method']} | {row['queries']} | {row['pearson']:.6f} | {row['spearman']:.6f} "
        f"| {row['shared']:.3f} | {row['same']:.0f} | {row['order']:.0f} |"
        for row in result["table"]
    ]
    return "\n".join([*lines, "", f"Command: `{result['command']}`", ""])


if __name__ == "__main__":
    main()
