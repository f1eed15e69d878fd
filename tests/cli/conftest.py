"""The run and the rows that the command line is called with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "train.jsonl"
    file.write_text("".join(json.dumps({k: f[k] for k in ("prompt", "completion", "id")}) + "\n" for f in tiny.FACTS))
    return file


@pytest.fixture(scope="session")
def given(run_folder: Path, train: Path) -> list[str]:
    """The run and its data."""
    return ["--base", str(run_folder / "base"), "--checkpoints", str(run_folder / "run"), "--train", str(train)]
