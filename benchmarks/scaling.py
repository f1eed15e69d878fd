"""Cost against work: CPU seconds of a trace, of an index build and of a query, when the work doubles.

    python benchmarks/scaling.py --work DIR [--repeats 3]

A random Llama (hidden size 128), rows of 80 words on average, one thread. Each line doubles one thing (queries: ten
times as many) and gives the exponent log(cost ratio) / log(work ratio), from the medians of the repeats, beside the
exponent that is expected. What a trace costs before its passes (imports, reading, encoding) is left out: the passes
over the checkpoints are timed, loading of models included. Writes benchmarks/results/scaling.json and scaling.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from made import RESULTS, environment, make_rows, make_run

ROWS, CHECKPOINTS, QUERIES, LAYERS = 400, 2, 2, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()

    import torch

    import headwater as hw
    from headwater import progress

    torch.set_num_threads(1)
    progress.set_quiet(True)
    work: Path = given.work
    work.mkdir(parents=True, exist_ok=True)

    def case(rows: int = ROWS, checkpoints: int = CHECKPOINTS, queries: int = QUERIES, layers: int = LAYERS) -> Any:
        folder = make_run(work / f"model-{checkpoints}-{layers}", checkpoints=checkpoints, hidden=128, layers=layers)
        run = hw.TrainingRun.from_pretrained(folder / "run", base=folder / "base")
        train = hw.read_examples(make_rows(work / f"rows-{rows}.jsonl", rows, words=(20, 60)))
        asked = hw.read_examples(make_rows(work / "queries.jsonl", queries, words=(20, 60), seed=1))
        return run, train, [hw.Query(e.prompt_text, e.completion_text, id=e.id) for e in asked]

    def streamed(**options: int) -> float:
        run, train, queries = case(**options)
        begun = time.process_time()
        hw.trace(run, train, queries, method=hw.DDA(beta=0.25))
        return time.process_time() - begun

    def built(**options: int) -> float:
        run, train, _ = case(**options)
        shutil.rmtree(work / "index", ignore_errors=True)
        begun = time.process_time()
        hw.build_index(run, train, out=work / "index")
        return time.process_time() - begun

    cases: list[tuple[str, Callable[..., float], dict[str, int], float, str]] = [
        ("trace, rows x 2", streamed, {"rows": 2 * ROWS}, 2, "1"),
        # base and T checkpoints are visited
        ("trace, checkpoints 2 -> 5", streamed, {"checkpoints": 5}, 6 / 3, "1"),
        ("trace, queries x 10", streamed, {"queries": 10 * QUERIES}, 10, "well below 1"),
        ("trace, layers x 2", streamed, {"layers": 2 * LAYERS}, 2, "1, less the output head's share"),
        ("index build, rows x 2", built, {"rows": 2 * ROWS}, 2, "1"),
        ("index build, layers x 2", built, {"layers": 2 * LAYERS}, 2, "1, less the output head's share"),
    ]
    for function in (streamed, built):
        function()  # warm-up
    table = []
    for name, function, options, ratio, expected in cases:
        before, after = [], []
        for _ in range(given.repeats):
            before.append(function())
            after.append(function(**options))
        one, more = statistics.median(before), statistics.median(after)
        table.append(
            {
                "what": name,
                "work_ratio": ratio,
                "cpu_s": [round(one, 2), round(more, 2)],
                "exponent": round(math.log(more / one) / math.log(ratio), 2),
                "expected": expected,
            }
        )
        print(table[-1], flush=True)
    result = {
        "command": "python benchmarks/scaling.py --work DIR",
        "repeats": given.repeats,
        "environment": environment(1),
        "table": table,
    }
    (RESULTS / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "scaling.md").write_text(report(result))
    print(report(result))


def report(result: dict[str, Any]) -> str:
    env = result["environment"]
    lines = [
        "# Cost against work",
        "",
        f"CPU seconds, medians of {result['repeats']}; {ROWS} rows, {CHECKPOINTS} checkpoints and a base, {QUERIES} "
        f"queries, {LAYERS} blocks where nothing else is said; one thread, {env['processor']}, torch {env['torch']}; "
        f"{env['date']}.",
        "",
        "| work | CPU s before | after | exponent | expected |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['what']} | {row['cpu_s'][0]:.2f} | {row['cpu_s'][1]:.2f} | {row['exponent']:.2f} | {row['expected']} |"
        for row in result["table"]
    ]
    return "\n".join([*lines, "", f"Command: `{result['command']}`", ""])


if __name__ == "__main__":
    main()
