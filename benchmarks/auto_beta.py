"""Which label-free rule chooses a good beta? Every rule, on every testbed and inner product, against the best beta.

    HEADWATER_DATA=... python benchmarks/auto_beta.py --work WORKDIR

Traces the facts of benchmarks/facts.py and the demo's facts (the runs are trained on the first call and kept in the
work folder), then lets each rule choose a beta from the grid -1 ... 1 and looks up the mean AUC per query that this
beta has. Writes benchmarks/results/auto_beta.json and auto_beta.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import kurtosis, skew

import headwater as hw
from headwater.demo import RECIPE
from headwater.evaluation import evaluate_ranking
from headwater.methods.dda import BETAS, choose_beta
from headwater.scores import robust_deviations
from headwater.testbeds import Testbed, demo_testbed, smollm2_135m, wikidata_testbed
from headwater.training import Recipe, fine_tune

RESULTS = Path(__file__).parent / "results"
INNER = ("layer_cosine", "cosine", "dot")


def _tails(score_N: np.ndarray, tail: float) -> float:
    low, middle, high = np.quantile(score_N, [tail, 0.5, 1 - tail])
    return float((high - middle) / (middle - low))


RULES: dict[str, Callable[[np.ndarray], float]] = {
    "skewness": lambda s: float(skew(s)),
    "mean cube of positive z-scores": lambda s: float((np.clip((s - s.mean()) / s.std(), 0, None) ** 3).mean()),
    "kurtosis": lambda s: float(kurtosis(s)),
    "upper over lower tail, 5 %": lambda s: _tails(s, 0.05),
    "robust z-score of the 5th row": lambda s: float(np.sort(robust_deviations(s))[-5]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    base = smollm2_135m()
    cases = []
    for name, bed, recipe in (
        ("facts", wikidata_testbed(seed=0), Recipe(epochs=4, batch_size=16, learning_rate=1e-4)),
        ("demo", demo_testbed(0), RECIPE),
    ):
        folder = fine_tune(base, bed.examples, work / ("run-0" if name == "facts" else "run-demo"), recipe)
        run = hw.TrainingRun.from_pretrained(folder, base=base)
        methods = [
            hw.DDA(inner=inner, measurement=m, label=f"{inner} {m}") for inner in INNER for m in ("contrast", "loss")
        ]
        answers = hw.trace_all(run, bed.examples, list(bed.queries), methods=methods, out=work / f"terms-{name}")
        cases += [judge(f"{name}, {label}", scores, bed) for label, scores in answers.items()]
    result = {
        "command": "HEADWATER_DATA=... python benchmarks/auto_beta.py --work WORKDIR",
        "date": time.strftime("%Y-%m-%d"),
        "cases": cases,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "auto_beta.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "auto_beta.md").write_text(render(result))
    print(render(result))


def judge(name: str, scores: hw.Scores, bed: Testbed) -> dict[str, object]:
    """Mean AUC per query at each beta, and the beta that each rule chooses."""
    queries = [r for r, target in enumerate(scores.targets) if target.kind == "query"]
    tuned_QN = np.mean([term for key, term in scores.terms.items() if key != "base"], axis=0)[queries]
    base_QN = scores.terms["base"][queries]
    faults = [str(scores.queries[scores.targets[r].members[0]].group) for r in queries]
    labels = [[example.id in bed.culprits[fault] for example in scores.train] for fault in faults]
    auc = {}
    for beta in BETAS:
        combined_QN = tuned_QN - beta * base_QN
        auc[float(beta)] = float(
            np.mean([evaluate_ranking(s, c).auc for s, c in zip(combined_QN, labels, strict=True)])
        )
    chosen = {}
    for rule, criterion in RULES.items():
        values = [float(np.mean([criterion(s) for s in tuned_QN - beta * base_QN])) for beta in BETAS]
        chosen[rule] = float(BETAS[int(np.argmax(values))])
    chosen["auto: mean robust z-score of the top 5 %"] = choose_beta(tuned_QN, base_QN)
    chosen["always 0"] = 0.0
    chosen["always 0.5"] = 0.5
    best = max(auc, key=auc.__getitem__)
    return {
        "case": name,
        "best": {"beta": best, "auc": auc[best]},
        "rules": {rule: {"beta": beta, "auc": auc[beta]} for rule, beta in chosen.items()},
    }


def render(result: dict[str, object]) -> str:
    """AUC lost against the best beta by labels, per rule and case."""
    cases: list[dict[str, dict[str, dict[str, float]]]] = result["cases"]  # type: ignore[assignment]
    rules = list(cases[0]["rules"])
    lines = [
        "Mean AUC per query lost against the best fixed beta of the grid (which needs labels), and the beta chosen.",
        "",
        f"| case | best beta: AUC | {' | '.join(rules)} |",
        "| --- " * (len(rules) + 2) + "|",
    ]
    for case in cases:
        best = case["best"]
        cells = [f"{best['auc'] - case['rules'][r]['auc']:.4f} ({case['rules'][r]['beta']:.2f})" for r in rules]
        lines.append(f"| {case['case']} | {best['beta']:.2f}: {best['auc']:.4f} | {' | '.join(cells)} |")
    worst = [f"{max(case['best']['auc'] - case['rules'][r]['auc'] for case in cases):.4f}" for r in rules]
    lines.append(f"| worst | | {' | '.join(worst)} |")
    return "\n".join([*lines, "", f"Command: `{result['command']}`", ""])


if __name__ == "__main__":
    main()
