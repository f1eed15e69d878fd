"""How fast the index is queried, against a plain matrix product over the same numbers, and in how much memory.

    python benchmarks/index_query.py --work DIR [--rows 1000000] [--features 4096] [--threads 2] [--cpu]

Writes a float16 index of random unit directions (16 layers) to DIR, and half of its rows as one flat float16 file and
a quarter as one flat float32 file, all of which then stay in the page cache. For 1 and 8 targets, in turns, seconds per
pass over all rows:

- ours: `dots` with `TopK(100)`, for the dot product and for the layer cosine;
- plain: the flat float16 file memory-mapped, blocks of rows widened to float32 with torch and multiplied, without
  lengths, layers or ranking; the faster of three block sizes; scaled from half of the rows;
- float32: the same without widening, scaled from a quarter of the rows.

Bandwidth is bytes of features per second as stored. With --cpu and one thread, seconds are those that the processor
worked for us: on a machine that others use too, no other seconds mean anything. Memory is the growth of RssAnon (pages
that are not of files) over passes of a quarter of the rows and of all, each in a process of its own. Writes
benchmarks/results/index_query.json and index_query.md. Needs 4 bytes per row and feature on disk, and as much free
memory, else the disk is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LAYERS, TOP, CHUNK = 16, 100, 2048
TARGETS = (1, 8)
BLOCKS = (64, 512, 4096)


def write_files(work: Path, rows: int, features: int) -> Any:
    """The index and the flat files; returns the store."""
    import numpy as np
    import torch

    from headwater.index.store import CheckpointStore, Shape, Writer, encode

    layers = tuple((f"layer{number}", features // LAYERS) for number in range(LAYERS))
    shape = Shape(rows, CHUNK, layers, "float16")
    store = CheckpointStore.create(work / "index", "checkpoint", shape)
    random = torch.Generator().manual_seed(0)
    with (
        Writer(store) as writer,
        open(work / "flat.float16", "wb") as half,
        open(work / "flat.float32", "wb") as single,
    ):
        for chunk in range(shape.chunks):
            start, stop = shape.chunk_range(chunk)
            g_BF = torch.randn(stop - start, features, generator=random)
            writer.put(chunk, g_BF, np.zeros(stop - start, np.float32))
            if stop <= rows // 2:
                encode(g_BF, shape).features.tofile(half)
            if stop <= rows // 4:
                encode(g_BF, shape).features.astype(np.float32).tofile(single)
    return store


def plain(path: Path, q_RF: Any, block: int) -> int:
    """One product of a flat file with the targets; returns the rows."""
    import numpy as np
    import torch

    features = q_RF.shape[1]
    dtype = np.dtype(path.suffix[1:])
    stored = torch.from_numpy(np.memmap(path, dtype, "c").reshape(-1, features))
    out_NR = torch.empty(len(stored), len(q_RF))
    wide = torch.empty(block, features)
    for start in range(0, len(stored), block):
        rows = stored[start : start + block]
        if rows.dtype != torch.float32:
            rows = wide[: len(rows)].copy_(rows)
        torch.mm(rows, q_RF.T, out=out_NR[start : start + len(rows)])
    return len(stored)


def ours(store: Any, q_RF: Any, kind: str, chunks: int, watch: Callable[[], None] | None = None) -> None:
    from headwater.index.scoring import TopK, dots

    top = TopK(TOP, len(q_RF))
    for start, _, scores in dots(store, q_RF, {kind}, range(chunks)):  # type: ignore[arg-type]
        top.update(start, scores[kind])  # type: ignore[index]
        if watch is not None:
            watch()
    top.result()


def anonymous() -> float:
    """MiB of this process that are not pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def growth(work: Path, rows: int) -> float:
    """MiB by which this process, which has done nothing else, grows over a pass at most."""
    import torch

    from headwater.index.store import CheckpointStore

    store = CheckpointStore.open(work / "index", "checkpoint")
    q_RF = torch.randn(TARGETS[-1], store.shape.features)
    before, most = anonymous(), [0.0]

    def watch() -> None:
        most[0] = max(most[0], anonymous())

    ours(store, q_RF, "dot", -(-rows // CHUNK), watch)
    return round(most[0] - before, 1)


def growth_elsewhere(work: Path, rows: int, threads: int) -> float:
    """`growth` in a process of its own."""
    call = [sys.executable, __file__, "--work", str(work.parent), "--threads", str(threads), "--growth", str(rows)]
    return float(subprocess.run(call, check=True, capture_output=True, text=True).stdout)


def seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def measure(work: Path, store: Any, repeats: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Seconds of each pass, in turns."""
    import torch

    shape = store.shape
    random = torch.Generator().manual_seed(1)
    queries = {targets: torch.randn(targets, shape.features, generator=random) for targets in TARGETS}
    stored = shape.rows * shape.features * 2
    half, single = work / "flat.float16", work / "flat.float32"
    lines = []
    for targets, q_RF in queries.items():
        runs: dict[str, Callable[[], object]] = {
            "ours, dot": lambda q=q_RF: ours(store, q, "dot", shape.chunks),
            "ours, layer_cosine": lambda q=q_RF: ours(store, q, "layer_cosine", shape.chunks),
            **{f"plain, blocks of {b}": lambda q=q_RF, b=b: plain(half, q, b) for b in BLOCKS},
            "float32, blocks of 512": lambda q=q_RF: plain(single, q, 512),
        }
        scales = {
            name: stored / (half.stat().st_size if "plain" in name else single.stat().st_size / 2)
            if "ours" not in name
            else 1.0
            for name in runs
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats + 1):  # the first round warms the page cache
            for name, run in runs.items():
                times[name].append(seconds(run, clock) * scales[name])
        best = {name: min(each[1:]) for name, each in times.items()}
        fastest = min(best[name] for name in best if "plain" in name)
        for name, took in best.items():
            size = stored * 2 if "float32" in name else stored
            lines.append(
                {
                    "targets": targets,
                    "what": name,
                    "seconds": round(took, 3),
                    "median": round(sorted(times[name][1:])[repeats // 2], 3),
                    "GB_per_s": round(size / took / 1e9, 2),
                    "against_plain": round(fastest / took, 2),
                }
            )
    return lines


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


def report(result: dict[str, Any]) -> str:
    env = result["environment"]
    memory = result["anonymous_growth_MiB"]
    return "\n".join(
        [
            "# Querying the index",
            "",
            f"{result['rows']} rows of {result['features']} float16 features in {LAYERS} layers; page cache warm; "
            f"best of {result['repeats']} passes in turns, {result['seconds']} seconds; {env['threads']} "
            f"thread{'s' if env['threads'] > 1 else ''}, {env['processor']}, "
            f"torch {env['torch']}, numpy {env['numpy']}, zarr {env['zarr']}, python {env['python']}; {env['date']}. "
            "What is compared: the head of benchmarks/index_query.py.",
            "",
            "| targets | pass | seconds | median | GB/s as stored | bandwidth against the fastest plain |",
            "| --- | --- | --- | --- | --- | --- |",
            *(
                f"| {line['targets']} | {line['what']} | {line['seconds']:.2f} | {line['median']:.2f} "
                f"| {line['GB_per_s']:.2f} | {line['against_plain']:.0%} |"
                for line in result["passes"]
            ),
            "",
            f"Memory that is not pages of files grows over a pass with {TARGETS[-1]} targets by at most: "
            + "; ".join(f"{mib} MiB at {rows} rows" for rows, mib in memory.items())
            + ".",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the big files")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="count CPU seconds, not seconds of the clock")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--keep", action="store_true", help="keep the big files")
    parser.add_argument("--growth", type=int, help=argparse.SUPPRESS)  # rows; what growth_elsewhere asks for
    arguments = parser.parse_args()
    if arguments.cpu and arguments.threads > 1:
        parser.error("--cpu goes with --threads 1: threads that wait for each other count as work")
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))

    import torch

    torch.set_num_threads(arguments.threads)
    work = arguments.work / "index_query"
    if arguments.growth is not None:
        print(growth(work, arguments.growth))
        return
    work.mkdir(parents=True, exist_ok=True)
    try:
        store = write_files(work, arguments.rows, arguments.features)
        memory = {
            str(rows): growth_elsewhere(work, rows, arguments.threads) for rows in (arguments.rows // 4, arguments.rows)
        }
        clock = time.process_time if arguments.cpu else time.perf_counter
        passes = measure(work, store, arguments.repeats, clock)
    finally:
        if not arguments.keep:
            shutil.rmtree(work)
    result = {
        "rows": arguments.rows,
        "features": arguments.features,
        "repeats": arguments.repeats,
        "seconds": "CPU" if arguments.cpu else "wall",
        "passes": passes,
        "anonymous_growth_MiB": memory,
        "environment": {
            "processor": processor(),
            "threads": arguments.threads,
            **{name: version(name) for name in ("torch", "numpy", "zarr")},
            "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d"),
        },
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "index_query.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "index_query.md").write_text(report(result))
    print(report(result))


if __name__ == "__main__":
    main()
