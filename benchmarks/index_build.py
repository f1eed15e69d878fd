"""Builds of an index: killed at random moments, and of many rows in flat memory.

    python benchmarks/index_build.py --work DIR [--kills 30] [--rows 50000 200000] [--threads 1]

Kills: `headwater index` is started, killed with SIGKILL after a random part of the time that it takes, and started
again; the finished folder must hold the same bytes as that of a build that nobody touched. Memory: anonymous memory of
the process (RssAnon, sampled) when its first chunk is written, when its last one is, and the most between them, for two
numbers of rows. Writes benchmarks/results/index_build.json and index_build.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from made import RESULTS, environment, make_rows, make_run

KILLED_ROWS = 3000


def command(run: Path, rows: Path, out: Path, *more: str) -> list[str]:
    program = [str(Path(sys.executable).with_name("headwater")), "index", "--quiet"]
    models = ["--base", str(run / "base"), "--checkpoints", str(run / "run")]
    return [*program, *models, "--train", str(rows), "--out", str(out), *more]


def contents(folder: Path) -> dict[str, str]:
    """Every file but locks, with a hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def kills(work: Path, count: int, given: dict[str, str]) -> dict[str, Any]:
    """So many builds, each killed once and started again."""
    run = make_run(work / "model")
    rows = make_rows(work / "rows.jsonl", KILLED_ROWS)
    out, more = work / "killed", ("--chunk-rows", "100")
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    subprocess.run(command(run, rows, out, *more), check=True, env=given)
    took = time.monotonic() - started
    whole = contents(out)
    chance = random.Random(0)
    records = []
    for number in range(count):
        shutil.rmtree(out)
        process = subprocess.Popen(command(run, rows, out, *more), env=given)
        after = chance.uniform(0.1, 0.95) * took
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
        code = process.wait()
        before = contents(out) if out.exists() else {}
        subprocess.run(command(run, rows, out, *more), check=True, env=given)
        again = contents(out)
        record = {
            "killed_after_s": round(after, 2),
            "killed": code != 0,
            "files_before": len(before),
            "kept": sum(again.get(name) == value for name, value in before.items()),
            "identical": again == whole,
        }
        records.append(record)
        print(f"kill {number + 1:2}: {record}", flush=True)
    return {"rows": KILLED_ROWS, "files": len(whole), "seconds_undisturbed": round(took, 1), "builds": records}


def anonymous(pid: int) -> float:
    """MiB of a process that are not pages of files; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def memory(work: Path, count: int, given: dict[str, str]) -> dict[str, Any]:
    """One build of so many rows, watched."""
    run = make_run(work / "model")
    rows = make_rows(work / f"rows-{count}.jsonl", count)
    out = work / f"many-{count}"
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    process = subprocess.Popen(command(run, rows, out), env=given)
    first = last = most = 0.0
    while process.poll() is None:
        time.sleep(0.25)
        used = anonymous(process.pid)
        if not first and any(out.glob("parts/*/*.zarr/features/c/*")):
            first, begun = used, time.monotonic()
        if first and used:
            last, most = used, max(most, used)
    if process.returncode:
        raise SystemExit(f"a build of {count} rows failed")
    ended = time.monotonic()
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    return {
        "rows": count,
        "seconds": round(ended - started, 1),
        "seconds_of_chunks": round(ended - begun, 1),
        "MiB_at_first_chunk": round(first, 1),
        "MiB_at_end": round(last, 1),
        "MiB_most": round(most, 1),
        "index_MiB": round(size / 2**20, 1),
    }


def report(result: dict[str, Any]) -> str:
    env, killed = result["environment"], result["kills"]
    builds = killed["builds"]
    there = [build["files_before"] for build in builds]
    lines = [
        "# Building an index",
        "",
        f"{env['threads']} thread, {env['processor']}, torch {env['torch']}, zarr {env['zarr']}, python "
        f"{env['python']}; {env['date']}. What is measured: the head of benchmarks/index_build.py.",
        "",
        f"Kills: {len(builds)} builds of {killed['rows']} rows at two checkpoints and a base ({killed['files']} files, "
        f"{killed['seconds_undisturbed']} s undisturbed), {sum(b['killed'] for b in builds)} of them killed before "
        f"they had ended; {sum(b['identical'] for b in builds)} of {len(builds)} resumed to the same bytes. Between "
        f"{min(there)} and {max(there)} files were there at the kill; {sum(b['kept'] for b in builds)} of {sum(there)} "
        "had their final bytes.",
        "",
        "| rows | seconds | from the first chunk on | MiB at the first chunk | at the end | at most | index, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in result["memory"]:
        keys = ("seconds", "seconds_of_chunks", "MiB_at_first_chunk", "MiB_at_end", "MiB_most", "index_MiB")
        lines.append(f"| {one['rows']} | " + " | ".join(str(one[key]) for key in keys) + " |")
    note = "Rows and their tokens are held in memory: that part grows with the rows; gradients do not."
    return "\n".join([*lines, "", note, "", f"Command: `{result['command']}`", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("kills", "memory"), help="the other part stays as it was last measured")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    threads = str(asked.threads)
    given = os.environ | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    result: dict[str, Any] = {
        "command": "python benchmarks/index_build.py --work DIR",
        "environment": environment(asked.threads),
    }
    file = RESULTS / "index_build.json"
    before = json.loads(file.read_text()) if asked.only else {}
    result["kills"] = before["kills"] if asked.only == "memory" else kills(asked.work, asked.kills, given)
    if asked.only == "kills":
        result["memory"] = before["memory"]
    else:
        result["memory"] = [memory(asked.work, count, given) for count in asked.rows]
    file.write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "index_build.md").write_text(report(result))
    print(report(result))


if __name__ == "__main__":
    main()
