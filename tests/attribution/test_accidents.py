"""Accidents while an index is built: each is made to happen."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_index import QUERIES, TRAIN, build, contents, run_of

import headwater as hw
import tiny
from headwater.attribution import chunks, curved
from headwater.attribution.quarantine import ATTEMPT, QUARANTINE, deadly
from headwater.index.store import CheckpointStore

POISON = 6
"""The row that does the harm, by number: in the second chunk of five."""


@pytest.fixture(scope="module")
def index(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> hw.Index:
    return build(run_folder, tmp_path_factory.mktemp("index") / "one")


@pytest.mark.parametrize("after", [0, 1, 5, 40, 10_000])
def test_a_full_disk_is_one_line_and_the_build_goes_on(
    run_folder: Path, tmp_path: Path, index: hw.Index, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The disk fills up at the n-th file; 10,000: at the manifest."""
    written, fsync = 0, os.fsync

    def full(file: int) -> None:
        nonlocal written
        written += 1
        name = Path(f"/proc/self/fd/{file}").resolve().name
        if written > after or (after == 10_000 and name.startswith("manifest.json")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(hw.RunError, match="No space left on device") as said:
        build(run_folder, tmp_path / "index")
    assert len(str(said.value).splitlines()) == 1
    monkeypatch.undo()
    assert not (tmp_path / "index" / "manifest.json").exists()
    assert not list(tmp_path.rglob("*.partial-*"))
    build(run_folder, tmp_path / "index")
    assert contents(tmp_path / "index") == contents(index.folder.path)


@pytest.mark.parametrize("array", ["features", "norm", "loss"])
@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing"])
def test_damaged_chunks_are_made_again(
    run_folder: Path, tmp_path: Path, index: hw.Index, harm: str, array: str
) -> None:
    folder = tmp_path / "index"
    shutil.copytree(index.folder.path, folder)
    file = next(f for f in sorted((folder / "parts").rglob(f"{array}/c/*")) if "base" in str(f))
    file = next(iter(file.iterdir())) if file.is_dir() else file
    raw = file.read_bytes()
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(raw[:-3] if harm == "truncated" else bytes([raw[0] ^ 1]) + raw[1:])
    assert len(hw.Index.open(folder).check()) == 1
    if array == "norm" or harm != "flipped":  # a query reads no losses, and the features' checksum when asked for
        with pytest.raises(hw.RunError, match="base"):
            hw.trace_index(hw.Index.open(folder), QUERIES, methods=[hw.DDA(beta=0.2)])
    (folder / "manifest.json").unlink()
    build(run_folder, folder)
    assert contents(folder) == contents(index.folder.path)


def test_a_clock_that_jumps_changes_nothing(
    run_folder: Path, tmp_path: Path, index: hw.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back by ten years in the middle of the build, and files that seem to come from the future at the resumption."""
    begun, write, calls = time.time(), CheckpointStore.write_encoded, 0

    def failing(self: CheckpointStore, *given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            monkeypatch.setattr(time, "time", lambda: begun - 10 * 365 * 86400)
        if calls == 6:
            raise KeyboardInterrupt
        write(self, *given)

    monkeypatch.setattr(CheckpointStore, "write_encoded", failing)
    with pytest.raises(KeyboardInterrupt):
        build(run_folder, tmp_path / "index")
    for file in (tmp_path / "index").rglob("*"):
        os.utime(file, (begun + 1e8, begun + 1e8))
    monkeypatch.setattr(CheckpointStore, "write_encoded", write)
    build(run_folder, tmp_path / "index")
    assert contents(tmp_path / "index") == contents(index.folder.path)


def test_two_builds_into_one_folder(run_folder: Path, tmp_path: Path, index: hw.Index) -> None:
    """The second is refused while the first one works, and does it no harm."""
    out, go = tmp_path / "index", tmp_path / "go"
    program = (
        "import sys, time, pathlib; sys.path[:0] = sys.argv[3:5]\n"
        "from test_index import build\n"
        "from headwater.index.store import CheckpointStore\n"
        "write = CheckpointStore.write_encoded\n"
        "def slow(self, *given):\n"
        "    while not pathlib.Path(sys.argv[5]).exists(): time.sleep(0.01)\n"
        "    write(self, *given)\n"
        "CheckpointStore.write_encoded = slow\n"
        "build(pathlib.Path(sys.argv[1]), sys.argv[2])\n"
    )
    tests = Path(__file__).parent
    arguments = [str(run_folder), str(out), str(tests), str(tests.parent), str(go)]
    first = subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(out.glob("parts/000/*.zarr/zarr.json")):
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()
        time.sleep(0.01)
    with pytest.raises(hw.RunError, match="in use by another process"):
        build(run_folder, out)
    go.touch()
    said = first.communicate(timeout=60)
    assert first.returncode == 0, said
    assert contents(out) == contents(index.folder.path)


@pytest.mark.parametrize("harm", ["nan", "inf"])
def test_a_gradient_that_is_no_number_is_refused_with_its_row(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    tiny.poisoned(monkeypatch, "checkpoint-3", POISON, harm)
    with pytest.raises(hw.NumericalError) as said:
        build(run_folder, tmp_path / "index")
    assert TRAIN[POISON].id in str(said.value) and "at checkpoint-3" in str(said.value)
    assert "--quarantine" in str(said.value)
    assert not (tmp_path / "index" / "manifest.json").exists()


@pytest.mark.parametrize("features", ["float32", "float16", "int8"])
def test_a_quarantined_row_is_listed_and_not_scored(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: Any
) -> None:
    whole = build(run_folder, tmp_path / "whole", features=features)
    tiny.poisoned(monkeypatch, "checkpoint-3", POISON)
    with pytest.raises(hw.NumericalError):
        build(run_folder, tmp_path / "index", features=features)
    build(run_folder, tmp_path / "index", quarantine=True, features=features)  # goes on
    monkeypatch.undo()
    built = hw.Index.open(tmp_path / "index")
    assert list(built.quarantined) == [POISON]
    assert built.quarantined[POISON]["checkpoint"] == "checkpoint-3"
    assert built.check() == []
    stored = built.store(built.parts[0], "checkpoint-3").read(1)
    assert np.isnan(stored.norm[POISON - stored.start]).all() and np.isnan(stored.loss[POISON - stored.start])
    methods = [hw.DDA(beta=0.3), hw.TracIn(), hw.LoGra(rank=4), hw.BM25()]
    one = hw.trace_index(built, QUERIES, methods=methods, out=tmp_path / "trace")
    two = hw.trace_index(whole, QUERIES, methods=methods)
    others = [row for row in range(len(TRAIN)) if row != POISON]
    for name in ("dda", "tracin", "bm25"):
        scores = one[name]
        assert TRAIN[POISON].id not in scores.train.ids
        assert {row.number for row in scores.top(99)} == set(others)
        if name != "bm25":  # what is rare in a text depends on all texts
            tolerance = 1e-3 * np.abs(two[name].values).max()
            np.testing.assert_allclose(scores.values, two[name].values[:, others], atol=tolerance)
        assert [row.number for row in scores.not_scored] == [POISON]
        assert any("1 row was not scored" in line and TRAIN[POISON].id in line for line in scores.sentences())
    back = hw.Scores.load(tmp_path / "trace", TRAIN)
    assert [row.number for row in back.top(99)] == [row.number for row in one["dda"].top(99)]
    assert [vars(row) for row in back.not_scored] == [vars(row) for row in one["dda"].not_scored]
    assert POISON not in hw.Scores.load(tmp_path / "trace", TRAIN).numbers
    few = hw.trace_index(built, QUERIES, methods=methods[:2], limit=4)["dda"]
    assert [row.number for row in few.top(4)] == [row.number for row in one["dda"].top(4)]
    assert few.rows == len(TRAIN) - 1


def test_a_chunk_of_broken_rows_is_not_quarantined(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = chunks.ChunkGradients._batch

    def broken(self: chunks.ChunkGradients, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        return {key: value * float("nan") for key, value in batch(self, rows).items()}

    monkeypatch.setattr(chunks.ChunkGradients, "_batch", broken)
    with pytest.raises(hw.NumericalError, match="of all 5 rows of a chunk"):
        build(run_folder, tmp_path / "index", quarantine=True)


def test_deadly_rows_are_found_by_halving() -> None:
    tried = []

    def survives(rows: Sequence[int]) -> bool:
        tried.append(len(rows))
        return not {3, 70} & set(rows)

    assert deadly(range(100), survives) == [3, 70]
    assert len(tried) < 35
    assert deadly(range(100), lambda rows: len(rows) < 60) == []  # too many together, none alone


KILLER = """
import os, signal
from headwater.attribution import chunks
batch = chunks.ChunkGradients._batch
def deadly(self, rows):
    if any(int(self._encoded[row].input_ids.sum()) == {checksum} for row in rows):
        os.kill(os.getpid(), signal.SIGKILL)
    return batch(self, rows)
chunks.ChunkGradients._batch = deadly
"""
"""As sitecustomize.py, in every process that sees it: a row that kills the process that computes its gradient."""


@pytest.fixture
def killer(tmp_path: Path, run_folder: Path) -> dict[str, str]:
    """The environment of processes that die of one row."""
    from headwater.examples import Encoder

    encoded = Encoder(run_of(run_folder).tokenizer(), hw.TokenFormat(), TRAIN.template).examples(TRAIN)[0]
    checksums = [int(one.input_ids.sum()) for one in encoded]
    assert checksums.count(checksums[POISON]) == 1
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLER.format(checksum=checksums[POISON]))
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])}


def test_a_row_that_kills_every_process_is_found_and_left_out(
    run_folder: Path, tmp_path: Path, killer: dict[str, str]
) -> None:
    out, tests = tmp_path / "index", Path(__file__).parent
    program = (
        "import sys, pathlib; sys.path[:0] = sys.argv[3:5]\n"
        "from test_index import build\n"
        "build(pathlib.Path(sys.argv[1]), sys.argv[2])\n"
    )
    command = [sys.executable, "-c", program, str(run_folder), str(out), str(tests), str(tests.parent)]
    for _ in range(2):
        assert subprocess.run(command, env=killer, capture_output=True).returncode == -signal.SIGKILL
        assert json.loads((out / "parts" / "000" / ATTEMPT).read_text())["chunk"] == POISON // 5
    done = subprocess.run(command, env=killer, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert TRAIN[POISON].id in done.stderr and "the process that computes its gradient dies" in done.stderr
    built = hw.Index.open(out)
    assert list(built.quarantined) == [POISON]
    assert not (out / "parts" / "000" / ATTEMPT).exists() and (out / "parts" / "000" / QUARANTINE).exists()
    assert built.check() == []
    scores = hw.trace_index(built, QUERIES, methods=[hw.DDA(beta=0)])["dda"]
    assert len(scores.train) == len(TRAIN) - 1


def test_two_innocent_deaths_in_one_chunk_leave_no_row_out(
    run_folder: Path, tmp_path: Path, index: hw.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, write = 0, CheckpointStore.write_encoded

    def failing(self: CheckpointStore, *given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyboardInterrupt
        write(self, *given)

    monkeypatch.setattr(CheckpointStore, "write_encoded", failing)
    with pytest.raises(KeyboardInterrupt):
        build(run_folder, tmp_path / "index")
    monkeypatch.undo()
    part = tmp_path / "index" / "parts" / "000"
    assert not (part / ATTEMPT).exists()  # an interrupt is no death
    name = index.checkpoints[-2]
    (part / ATTEMPT).write_text(json.dumps({"checkpoint": name, "chunk": 1, "deaths": 1}))
    build(run_folder, tmp_path / "index")
    assert contents(tmp_path / "index") == contents(index.folder.path)


def out_of_memory(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, most: int) -> list[int]:
    """Makes a function that is given a batch fail where it has more than `most` rows."""
    whole, refused = getattr(owner, name), []

    def small(self: Any, *given: Any) -> Any:
        rows = next(one for one in given if isinstance(one, Sequence) or hasattr(one, "shape"))
        count = len(rows) if isinstance(rows, Sequence) else rows.shape[0]
        if count > most:
            refused.append(count)
            if name == "batch":  # some of its sums are made by then
                self.add("N", torch.tensor(1e6, dtype=torch.float64))
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, *given)

    monkeypatch.setattr(owner, name, small)
    return refused


def test_a_batch_that_does_not_fit_is_halved_when_building(
    run_folder: Path, tmp_path: Path, index: hw.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = out_of_memory(monkeypatch, chunks.ChunkGradients, "_batch", 2)
    built = build(run_folder, tmp_path / "index")
    assert refused
    one, two = (hw.trace_index(x, QUERIES, methods=[hw.DDA(beta=0)])["dda"].values for x in (built, index))
    np.testing.assert_allclose(one, two, atol=1e-3 * np.abs(two).max())
    out_of_memory(monkeypatch, chunks.ChunkGradients, "_batch", 0)
    with pytest.raises(hw.ModelError, match="one training row does not fit"):
        build(run_folder, tmp_path / "none")


@pytest.mark.parametrize("kind", ["kfac", "ekfac", "diagonal"])
def test_a_batch_that_does_not_fit_is_halved_when_fitting_curvature(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    from headwater.gradients.curvature import fitting

    method = hw.InfluenceFunction(curvature=kind)
    wanted = hw.trace(run_of(run_folder), TRAIN, QUERIES[:1], method=method)
    stages = {"kfac": ["Covariances"], "ekfac": ["Covariances", "Corrected"], "diagonal": ["Stage"]}[kind]
    monkeypatch.setattr(curved, "SAVE_SECONDS", 0.0)
    for stage in stages:
        owner = getattr(fitting, stage)
        whole = owner.batch

        def small(self: Any, hooks: Any, batch: Any, whole: Any = whole) -> None:
            if batch.shape[0] > 3:
                whole(self, hooks, batch)  # its sums are made by then
                raise torch.OutOfMemoryError("out of memory")
            whole(self, hooks, batch)

        monkeypatch.setattr(owner, "batch", small)
    found = hw.trace(run_of(run_folder), TRAIN, QUERIES[:1], method=method)
    np.testing.assert_allclose(found.values, wanted.values, rtol=2e-3, atol=1e-3 * np.abs(wanted.values).max())


@pytest.mark.parametrize("when", [1, 4, 8])
def test_a_checkpoint_that_changes_during_the_build_is_refused(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run_folder, moved)
    weights = moved / "run" / "checkpoint-6" / "model.safetensors"
    before, write, calls = weights.read_bytes(), CheckpointStore.write_encoded, 0

    def training(self: CheckpointStore, *given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == when:
            weights.write_bytes(before[:-4] + b"\0\0\0\0")
        write(self, *given)

    monkeypatch.setattr(CheckpointStore, "write_encoded", training)
    with pytest.raises(hw.ModelError, match="has changed since this build began"):
        build(moved, tmp_path / "index")
    monkeypatch.undo()
    assert not (tmp_path / "index" / "manifest.json").exists()
    assert not (tmp_path / "index" / "parts" / "000" / "checkpoint-6.zarr").exists()
    if when > 1:  # else nothing is left of the build
        with pytest.raises(hw.RunError, match="made with other arguments"):
            build(moved, tmp_path / "index")
    weights.write_bytes(before)
    build(moved, tmp_path / "index")
    assert hw.Index.open(tmp_path / "index").check() == []
