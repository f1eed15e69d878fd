"""Kills at random moments of every command that leaves something behind, and what is left of the work.

    python benchmarks/kills.py --work DIR [--only index trace ...] [--seed 0]

A small model is trained, then each command runs once undisturbed. Then, for every kill, the command line starts in a
process group of its own, gets SIGKILL at a moment drawn evenly from when its folder appears to when it ends, and is run
again to its end. All are forked from a process that has imported torch and the library, so that kills fall into the
work and not into imports; what they start (the server's worker, the user's program) are programs like any other. The
folder must then hold the same bytes as the undisturbed one: every file but locks, trainings and reports included.
Nothing half-written may lie there, no lock may be held, and no process of the killed command may live on. A run that
ended before its kill is drawn again.

    index           headwater index
    trace           headwater trace --out, streaming, by two methods and with words
    trace of index  headwater trace --index --out
    repair          headwater repair --out: two trainings, their models asked
    repair command  one by a program of the user, which is a process of its own
    serve           headwater serve, over HTTP: the server is killed in the middle of an answer, a repair, or of marks
    worker          the same, but its worker process is killed

After a killed server, one is started on the same port and folder: all marks that it had confirmed, the answer that was
finished before, and what a new question gives must be as without the kill, the files of the viewer's state too (but the
time at which something was asked). Writes benchmarks/results/kills.json and kills.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from made import RESULTS, environment, make_rows, small_model

ROWS, TRAINED = 60, 40
KILLS = {"index": 11, "trace": 10, "trace of index": 10, "repair": 5, "repair command": 4, "serve": 6, "worker": 5}
MARK = "HEADWATER_KILLED_BY"
"""In the environment of every process that is started here, and of those that they start."""
MARKED = [3, 5]
GONE = 15.0
"""Seconds that other processes of a killed command have to notice it and end."""
PROGRAM = """
import shutil, sys, time
for _ in range(20): time.sleep(0.1)
shutil.copytree(sys.argv[1], sys.argv[3])
"""


def headwater(words: list[str], mark: str, out: int) -> None:
    """The command line, in a process of its own that was forked for it."""
    os.setsid()
    os.environ[MARK] = mark
    os.dup2(out, 1)
    sys.argv = ["headwater", *words]
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)

    from headwater.cli import main

    main()


def import_everything() -> None:
    """What the commands import, before any of them is forked: no thread may be running then."""
    for name in (
        "torch", "transformers", "transformers.models.llama.modeling_llama", "accelerate", "peft", "zarr", "fastapi",
        "uvicorn", "pyarrow.parquet", "scipy.stats", "bm25s", "rich.console", "jinja2", "headwater.attribution.loop",
        "headwater.attribution.indexed", "headwater.attribution.building", "headwater.attribution.passes",
        "headwater.repair", "headwater.repair.page", "headwater.report", "headwater.training", "headwater.viewer.app",
        "headwater.viewer.serving", "headwater.cli",
    ):  # fmt: skip
        importlib.import_module(name)
    from transformers import AutoTokenizer, Trainer, TrainingArguments

    assert AutoTokenizer and Trainer and TrainingArguments  # each is imported when it is first named


def contents(folder: Path) -> dict[str, str]:
    """Every file but locks and what a worker printed, with a hash of its bytes; not when something was asked."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(".lock") and path.name != "worker.log":
            data = path.read_bytes()
            if path.name == "question.json":
                data = json.dumps(json.loads(data) | {"asked": None}).encode()
            found[str(path.relative_to(folder))] = hashlib.blake2b(data).hexdigest()
    return found


def half_written(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if ".partial" in path.name]


def locked(folder: Path) -> list[str]:
    """Locks that some process holds."""
    from filelock import FileLock, Timeout

    held = []
    for path in folder.rglob("*.lock"):
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            held.append(str(path.relative_to(folder)))
    return held


