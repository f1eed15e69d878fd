"""Measures the constants of `headwater plan` on a CPU, and compares its forecasts with runs it has not seen.

    python benchmarks/plan.py --work DIR [--check-only]

Random Llamas and random rows, one thread, CPU seconds (other programs then matter less); SmolLM2-135M is the last
check. Constants are fitted by non-negative least squares to the relative errors of the runs marked `fit`: rate of the
FLOPs, seconds of a layer's call, bytes written per second; seconds to read and encode a row are timed on their own, as
are loading, scoring and start. What is forecast for the runs marked `check` uses nothing measured on them. Writes
src/headwater/forecast/measured.json, benchmarks/results/plan.json and plan.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from made import RESULTS, environment, make_rows, make_run

CASES = {  # hidden size, blocks, words of a prompt and of a completion, rows
    "fit": [(64, 2, (6, 12), 1500), (64, 8, (20, 60), 200), (128, 4, (20, 60), 250), (256, 4, (20, 60), 150),
            (256, 8, (6, 12), 300), (512, 4, (40, 80), 60), (64, 4, (4, 6), 3000), (384, 8, (20, 40), 80)],
    "check": [(192, 6, (12, 30), 200), (320, 4, (30, 50), 120), (128, 8, (40, 80), 120), (64, 4, (10, 30), 1500),
              (768, 4, (20, 60), 60)],
}  # fmt: skip
SMOL_ROWS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--check-only", action="store_true", help="keep the constants, compare again")
    given = parser.parse_args()

    import torch

    from headwater import progress
    from headwater.forecast import cost

    torch.set_num_threads(1)
    progress.set_quiet(True)
    work: Path = given.work
    work.mkdir(parents=True, exist_ok=True)
    built(work, *CASES["fit"][0])  # warm-up
    if not given.check_only:
        runs = [built(work, *case) for case in CASES["fit"]]
        constants = singles(work, runs) | fitted(runs)
        record = {
            "command": "python benchmarks/plan.py --work DIR",
            "environment": environment(1),
            "constants": constants,
        }
        cost.MEASURED.write_text(json.dumps(record, indent=1) + "\n")
        cost.measured.cache_clear()
    constants = cost.measured()["constants"]
    checks = [built(work, *case) for case in CASES["check"]] + [smol(work)]
    table = [compared(run, constants) for run in checks]
    result = {"command": "python benchmarks/plan.py --work DIR", "environment": environment(1), "table": table}
    result["constants"] = constants
    (RESULTS / "plan.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "plan.md").write_text(report(result))
    print(report(result))


def built(work: Path, hidden: int, blocks: int, words: tuple[int, int], rows: int) -> dict[str, Any]:
    folder = make_run(work / f"model-{hidden}-{blocks}", checkpoints=1, hidden=hidden, layers=blocks)
    name = work / f"rows-{rows}-{words[0]}-{words[1]}.jsonl"
    name = f"{hidden} wide, {blocks} blocks", make_rows(name, rows, words=words)
    return measured(work, folder / "run", folder / "base", *name)


def smol(work: Path) -> dict[str, Any]:
    """The real model, once: the base is indexed as if it were a checkpoint."""
    from headwater.testbeds import smollm2_135m

    rows = make_rows(work / "smol.jsonl", SMOL_ROWS, words=(10, 20))
    return measured(work, smollm2_135m(), None, "SmolLM2-135M", rows)


def measured(work: Path, run_folder: Path, base: Path | None, name: str, rows: Path) -> dict[str, Any]:
    """One build, and the scan of its store."""
    import torch

    import headwater as hw
    from headwater.attribution.compute import Compute
    from headwater.attribution.loop import encode_rows
    from headwater.attribution.measuring import _saved_bytes
    from headwater.attribution.models import Models
    from headwater.examples import Encoder
    from headwater.forecast.shapes import ModelShape
    from headwater.index.scoring import dots

    run = hw.TrainingRun.from_pretrained(run_folder, base=base)
    out = work / "index"
    shutil.rmtree(out, ignore_errors=True)
    begun = time.process_time()
    train = hw.read_examples(rows)
    index = hw.build_index(run, train, out=out)
    seconds = time.process_time() - begun
    begun = time.process_time()
    encoded = encode_rows(Encoder(run.tokenizer(), hw.TokenFormat(), train.template), hw.read_examples(rows), {})
    reading = time.process_time() - begun
    begun = time.process_time()
    model = run.load(run.last, dtype=torch.float32, device=torch.device("cpu"))
    loading = time.process_time() - begun
    store = index.store(index.parts[0], run.last.name)
    queries = torch.randn(1, store.shape.features)
    list(dots(store, queries, {"layer_cosine"}))
    begun = time.process_time()
    repeats = max(1, 200_000_000 // store.bytes())
    for _ in range(repeats):
        list(dots(store, queries, {"layer_cosine"}))
    scan = (time.process_time() - begun) / repeats
    place = Models(run, Compute(rank=16), encoded, {"layers": ""}).load(run.last.name)
    probe = max(encoded, key=lambda one: one.length)
    found = {
        "name": name,
        "folder": str(run.last.location),
        "rows": len(train),
        "tokens": sum(one.length for one in encoded) / len(encoded),
        "targets": sum(one.targets for one in encoded) / len(encoded),
        "checkpoints": len(run.checkpoints),
        "base": base is not None,
        "build_s": seconds,
        "reading_s": reading,
        "load_s": loading,
        "weights": sum(4 * one.numel() for one in model.parameters()),
        "scan_s": scan * (1 + (base is not None)),
        "store": sum(file.stat().st_size for file in out.rglob("*") if file.is_file() and "/c/" in str(file)),
        "kept_per_token": _saved_bytes(place, probe) / probe.length,
        "outputs": ModelShape.of_folder(run.last.location).outputs,
    }
    print({key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}, flush=True)
    return found


def worked(run: dict[str, Any]) -> Any:
    from headwater.forecast.cost import Work

    names = ("rows", "tokens", "targets", "checkpoints", "base")
    return Work(**{name: run[name] for name in names})


def fitted(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Rate, seconds of a call and write rate, by least squares of relative errors."""
    from scipy.optimize import nnls

    from headwater.forecast.cost import BATCH_TOKENS, row_flops
    from headwater.forecast.shapes import ModelShape

    left, right = [], []
    for run in runs:
        shape, work = ModelShape.of_folder(run["folder"]), worked(run)
        flops = sum(row_flops(shape, work.tokens, work.targets, work.rank)) * work.rows * work.passes
        calls = math.ceil(work.rows * work.tokens / BATCH_TOKENS["cpu"]) * work.passes * len(shape.layers)
        spent = run["build_s"] - run["reading_s"] - work.passes * run["load_s"]
        left.append(np.array([flops, calls, run["store"]]) / run["build_s"])
        right.append(spent / run["build_s"])
    scale = np.abs(np.array(left)).max(0)
    found = nnls(np.array(left) / scale, np.array(right))[0] / scale
    rate, call, write = found
    return {
        "flops_per_second": float(f"{1 / rate:.4g}"),
        "call_seconds": float(f"{call:.4g}"),
        "write_bytes_per_second": float(f"{1 / max(write, 1e-12):.4g}"),
    }


