"""An index on two machines of a Ray cluster, one of which is lost in the middle of the build."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_index import build, contents

import headwater as hw
import tiny
from headwater.attribution import cluster

pytest.importorskip("ray", reason="ray is not installed: pip install 'headwater[ray]'")
pytestmark = [
    pytest.mark.slow,  # each node of ray takes seconds to start
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROWS = hw.Examples.from_rows(
    [{**fact, "id": f"{fact['id']}-{n}"} for n in range(30) for fact in tiny.FACTS], name="many"
)  # fmt: skip
CHUNK_ROWS = 3


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without a place for workers, and two nodes with one place each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            made.add_node(num_cpus=1)
        yield made
    finally:
        made.shutdown()


def written(out: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in out.glob("parts/000/*.zarr/features/c/*/0")}


def test_a_lost_node_costs_its_chunks_alone(
    run_folder: Path, tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before, buried, both = tmp_path / "index", dict[Path, int](), list[list[int]](), threading.Event()
    bury, hand_out = cluster.Spread._buried, cluster.Spread._hand_out

    def burying(self: Any, task: Any) -> None:
        buried.append(task.chunks)
        bury(self, task)

    def handing_out(self: Any) -> None:
        hand_out(self)
        if len(self._working) == 2:  # one on each node
            both.set()

    def strike() -> None:
        both.wait(300)
        before.update(written(out))
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)

    monkeypatch.setattr(cluster.Spread, "_buried", burying)
    monkeypatch.setattr(cluster.Spread, "_hand_out", handing_out)
    thread = threading.Thread(target=strike)
    thread.start()
    build(run_folder, out, train=ROWS, chunk_rows=CHUNK_ROWS, ray=nodes.address, workers=2)
    thread.join()
    whole = contents(build(run_folder, tmp_path / "one", train=ROWS, chunk_rows=CHUNK_ROWS).folder.path)
    assert contents(out) == whole
    assert len(nodes.worker_nodes) == 1
    assert len(buried) == 1, "nothing was lost with the node"
    assert 0 < len(before) < sum("features/c/" in name for name in whole), "it was struck too late"
    after = written(out)
    assert sum(after[file] != then for file, then in before.items()) <= len(buried[0])