def alive(mark: str) -> list[int]:
    """Processes that were started by us with this mark, or by those."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
    return found


def all_gone(mark: str) -> bool:
    until = time.monotonic() + GONE
    while alive(mark) and time.monotonic() < until:
        time.sleep(0.1)
    return not alive(mark)


class Bench:
    """The folders, and what is started."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.chance = work, random.Random(seed)
        self.count = 0
        self.nowhere = os.open(os.devnull, os.O_WRONLY)
        self.fork = multiprocessing.get_context("fork")
        work.mkdir(parents=True, exist_ok=True)
        self.rows, self.trained, self.run = make_rows(work / "rows.jsonl", ROWS), work / "trained.jsonl", work / "run"
        lines = self.rows.read_text().splitlines()
        self.trained.write_text("\n".join(lines[:TRAINED]) + "\n")
        first = json.loads(lines[0])
        self.query = {"prompt": first["prompt"], "output": first["completion"]}
        (work / "queries.jsonl").write_text(json.dumps(self.query | {"id": "first"}) + "\n")
        if not self.run.exists():
            self.ended(self.fork.Process(target=self.train))
        if not (work / "index" / "manifest.json").exists():
            self.ran(commands(self)["index"](work / "index"))

    def train(self) -> None:
        from headwater.examples import read_examples
        from headwater.training import Recipe, fine_tune

        texts = [record["prompt"] + record["completion"] for record in map(json.loads, self.rows.open())]
        recipe = Recipe(epochs=2, batch_size=16, learning_rate=3e-3)
        fine_tune(small_model(self.work / "base", texts), read_examples(self.trained), self.run, recipe)

    @property
    def models(self) -> list[str]:
        return ["--base", str(self.work / "base"), "--checkpoints", str(self.run)]

    def started(self, words: list[Any], out: int | None = None) -> tuple[Any, str]:
        """A process that runs a command line, and its mark."""
        self.count += 1
        mark = f"{os.getpid()}-{self.count}"
        shown = self.nowhere if out is None else out
        process = self.fork.Process(target=headwater, args=(list(map(str, words)), mark, shown))
        process.start()
        return process, mark

    def ended(self, process: Any) -> None:
        if process.pid is None:
            process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"a command ended with {process.exitcode}")

    def ran(self, words: list[Any]) -> None:
        self.ended(self.started(words)[0])


# ---- commands that run to their end ---------------------------------------------------------------------------------


def commands(bench: Bench) -> dict[str, Callable[[Path], list[Any]]]:
    models, rows, work = bench.models, bench.rows, bench.work
    queries = ["--queries", work / "queries.jsonl"]
    repair = [
        "repair",
        "--quiet",
        "--no-bm25",
        *models,
        "--train",
        bench.trained,
        *queries,
        "--id",
        "row-0",
        "--id",
        "row-1",
    ]
    program = f"{sys.executable} {work / 'program.py'} {work / 'base'} {{train_file}} {{out}}"
    (work / "program.py").write_text(PROGRAM)
    traced = ["trace", "--quiet", *queries, "--words", 3]
    return {
        "index": lambda out: ["index", "--quiet", *models, "--train", rows, "--chunk-rows", 5, "--out", out],
        "trace": lambda out: [
            *traced, *models, "--train", rows, "--batch-tokens", 256, "--method", "dda", "--method", "repsim",
            "--out", out,
        ],
        "trace of index": lambda out: [*traced, "--index", work / "index", "--out", out],
        "repair": lambda out: [*repair, "--out", out],
        "repair command": lambda out: [*repair, "--random", 0, "--command", program, "--out", out],
    }  # fmt: skip


def killed_commands(bench: Bench, name: str, count: int) -> Iterator[dict[str, Any]]:
    out = bench.work / f"out {name}"
    command = commands(bench)[name](out)
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    process, _ = bench.started(command)
    appeared = 0.0
    while process.is_alive():
        time.sleep(0.02)
        appeared = appeared or (time.monotonic() - started if out.exists() else 0.0)
    took = time.monotonic() - started
    bench.ended(process)
    whole = contents(out)
    done = 0
    while done < count:
        shutil.rmtree(out)
        after = bench.chance.uniform(0.95 * appeared, took)
        process, mark = bench.started(command)
        process.join(after)
        if not process.is_alive():
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        done += 1
        before = contents(out) if out.exists() else {}
        bench.ran(command)
        again = contents(out)
        yield {
            "after_s": round(after, 2),
            "of_s": round(took, 2),
            "files_before": len(before),
            "kept": sum(again.get(file) == value for file, value in before.items()),
            "differ": sorted(file for file in again.keys() | whole.keys() if again.get(file) != whole.get(file)),
            "half_written": half_written(out),
            "locked": locked(out),
            "processes_gone": all_gone(mark),
        }


# ---- the server -----------------------------------------------------------------------------------------------------


