"""The faulty run, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

import faulty


@pytest.fixture(scope="session")
def faulty_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faulty.make_run(tmp_path_factory.mktemp("faulty"))
