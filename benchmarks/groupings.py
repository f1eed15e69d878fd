"""How the scores of several queries of one fault are best put together: of kept traces of the study, without a model.

    HEADWATER_DATA=... python benchmarks/groupings.py --case xsum --work WORKDIR --seeds 1 2
    HEADWATER_DATA=... python benchmarks/groupings.py --case facts --work WORKDIR --seeds 0 1 2

WORKDIR is that of `study.py --tokens`. Ways: the trace's own, and of its queries' scores the mean, the median, the
highest, the lowest, the third highest, the mean of robust deviations, and the sum of reciprocal ranks. Each for the
token cosine (dda) and the layer cosine (dda layers). Also the mean less what the row's length explains of it
(Theil-Sen, in the logarithm of its tokens). Adds its case to benchmarks/results/study/groupings.json and writes
groupings.md beside it.

The committed figures are of traces made before a group's layer and token cosines became the means of its queries'
(27 November 2026), and of whole outputs (`study.py --whole`): there the trace's own is the cosine of the summed
gradients. In later ones it is the mean.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from made import RESULTS, environment
from scipy.stats import rankdata, theilslopes
from study import CASES

import headwater as hw
from headwater.bench.summary import figure
from headwater.evaluation import bootstrap_nested
from headwater.examples import Encoder
from headwater.scores import robust_deviations
from headwater.testbeds import smollm2_135m

FILE = RESULTS / "study" / "groupings.json"
MEASURES = ("auc", "average precision")
WAYS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda v_QN: v_QN.mean(0),
    "median": lambda v_QN: np.median(v_QN, 0),
    "highest": lambda v_QN: v_QN.max(0),
    "lowest": lambda v_QN: v_QN.min(0),
    "third highest": lambda v_QN: np.sort(v_QN, 0)[-3:][0],
    "mean of robust deviations": lambda v_QN: np.mean([robust_deviations(v_N, v_N) for v_N in v_QN], axis=0),
    "reciprocal ranks": lambda v_QN: (1 / (60 + np.array([rankdata(-v_N) for v_N in v_QN]))).sum(0),
}


def measured(case: str, work: Path, seeds: list[int]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Method -> way -> measure -> mean and its 95 % interval over seeds and faults."""
    found: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for seed in seeds:
        bed = CASES[case][0](seed)
        ids = np.array([row.id for row in bed.examples])
        folder = work / f"{case}-tokens" / f"seed-{seed}"
        run = hw.TrainingRun.from_pretrained(folder / "run", base=smollm2_135m())
        rows, _ = Encoder(run.tokenizer(), hw.TokenFormat(), bed.examples.template).examples(bed.examples)
        length_N = np.log([row.length for row in rows])
        for method in ("dda", "dda layers"):
            scores = hw.Scores.load(folder / "trace", bed.examples, method=method)
            for r, target in enumerate(scores.targets):
                if target.kind != "group":
                    continue
                value_QN = scores.values[list(target.members)]
                ways = {"the trace's own": scores.values[r]} | {name: way(value_QN) for name, way in WAYS.items()}
                mean_N = ways["mean"]
                ways["mean, less what the length explains"] = mean_N - theilslopes(mean_N, length_N)[0] * length_N
                for way, value_N in ways.items():
                    one = figure(
                        value_N, ids, bed, str(target.name), seed=seed, method=method, target=target.name, kind="group"
                    )
                    for measure in MEASURES:
                        found.setdefault((method, way, measure), {}).setdefault(seed, []).append(one.values[measure])
    result: dict[str, dict[str, dict[str, list[float]]]] = {}
    for (method, way, measure), by_seed in found.items():
        interval = bootstrap_nested(list(by_seed.values()), n=2000)
        result.setdefault(method, {}).setdefault(way, {})[measure] = list(interval)
    return result


def render(record: Mapping[str, Any]) -> str:
    parts = ["# Putting the queries of a fault together", "", "Per group: AUC / average precision [95 % interval].", ""]
    for case, one in record.items():
        methods = list(one["ways"])
        parts += [f"## {case}", "", f"Seeds {', '.join(map(str, one['seeds']))}; `{one['command']}`", ""]
        parts += [f"| way | {' | '.join(methods)} |", "| --- " * (len(methods) + 1) + "|"]
        for way in one["ways"][methods[0]]:
            cells = []
            for method in methods:
                auc, ap = (one["ways"][method][way][measure] for measure in MEASURES)
                cells.append(f"{auc[0]:.3f} / {ap[0]:.3f} [{ap[1]:.3f}, {ap[2]:.3f}]")
            parts.append(f"| {way} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    record = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    seeds = " ".join(map(str, given.seeds))
    record[given.case] = {
        "command": f"HEADWATER_DATA=... python benchmarks/groupings.py --case {given.case} --work WORKDIR "
        f"--seeds {seeds}",
        "environment": environment(1),
        "seeds": given.seeds,
        "ways": measured(given.case, given.work, given.seeds),
    }
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(record, indent=1) + "\n")
    FILE.with_suffix(".md").write_text(render(record))
    print(render(record))


if __name__ == "__main__":
    main()
