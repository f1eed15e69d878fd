"""Quality on facts with known culprits: every method on the same run, the same queries, the same rows.

    HEADWATER_DATA=... python benchmarks/facts.py --work WORKDIR

500 rows of "The <relation> of <subject> is" -> one word, 96 of them wrong in four systematic swaps, as many
legitimate look-alikes; SmolLM2-135M, full fine-tuning, 4 epochs; 24 held-out queries, six for each swap. Writes
benchmarks/results/facts.json and facts.md. The work folder keeps models and traces, so that a second run is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

import headwater as hw
from headwater.attribution.plan import Method
from headwater.evaluation import bootstrap, evaluate_ranking
from headwater.methods.dda import BETAS
from headwater.testbeds import smollm2_135m, wikidata_testbed
from headwater.training import Recipe, fine_tune

RESULTS = Path(__file__).parent / "results"

METHODS: dict[str, list[Method]] = {
    "gradient": [
        hw.DDA(),
        hw.DDA(beta=0),
        hw.DDA(beta=0.25),
        hw.DDA(beta=0.5),
        hw.DDA(beta=-0.5),
        hw.DDA(beta=0.25, level="gradient"),
        hw.DDA(inner="cosine", beta=0),
        hw.DDA(inner="cosine"),
        hw.DDA(inner="dot", beta=0),
        hw.DDA(inner="dot"),
        hw.DDA.paper(0.5),
        hw.DDA(beta=0, measurement="loss"),
        hw.TracIn(),
        hw.TracIn(measurement="contrast"),
        hw.CEA(),
        hw.GradientDot(),
        hw.GradientCosine(),
        hw.RepresentationSimilarity(),
        hw.BM25(),
    ],
    "difference": [hw.CEA(form="difference")],
}


def label(method: Method) -> str:
    """Name and the options that differ from the defaults."""
    options = asdict(method)  # type: ignore[call-overload]
    default = asdict(type(method)())  # type: ignore[call-overload]
    changed = [f"{key}={value}" for key, value in options.items() if value != default[key] and key != "label"]
    return f"{method.name} {' '.join(changed)}".strip()


def named(method: Method, number: int) -> Method:
    """The same method under a name of its own, so that variants can be traced together."""

    class Variant:
        name = f"{number:02d}"

        def __getattr__(self, attribute: str) -> object:
            return getattr(method, attribute)

    return Variant()  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--difference", action="store_true", help="the finite-difference pair of CEA too (slow)")
    given = parser.parse_args()
    bed = wikidata_testbed(seed=given.seed)
    base = smollm2_135m()
    recipe = Recipe(epochs=4, batch_size=16, learning_rate=1e-4, seed=given.seed)
    started = time.process_time()
    folder = fine_tune(base, bed.examples, given.work / f"run-{given.seed}", recipe)
    trained = time.process_time() - started
    run = hw.TrainingRun.from_pretrained(folder, base=base)
    methods = METHODS["gradient"] + (METHODS["difference"] if given.difference else [])
    started = time.process_time()
    variants = [named(method, n) for n, method in enumerate(methods)]
    answers = hw.trace_all(run, bed.examples, list(bed.queries), methods=variants)
    traced = time.process_time() - started
    table = []
    for method, scores in zip(methods, answers.values(), strict=True):
        row: dict[str, object] = {"method": label(method)}
        if any(name == "base" for name in scores.weights):
            row["beta"] = -scores.weights["base"]
        for kind in ("query", "group"):
            rankings = []
            for r, target in enumerate(scores.targets):
                if target.kind == kind:
                    fault = str(scores.queries[target.members[0]].group)
                    rankings.append(
                        evaluate_ranking(scores.values[r], [e.id in bed.culprits[fault] for e in scores.train])
                    )
            for metric in ("auc", "average_precision"):
                values = [getattr(ranking, metric) for ranking in rankings]
                mean, low, high = bootstrap(values) if len(values) > 1 else (values[0],) * 3
                row[f"{kind}_{metric}"] = {"mean": mean, "low": low, "high": high}
        table.append(row)
    best = best_betas(answers, bed)
    result = {
        "command": "HEADWATER_DATA=... python benchmarks/facts.py --work WORKDIR"
        + (f" --seed {given.seed}" if given.seed else "")
        + (" --difference" if given.difference else ""),
        "date": time.strftime("%Y-%m-%d"),
        "environment": {
            "python": platform.python_version(),
            "processor": f"{os.cpu_count()} cores, no accelerator",
            "data": "facts_qa_wikidata.jsonl",
        }
        | run_versions(),
        "rows": len(bed.examples),
        "culprits": len(bed.all_culprits),
        "queries": len(bed.queries),
        "recipe": asdict(recipe),
        "cpu_seconds": {"training": trained, "tracing": traced},
        "best_fixed_beta_by_labels": best,
        "table": table,
    }
    suffix = f"-seed{given.seed}" if given.seed else ""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"facts{suffix}.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / f"facts{suffix}.md").write_text(render(result))
    print(render(result))


def best_betas(answers: dict[str, hw.Scores], bed: object) -> dict[str, dict[str, float]]:
    """For each inner product, the beta of the grid with the best mean AUC per query, chosen with labels: a bound."""
    out = {}
    for name, number in (("token_cosine", 0), ("cosine", 7), ("dot", 9)):
        scores = answers[f"{number:02d}"]
        tuned = np.mean([term for key, term in scores.terms.items() if key != "base"], axis=0)
        by_beta = {}
        for beta in BETAS:
            aucs = []
            for r, target in enumerate(scores.targets):
                if target.kind == "query":
                    fault = str(scores.queries[target.members[0]].group)
                    culprit = [e.id in bed.culprits[fault] for e in scores.train]  # type: ignore[attr-defined]
                    aucs.append(evaluate_ranking(tuned[r] - beta * scores.terms["base"][r], culprit).auc)
            by_beta[float(beta)] = float(np.mean(aucs))
        beta = max(by_beta, key=by_beta.__getitem__)
        out[name] = {"beta": beta, "auc": by_beta[beta], "auto_beta": -scores.weights["base"]}
    return out


def run_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "headwater")}


def render(result: dict[str, object]) -> str:
    """The table in Markdown, best average precision first."""
    lines = [
        f"{result['rows']} rows, {result['culprits']} culprits, {result['queries']} queries; {result['date']}. "
        "Mean [95 % bootstrap interval over queries or groups].",
        "",
        "| method | beta | query AUC | query avg. precision | group AUC | group avg. precision |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows = sorted(result["table"], key=lambda row: -row["query_average_precision"]["mean"])  # type: ignore[call-overload]
    for row in rows:
        cells = [
            f"{cell['mean']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
            for key in ("query_auc", "query_average_precision", "group_auc", "group_average_precision")
            for cell in [row[key]]
        ]
        beta = f"{row['beta']:.2f}" if "beta" in row else ""
        lines.append(f"| {row['method']} | {beta} | {' | '.join(cells)} |")
    lines += ["", "Best beta by labels (a bound, not a method) against the automatic one:", ""]
    for inner, best in result["best_fixed_beta_by_labels"].items():  # type: ignore[attr-defined]
        lines.append(f"- {inner}: {best['beta']:.2f} (query AUC {best['auc']:.3f}); automatic: {best['auto_beta']:.2f}")
    return "\n".join([*lines, "", f"Command: `{result['command']}`", ""])


if __name__ == "__main__":
    main()
