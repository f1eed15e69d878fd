"""An index on a Ray cluster of this machine: built by two workers, one of them killed in the middle, and asked."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_index import QUERIES, build, contents

import headwater as hw
import tiny
from headwater.attribution import cluster

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'headwater[ray]'")
pytestmark = [
    pytest.mark.slow,  # ray and each worker take seconds to start
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # pipes and sockets that ray leaves to the end
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]

ROWS = hw.Examples.from_rows(
    [{**fact, "id": f"{fact['id']}-{n}"} for n in range(6) for fact in tiny.FACTS], name="many"
)  # fmt: skip
CHUNK_ROWS = 3
TASK = 3
"""Chunks of a task of these rows on two workers."""


def test_no_cluster_is_one_line(run_folder: Path, tmp_path: Path) -> None:
    assert not ray.is_initialized()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"  # bound, and nobody listens
        for wrong in (address, f"ray://{address}", "head", "head:x"):
            with pytest.raises(hw.UsageError, match=f"no Ray cluster at {wrong}") as said:
                build(run_folder, tmp_path / "index", ray=wrong)
            assert len(str(said.value).splitlines()) == 1
    assert not (tmp_path / "index").exists()


@pytest.fixture(scope="module")
def two() -> Iterator[None]:
    """A cluster of two workers, which the builds find and leave running."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # a machine full of other programs is no reason to kill
        with cluster.connected("local", 2):
            yield


@pytest.fixture(scope="module")
def index(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> hw.Index:
    return build(run_folder, tmp_path_factory.mktemp("index") / "one", train=ROWS, chunk_rows=CHUNK_ROWS)


@pytest.mark.usefixtures("two")
def test_the_same_bytes_and_the_same_answers(run_folder: Path, tmp_path: Path, index: hw.Index) -> None:
    built = build(run_folder, tmp_path / "index", train=ROWS, chunk_rows=CHUNK_ROWS, ray="local", workers=2)
    assert contents(tmp_path / "index") == contents(index.folder.path)
    methods = [hw.DDA(beta=0.3), hw.TracIn()]
    for limit in (None, 5):
        one = hw.trace_index(built, QUERIES, methods=methods, limit=limit, ray="local", workers=2)
        two = hw.trace_index(index, QUERIES, methods=methods, limit=limit)
        for name in one:
            assert np.array_equal(one[name].values, two[name].values)
            assert one[name].train.ids == two[name].train.ids


def workers_here() -> list[int]:
    """Processes of workers of a cluster that this process has started."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            if (place / "cmdline").read_bytes().startswith(b"ray::Worker") and os.getpid() in ancestors(place):
                found.append(int(place.name))
        except OSError:  # it ended
            continue
    return found


def ancestors(place: Path) -> list[int]:
    found = []
    while (pid := int((place / "stat").read_text().rpartition(")")[2].split()[1])) > 1:
        found.append(pid)
        place = Path("/proc", str(pid))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers in /proc")
@pytest.mark.usefixtures("two")
def test_a_killed_worker_costs_its_chunks_alone(
    run_folder: Path, tmp_path: Path, index: hw.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before, buried = tmp_path / "index", dict[Path, int](), list[list[int]]()
    bury = cluster.Spread._buried

    def burying(self: Any, task: Any) -> None:
        buried.append(task.chunks)
        bury(self, task)

    def strike() -> None:
        deadline = time.monotonic() + 300
        while len(list(out.glob("parts/000/*.zarr/features/c/*/0"))) < 6 and time.monotonic() < deadline:
            time.sleep(0.005)
        before.update((file, file.stat().st_mtime_ns) for file in out.glob("parts/000/*.zarr/features/c/*/0"))
        os.kill(workers_here()[0], signal.SIGKILL)

    monkeypatch.setattr(cluster.Spread, "_buried", burying)
    thread = threading.Thread(target=strike)
    thread.start()
    build(run_folder, out, train=ROWS, chunk_rows=CHUNK_ROWS, ray="local", workers=2)
    thread.join()
    whole = contents(index.folder.path)
    assert contents(out) == whole
    assert [len(chunks) for chunks in buried] == [TASK]
    assert 6 <= len(before) < sum("features/c/" in name for name in whole), "it was struck too late"
    assert sum(file.stat().st_mtime_ns != then for file, then in before.items()) <= TASK  # the lost task's own
