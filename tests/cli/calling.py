"""The command line, in a process of its own or in this one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headwater import cli

HEADWATER = shutil.which("headwater", path=str(Path(sys.executable).parent))
QUESTION = ["--prompt", "The capital of Australia is", "--output", " Sydney.", "--corrected", " Canberra."]


def headwater(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    assert HEADWATER is not None, "the console script is not installed"
    command = [HEADWATER, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def called(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> subprocess.CompletedProcess[str]:
    """As `headwater`, in this process."""
    monkeypatch.setattr(sys, "argv", ["headwater", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert isinstance(stop.value.code, int)
    return subprocess.CompletedProcess(arguments, stop.value.code, *capfd.readouterr())


def tree(folder: Path) -> dict[str, int]:
    return {str(f): f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file() and f.name != ".lock"}