def singles(work: Path, runs: list[dict[str, Any]]) -> dict[str, float]:
    """What is timed on its own."""
    from scipy.optimize import nnls

    rows = np.array([[run["rows"], run["rows"] * run["tokens"]] for run in runs])
    scale = np.array([run["reading_s"] for run in runs])
    per_row, per_token = nnls(rows / scale[:, None], np.ones(len(runs)))[0]
    program = "import headwater.attribution.building, headwater.attribution.models"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    largest = max(runs, key=lambda run: run["weights"])
    stores = np.array([[run["store"], 1 + run["base"]] for run in runs], float)
    spent = np.array([run["scan_s"] for run in runs])
    per_byte, per_store = nnls(stores / spent[:, None] / [1e9, 1], np.ones(len(runs)))[0] / [1e9, 1]
    memory = json.loads((RESULTS / "index_build.json").read_text())["memory"]
    grown = (memory[1]["MiB_at_first_chunk"] - memory[0]["MiB_at_first_chunk"]) * 2**20
    per_row_bytes = grown / (memory[1]["rows"] - memory[0]["rows"])
    return {
        "row_seconds": float(f"{per_row:.4g}"),
        "token_seconds": float(f"{per_token:.4g}"),
        "start_seconds": float(f"{start:.3g}"),
        "load_bytes_per_second": float(f"{largest['weights'] / largest['load_s']:.4g}"),
        "score_bytes_per_second": float(f"{1 / per_byte:.4g}"),
        "score_store_seconds": float(f"{per_store:.3g}"),
        "kept_per_output": float(f"{np.median([run['kept_per_token'] / 4 / run['outputs'] for run in runs]):.3g}"),
        "host_bytes_per_row": float(f"{per_row_bytes - 9 * 20:.4g}"),
        "host_bytes_per_token": 9.0,  # an int64 and a bool
    }


def compared(run: dict[str, Any], constants: dict[str, Any]) -> dict[str, Any]:
    """Forecast and measurement of one run."""
    from headwater.forecast.cost import Cluster, forecast
    from headwater.forecast.shapes import ModelShape

    shape = ModelShape.of_folder(run["folder"])
    found = forecast(shape, worked(run), Cluster(), constants | {"start_seconds": 0.0})
    kept = constants["kept_per_output"] * shape.outputs * 4
    pairs = {
        "build, CPU s": (found.device_hours * 3600, run["build_s"]),
        "scan of the index, ms": (found.scan_seconds * 1e3, run["scan_s"] * 1e3),
        "index, MB": (found.store_bytes / 1e6, run["store"] / 1e6),
        "activations of a token, kB": (kept / 1e3, run["kept_per_token"] / 1e3),
    }
    return {
        "name": run["name"],
        "rows": run["rows"],
        "tokens": round(run["tokens"], 1),
        "passes": found.passes,
        "quantities": {
            name: {"forecast": float(f"{one:.4g}"), "measured": float(f"{two:.4g}"), "ratio": round(one / two, 3)}
            for name, (one, two) in pairs.items()
        },
    }


def report(result: dict[str, Any]) -> str:
    env = result["environment"]
    lines = [
        "# Forecast and measured",
        "",
        f"One thread, {env['processor']}, torch {env['torch']}; {env['date']}. None of these runs was used to measure "
        "the constants. How: the head of benchmarks/plan.py; the cost model: docs/cluster.md.",
        "",
        "| model | rows | tokens a row | passes | quantity | forecast | measured | forecast / measured |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in result["table"]:
        for quantity, one in run["quantities"].items():
            head = f"| {run['name']} | {run['rows']} | {run['tokens']} | {run['passes']} | {quantity} "
            lines.append(f"{head}| {one['forecast']} | {one['measured']} | {one['ratio']} |")
    lines += ["", "| constant | value |", "| --- | --- |"]
    lines += [f"| {name} | {value:g} |" for name, value in result["constants"].items()]
    return "\n".join([*lines, "", f"Command: `{result['command']}`", ""])


if __name__ == "__main__":
    main()
