"""Shared by all tests: one thread (two busy processes spin against each other), no hub, no progress bars."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch

import tiny

torch.set_num_threads(1)

# a shell that runs the tests in the background ignores interrupts, and programs started here would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full fine-tuning of a tiny Llama: base and two checkpoints."""
    return tiny.training_run(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="session")
def lora_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as LoRA adapters."""
    return tiny.training_run(tmp_path_factory.mktemp("lora"), lora=True)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    from headwater import progress

    progress.set_quiet(True)
