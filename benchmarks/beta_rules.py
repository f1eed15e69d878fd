"""Which label-free rule for beta comes within a point of the best fixed beta, over the cases of the study?

    HEADWATER_DATA=... python benchmarks/beta_rules.py --work WORKDIR --cases facts facts-lora xsum ... [--seeds 0 1 2]

Reads the traces that benchmarks/false_alarms.py (training rows and placebo rows), or else benchmarks/study.py --tokens
(training rows alone), left in the work folder (contrast, token cosine and layer-wise cosine), and trains and computes
nothing. Each rule sees the denoised and the base's scores, without labels, and chooses one beta of the grid for all
queries of a seed. AUC and average precision of single queries and of groups are compared with those of every fixed
beta. Seeds without a trace are left out. Writes benchmarks/results/study/beta_rules.json and .md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from false_alarms import METHODS
from made import RESULTS
from scipy.stats import skew
from sklearn.linear_model import HuberRegressor
from study import CASES

import headwater as hw
from headwater.evaluation import evaluate_ranking
from headwater.methods.dda import BETAS, choose_beta
from headwater.testbeds import Testbed

FIXED = (-1.0, -0.5, 0.0, 0.25, 0.5)
MEASURES = ("auc", "average precision")


@dataclass(frozen=True)
class Seen:
    """What a rule may look at. Q queries, N training rows, M placebo rows (none in some cases)."""

    tuned_QN: np.ndarray
    base_QN: np.ndarray
    placebo: tuple[np.ndarray, np.ndarray] | None
    """The same of the placebo rows (QM)."""

    def best(self, height: Callable[[float], list[float]]) -> float:
        """The beta at which the height, one number a query, is largest on average."""
        return float(BETAS[int(np.argmax([np.mean(height(float(beta))) for beta in BETAS]))])


def _skewest(seen: Seen) -> float:
    return seen.best(lambda b: [float(skew(s)) for s in seen.tuned_QN - b * seen.base_QN])


def _above_placebo(seen: Seen) -> float | None:
    """How far the first twentieth of the training rows lies above the same share of the placebo rows, in the placebo
    rows' spread."""
    if seen.placebo is None:
        return None
    tuned_QM, base_QM = seen.placebo

    def first(score_N: np.ndarray) -> float:
        return float(np.sort(score_N)[-max(1, len(score_N) // 20) :].mean())

    def height(b: float) -> list[float]:
        pairs = zip(seen.tuned_QN - b * seen.base_QN, tuned_QM - b * base_QM, strict=True)
        return [(first(rows) - first(placebo)) / placebo.std() for rows, placebo in pairs]

    return seen.best(height)


def _robust_slope(seen: Seen) -> float:
    """Mean over the queries of the slope of fine-tuned on base scores that outliers do not drive (Huber)."""
    slopes = [
        HuberRegressor().fit(b[:, None] / b.std(), t / t.std()).coef_[0] * t.std() / b.std()
        for t, b in zip(seen.tuned_QN, seen.base_QN, strict=True)
    ]
    return float(np.clip(np.mean(slopes), BETAS[0], BETAS[-1]))


RULES: dict[str, Callable[[Seen], float | None]] = {
    "auto (top 5 % in robust deviations)": lambda seen: choose_beta(seen.tuned_QN, seen.base_QN),
    "right-skewness": _skewest,
    "robust regression": _robust_slope,
    "top 5 % above placebo rows": _above_placebo,
} | {f"always {beta:g}": lambda seen, beta=beta: beta for beta in FIXED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *(f"{case}-lora" for case in CASES)], required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    cases = []
    for case in given.cases:
        for seed in given.seeds:
            of_false_alarms = given.work / case / f"seed-{seed}" / "false-alarms"
            of_study = given.work / f"{case}-tokens" / f"seed-{seed}" / "trace"
            folder = next((f for f in (of_false_alarms, of_study) if (f / "trace.json").exists()), None)
            if folder is not None:
                bed = CASES[case.removesuffix("-lora")][0](seed)
                cases += [
                    {"case": case, "method": method.name, "seed": seed} | judged(bed, folder, method.name)
                    for method in METHODS
                ]
    record = {
        "command": f"HEADWATER_DATA=... python benchmarks/beta_rules.py --work WORKDIR --cases {' '.join(given.cases)}"
        f" --seeds {' '.join(map(str, given.seeds))}",
        "date": time.strftime("%Y-%m-%d"),
        "cases": cases,
    }
    file = RESULTS / "study" / "beta_rules"
    file.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    file.with_suffix(".md").write_text(render(record))
    print(render(record))


def judged(bed: Testbed, folder: Path, method: str) -> dict[str, object]:
    scores = hw.Scores.load(folder, bed.examples, method=method)
    chance = None
    if bed.placebo is not None and (folder / "placebo").exists():
        chance = hw.Scores.load(folder / "placebo", bed.placebo, method=method)
    kinds = {
        kind: [
            r
            for r, target in enumerate(scores.targets)
            if target.kind == kind and scores.queries[target.members[0]].group is not None
        ]
        for kind in ("query", "group")
    }
    tuned = [name for name in scores.terms if name != "base"]

    def part(found: hw.Scores, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        return np.mean([found.terms[n] for n in tuned], axis=0)[rows], found.terms["base"][rows]

    seen = Seen(*part(scores, kinds["query"]), None if chance is None else part(chance, kinds["query"]))
    ids = [example.id for example in scores.train]

    def figures(beta: float) -> dict[str, float]:
        out = {}
        for kind, rows in kinds.items():
            tuned_RN, base_RN = part(scores, rows)
            found = []
            for r, score_N in zip(rows, tuned_RN - beta * base_RN, strict=True):
                fault = str(scores.queries[scores.targets[r].members[0]].group)
                aside = bed.set_aside.get(fault, frozenset())
                keep = [n for n, name in enumerate(ids) if name not in aside]
                found.append(evaluate_ranking(score_N[keep], [ids[n] in bed.culprits[fault] for n in keep]))
            out[f"{kind}, auc"] = float(np.mean([one.auc for one in found]))
            out[f"{kind}, average precision"] = float(np.mean([one.average_precision for one in found]))
        return out

    grid = {float(beta): figures(float(beta)) for beta in BETAS[::5]}
    best = {name: max(one[name] for one in grid.values()) for name in grid[0.0]}
    chosen = {rule: beta for rule, choose in RULES.items() if (beta := choose(seen)) is not None}
    return {
        "best fixed": {
            name: min((b for b, one in grid.items() if one[name] == value), key=abs) for name, value in best.items()
        },
        "best": best,
        "rules": {rule: {"beta": beta} | figures(beta) for rule, beta in chosen.items()},
    }


def render(record: dict[str, Any]) -> str:
    """What each rule loses against the best fixed beta of each seed (which needs labels)."""
    keys = [f"{kind}, {measure}" for kind in ("query", "group") for measure in MEASURES]
    cases = record["cases"]
    names = list(dict.fromkeys(case["case"] for case in cases))
    methods = list(dict.fromkeys(case["method"] for case in cases))
    rules = list(dict.fromkeys(rule for case in cases for rule in case["rules"]))

    def lost(rule: str, key: str, **of: str) -> list[tuple[float, float]]:
        """(beta, what it loses) of each seed that the rule has an answer for."""
        mine = [c for c in cases if rule in c["rules"] and all(c[name] == value for name, value in of.items())]
        return [(c["rules"][rule]["beta"], c["best"][key] - c["rules"][rule][key]) for c in mine]

    lines = ["Lost against the best fixed beta of the same seed, which needs labels.", ""]
    for name in names:
        mine = [case for case in cases if case["case"] == name and case["method"] == methods[0]]
        seeds = ", ".join(str(case["seed"]) for case in mine)
        with_placebo = any("top 5 % above placebo rows" in case["rules"] for case in mine)
        lines.append(f"- {name}: seeds {seeds}" + ", with placebo rows" * with_placebo)
    for method in methods:
        lines += ["", f"By {method}, the worst of all cases and seeds ({', '.join(names)}):", ""]
        lines += [f"| rule | {' | '.join(f'per {key}' for key in keys)} |", "| --- " * 5 + "|"]
        for rule in rules:
            cells = [f"{max(loss for _, loss in lost(rule, key, method=method)):.4f}" for key in keys]
            lines.append(f"| {rule} | {' | '.join(cells)} |")
    for method in methods:
        for key in keys:
            lines += ["", f"By {method}, per {key}; mean over seeds, the worst seed, and the betas:", ""]
            lines += [f"| rule | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
            best = []
            for name in names:
                mine = [case for case in cases if case["case"] == name and case["method"] == method]
                betas = ", ".join(f"{case['best fixed'][key]:g}" for case in mine)
                best.append(f"{np.mean([case['best'][key] for case in mine]):.3f} at {betas}")
            lines.append(f"| best fixed beta, by seed | {' | '.join(best)} |")
            for rule in rules:
                cells = []
                for name in names:
                    found = lost(rule, key, case=name, method=method)
                    losses, betas = [loss for _, loss in found], ", ".join(f"{beta:.2f}" for beta, _ in found)
                    cells.append(f"{np.mean(losses):.4f}, {max(losses):.4f} ({betas})" if found else "no placebo rows")
                lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Command: `{record['command']}`", ""])


if __name__ == "__main__":
    main()
