"""An index built by one process, and by one and two workers on a Ray cluster of this machine: seconds, and bytes.

    python benchmarks/scale.py --work DIR [--rows 1500] [--repeats 2]

Each build is `headwater index` in a process of its own, with one thread a worker. Wall seconds are of the whole
command, and of its chunks alone: from the first file of features to the last one. CPU seconds are those of the command
and of everything that it started, sampled ten times a second. Ray's own start, and torch's in each worker, are a fixed
cost that a small build does not earn back; the seconds of the chunks show what more workers change. Efficiency:
seconds of the chunks with one worker, over workers times the seconds with so many. The load of the machine is read
before each build: other programs take their share of the cores. Builds of one round follow each other, and the quicker
round counts. Writes benchmarks/results/scale.json and scale.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from index_build import command, contents
from made import RESULTS, environment, make_rows, make_run

CASES: dict[str, tuple[str, ...]] = {
    "one process, no Ray": (),
    "1 worker": ("--ray", "local", "--workers", "1"),
    "2 workers": ("--ray", "local", "--workers", "2"),
}
CHUNK_ROWS = 50


def built(work: Path, run: Path, rows: Path, more: tuple[str, ...], given: dict[str, str]) -> dict[str, Any]:
    """One build, and what it took."""
    out = work / "index"
    shutil.rmtree(out, ignore_errors=True)
    load = os.getloadavg()[0]
    started = time.monotonic()
    watch = subprocess.Popen(command(run, rows, out, "--chunk-rows", str(CHUNK_ROWS), *more), env=given)
    cpu: dict[int, float] = {}
    while watch.poll() is None:
        cpu.update(cpu_of_descendants(watch.pid))
        time.sleep(0.1)
    wall = time.monotonic() - started
    if watch.returncode:
        raise SystemExit(f"a build failed: {more}")
    times = [file.stat().st_mtime for file in out.glob("parts/*/*.zarr/features/c/*/*")]
    return {
        "wall_s": round(wall, 1),
        "chunks_s": round(max(times) - min(times), 1),
        "cpu_s": round(sum(cpu.values()), 1),
        "load_before": round(load, 1),
        "contents": contents(out),
    }


def cpu_of_descendants(root: int) -> dict[int, float]:
    """CPU seconds of a process and of all that it has started and that live, as seen now."""
    parents, seconds = {}, {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                fields = (place / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended
                continue
            parents[int(place.name)] = int(fields[1])
            seconds[int(place.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found, todo = {}, [root]
    while todo:
        one = todo.pop()
        found[one] = seconds.get(one, 0.0)
        todo += [child for child, parent in parents.items() if parent == one]
    return found


def report(result: dict[str, Any]) -> str:
    env = result["environment"]
    lines = [
        "# An index on one and two workers of a Ray cluster",
        "",
        f"{env['processor']}, {result['cores']} cores that other programs share, one thread a worker, torch "
        f"{env['torch']}, ray {result['ray']}, python {env['python']}; {env['date']}. {result['rows']} rows, two "
        f"checkpoints and the base, chunks of {CHUNK_ROWS} rows; rounds: {result['repeats']}, of which the quickest. "
        "What is measured: the head of benchmarks/scale.py.",
        "",
        "| | wall, s | chunks alone, s | efficiency of the chunks | CPU, s | load of the machine before | same bytes |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in result["builds"].items():
        efficiency = "" if one["efficiency"] is None else f"{one['efficiency']:.2f}"
        shown = (one["wall_s"], one["chunks_s"], efficiency, one["cpu_s"], one["load_before"])
        lines.append(f"| {name} | {' | '.join(map(str, shown))} | {'yes' if one['identical'] else 'NO'} |")
    note = (
        f"With a load above {result['cores']} before a build its workers do not have the cores to themselves: wall "
        "seconds, and the efficiency that is made of them, then say nothing about a machine that is free. CPU seconds "
        "say what Ray adds; the bytes are the same under any load."
    )
    return "\n".join([*lines, "", note, "", f"Command: `{result['command']}`", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)

    import ray

    given = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    given["RAY_worker_niceness"] = "0"  # as the process without Ray
    run, rows = make_run(asked.work / "model", hidden=128), make_rows(asked.work / "rows.jsonl", asked.rows)
    rounds = []
    for _ in range(asked.repeats):
        rounds.append({name: built(asked.work, run, rows, more, given) for name, more in CASES.items()})
        for name, one in rounds[-1].items():
            print(name, {key: value for key, value in one.items() if key != "contents"}, flush=True)
    alone = rounds[0]["one process, no Ray"]["contents"]
    builds = {name: min((one[name] for one in rounds), key=lambda one: float(one["chunks_s"])) for name in CASES}
    single = builds["1 worker"]["chunks_s"]
    for name, one in builds.items():
        workers = int(name.split()[0]) if name.split()[0].isdigit() else None
        one["efficiency"] = round(single / (workers * one["chunks_s"]), 2) if workers else None
        one["identical"] = all(each[name]["contents"] == alone for each in rounds)
    for one in builds.values():
        del one["contents"]
    result: dict[str, Any] = {
        "command": f"python benchmarks/scale.py --work DIR --rows {asked.rows} --repeats {asked.repeats}",
        "environment": environment(1),
        "cores": os.cpu_count(),
        "ray": ray.__version__,
        "rows": asked.rows,
        "repeats": asked.repeats,
        "builds": builds,
    }
    (RESULTS / "scale.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "scale.md").write_text(report(result))
    print(report(result))


if __name__ == "__main__":
    main()
