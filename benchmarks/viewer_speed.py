"""How fast the viewer shows and re-ranks many rows.

    python benchmarks/viewer_speed.py [--rows 100000] [--repeats 40]

Writes a finished trace of made-up rows (dda: four checkpoints and the base; bm25) to a temporary folder, starts
`headwater serve` on it, and asks it over HTTP as the page does, one request after the other:

- first cards: seconds from the answer's files being complete to the first 25 cards, its reading included;
- another page, a search, a brushed range, groups: milliseconds to the cards, server and transport together;
- re-ranking: the same with weights that were never asked for before, alone and with the agreement with bm25;
- bytes of such an answer, and the server's memory before and after all re-rankings.

Every time is the median of the repeats, and the slowest. Writes benchmarks/results/viewer_speed.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

RESULTS = Path(__file__).parent / "results"
CHECKPOINTS = 4
WORDS = 20_000


def write_trace(folder: Path, rows: int) -> Path:
    """A finished trace in folder/trace and its rows in folder/rows.jsonl."""
    import numpy as np

    from headwater.examples import Query, read_examples
    from headwater.gradients.measurement import targets_of
    from headwater.scores import Scores

    chance = np.random.default_rng(0)
    with open(folder / "rows.jsonl", "w") as file:
        for n in range(rows):
            words = [f"word{w}" for w in chance.zipf(1.2, 60) % WORDS]
            record = {"id": f"row-{n}", "prompt": " ".join(words[:30]), "completion": " " + " ".join(words[30:])}
            file.write(json.dumps(record | {"source": f"source {n % 7}"}) + "\n")
    train = read_examples(folder / "rows.jsonl")
    query = Query("What does word3 say of word5 ?", " word7 word11 word13 .", corrected=" word17 .")
    shared = chance.standard_normal((1, rows))
    names = ["base", *(f"checkpoint-{n}" for n in range(1, CHECKPOINTS + 1))]
    terms = {name: (shared + 0.5 * chance.standard_normal((1, rows))).astype(np.float32) for name in names}
    given: dict[str, Any] = {"queries": [query], "targets": targets_of([query]), "train": train}
    weights = dict.fromkeys(names[1:], 1 / CHECKPOINTS) | {"base": -0.3}
    dda = Scores.combine("dda", terms, weights, **given)
    bm25 = Scores.combine("bm25", {"text": np.maximum(0, chance.standard_normal((1, rows)))}, {"text": 1.0}, **given)
    (folder / "trace").mkdir()
    dda.save(folder / "trace", others=[bm25])
    return folder / "trace"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def memory(pid: int) -> float:
    """MB of a process that are not pages of files."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", text)
    assert found is not None
    return int(found.group(1)) / 1e3


class Client:
    def __init__(self, port: int) -> None:
        self.connection = HTTPConnection("127.0.0.1", port)

    def get(self, path: str) -> tuple[float, int, Any]:
        """Seconds, bytes, content."""
        started = time.perf_counter()
        self.connection.request("GET", path)
        content = self.connection.getresponse().read()
        return time.perf_counter() - started, len(content), json.loads(content)

    def view(self, **parameters: Any) -> tuple[float, int, Any]:
        return self.get("/api/answers/trace/view?" + urlencode({"method": "dda"} | parameters))


def measured(rows: int, repeats: int) -> dict[str, Any]:
    import numpy as np

    chance = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as name:
        trace = write_trace(Path(name), rows)
        port = free_port()
        command = [
            sys.executable,
            "-c",
            "from headwater.cli import main; main()",
            "serve",
            str(trace),
            "--train",
            f"{name}/rows.jsonl",
        ]
        server = subprocess.Popen([*command, "--port", str(port), "--quiet"], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None and "Open http" in server.stdout.readline()
            client = Client(port)
            client.get("/api/session")
            first, size, found = client.view()
            assert found["total"] == rows and len(found["answer"]["best"]) == 25
            before = memory(server.pid)

            def times(**parameters: Any) -> dict[str, float]:
                taken = []
                for n in range(repeats):
                    given = {key: value(n) if callable(value) else value for key, value in parameters.items()}
                    taken.append(1000 * client.view(**given)[0])
                return {"median": round(statistics.median(taken), 1), "slowest": round(max(taken), 1)}

            def weights(_: int) -> str:
                return ",".join(f"{w:.4f}" for w in chance.normal(size=CHECKPOINTS + 1))

            result = {
                "first_cards_seconds": round(first, 2),
                "milliseconds": {
                    "another page": times(offset=lambda n: 25 * n),
                    "a search for the first time": times(search=lambda n: f"word{100 + n} "),
                    "a brushed range": times(low=lambda n: -n / repeats, high=lambda n: n / repeats),
                    "groups by source": times(group="source"),
                    "re-ranking": times(weights=weights),
                    "re-ranking, with agreement": times(weights=weights, against="bm25"),
                },
                "bytes": size,
                "memory_mb": {"first": round(before, 1), "after": round(memory(server.pid), 1)},
            }
        finally:
            server.terminate()
            server.wait()
    return {"rows": rows, "repeats": repeats} | result


def table(found: dict[str, Any]) -> str:
    lines = [
        "# The viewer's speed",
        "",
        f"{found['rows']:,} rows, {CHECKPOINTS} checkpoints and the base; {found['machine']}. What is measured: the "
        "head of benchmarks/viewer_speed.py.",
        "",
        "| what | median | slowest |",
        "| --- | --- | --- |",
        f"| first cards, s | {found['first_cards_seconds']} | |",
        *(f"| {name}, ms | {one['median']} | {one['slowest']} |" for name, one in found["milliseconds"].items()),
        f"| bytes of an answer with 25 cards | {found['bytes']:,} | |",
        f"| memory of the server, MB | {found['memory_mb']['first']} | {found['memory_mb']['after']} at the end |",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    found = measured(given.rows, given.repeats)
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "fastapi", "uvicorn"))
    load = f"load average {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"
    found["machine"] = f"{packages}, python {platform.python_version()}; {load}; {time.strftime('%Y-%m-%d')}"
    (given.out / "viewer_speed.json").write_text(json.dumps(found, indent=1) + "\n")
    (given.out / "viewer_speed.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
