"""headwater serve, as users call it."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from calling import HEADWATER, called, headwater

import headwater as hw


@pytest.fixture(scope="module")
def index(run_folder: Path, train: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "index"
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    hw.build_index(run, hw.read_examples(train), out=out, compute=hw.Compute(batch_tokens=64, rank=4))
    return out


def started(*arguments: object) -> tuple[subprocess.Popen[str], str, str]:
    """The process, its first line and the address in it."""
    server = subprocess.Popen(
        [str(HEADWATER), "serve", *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert server.stdout is not None
    line = server.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found is not None, server.communicate()
    return server, line, found.group()


def test_it_serves_until_an_interrupt_also_with_work_running(index: Path, tmp_path: Path) -> None:
    server, line, address = started(index, "--state", tmp_path / "state")
    assert "12 rows" in line
    page = urllib.request.urlopen(address).read().decode()
    token = re.search(r'name="headwater-token" content="([^"]+)"', page)
    assert token is not None and len(token.group(1)) >= 32
    asked = urllib.request.Request(
        address + "api/generate",
        data=b'{"prompt": "The capital of Peru is", "max_new_tokens": 4000}',
        headers={"X-Headwater-Token": token.group(1), "Content-Type": "application/json"},
    )
    assert urllib.request.urlopen(asked).status == 202
    with urllib.request.urlopen(address + "api/events") as stream:
        stream.readline()
        begun = time.monotonic()
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=60)
    assert time.monotonic() - begun < 30
    assert server.returncode == 0 and out == "Stopped.\n" and "Traceback" not in err
    assert (tmp_path / "state").is_dir() and not index.with_name("index.viewer").exists()


def test_open_to_others_only_with_a_warning(index: Path, tmp_path: Path) -> None:
    server, _, address = started(index, "--host", "0.0.0.0", "--state", tmp_path)
    assert "127.0.0.1" in address
    server.terminate()
    assert "Warning: 0.0.0.0 is not the loopback interface" in server.communicate(timeout=60)[1]


def test_a_port_that_is_taken(index: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = headwater("serve", index, "--port", taken.getsockname()[1], "--state", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is taken" in done.stderr


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (lambda place: None, ["{place}/none"], "neither an index nor a finished trace"),
        (lambda place: (place / "x").touch(), ["{place}"], "neither an index nor a finished trace"),
        (lambda place: (place / "parts").mkdir(), ["{place}"], "holds no finished index"),
        (lambda place: (place / "config.json").write_text("{}"), ["{place}"], "holds no finished trace"),
        (lambda place: None, ["{index}", "--base", "{place}"], "--base without --checkpoints"),
        (lambda place: None, ["{index}", "--checkpoints", "{place}"], "no model"),
        (lambda place: (place / "f").touch(), ["{index}", "--state", "{place}/f"], "cannot be written"),
        (lambda place: None, ["{index}", "--host", "no-such-host.invalid"], "cannot be used"),
    ],
)
def test_mistakes_are_one_line(
    make: Any, arguments: list[str], words: str, index: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make(tmp_path)
    given = [one.format(place=tmp_path, index=index) for one in arguments]
    done = called(["serve", *given, "--port", "0"], monkeypatch, capfd)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_without_the_extra(index: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "fastapi" else find(name, *more)
    )
    done = called(["serve", str(index)], monkeypatch, capfd)
    assert done.returncode == 2 and 'pip install "headwater[viewer]"' in done.stderr and done.stderr.count("\n") == 1