class Server:
    """One start of headwater serve, and a page's requests."""

    def __init__(self, bench: Bench, port: int, state: Path) -> None:
        reading, writing = os.pipe()
        words = ["serve", bench.work / "index", "--port", port, "--state", state, "--quiet"]
        self.process, self.mark = bench.started(words, writing)
        os.close(writing)
        with open(reading) as said:
            line = said.readline()
        found = re.search(r"http://\S+/", line)
        if found is None:
            raise SystemExit(f"headwater serve said {line!r}")
        self.url = found.group().rstrip("/")
        with urlopen(self.url) as page:
            token = re.search(r'headwater-token" content="([^"]+)"', page.read().decode())
        assert token is not None
        self.token = token.group(1)

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-Headwater-Token": self.token, "Content-Type": "application/json"}
        with urlopen(Request(self.url + path, data, headers, method=method), timeout=60) as found:
            return json.loads(found.read())

    def finished(self, job: dict[str, Any] | None) -> dict[str, Any] | None:
        while job is not None and job["state"] in ("queued", "running"):
            time.sleep(0.05)
            job = self("GET", f"/api/jobs/{job['id']}")
        return job

    def warm(self, query: dict[str, Any]) -> dict[str, Any]:
        """A first job, done, after which the worker has its models."""
        job = self.finished(self("POST", "/api/tokens", query)["job"])
        assert job is not None
        return job

    def worker(self) -> int:
        (found,) = [pid for pid in alive(self.mark) if pid != self.process.pid]
        return found

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGINT)
        self.process.join(60)
        if self.process.exitcode:
            raise SystemExit(f"headwater serve ended with {self.process.exitcode}")


class Work:
    """What is asked of a server that is to be killed: an answer, or a repair; and marks, all the while."""

    def __init__(self, bench: Bench, kind: str) -> None:
        self.kind = kind
        others = [json.loads(line) for line in bench.rows.read_text().splitlines()[1:9]]
        queries = [{"prompt": one["prompt"], "output": one["completion"]} for one in others]
        self.before = {"queries": [bench.query], "methods": ["dda", "bm25"]}
        self.body = {"queries": queries, "methods": ["dda", "repsim", "layer-cosine", "bm25"]}

    def begin(self, server: Server) -> str:
        """Before the kill: marks, and an answer that is finished, whose id this is."""
        server("PUT", "/api/marks", {"rows": MARKED, "action": "drop", "note": "twice"})
        found = server("POST", "/api/answers", self.before)
        server.finished(found["job"])
        return str(found["answer"])

    def start(self, server: Server) -> tuple[str, dict[str, Any] | None]:
        """The answer's id, and the job; None where all is there already."""
        if self.kind == "repair":
            name = self.begin(server)
            return name, server("POST", "/api/repair", {"answer": name})["job"]
        found = server("POST", "/api/answers", self.body)
        return found["answer"], found["job"]

    def result(self, server: Server) -> Any:
        """What the page shows in the end."""
        name, job = self.start(server)
        job = server.finished(job)
        if job is not None and job["state"] != "done":
            return job["error"]
        shown = [job["result"]] if self.kind == "repair" and job is not None else []
        methods = (self.before if self.kind == "repair" else self.body)["methods"]
        return [server("GET", "/api/marks"), *shown, *(view(server, name, method) for method in methods)]


def view(server: Server, name: str, method: str) -> Any:
    found = server("GET", f"/api/answers/{name}/view?method={method}&limit=200")
    return found | {"milliseconds": None}


def mark_rows(server: Server, confirmed: set[int]) -> None:
    """Marks one row after the other until the server is gone."""
    with contextlib.suppress(OSError, HTTPException):
        for row in range(10, TRAINED):
            server("PUT", "/api/marks", {"rows": [row], "action": "drop"})
            confirmed.add(row)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def killed_servers(bench: Bench, whom: str, count: int) -> Iterator[dict[str, Any]]:
    state, begun, port = bench.work / "state", bench.work / "state begun", free_port()
    whole: dict[str, Any] = {}
    for kind in ("answer", "repair"):
        work = Work(bench, kind)
        for place in (state, begun):
            shutil.rmtree(place, ignore_errors=True)
        server = Server(bench, port, state)
        finished = work.begin(server)
        server.stop()
        shutil.copytree(state, begun)
        server = Server(bench, port, state)
        server.warm(bench.query)
        started = time.monotonic()
        server.finished(work.start(server)[1])
        took = time.monotonic() - started
        first, result = view(server, finished, "dda"), work.result(server)
        server.stop()
        whole[kind] = work, finished, took, first, result, contents(state)
    done = 0
    while done < count:
        kind = ("answer", "repair")[done % 2]
        work, finished, took, first, result, files = whole[kind]
        shutil.rmtree(state)
        shutil.copytree(begun, state)
        server = Server(bench, port, state)
        earlier = server.warm(bench.query)
        _, job = work.start(server)
        confirmed: set[int] = set()
        marking = threading.Thread(target=mark_rows, args=(server, confirmed), daemon=True)
        if whom == "serve":
            marking.start()
        after = bench.chance.uniform(0, took)
        time.sleep(after)
        if server("GET", f"/api/jobs/{job['id']}")["state"] != "running":
            server.kill()
            all_gone(server.mark)
            continue
        record: dict[str, Any] = {"in": kind, "after_s": round(after, 2), "of_s": round(took, 2)}
        if whom == "serve":
            server.kill()
            marking.join()
            record["processes_gone"] = all_gone(server.mark)
            server = Server(bench, port, state)
            marks = {int(row) for row in server("GET", "/api/marks")}
            record["marks_confirmed"] = len(confirmed) + len(MARKED)
            record["marks_lost"] = len((confirmed | set(MARKED)) - marks)
            if more := sorted(marks - set(MARKED)):
                server("DELETE", "/api/marks", {"rows": more})
        else:
            worker = server.worker()
            os.kill(worker, signal.SIGKILL)
            ended = server.finished(job)
            if ended["state"] == "done":  # it had just finished
                server.kill()
                continue
            record["job_says_so"] = "SIGKILL" in str(ended["error"])
            record["processes_gone"] = worker not in alive(server.mark)
            record["earlier_job_kept"] = server("GET", f"/api/jobs/{earlier['id']}") == earlier
        done += 1
        record["finished_answer_same"] = view(server, finished, "dda") == first
        record["result_same"] = work.result(server) == result
        server.stop()
        again = contents(state)
        record["differ"] = sorted(file for file in again.keys() | files.keys() if again.get(file) != files.get(file))
        record["half_written"], record["locked"] = half_written(state), locked(state)
        record["processes_gone"] &= all_gone(server.mark)
        yield record


