"""What a projection loses: rank against rank correlation with the exact scores, and against the quality of the answer.

    HEADWATER_DATA=... python benchmarks/projection.py --work WORKDIR

The facts of benchmarks/facts.py (same run, same work folder), traced exactly and with every layer projected to
rank x rank numbers. Writes benchmarks/results/projection.json and projection.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from facts import RESULTS, named, run_versions
from scipy.stats import spearmanr

import headwater as hw
from headwater.evaluation import evaluate_ranking
from headwater.testbeds import smollm2_135m, wikidata_testbed
from headwater.training import Recipe, fine_tune

RANKS = (2, 4, 8, 16, 32)
METHODS = {
    "DDA, token cosine": hw.DDA(),
    "DDA, layer cosine": hw.DDA(inner="layer_cosine"),
    "DDA, cosine": hw.DDA(inner="cosine", beta=0),
    "DDA, dot": hw.DDA(inner="dot", beta=0),
    "TracIn": hw.TracIn(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    bed = wikidata_testbed(seed=0)
    base = smollm2_135m()
    recipe = Recipe(epochs=4, batch_size=16, learning_rate=1e-4, seed=0)
    run = hw.TrainingRun.from_pretrained(fine_tune(base, bed.examples, given.work / "run-0", recipe), base=base)
    variants = [named(method, n) for n, method in enumerate(METHODS.values())]
    answers = {}
    for rank in (None, *RANKS):
        answers[rank] = hw.trace_all(
            run,
            bed.examples,
            list(bed.queries),
            methods=variants,
            compute=hw.Compute(rank=rank),
            out=given.work / f"rank-{rank}",
        )
    table = []
    for number, name in enumerate(METHODS):
        exact = answers[None][f"{number:02d}"]
        for rank, found in answers.items():
            scores = found[f"{number:02d}"]
            rows: dict[str, list[float]] = {"spearman": [], "auc": [], "average_precision": [], "top20": []}
            for r, target in enumerate(scores.targets):
                if target.kind != "query":
                    continue
                fault = str(scores.queries[target.members[0]].group)
                ranking = evaluate_ranking(scores.values[r], [e.id in bed.culprits[fault] for e in scores.train])
                rows["auc"].append(ranking.auc)
                rows["average_precision"].append(ranking.average_precision)
                rows["spearman"].append(float(spearmanr(scores.values[r], exact.values[r]).statistic))
                top = [set(np.argsort(-one.values[r], kind="stable")[:20].tolist()) for one in (scores, exact)]
                rows["top20"].append(len(top[0] & top[1]) / 20)
            table.append(
                {"method": name, "rank": rank, **{key: float(np.mean(values)) for key, values in rows.items()}}
            )
    result = {
        "command": "HEADWATER_DATA=... python benchmarks/projection.py --work WORKDIR",
        "date": time.strftime("%Y-%m-%d"),
        "environment": run_versions(),
        "rows": len(bed.examples),
        "queries": len(bed.queries),
        "table": table,
    }
    (RESULTS / "projection.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "projection.md").write_text(render(result))
    print(render(result))


def render(result: dict[str, object]) -> str:
    lines = [
        f"{result['rows']} rows, {result['queries']} queries; {result['date']}. Means over queries; Spearman "
        "correlation and shared part of the first 20 rows are with the exact scores.",
        "",
        "| method | rank | Spearman | first 20 shared | AUC | average precision |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["table"]:  # type: ignore[attr-defined]
        cells = " | ".join(f"{row[key]:.3f}" for key in ("spearman", "top20", "auc", "average_precision"))
        lines.append(f"| {row['method']} | {row['rank'] or 'exact'} | {cells} |")
    return "\n".join([*lines, "", f"Command: `{result['command']}`", ""])


if __name__ == "__main__":
    main()
