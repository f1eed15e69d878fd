"""What is won by asking about the words that differ alone: of kept tables of the study, without a model.

    python benchmarks/spans.py

Reads benchmarks/results/study/<case>-tokens*.csv (the words in which output and corrected output differ) and
<case>-whole-tokens*.csv (whole outputs), which name their commands, and compares them question by question, seed by
seed. Writes benchmarks/results/study/spans.json and .md.
"""

from __future__ import annotations

import csv
import json
import time
from typing import Any

import numpy as np
from made import RESULTS, environment

from headwater.evaluation import bootstrap_nested

STUDY = RESULTS / "study"
PAIRS = {
    "xsum": ("xsum-tokens-confirmed", "xsum-whole-tokens-confirmed"),
    "xsum-lora": ("xsum-lora-tokens", "xsum-lora-whole-tokens"),
    "identity": ("identity-tokens", "identity-whole-tokens"),
    "backdoor": ("backdoor-tokens", "backdoor-whole-tokens"),
}
MEASURES = ("auc", "average precision")
Key = tuple[str, str, str]
"""Seed, method and target."""


def read(name: str, kind: str) -> dict[Key, dict[str, float]]:
    with open(STUDY / f"{name}.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == kind]
    return {(row["seed"], row["method"], row["target"]): {m: float(row[m]) for m in MEASURES} for row in rows}


def compared(differing: str, whole: str, kind: str) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Method -> measure -> mean, low and high of both ways, and of the paired difference."""
    one, other = read(differing, kind), read(whole, kind)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for method in dict.fromkeys(key[1] for key in one):
        keys = [key for key in one if key in other and key[1] == method]
        for measure in MEASURES:
            pairs: dict[str, list[tuple[float, float]]] = {}
            for key in keys:
                pairs.setdefault(key[0], []).append((one[key][measure], other[key][measure]))
            by_seed = [np.array(of) for of in pairs.values()]
            found.setdefault(method, {})[measure] = {
                "differing": list(bootstrap_nested([of[:, 0] for of in by_seed])),
                "whole": list(bootstrap_nested([of[:, 1] for of in by_seed])),
                "difference": list(bootstrap_nested([of[:, 0] - of[:, 1] for of in by_seed])),
            }
    return found


def render(record: dict[str, Any]) -> str:
    lines = ["Average precision by the words that differ, of whole outputs, and the paired difference [95 % interval];",
             f"{record['date']}.", ""]  # fmt: skip
    for case, kinds in record["cases"].items():
        for kind, methods in kinds.items():
            lines += [f"{case}, seeds {', '.join(record['seeds'][case])}, per {kind}:", ""]
            lines += ["| method | the words that differ | whole outputs | difference |", "| --- | --- | --- | --- |"]
            for method, found in methods.items():
                ways = found["average precision"]
                mean, low, high = ways["difference"]
                lines.append(
                    f"| {method} | {ways['differing'][0]:.3f} | {ways['whole'][0]:.3f} | "
                    f"{mean:.3f} [{low:.3f}, {high:.3f}] |"
                )
            lines.append("")
    return "\n".join([*lines, f"Command: `{record['command']}`", ""])


def main() -> None:
    record = {
        "command": "python benchmarks/spans.py",
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(1),
        "files": PAIRS,
        "seeds": {case: sorted({key[0] for key in read(pair[0], "query")} & {key[0] for key in read(pair[1], "query")})
                  for case, pair in PAIRS.items()},
        "cases": {case: {kind: compared(*pair, kind) for kind in ("query", "group")} for case, pair in PAIRS.items()},
    }  # fmt: skip
    (STUDY / "spans.json").write_text(json.dumps(record, indent=1) + "\n")
    (STUDY / "spans.md").write_text(render(record))
    print(render(record))


if __name__ == "__main__":
    main()