# ---- the table ------------------------------------------------------------------------------------------------------


def well(record: dict[str, Any]) -> bool:
    """Whether nothing was lost, everything came out the same and nothing was left behind."""
    bad = ("differ", "half_written", "locked", "marks_lost")
    good = ("processes_gone", "job_says_so", "earlier_job_kept", "finished_answer_same", "result_same")
    return not any(record.get(name) for name in bad) and all(record.get(name, True) for name in good)


def report(result: dict[str, Any]) -> str:
    env, kills = result["environment"], result["kills"]
    everything = [record for records in kills.values() for record in records]
    lines = [
        "# Kills at random moments",
        "",
        f"{sum(map(well, everything))} of {len(everything)} kills lost nothing: the same command again ended with the "
        "same bytes, nothing half-written, no lock held and no process left. What is killed and compared: the head of "
        "benchmarks/kills.py.",
        "",
        f"{env['threads']} thread, {env['processor']}, torch {env['torch']}, python {env['python']}; {env['date']}; "
        f"seed {result['seed']}.",
        "",
        "| killed | kills | between, s | undisturbed, s | files there | with their final bytes | the same in the end |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, records in kills.items():
        after = [record["after_s"] for record in records]
        took = sorted({record["of_s"] for record in records})
        there = [record["files_before"] for record in records if "files_before" in record]
        kept = sum(record.get("kept", 0) for record in records)
        lines.append(
            f"| {name} | {len(records)} | {min(after)} to {max(after)} | {' and '.join(map(str, took))} | "
            + (f"{min(there)} to {max(there)} | {kept} of {sum(there)}" if there else "- | -")
            + f" | {sum(map(well, records))} of {len(records)} |"
        )
    if "serve" in kills:
        confirmed, lost = (sum(r[f"marks_{what}"] for r in kills["serve"]) for what in ("confirmed", "lost"))
        lines += ["", f"Of {confirmed} marks that the server had confirmed before it was killed, {lost} were lost."]
    note = "serve, worker: the first time is that of an answer, the other that of a repair, or the reverse."
    return "\n".join([*lines, "", note, "", f"Command: `{result['command']}`", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=KILLS, default=list(KILLS), help="the others stay as they were")
    parser.add_argument("--kills", type=int, help="of each; nothing is written")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    import_everything()
    bench = Bench(asked.work.resolve(), asked.seed)
    file = RESULTS / "kills.json"
    result: dict[str, Any] = {
        "command": "python benchmarks/kills.py --work DIR",
        "seed": asked.seed,
        "environment": environment(1),
        "kills": json.loads(file.read_text())["kills"] if asked.only != list(KILLS) else {},
    }
    for name in asked.only:
        found = killed_servers if name in ("serve", "worker") else killed_commands
        records = []
        for record in found(bench, name, asked.kills or KILLS[name]):
            records.append(record)
            print(f"{name}: {'well' if well(record) else 'NOT WELL'}: {record}", flush=True)
        result["kills"][name] = records
        if asked.kills is None:
            file.write_text(json.dumps(result, indent=1) + "\n")
            file.with_suffix(".md").write_text(report(result))
    print(report(result))
    if not all(well(record) for records in result["kills"].values() for record in records):
        sys.exit(1)


if __name__ == "__main__":
    main()
