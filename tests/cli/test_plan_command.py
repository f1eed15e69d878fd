"""headwater plan, as users call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calling import called

GIVEN = ["plan", "--rows", "10M", "--tokens-per-row", "300"]


def test_a_plan(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    asked = [*GIVEN, "--model-size", "70B", "--checkpoints", "4", "--gpus", "64xH100"]
    done = called(asked, monkeypatch, capfd)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("passes", "5 over 10,000,000 rows", "GPU-hours", "index", "TB", "a query", "memory", "Assumed"):
        assert word in done.stdout
    record = json.loads(called([*asked, "--json"], monkeypatch, capfd).stdout)
    assert record["forecast"]["passes"] == 5
    assert record["forecast"]["store_bytes"] > 1e13
    assert "Assumed" in record["assumptions"][0]


def test_a_folder(run_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    done = called([*GIVEN, "--model", str(run_folder / "base")], monkeypatch, capfd)
    assert done.returncode == 0 and "thread-hours" in done.stdout and "Measured" in done.stdout


MISTAKES = {
    "no model": ([], "neither --model nor --model-size"),
    "two models": (["--model-size", "7B", "--model", "x"], "both"),
    "no such size": (["--model-size", "large"], "--model-size large"),
    "no such GPU": (["--model-size", "7B", "--gpus", "8xH1000"], "the GPU H1000"),
    "half a GPU": (["--model-size", "7B", "--gpus", "8xmine", "--gpu-flops", "1T"], "--gpu-memory"),
    "flops of nothing": (["--model-size", "7B", "--gpu-flops", "1T"], "--gpu-flops without --gpus"),
    "no such folder": (["--model", "nowhere"], "no config.json"),
    "too large": (["--model-size", "405B", "--gpus", "1xL4"], "room for"),
    "too many targets": (["--model-size", "7B", "--targets-per-row", "301"], "301 targets"),
    "layers of no model": (["--model-size", "7B", "--parameters", "mlp"], "--parameters without --model"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(
    mistake: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked, says = MISTAKES[mistake]
    done = called([*GIVEN, *asked], monkeypatch, capfd)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and says in done.stderr and "Next: " in done.stderr
