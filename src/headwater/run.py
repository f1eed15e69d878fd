"""A run directory: it explains itself, protects itself, and can be gone on with after any interruption.

    config.json     written first: what was asked for, with fingerprints of models and data
    state/          finished pieces of work, each written whole or not at all
    trace.json      written last: its existence means that the work is complete

The same arguments go on where the work stopped; other arguments are refused and the difference is shown.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from headwater.errors import HeadwaterError, RunError

CONFIG, STATE, LOCK = "config.json", "state", ".lock"
NOTES = "notes"
"""The piece of `Notes`."""


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that it is there whole or not at all, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(folder: Path, *, deep: bool = True) -> None:
    """Removes what a killed process had begun to write here; the caller holds the folder's lock."""
    for partial in folder.rglob("*.partial-*") if deep else folder.glob("*.partial-*"):
        if partial.is_file():
            partial.unlink(missing_ok=True)


def digest(*parts: bytes) -> str:
    """16 hexadecimal digits of a BLAKE2b hash."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


def versions(*more: str) -> dict[str, str]:
    """Versions of python, of the packages that decide a result, and of `more` where they are installed."""
    from importlib.metadata import PackageNotFoundError, version

    out = {name: version(name) for name in ("headwater", "torch", "transformers", "tokenizers")}
    for name in more:
        with suppress(PackageNotFoundError):
            out[name] = version(name)
    return out | {"python": ".".join(map(str, sys.version_info[:3]))}


class RunState:
    """Finished pieces of work of a run, by name: in the run directory, or in memory where there is none."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[str, dict[str, np.ndarray]] = {}

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """Arrays of a finished piece; None where it is not there (or damaged: then it is made again)."""
        if self._folder is None:
            return self._memory.get(name)
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path = self._folder / f"{name}.piece"
        if not path.exists():
            return None
        stamp, _, body = path.read_bytes().partition(b"\n")
        if stamp.decode("ascii", "replace") != digest(body):
            return None
        try:
            return dict(load(body))
        except SafetensorError:
            return None

    def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps a finished piece; a checksum stands before the safetensors bytes."""
        if self._folder is None:
            self._memory[name] = dict(arrays)
            return
        from safetensors.numpy import save

        body = save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
        write_whole(self._folder / f"{name}.piece", digest(body).encode() + b"\n" + body)

    def drop(self, name: str) -> None:
        """Forgets a piece that nothing needs any more, where it is there."""
        self._memory.pop(name, None)
        if self._folder is not None:
            (self._folder / f"{name}.piece").unlink(missing_ok=True)


class Notes(dict[str, Any]):
    """What is worth knowing of how a run was done, as JSON values; of a run that goes on, also what its beginning
    noted."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        kept = state.load(NOTES)
        super().__init__({} if kept is None else json.loads(kept["json"].tobytes()))

    def __setitem__(self, name: str, value: Any) -> None:
        before = json.dumps(self)
        super().__setitem__(name, value)
        if json.dumps(self) != before:
            self._state.save(NOTES, {"json": np.frombuffer(json.dumps(self).encode(), np.uint8)})


@contextmanager
def run_directory(path: str | os.PathLike[str] | None, config: Mapping[str, Any]) -> Iterator[RunState]:
    """Opens a run directory for work, or the memory of this process when `path` is None.

    Args:
        config: everything that changes the result, as JSON values.

    Raises:
        RunError: the folder holds something else, was made with other arguments, or is in use.
    """
    if path is None:
        yield RunState(None)
        return
    from filelock import FileLock, Timeout

    folder = Path(path)
    config_file = folder / CONFIG
    try:
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file", expected="a folder", fix="give another --out")
        if folder.is_dir() and not config_file.exists() and not all(map(_ours, folder.iterdir())):
            raise RunError(
                f"{folder} is not empty and not a headwater run",
                expected="a new folder, or one of an earlier run",
                fix="give another --out",
            )
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"{folder} is in use by another process",
            expected="one process per run directory",
            fix="wait for it, or give another --out",
        ) from None
    except OSError as error:
        raise cannot_write(folder, error) from None
    begun = False
    try:
        remove_partial(folder)
        wanted = json.loads(json.dumps(config))
        if config_file.exists():
            found = read_config(folder)
            refuse_other(folder, found, wanted)
        else:
            begun = True
            try:
                write_whole(config_file, json.dumps(wanted, indent=1, ensure_ascii=False).encode())
            except OSError as error:
                raise cannot_write(folder, error) from None
        yield RunState(folder / STATE)
    except HeadwaterError:
        # nothing was made: the corrected command may use the folder
        notes = folder / STATE / f"{NOTES}.piece"
        if begun and notes.exists() and list(notes.parent.iterdir()) == [notes]:  # what was noted is no work
            shutil.rmtree(notes.parent)
        if begun and all(_ours(file) or file.name == CONFIG for file in folder.iterdir()):
            config_file.unlink(missing_ok=True)
            (folder / LOCK).unlink(missing_ok=True)
            if made:
                with suppress(OSError):
                    folder.rmdir()
        raise
    finally:
        lock.release()


def cannot_write(folder: Path, error: OSError) -> RunError:
    """What is said where the system refuses to write."""
    return RunError(
        f"{folder} cannot be written ({error.strerror})",
        expected="a folder that can be written",
        fix="make room or correct its permissions, or give another --out",
    )


def _ours(file: Path) -> bool:
    """Whether a file is what a run leaves that ended before its config.json was whole."""
    return file.name == LOCK or file.name.startswith(f"{CONFIG}.partial-")


def refuse_other(folder: object, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises RunError, showing the difference, where a folder was made with another configuration. What is missing is
    None: an option that is newer than the folder."""
    if difference := _difference(found, wanted):
        raise RunError(
            f"{folder} was made with other arguments: {difference}",
            expected="the same arguments to go on with it",
            fix="give another --out, or remove this folder",
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration a run directory was made with."""
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _no_config(folder, str(error)[:160]) from None
    if not isinstance(config, dict):
        raise _no_config(folder, f"JSON of type {type(config).__name__}")
    return config


def _no_config(folder: Path, why: str) -> RunError:
    return RunError(
        f"{folder / CONFIG} cannot be read ({why})",
        expected="the config.json of a headwater run",
        fix="remove this folder and run again",
    )


def _difference(found: Any, wanted: Any, where: str = "") -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted}, key=str)
        places = {key: f"{where}.{key}" if where else str(key) for key in keys}
        parts = [
            part
            for key in keys
            if found.get(key) != wanted.get(key) and (part := _difference(found.get(key), wanted.get(key), places[key]))
        ]
        return "; ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
    return f"{where} was {_short(found)}, is now {_short(wanted)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
