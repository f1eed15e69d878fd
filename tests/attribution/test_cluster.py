"""An index on a Ray cluster of two nodes on this machine: built, killed in the middle, asked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_accidents import POISON, killer
from test_index import QUERIES, TRAIN, build, contents

import headwater as hw
import tiny

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # a cluster takes a minute; ray's own warnings

__all__ = ["killer"]

ROWS = hw.Examples.from_rows(
    [{**fact, "id": f"{fact['id']}-{n}"} for n in range(6) for fact in tiny.FACTS], name="many"
)  # fmt: skip


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of two nodes with one CPU each; the second one may be lost."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def index(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> hw.Index:
    return build(run_folder, tmp_path_factory.mktemp("index") / "one", train=ROWS)


def test_the_same_bytes_and_the_same_answers(run_folder: Path, tmp_path: Path, index: hw.Index, nodes: Any) -> None:
    built = build(run_folder, tmp_path / "index", train=ROWS, ray=nodes.address)
    assert contents(tmp_path / "index") == contents(index.folder.path)
    methods = [hw.DDA(beta=0.3), hw.TracIn()]
    for limit in (None, 5):
        one = hw.trace_index(built, QUERIES, methods=methods, limit=limit, ray=nodes.address, workers=2)
        two = hw.trace_index(index, QUERIES, methods=methods, limit=limit)
        for name in one:
            assert np.array_equal(one[name].values, two[name].values)
            assert one[name].train.ids == two[name].train.ids


def test_a_lost_node_costs_its_chunks_alone(run_folder: Path, tmp_path: Path, index: hw.Index, nodes: Any) -> None:
    out, lost = tmp_path / "index", next(node for node in nodes.list_all_nodes() if node is not nodes.head_node)
    before: dict[Path, int] = {}

    def strike() -> None:
        deadline = time.monotonic() + 100
        while len(list(out.glob("parts/000/*.zarr/features/c/*"))) < 6 and time.monotonic() < deadline:
            time.sleep(0.005)
        before.update((file, file.stat().st_mtime_ns) for file in out.glob("parts/000/*.zarr/features/c/*/0"))
        nodes.remove_node(lost, allow_graceful=False)

    thread = threading.Thread(target=strike)
    thread.start()
    build(run_folder, out, train=ROWS, ray=nodes.address)
    thread.join()
    whole = contents(index.folder.path)
    assert contents(out) == whole
    assert 6 <= len(before) < sum("features/c/" in name for name in whole), "it was struck too late"
    assert sum(file.stat().st_mtime_ns != then for file, then in before.items()) <= 4  # the lost task's own
    nodes.add_node(num_cpus=1)


def test_a_row_that_kills_workers_is_found(run_folder: Path, tmp_path: Path, killer: dict[str, str]) -> None:
    out, tests = tmp_path / "index", Path(__file__).parent
    program = (
        "import sys, pathlib; sys.path[:0] = sys.argv[3:5]\n"
        "from test_index import build\n"
        "build(pathlib.Path(sys.argv[1]), sys.argv[2], ray='local', workers=1)\n"
    )
    command = [sys.executable, "-c", program, str(run_folder), str(out), str(tests), str(tests.parent)]
    done = subprocess.run(command, env=killer, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    built = hw.Index.open(out)
    assert list(built.quarantined) == [POISON] and TRAIN[POISON].id in done.stderr
    assert built.check() == []


def test_no_cluster_is_one_line(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(hw.UsageError, match="no Ray cluster at auto") as said:
        build(run_folder, tmp_path / "index", ray="auto")
    assert len(str(said.value).splitlines()) == 1
    assert not (tmp_path / "index").exists()
