"""Which label-free rule for beta comes within a point of the best fixed beta, over the cases of the study?

    HEADWATER_DATA=... python benchmarks/beta_rules.py --work WORKDIR --cases facts xsum ... [--seeds 0 1 2]

Reads the traces that benchmarks/false_alarms.py left in the work folder (contrast, token cosine and layer-wise cosine;
training rows and placebo rows), and trains and computes nothing. Each rule sees the denoised and the base's scores,
without labels, and chooses one beta of the grid for all queries of a seed. AUC and average precision of single queries
and of groups are compared with those of every fixed beta. Writes benchmarks/results/study/beta_rules.json and .md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """What a rule may look at. Q queries, N training rows, M placebo rows."""

    tuned_QN: np.ndarray
    base_QN: np.ndarray
    tuned_QM: np.ndarray
    base_QM: np.ndarray

    def best(self, criterion: Callable[[np.ndarray, np.ndarray], float]) -> float:
        """The beta at which the criterion, of a query's scores and placebo scores, is largest on average."""
        heights = [
            np.mean(
                [
                    criterion(s, p)
                    for s, p in zip(self.tuned_QN - b * self.base_QN, self.tuned_QM - b * self.base_QM, strict=True)
                ]
            )
            for b in BETAS
        ]
        return float(BETAS[int(np.argmax(heights))])


def _above_placebo(score_N: np.ndarray, placebo_M: np.ndarray) -> float:
    """How far the first twentieth of the training rows lies above the same share of the placebo rows, in the placebo
    rows' spread."""
    top = np.sort(score_N)[-max(1, len(score_N) // 20) :].mean()
    chance = np.sort(placebo_M)[-max(1, len(placebo_M) // 20) :].mean()
    return float((top - chance) / placebo_M.std())


def _robust_slope(seen: Seen) -> float:
    """Mean over the queries of the slope of fine-tuned on base scores that outliers do not drive (Huber)."""
    slopes = [
        HuberRegressor().fit(b[:, None] / b.std(), t / t.std()).coef_[0] * t.std() / b.std()
        for t, b in zip(seen.tuned_QN, seen.base_QN, strict=True)
    ]
    return float(np.clip(np.mean(slopes), BETAS[0], BETAS[-1]))


RULES: dict[str, Callable[[Seen], float]] = {
    "auto (top 5 % in robust deviations)": lambda seen: choose_beta(seen.tuned_QN, seen.base_QN),
    "right-skewness": lambda seen: seen.best(lambda s, p: float(skew(s))),
    "robust regression": _robust_slope,
    "top 5 % above placebo rows": lambda seen: seen.best(_above_placebo),
} | {f"always {beta:g}": lambda seen, beta=beta: beta for beta in FIXED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=CASES, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    cases = []
    for case in given.cases:
        for seed in given.seeds:
            folder = given.work / case / f"seed-{seed}" / "false-alarms"
            if (folder / "trace.json").exists():
                bed = CASES[case][0](seed)
                cases += [
                    {"case": f"{case}, {method.name}", "seed": seed} | judged(bed, folder, method.name)
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
    assert bed.placebo is not None
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

    seen = Seen(*part(scores, kinds["query"]), *part(chance, kinds["query"]))
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
    chosen = {rule: choose(seen) for rule, choose in RULES.items()}
    return {
        "best fixed": {name: next(b for b, one in grid.items() if one[name] == value) for name, value in best.items()},
        "best": best,
        "rules": {rule: {"beta": beta} | figures(beta) for rule, beta in chosen.items()},
    }


def render(record: dict) -> str:  # type: ignore[type-arg]
    """What each rule loses against the best fixed beta of each seed (which needs labels), worst over seeds."""
    lines = [
        "Lost against the best fixed beta of the same seed (which needs labels); mean over seeds, and the worst seed."
    ]
    names = list(dict.fromkeys(case["case"] for case in record["cases"]))
    for kind in ("query", "group"):
        for measure in MEASURES:
            key = f"{kind}, {measure}"
            lines += ["", f"Per {kind}, {measure}:", "", f"| rule | {' | '.join(names)} |"]
            lines.append("| --- " * (len(names) + 1) + "|")
            best = []
            for name in names:
                mine = [case for case in record["cases"] if case["case"] == name]
                betas = ", ".join(f"{case['best fixed'][key]:g}" for case in mine)
                best.append(f"{np.mean([case['best'][key] for case in mine]):.3f} at {betas}")
            lines.append(f"| best fixed beta, by seed | {' | '.join(best)} |")
            for rule in record["cases"][0]["rules"]:
                cells = []
                for name in names:
                    mine = [case for case in record["cases"] if case["case"] == name]
                    lost = [case["best"][key] - case["rules"][rule][key] for case in mine]
                    betas = ", ".join(f"{case['rules'][rule]['beta']:.2f}" for case in mine)
                    cells.append(f"{np.mean(lost):.4f}, {max(lost):.4f} ({betas})")
                lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Command: `{record['command']}`", ""])


if __name__ == "__main__":
    main()
