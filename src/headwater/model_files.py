"""What can be known of a model's files without loading it: whether they are whole, and whether loading would run code.

Every file of every checkpoint is looked at before the first model is loaded: a broken one would otherwise end the work
hours later. Headers are read, numbers are not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headwater.errors import ModelError

WEIGHTS, SHARDS, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
PICKLES = ("pytorch_model", "adapter_model")


def check_model_files(folder: Path, kind: str, *, allow_pickle: bool) -> None:
    """Refuses a folder whose config or weights are damaged, and weights that only a pickle holds.

    Args:
        kind: "full" or "adapter".

    Raises:
        ModelError: naming the file.
    """
    config = read_object(folder / ("adapter_config.json" if kind == "adapter" else "config.json"))
    if kind == "adapter":
        _check_adapter(folder, config)
    elif not isinstance(config.get("model_type"), str):
        raise ModelError(
            f"{folder / 'config.json'} says model_type {config.get('model_type')!r}",
            expected="the name of an architecture of transformers",
            cause="the config of something else",
            fix="check the folder",
        )
    for file in _weight_files(folder, kind, allow_pickle):
        _check_header(file)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model.

    Raises:
        ModelError: it cannot be read, or is something else.
    """
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(file, error) from None
    if not isinstance(found, dict):
        raise ModelError(
            f"{file} holds JSON of type {type(found).__name__}",
            expected="an object",
            cause="a file that was written by hand",
            fix="save the model again",
        )
    return found


def _check_adapter(folder: Path, config: dict[str, Any]) -> None:
    base = config.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise ModelError(
            f"{folder / 'adapter_config.json'} says base_model_name_or_path {base!r}",
            expected="a folder or hub id",
            fix="correct it, or give --base",
        )
    if not isinstance(config.get("peft_type"), str):
        raise ModelError(
            f"{folder / 'adapter_config.json'} says peft_type {config.get('peft_type')!r}",
            expected="a kind of adapter that PEFT knows, such as LORA",
            fix="check the file",
        )


def _weight_files(folder: Path, kind: str, allow_pickle: bool) -> list[Path]:
    """The safetensors files that loading will read; none where a pickle may be read instead."""
    names = [file.name for file in folder.iterdir()]
    if kind == "adapter" and ADAPTER in names:
        return [folder / ADAPTER]
    if kind == "full" and WEIGHTS in names:
        return [folder / WEIGHTS]
    if kind == "full" and SHARDS in names:
        return _shards(folder)
    if allow_pickle:
        return []
    if any(name.endswith(".bin") and name.startswith(PICKLES) for name in names):
        raise ModelError(
            f"{folder} has its weights as pickle files only",
            expected="safetensors",
            cause="pickle can run code when it is loaded",
            fix="save the model again with safetensors, or pass --allow-pickle if you trust it",
        )
    wanted = ADAPTER if kind == "adapter" else f"{WEIGHTS} or {SHARDS}"
    raise ModelError(f"{folder} has a config but no weights", expected=f"{wanted} beside it", fix="check the folder")


def _shards(folder: Path) -> list[Path]:
    shards = read_object(folder / SHARDS).get("weight_map")
    names = set(shards.values()) if isinstance(shards, dict) and all(map(_plain, shards.values())) else set()
    if not names:
        raise ModelError(
            f"{folder / SHARDS} does not say which file holds which weight",
            expected="a weight_map with the names of safetensors files of this folder",
            cause="an interrupted save, or a file that was tampered with",
            fix="save the model again",
        )
    return [folder / name for name in sorted(names)]


def _plain(name: object) -> bool:
    """Whether a shard is a safetensors file of the folder itself, not one elsewhere."""
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")


def _check_header(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with open(file, "rb") as stream:  # says what the operating system says
            stream.read(1)
        with safe_open(file, framework="numpy"):
            pass
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{file} cannot be read ({reason(error)})",
            expected="a whole safetensors file",
            cause="an interrupted download, copy or save",
            fix="fetch or save the model again",
        ) from None


def _unreadable(file: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{file} cannot be read ({reason(error)})",
        expected="JSON",
        cause="an interrupted download, copy or save",
        fix="fetch or save the model again",
    )


def reason(error: BaseException | str) -> str:
    """The first line of another library's error, short enough for one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]
