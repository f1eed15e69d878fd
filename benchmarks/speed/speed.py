"""CPU time of headwater and of three other libraries on the same work, in units of a training pass.

    bash benchmarks/speed/install_rivals.sh VENVS
    python benchmarks/speed/speed.py --work DIR --venvs VENVS --rounds 5

In every round, for every variant and task: a plain training pass, headwater and each rival, one after another, each in
a process and an environment of its own. A ratio is a tool's CPU seconds over those of the training pass that ran just
before it in the same round. Writes speed.json and speed.md into benchmarks/results after every round. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from workload import ROWS, TASKS, TOKENS_PER_BATCH, VARIANTS, load_documents, make_model

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
REFERENCE = "headwater"
TOOLS = (REFERENCE, "bergson", "dattri", "kronfluence", "floor")
TITLES = {
    "collect": "collect projected gradients",
    "exact8": "exact scores, 8 queries",
    "pertoken": "scores per token, 8 queries",
    "ekfac": "EK-FAC, 8 queries",
}
Key = tuple[str, str, str]


@dataclass
class Series:
    """One tool on one task and variant, over the rounds."""

    cpu_s: list[float] = field(default_factory=list)
    training_cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        return [own / training for own, training in zip(self.cpu_s, self.training_cpu_s, strict=True)]


class Missing(Exception):
    """A tool cannot run a task; the message says why."""


def run(tool: str, task: str, variant: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run one runner and return the line it prints."""
    script = HERE / f"run_{tool}.py"
    own = tool in ("training", "floor", REFERENCE)
    python = Path(sys.executable) if own else given.venvs / tool / "bin" / "python"
    for needed in (script, python):
        if not needed.exists():
            raise Missing("not installed")
    threads = str(given.threads)
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [str(python), str(script), "--work", str(given.work), "--task", task, "--variant", variant]
    done = subprocess.run([*command, "--threads", threads], env=environment, capture_output=True, text=True)
    if done.returncode == 2 and "invalid choice" in done.stderr:
        raise Missing("has no such task")
    if done.returncode:
        tail = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise Missing(f"failed: {tail[0][:200]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def one_round(number: int, given: argparse.Namespace, series: dict[Key, Series], skipped: dict[Key, str]) -> None:
    """Every tool on every task and variant, in an order that turns by one tool each round."""
    for variant in given.variants:
        for task in given.tasks:
            training = run("training", "training", variant, given)
            print(f"round {number + 1} {variant:10} {task:8} training    {training['cpu_s']:8.2f} s", flush=True)
            turn = number % len(given.tools)
            for tool in given.tools[turn:] + given.tools[:turn]:
                key = (tool, task, variant)
                if key in skipped:
                    continue
                try:
                    line = run(tool, task, variant, given)
                except Missing as reason:
                    skipped[key] = str(reason)
                    print(f"round {number + 1} {variant:10} {task:8} {tool:11} skipped: {reason}", flush=True)
                    continue
                record = series.setdefault(key, Series())
                record.cpu_s.append(line["cpu_s"])
                record.wall_s.append(line["wall_s"])
                record.training_cpu_s.append(training["cpu_s"])
                record.last = line
                ratio = record.ratios[-1]
                print(f"round {number + 1} {variant:10} {task:8} {tool:11} {line['cpu_s']:8.2f} s {ratio:6.2f}")


def agreement(work: Path, key: Key) -> float | None:
    """Mean over the queries of the rank correlation of a tool's scores with headwater's."""
    tool, task, variant = key
    paths = [work / "out" / f"{name}-{task}-{variant}.npy" for name in (REFERENCE, tool)]
    if tool == REFERENCE or not all(path.exists() for path in paths):
        return None
    ours, theirs = (np.load(path) for path in paths)
    if ours.shape != theirs.shape:
        return None
    return float(np.mean([spearmanr(a, b).statistic for a, b in zip(ours, theirs, strict=True)]))


def cpu_model() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gather(given: argparse.Namespace, series: dict[Key, Series], skipped: dict[Key, str]) -> dict[str, Any]:
    """Everything speed.json holds."""
    rows = []
    for (tool, task, variant), record in sorted(series.items()):
        rows.append(
            {
                "tool": tool,
                "task": task,
                "variant": variant,
                "ratio": {
                    "min": min(record.ratios),
                    "median": median(record.ratios),
                    "max": max(record.ratios),
                },
                "rank_correlation": agreement(given.work, (tool, task, variant)),
                "cpu_s": record.cpu_s,
                "training_cpu_s": record.training_cpu_s,
                "wall_s": record.wall_s,
                "note": record.last["note"],
            }
        )
    lines = {tool: record.last for (tool, _, _), record in series.items()}
    return {
        "environment": {
            "date": time.strftime("%Y-%m-%d"),
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "threads": given.threads,
            "rounds": max((len(record.cpu_s) for record in series.values()), default=0),
            "tools": {
                tool: {name: line.get(name) for name in ("version", "torch", "transformers", "python")}
                for tool, line in sorted(lines.items())
            },
        },
        "workload": {
            "rows": ROWS,
            "tokens_per_batch": TOKENS_PER_BATCH,
            "tokens": {
                variant: sum(len(document.input_ids) for document in load_documents(variant))
                for variant in given.variants
            },
        },
        "results": rows,
        "skipped": [
            {"tool": tool, "task": task, "variant": variant, "reason": reason}
            for (tool, task, variant), reason in sorted(skipped.items())
        ],
    }


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def render(data: dict[str, Any]) -> str:
    """speed.md."""
    environment = data["environment"]
    found = {(row["tool"], row["task"], row["variant"]): row for row in data["results"]}
    tools = [tool for tool in TOOLS if any(key[0] == tool for key in found)]
    tasks = [task for task in TASKS if any(key[1] == task for key in found)]

    def cell(key: Key, what: str) -> str:
        row = found.get(key)
        if row is None:
            return ""
        if what == "ratio":
            ratio = row["ratio"]
            return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        return "" if row["rank_correlation"] is None else f"{row['rank_correlation']:.4f}"

    parts = [
        f"CPU time as a multiple of a plain training pass over the same tokens in the same batches: median of "
        f"{environment['rounds']} interleaved rounds, with the smallest and the largest. {environment['cpu']}, "
        f"{environment['threads']} thread, {environment['date']}. What is measured and what is unfair about it: "
        f"benchmarks/speed/README.md.\n"
    ]
    for variant, tokens in data["workload"]["tokens"].items():
        meaning = "every token counts" if variant == "plain" else "only the last quarter of each document counts"
        parts.append(f"## {variant}: {meaning} ({data['workload']['rows']} documents, {tokens} tokens)\n")
        heads = ["tool", *(TITLES[task] for task in tasks)]
        for what in ("ratio", "agreement"):
            rows = [[tool, *(cell((tool, task, variant), what) for task in tasks)] for tool in tools]
            if what == "agreement":
                rows = [row for row in rows if any(row[1:])]
                if not rows:
                    continue
                parts.append("Rank correlation of the scores with headwater's, mean over the queries:\n")
            parts.append(table(heads, rows))
    versions = [
        [
            tool,
            *(str(environment["tools"][tool][name] or "") for name in ("version", "python", "torch", "transformers")),
        ]
        for tool in tools
    ]
    parts += ["## Versions and settings\n", table(["tool", "version", "python", "torch", "transformers"], versions)]
    notes = {(row["tool"], row["task"]): row["note"] for row in data["results"] if row["note"]}
    parts.append("".join(f"- {tool}, {task}: {note}.\n" for (tool, task), note in sorted(notes.items())))
    reasons = sorted({(row["tool"], row["task"], row["reason"]) for row in data["skipped"]})
    if reasons:
        parts.append("Skipped:\n\n" + "".join(f"- {tool}, {task}: {reason}.\n" for tool, task, reason in reasons))
    return "\n".join(parts)


def main() -> None:
    """Parse the arguments and run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the model, the scores and scratch files")
    parser.add_argument("--venvs", type=Path, required=True, help="folder that install_rivals.sh filled")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of speed.json and speed.md")
    given = parser.parse_args()

    given.work, given.venvs = given.work.resolve(), given.venvs.absolute()
    make_model(given.work / "model")
    for stale in (given.work / "out").glob("*.npy"):
        stale.unlink()
    given.out.mkdir(parents=True, exist_ok=True)
    series: dict[Key, Series] = {}
    skipped: dict[Key, str] = {}
    for number in range(given.rounds):
        one_round(number, given, series, skipped)
        data = gather(given, series, skipped)
        (given.out / "speed.json").write_text(json.dumps(data, indent=1) + "\n")
        (given.out / "speed.md").write_text(render(data))


if __name__ == "__main__":
    main()
