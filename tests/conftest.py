"""Shared by all tests: one thread (two busy processes spin against each other), no hub, no progress bars."""

from __future__ import annotations

import logging
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
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


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The address of an empty bucket on an S3-compatible server of this machine; the environment leads there."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install -e '.[dev]'")
    import s3fs

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key-of-the-tests",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": host,
        }.items():
            environment.setenv(name, value)
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(autouse=True)
def _quiet() -> None:
    from headwater import progress

    progress.set_quiet(True)
