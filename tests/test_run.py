"""Run directories: whole files, one owner at a time, other arguments refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headwater import run
from headwater.errors import DataError, RunError
from headwater.run import Notes, RunState, digest, read_config, run_directory, write_whole

CONFIG = {"train": {"rows": 3, "name": "facts"}, "methods": ["dda"], "beta": 0.5}

HOLD = """
import sys
from headwater.run import run_directory
with run_directory(sys.argv[1], {"beta": 0.5}):
    print("held", flush=True)
    sys.stdin.read()
"""


def opened(folder: Path, config: Any = CONFIG) -> None:
    with run_directory(folder, config) as state:
        state.save("piece", {"x": np.arange(3)})


def refused(folder: Path, match: str, config: Any = CONFIG) -> str:
    with pytest.raises(RunError, match=match) as caught, run_directory(folder, config):
        raise AssertionError("opened")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# Files


def test_write_whole_makes_folders_and_replaces(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "file.json"
    write_whole(file, b"one")
    write_whole(file, b"two")
    assert tree(tmp_path) == {"a/b/file.json": b"two"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_nothing_is_half_written_when_the_write_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    write_whole(tmp_path / "file", b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", b"new and longer")
    assert tree(tmp_path) == {"file": b"old"}


def test_digest_keeps_parts_apart() -> None:
    assert digest(b"ab", b"c") != digest(b"a", b"bc")
    assert digest(b"") != digest()
    assert len(digest(b"x")) == 16


# Directories


def test_config_is_written_first_and_the_state_is_kept(tmp_path: Path) -> None:
    with run_directory(tmp_path / "new" / "run", CONFIG) as state:
        assert read_config(tmp_path / "new" / "run") == CONFIG
        assert state.load("piece") is None
        state.save("piece", {"x": np.arange(3)})
    with run_directory(tmp_path / "new" / "run", CONFIG) as state:
        kept = state.load("piece")
        assert kept is not None
        assert kept["x"].tolist() == [0, 1, 2]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    opened(tmp_path)
    assert (tmp_path / "state" / "piece.piece").exists()


def test_what_a_kill_before_the_config_leaves_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "config.json.partial-123").write_text('{"tr')
    opened(tmp_path)


def test_other_arguments_are_refused_and_the_difference_is_shown(tmp_path: Path) -> None:
    opened(tmp_path)
    before = tree(tmp_path)
    other = {"train": {"rows": 4, "name": "facts"}, "methods": ["dda", "cea"], "seed": 1}
    message = refused(tmp_path, "made with other arguments", other)
    for part in (
        "train.rows was 3, is now 4",
        'methods was ["dda"], is now ["dda", "cea"]',
        "beta was 0.5, is now null",
    ):
        assert part in message
    assert "seed was null, is now 1" in message
    assert "name" not in message
    assert tree(tmp_path) == before


def test_a_long_difference_is_cut_and_counted(tmp_path: Path) -> None:
    opened(tmp_path, {f"key{n}": "x" * 100 for n in range(9)})
    message = refused(tmp_path, "and 5 more", {f"key{n}": "y" * 100 for n in range(9)})
    assert "x" * 56 + "..." in message
    assert "x" * 60 not in message


def test_tuples_and_lists_are_the_same_arguments(tmp_path: Path) -> None:
    opened(tmp_path, {"parameters": ("a", "b")})
    opened(tmp_path, {"parameters": ["a", "b"]})


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    refused(tmp_path, "not empty and not a headwater run")
    assert tree(tmp_path) == {"letter.txt": b"dear"}


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is a file")


def test_folders_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "out", "cannot be written")
    refused(tmp_path / ("x" * 300), "cannot be written")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    refused(tmp_path / "closed", "cannot be written")
    refused(tmp_path / "closed" / "out", "cannot be written")


@pytest.mark.parametrize("text", ["", "{", "\x00"])
def test_damaged_config_is_refused(tmp_path: Path, text: str) -> None:
    opened(tmp_path)
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, "config.json cannot be read")


def test_a_folder_in_use_by_another_process_is_refused_until_it_ends(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        refused(tmp_path / "run", "in use by another process", {"beta": 0.5})
        other.kill()
    opened(tmp_path / "run", {"beta": 0.5})


def test_a_mistake_before_any_work_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new", tmp_path / "empty"):
        with pytest.raises(DataError), run_directory(folder, CONFIG):
            raise DataError("an empty output", expected="words", fix="give some")
    assert tree(tmp_path) == {}
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "empty").exists()


def test_what_was_noted_before_a_mistake_is_no_work(tmp_path: Path) -> None:
    with pytest.raises(DataError), run_directory(tmp_path / "run", {}) as state:
        Notes(state)["rows"] = ["250 rows"]
        raise DataError("a", expected="b", fix="c")
    assert not (tmp_path / "run").exists()


def test_a_mistake_after_some_work_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(DataError), run_directory(tmp_path, CONFIG) as state:
        state.save("piece", {"x": np.zeros(1)})
        raise DataError("a NaN", expected="numbers", fix="none")
    opened(tmp_path)
    with pytest.raises(DataError), run_directory(tmp_path, CONFIG):
        raise DataError("again", expected="numbers", fix="none")
    assert read_config(tmp_path) == CONFIG


def test_without_a_folder_pieces_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with run_directory(None, CONFIG) as state:
        assert state.load("a/b") is None
        state.save("a/b", {"x": np.ones(2)})
        kept = state.load("a/b")
        assert kept is not None
        assert kept["x"].tolist() == [1, 1]
    assert tree(tmp_path) == {}


# Pieces


def test_pieces_come_back_bit_for_bit(tmp_path: Path) -> None:
    state = RunState(tmp_path)
    arrays = {
        "float": np.array([[0.1, -0.0], [1e-300, 3.0]]).T,
        "rows": np.arange(5)[::2],
        "bytes": np.frombuffer("Zürich".encode(), np.uint8),
        "empty": np.zeros((0, 3), np.float32),
    }
    state.save("base/gradients-000/000001", arrays)
    back = state.load("base/gradients-000/000001")
    assert back is not None
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].tobytes() == np.ascontiguousarray(array).tobytes()
        assert back[name].shape == array.shape


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:40],
        lambda data: data + b"\x00",
        lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        lambda data: b"0" * 16 + data[16:],
        lambda data: b"\xff" * len(data),
        lambda data: digest(b"no tensors").encode() + b"\nno tensors",
    ],
    ids=["empty", "cut", "header only", "longer", "one bit", "other stamp", "garbage", "not safetensors"],
)
def test_a_damaged_piece_counts_as_not_there(tmp_path: Path, damage: Any) -> None:
    state = RunState(tmp_path)
    state.save("piece", {"x": np.arange(100.0)})
    file = tmp_path / "piece.piece"
    file.write_bytes(damage(file.read_bytes()))
    assert state.load("piece") is None
    state.save("piece", {"x": np.arange(2.0)})
    assert state.load("piece")["x"].tolist() == [0, 1]  # type: ignore[index]


def test_config_is_json_that_people_can_read(tmp_path: Path) -> None:
    opened(tmp_path, {"prompt": "Où est Zürich?"})
    text = (tmp_path / run.CONFIG).read_text("utf-8")
    assert "Où est Zürich?" in text
    assert json.loads(text) == {"prompt": "Où est Zürich?"}


def test_what_a_killed_process_had_begun_to_write_is_removed(tmp_path: Path) -> None:
    with run_directory(tmp_path / "run", {"a": 1}) as state:
        state.save("deep/piece", {"x": np.ones(2)})
    left = tmp_path / "run" / "state" / "deep" / "other.piece.partial-99999"
    left.write_bytes(b"half")
    with run_directory(tmp_path / "run", {"a": 1}) as state:
        assert state.load("deep/piece") is not None
    assert not left.exists()


def test_an_option_newer_than_the_folder_does_not_shut_it(tmp_path: Path) -> None:
    with run_directory(tmp_path / "run", {"compute": {"rank": 4}, "format": {}}) as state:
        state.save("done", {"a": np.arange(3)})
    newer = {"compute": {"rank": 4, "device_map": None}, "format": {"eos": None}}
    with run_directory(tmp_path / "run", newer) as state:
        assert state.load("done") is not None
    newer["compute"]["device_map"] = "auto"
    with pytest.raises(RunError, match=r"compute\.device_map was null, is now"), run_directory(tmp_path / "run", newer):
        pass
