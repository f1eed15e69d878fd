"""A model split over two processes: the index has the bytes of one that a single process made."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_index import QUERIES, build, contents

import headwater as hw
import tiny
from headwater.attribution.sharding import _around
from headwater.gradients.factors import blocks_of

OPTIONS = ["--rank", "4", "--chunk-rows", "5", "--shard", "--quiet"]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "headwater"]
ENVIRONMENT = os.environ | {"CUDA_VISIBLE_DEVICES": ""}


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "facts"
    file.with_suffix(".jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in tiny.FACTS))
    return file.with_suffix(".jsonl")


@pytest.fixture
def torchrun_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, as if torchrun had started it alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (started | {"MASTER_PORT": str(port)}).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("torchrun_of_one")
def test_a_torchrun_of_one_process(run_folder: Path, tmp_path: Path) -> None:
    build(run_folder, tmp_path / "sharded", shard=True)
    assert not torch.distributed.is_initialized()
    build(run_folder, tmp_path / "whole")
    assert contents(tmp_path / "sharded") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("torchrun_of_one")
def test_rows_are_left_out_of_a_sharded_index_too(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.poisoned(monkeypatch, "checkpoint-3", 3)
    with pytest.raises(hw.NumericalError, match="--quarantine"):
        build(run_folder, tmp_path / "sharded", shard=True)
    torch.distributed.destroy_process_group()  # after an error torchrun ends the process
    sharded = build(run_folder, tmp_path / "sharded", shard=True, quarantine=True)  # goes on
    build(run_folder, tmp_path / "whole", quarantine=True)
    assert list(sharded.quarantined) == [3]
    assert contents(tmp_path / "sharded") == contents(tmp_path / "whole")


@pytest.mark.slow  # torchrun, and torch in three processes
@pytest.mark.parametrize(
    ("adapters", "dtype"),
    [(False, "float32"), (True, "float64"), (False, "bfloat16")],
    ids=["full", "adapters", "half"],
)
def test_two_processes_make_the_same_index(
    run_folder: Path, lora_folder: Path, rows: Path, tmp_path: Path, adapters: bool, dtype: Any
) -> None:
    folder, out = lora_folder if adapters else run_folder, tmp_path / "sharded"
    given = ["--base", folder / "base", "--checkpoints", folder / "run", "--train", rows, "--dtype", dtype]
    given += ["--recompute"] if adapters else []
    done = torchrun("index", *given, *OPTIONS, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{len(tiny.FACTS)} rows, 3 checkpoints") == 1, "both processes speak"
    compute = hw.Compute(rank=4, recompute=adapters, dtype=dtype)
    whole = build(folder, tmp_path / "whole", train=hw.read_examples(rows), compute=compute)
    one, two = contents(out), contents(tmp_path / "whole")
    assert set(one) == set(two) and len(one) > 20
    assert one == two
    values = [hw.trace_index(hw.Index.open(place), QUERIES, methods=[hw.DDA(beta=0.3)])["dda"].values
              for place in (out, whole.folder)]  # fmt: skip
    assert np.array_equal(*values)


@pytest.mark.slow
def test_killed_gone_on_with_and_appended_to(run_folder: Path, tmp_path: Path) -> None:
    """Placebo rows first, all processes killed in the middle, the same command again, then more rows."""
    train, more, placebo = ((tmp_path / name).with_suffix(".jsonl") for name in ("train", "more", "placebo"))
    for file, times in ((train, 3), (more, 1), (placebo, 9)):
        named = [fact | {"id": f"{file.stem}-{n}-{fact['id']}"} for n in range(times) for fact in tiny.FACTS]
        lines = [json.dumps(fact | {"prompt": f"{file.stem}: {fact['prompt']}"}) + "\n" for fact in named]
        file.write_text("".join(lines))
    out, one = tmp_path / "sharded", tmp_path / "one"
    given = ["--base", run_folder / "base", "--checkpoints", run_folder / "run", *OPTIONS, "--out", out]
    command = ["index", *given, "--train", train, "--placebo", placebo]
    with subprocess.Popen([*TORCHRUN, *map(str, command)], env=ENVIRONMENT, start_new_session=True) as process:
        deadline = time.monotonic() + 300
        while len(list(out.glob("parts/000/*.zarr/features/c/*/0"))) < 3 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        for process_id in descendants(process.pid):
            os.kill(process_id, signal.SIGKILL)
    assert not (out / "manifest.json").exists(), "it was killed too late"
    before = {file: file.stat().st_mtime_ns for file in out.glob("parts/000/*.zarr/features/c/*/0")}
    assert len(before) >= 3
    for again in (command, ["index", *given, "--train", more, "--append"]):
        done = torchrun(*again)
        assert done.returncode == 0, done.stderr
    assert all(file.stat().st_mtime_ns == then for file, then in before.items())
    compute = hw.Compute(rank=4)
    build(run_folder, one, train=hw.read_examples(train), placebo=hw.read_examples(placebo), compute=compute)
    build(run_folder, one, train=hw.read_examples(more), compute=compute, append=True)
    assert contents(out) == contents(one)


def descendants(process_id: int) -> list[int]:
    """A process and all that it has started."""
    children = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
    return [process_id, *(found for child in children for found in descendants(int(child)))]


@pytest.mark.slow
def test_what_goes_wrong_is_said_once(run_folder: Path, rows: Path, tmp_path: Path) -> None:
    given = ["--base", run_folder / "base", "--checkpoints", run_folder / "run", "--train", rows, *OPTIONS]
    done = torchrun("index", *given, "--parameters", "nothing", "--out", tmp_path / "out")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "headwater: " in line]
    assert len(said) == 1 and "no linear layer matches" in said[0], done.stderr
    assert "src/headwater" not in done.stderr  # a traceback of ours; torchrun prints one of its own
    assert not (tmp_path / "out").exists()


def test_the_module_around_the_blocks() -> None:
    from torch import nn

    encoder = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])})
    decoder = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(1, 1)])})
    both = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    whole = nn.ModuleDict({"body": both, "head": nn.Linear(1, 1)})
    assert len(blocks_of(whole)) == 3
    assert _around(whole, blocks_of(whole)) is both
    assert _around(whole, blocks_of(encoder)) is encoder
    assert _around(whole, blocks_of(decoder)) is decoder


def test_where_it_cannot_be_split_is_one_line(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(hw.UsageError, match="torchrun did not start"):
        build(run_folder, tmp_path / "index", shard=True)
    with pytest.raises(hw.UsageError, match="--shard with --ray"):
        build(run_folder, tmp_path / "index", shard=True, ray="local")
    assert not (tmp_path / "index").exists()
