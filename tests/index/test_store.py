"""The store: what is encoded comes back, what is damaged is found, and plain zarr reads it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headwater import index
from headwater.errors import NumericalError, RunError
from headwater.index import store as store_module
from headwater.index.folder import Folder
from headwater.index.store import CheckpointStore, Shape, Writer, decode, encode, encode_chunk

LAYERS = (("wide", 40), ("narrow", 3), ("square", 16), ("one", 1))
TYPES = ("float32", "float16", "int8")


def shape(dtype: Any = "float16", rows: int = 11, chunk_rows: int = 4) -> Shape:
    return Shape(rows, chunk_rows, LAYERS, dtype)


def gradients(rows: int = 11, features: int = 60, seed: int = 0) -> torch.Tensor:
    """Lengths over many powers of ten; zero in one layer, and in all."""
    random = torch.Generator().manual_seed(seed)
    g = torch.randn(rows, features, generator=random) * 10 ** torch.linspace(-12, 8, rows)[:, None]
    g[3, 40:43] = 0
    g[5] = 0
    return g


def written(folder: Any, of: Shape, g: torch.Tensor | None = None) -> CheckpointStore:
    g = gradients(of.rows) if g is None else g
    store = CheckpointStore.create(folder, "last", of)
    for chunk in range(of.chunks):
        start, stop = of.chunk_range(chunk)
        store.write(chunk, g[start:stop], torch.arange(start, stop))
    return store


def naive_directions(g: torch.Tensor) -> tuple[list[np.ndarray], np.ndarray]:
    """Directions of each layer and lengths [N, L], one row at a time in float64."""
    directions, lengths, start = [], [], 0
    for _, size in LAYERS:
        part = g[:, start : start + size].double().numpy()
        length = np.array([np.sqrt(sum(x * x for x in row)) for row in part])
        directions.append(np.array([row / n if n else row * 0 for row, n in zip(part, length, strict=True)]))
        lengths.append(length)
        start += size
    return directions, np.stack(lengths, 1)


# Shape


def test_shape_counts() -> None:
    of = shape("int8")
    assert (of.features, of.offsets, of.chunks) == (60, (0, 40, 43, 59), 3)
    assert [of.chunk_range(chunk) for chunk in range(3)] == [(0, 4), (4, 8), (8, 11)]
    assert of.bytes_per_row == 60 + 2 * 4 * 4 + 4
    assert shape("float16").bytes_per_row == 2 * 60 + 4 * 4 + 4
    with pytest.raises(RunError, match="chunk 3; expected 0 to 2"):
        of.chunk_range(3)


@pytest.mark.parametrize(
    "change", [{"rows": 0}, {"chunk_rows": 0}, {"layers": (("a", 0),)}, {"layers": (("a", 1), ("a", 1))}]
)
def test_shapes_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RunError):
        Shape(**{"rows": 1, "chunk_rows": 1, "layers": (("a", 1),), "dtype": "int8"} | change)
    with pytest.raises(RunError, match="bfloat16"):
        Shape(1, 1, (("a", 1),), "bfloat16")  # type: ignore[arg-type]


# Encoding


@pytest.mark.parametrize("dtype", TYPES)
def test_encoding_keeps_lengths_and_rounds_directions_within_bounds(dtype: Any) -> None:
    g = gradients()
    encoded = encode(g, shape(dtype))
    directions, lengths = naive_directions(g)
    assert encoded.features.dtype == np.dtype(dtype)
    np.testing.assert_allclose(encoded.norm, lengths, rtol=1e-6)
    start = 0
    for number, (_, size) in enumerate(LAYERS):
        stored = encoded.features[:, start : start + size].astype(np.float64)
        if encoded.scale is not None:
            bound = np.abs(directions[number]).max(1) / 127 / 2 * np.sqrt(size) * (1 + 1e-5)
            stored *= encoded.scale[:, [number]]
        else:
            bound = {"float32": 3e-7, "float16": 5e-4}[dtype]
        error = np.linalg.norm(stored - directions[number], axis=1)
        assert (error <= bound + 1e-6 * (dtype == "int8")).all(), error
        assert dtype == "float32" or size == 1 or error.max() > 1e-5  # it is rounded
        start += size
    assert not encoded.features[5].any() and not encoded.norm[5].any()


def test_int8_error_measured_on_normal_gradients() -> None:
    """About max|u| / 127 / sqrt(12) for each number: 0.7 % of the length for layers of 256."""
    of = Shape(200, 200, (("a", 256),), "int8")
    g = torch.randn(200, 256, generator=torch.Generator().manual_seed(1))
    error = np.linalg.norm(decode(encode(g, of), of) - g.numpy(), axis=1) / g.norm(dim=1).numpy()
    assert 0.004 < error.mean() < 0.008 and error.max() < 0.011


@pytest.mark.parametrize("dtype", TYPES)
def test_decode_inverts(dtype: Any) -> None:
    g = gradients()
    back = decode(encode(g, shape(dtype)), shape(dtype))
    assert back.dtype == np.float32
    loss = np.linalg.norm(back - g.double().numpy(), axis=1)
    assert (loss <= {"float32": 1e-6, "float16": 5e-4, "int8": 2e-2}[dtype] * g.double().norm(dim=1).numpy()).all()


def test_lengths_whose_squares_leave_float32() -> None:
    of = Shape(2, 2, (("a", 2),), "float16")
    encoded = encode(torch.tensor([[3e-30, 4e-30], [3e30, 4e30]]), of)
    np.testing.assert_allclose(encoded.norm[:, 0], [5e-30, 5e30], rtol=1e-6)
    np.testing.assert_allclose(encoded.features, [[0.6, 0.8]] * 2, rtol=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_gradients_that_are_not_finite_are_refused(bad: float) -> None:
    g = gradients()
    g[7, 41:43] = bad
    with pytest.raises(NumericalError, match="row 7 of the chunk in layer narrow"):
        encode(g, shape())


def test_losses_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    store = CheckpointStore.create(tmp_path, "last", shape())
    with pytest.raises(NumericalError, match="loss of row 1"):
        store.write(0, gradients()[:4], torch.tensor([0, float("nan"), 0, 0]))
    assert store.finished() == set()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_rows_that_are_left_out_are_no_numbers(dtype: Any, kind: str) -> None:
    """NaN wherever there can be one, whatever stood there; features of int8 are 0 and their scale NaN."""
    g, losses = gradients(), torch.arange(11.0)
    g[2], losses[2], losses[7] = torch.nan, torch.inf, torch.nan
    before = g.clone()
    given: Any = losses.clone() if kind == "tensor" else losses.numpy().copy()
    found, stored = encode_chunk(g, given, shape(dtype), left_out=[2, 7])
    others = [n for n in range(11) if n not in (2, 7)]
    wanted = encode(gradients()[others], shape(dtype))
    for name in ("features", "norm", "scale"):
        array = getattr(found, name)
        if array is None:
            assert name == "scale" and dtype != "int8"
            continue
        np.testing.assert_array_equal(array[others], getattr(wanted, name))
        empty = array[[2, 7]]
        assert not empty.any() if array.dtype == np.int8 else np.isnan(empty).all(), name
    assert np.isnan(stored[[2, 7]]).all() and stored[others].tolist() == others and stored.dtype == np.float32
    assert torch.equal(g.nan_to_num(), before.nan_to_num())  # the caller's are as they were
    np.testing.assert_array_equal(np.asarray(given), losses.numpy())


# Writing and reading


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("place", ["local", "memory"])
def test_round_trip(tmp_path: Path, dtype: Any, place: str) -> None:
    folder = tmp_path if place == "local" else f"memory://round-trip-{dtype}"
    of, g = shape(dtype), gradients()
    made = written(folder, of)
    store = CheckpointStore.open(folder, "last")
    assert store.shape == of and store.finished(verify=True) == {0, 1, 2} and store.check() == []
    for chunk in range(3):
        start, stop = of.chunk_range(chunk)
        read, expected = store.read(chunk), encode(g[start:stop], of)
        assert (read.start, read.stop) == (start, stop)
        np.testing.assert_array_equal(read.features, expected.features)
        np.testing.assert_array_equal(read.norm, expected.norm)
        np.testing.assert_array_equal(read.loss, np.arange(start, stop))
        assert (read.scale is None) == (dtype != "int8")
        if read.scale is not None and expected.scale is not None:
            np.testing.assert_array_equal(read.scale, expected.scale)
    padded = 12 * (of.bytes_per_row) + 4 * 3 * len(of.arrays)
    metadata = sum(size for name, size in made.folder.sizes().items() if name.endswith("zarr.json"))
    assert made.bytes() == padded + metadata


def test_same_input_same_bytes_as_zarr_writes_them(tmp_path: Path) -> None:
    """zarr, given the same numbers, writes the same files; the last chunk is filled up."""
    import zarr

    ours = written(tmp_path / "ours", shape())
    CheckpointStore.create(tmp_path / "zarrs", "last", shape())
    group: Any = zarr.open_group(tmp_path / "zarrs" / "last.zarr", mode="r+")
    encoded = encode(gradients(), shape())
    group["features"][:], group["norm"][:], group["loss"][:] = encoded.features, encoded.norm, np.arange(11)

    def tree(folder: Path) -> dict[str, bytes]:
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    assert len(tree(ours.folder.path)) == 4 + 9
    assert tree(ours.folder.path) == tree(tmp_path / "zarrs" / "last.zarr")
    before = tree(ours.folder.path)
    written(tmp_path / "ours", shape())
    assert tree(ours.folder.path) == before


def test_a_group_exists_when_all_its_arrays_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written_files: list[str] = []
    write = Folder.write_whole

    def noted(self: Folder, name: str, data: bytes) -> None:
        written_files.append(name)
        write(self, name, data)

    monkeypatch.setattr(Folder, "write_whole", noted)
    store = CheckpointStore.create(tmp_path, "last", shape("int8"))
    arrays = {f"{array}/zarr.json" for array in ("features", "norm", "scale", "loss")}
    assert set(written_files[:-1]) == arrays and written_files[-1] == "zarr.json"
    names = {
        array: json.loads(store.folder.read_bytes(f"{array}/zarr.json"))["dimension_names"]
        for array in store.shape.arrays
    }
    layer = ["row", "layer"]
    assert names == {"features": ["row", "feature"], "norm": layer, "scale": layer, "loss": ["row"]}


def test_a_chunk_of_zeros_is_written(tmp_path: Path) -> None:
    store = CheckpointStore.create(tmp_path, "last", shape("int8", rows=4))
    store.write(0, torch.zeros(4, 60), torch.zeros(4))
    assert store.finished(verify=True) == {0}
    assert decode(store.read(0), store.shape).max() == 0


def test_features_are_mapped_not_copied(tmp_path: Path) -> None:
    store = written(tmp_path, shape())
    features = store.read(0).features
    file = tmp_path / "last.zarr" / "features" / "c" / "0" / "0"
    before = file.read_bytes()
    with open(file, "r+b") as raw:  # the mapping sees what the file becomes
        raw.write(np.float16(7).tobytes())
    assert features[0, 0] == 7
    features[0, 1] = 9  # and the file does not see what the array becomes
    assert file.read_bytes()[2:] == before[2:]


def test_what_is_missing_reads_as_nan_in_zarr(tmp_path: Path) -> None:
    store = written(tmp_path, shape())
    (tmp_path / "last.zarr" / "norm" / "c" / "1" / "0").unlink()
    import zarr

    norm: Any = zarr.open_group(store.folder.zarr_store(), mode="r")["norm"]
    assert np.isnan(norm[4:8]).all() and np.isfinite(norm[8:]).all()


@pytest.mark.parametrize("rows", [3, 5])
def test_only_whole_chunks_are_written(tmp_path: Path, rows: int) -> None:
    store = CheckpointStore.create(tmp_path, "last", shape())
    with pytest.raises(RunError, match="expected 4 of each"):
        store.write(0, torch.zeros(rows, 60), torch.zeros(rows))
    with pytest.raises(RunError, match=r"expected \[rows, 60\]"):
        store.write(0, torch.zeros(4, 61), torch.zeros(4))


# Going on


def test_another_shape_is_refused(tmp_path: Path) -> None:
    written(tmp_path, shape())
    for other, match in [
        (shape(rows=12), "rows was 11, is now 12"),
        (shape(chunk_rows=5), "chunk_rows was 4, is now 5"),
        (shape("int8"), "dtype was float16, is now int8"),
        (Shape(11, 4, (*LAYERS[:-1], ("two", 1)), "float16"), r"layers were \('one', 1\), are now \('two', 1\)"),
        (Shape(11, 4, LAYERS[:-1], "float16"), "layers were 4, are now 3"),
    ]:
        with pytest.raises(RunError, match=match):
            CheckpointStore.create(tmp_path, "last", other)
    assert CheckpointStore.create(tmp_path, "last", shape()).finished() == {0, 1, 2}


def test_leftovers_are_not_chunks_and_are_removed(tmp_path: Path) -> None:
    store = written(tmp_path, shape())
    file = tmp_path / "last.zarr" / "features" / "c" / "1" / "0"
    left = [file.with_name("0.partial-123"), file.with_name("0.abc.partial")]
    for each in left:
        shutil.copy(file, each)
    file.unlink()
    assert store.finished() == {0, 2}
    assert not any(".partial" in name for name in store.folder.sizes())
    CheckpointStore.create(tmp_path, "last", shape())
    assert not any(each.exists() for each in left) and store.finished() == {0, 2}


def test_a_failed_write_leaves_no_finished_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore.create(tmp_path, "last", shape())
    replace = os.replace

    def refuse(source: Any, target: Any) -> None:
        if "features" in str(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match=r"features/c/0/0 cannot be written .No space left on device"):
        store.write(0, gradients()[:4], torch.zeros(4))
    assert store.finished() == set()
    assert [name for name in store.folder.sizes() if "/c/" in name] == ["norm/c/0/0", "loss/c/0"]


KILLED = """
import sys, torch
from headwater.index.store import CheckpointStore, Shape
store = CheckpointStore.create(sys.argv[1], "last", Shape(64 * 2000, 64, (("a", 4096),), "float32"))
print("begun", flush=True)
for chunk in range(store.shape.chunks):
    store.write(chunk, torch.full((64, 4096), float(chunk)), torch.zeros(64))
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    store = CheckpointStore.open(tmp_path, "last")
    deadline = time.monotonic() + 60
    while len(store.finished()) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    finished = store.finished()
    assert 3 <= len(finished) < store.shape.chunks
    assert store.finished(verify=True) == finished == set(range(len(finished)))
    CheckpointStore.create(tmp_path, "last", store.shape)
    assert not list(tmp_path.rglob("*.partial*"))


# Damage


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def _lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"0")


@pytest.mark.parametrize("array", ["features", "norm", "scale", "loss"])
@pytest.mark.parametrize(
    ("damage", "named", "seen_at_once"),
    [
        (_flip, "checksum differs", False),
        (_cut, "truncated, ", True),
        (_lengthen, "too long, ", True),
        (lambda file: file.write_bytes(b""), "truncated, 0 of ", True),
        (Path.unlink, "missing", True),
    ],
)
def test_damage_is_found_and_named(tmp_path: Path, array: str, damage: Any, named: str, seen_at_once: bool) -> None:
    store = written(tmp_path, shape("int8"))
    name = f"{array}/c/1" if array == "loss" else f"{array}/c/1/0"
    damage(tmp_path / "last.zarr" / name)
    assert store.finished(verify=True) == {0, 2}
    assert store.finished() == ({0, 2} if seen_at_once else {0, 1, 2})
    seen: list[int] = []
    (problem,) = store.check(seen.append)
    assert f"last.zarr/{name} (rows 4 to 7): {named}" in problem and "\n" not in problem
    assert seen == [1, 1, 1]
    with pytest.raises(RunError, match=f"{name}.*{named}|{name} is missing"):
        store.read(1, verify=True)
    assert store.read(0).start == 0
    if array == "features" and damage is _flip:
        store.read(1)  # verified only when asked
    else:
        with pytest.raises(RunError):
            store.read(1)


def test_remote_features_are_always_verified() -> None:
    store = written("memory://damaged", shape())
    name = "features/c/1/0"
    data = bytearray(store.folder.read_bytes(name))
    data[5] ^= 1
    store.folder.write_whole(name, bytes(data))
    with pytest.raises(RunError, match="checksum"):
        store.read(1)
    assert store.finished(verify=True) == {0, 2}


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        ("zarr.json", lambda text: text[:40], "not JSON"),
        ("zarr.json", lambda text: text.replace("headwater gradient index", "pictures"), "holds something else"),
        ("zarr.json", lambda text: text.replace('"format_version": 1', '"format_version": 2'), "version 2; expected"),
        ("zarr.json", lambda text: text.replace('"rows": 11', '"rows": 0'), "rows is 0"),
        ("zarr.json", lambda text: text.replace('"rows"', '"lines"'), "does not describe a shape"),
        ("norm/zarr.json", lambda text: text.replace("11", "12"), r"shape is \[12, 4\]; expected \[11, 4\]"),
        ("features/zarr.json", lambda text: text.replace("float16", "float32"), "data_type is float32"),
        ("features/zarr.json", lambda text: text.replace("crc32c", "zstd"), "codecs is"),
    ],
)
def test_damaged_metadata(tmp_path: Path, file: str, change: Any, match: str) -> None:
    written(tmp_path, shape())
    path = tmp_path / "last.zarr" / file
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    with pytest.raises(RunError, match=match):
        CheckpointStore.open(tmp_path, "last")


def test_a_missing_store_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"last.zarr is missing") as caught:
        CheckpointStore.open(tmp_path, "last")
    assert "\n" not in str(caught.value)


# The writer


def test_writer_writes_what_write_writes(tmp_path: Path) -> None:
    expected = written(tmp_path / "a", shape())
    store, g = CheckpointStore.create(tmp_path / "b", "last", shape()), gradients()
    with Writer(store) as writer:
        for chunk in range(3):
            start, stop = store.shape.chunk_range(chunk)
            g_BF, loss_B = g[start:stop].clone(), torch.arange(start, stop).float()
            writer.put(chunk, g_BF, loss_B)
            g_BF.zero_()  # the caller's buffers are free again
            loss_B.zero_()
    assert store.finished(verify=True) == {0, 1, 2}
    for name in expected.folder.sizes():
        assert store.folder.read_bytes(name) == expected.folder.read_bytes(name)


def test_writer_raises_at_the_next_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, g = CheckpointStore.create(tmp_path, "last", shape()), gradients()
    calls: list[int] = []

    def fail(self: Any, chunk: int, *_: Any) -> None:
        calls.append(chunk)
        raise RunError("the disk is full", expected="space", fix="make some")

    monkeypatch.setattr(CheckpointStore, "write_encoded", fail)
    puts = 0
    with pytest.raises(RunError, match="the disk is full"), Writer(store) as writer:
        for _ in range(1000):
            writer.put(0, g[:4], torch.zeros(4))
            puts += 1
            time.sleep(0.001)
    assert puts < 1000 and calls == [0]


def test_nothing_is_written_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, g = CheckpointStore.create(tmp_path, "last", shape(rows=12)), gradients()
    waiting, write = threading.Event(), CheckpointStore.write_encoded

    def fail_first(self: Any, chunk: int, *rest: Any) -> None:
        waiting.wait(10)
        if chunk == 0:
            raise RunError("the disk is full", expected="space", fix="make some")
        write(self, chunk, *rest)

    monkeypatch.setattr(CheckpointStore, "write_encoded", fail_first)
    with pytest.raises(RunError, match="the disk is full"), Writer(store) as writer:
        for chunk in range(3):
            writer.put(chunk, g[:4], torch.zeros(4))
        waiting.set()
    assert store.finished() == set()


def test_writer_raises_at_the_end(tmp_path: Path) -> None:
    store = CheckpointStore.create(tmp_path, "last", shape())
    with pytest.raises(RunError, match="chunk 9"), Writer(store) as writer:
        writer.put(9, gradients()[:4], torch.zeros(4))


def test_writer_does_not_hide_the_callers_error(tmp_path: Path) -> None:
    store = CheckpointStore.create(tmp_path, "last", shape())
    with pytest.raises(KeyError), Writer(store) as writer:
        writer.put(0, gradients()[:4], torch.zeros(4))
        writer.put(9, gradients()[:4], torch.zeros(4))
        raise KeyError
    assert store.finished(verify=True) == {0}  # what was handed over is written


def test_writer_waits_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk being written and two waiting: the fourth put after that waits."""
    store, g = CheckpointStore.create(tmp_path, "last", shape(rows=100)), gradients()
    slow: list[int] = []
    monkeypatch.setattr(CheckpointStore, "write_encoded", lambda *_: (time.sleep(0.05), slow.append(1)))
    with Writer(store) as writer:
        for done in range(8):
            writer.put(done, g[:4], torch.zeros(4))
            assert done - len(slow) <= 3
    assert len(slow) == 8


# The format page


@pytest.mark.parametrize("dtype", TYPES)
def test_the_snippet_of_the_format_page_reads_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    page = (Path(index.__file__).parent / "FORMAT.md").read_text("utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    of, g = shape(dtype), gradients()
    monkeypatch.chdir(tmp_path)
    store = CheckpointStore.create("index", "checkpoint-3", of)
    for chunk in range(3):
        start, stop = of.chunk_range(chunk)
        store.write(chunk, g[start:stop], torch.arange(start, stop))
    space: dict[str, Any] = {}
    exec(compile(snippet, "FORMAT.md", "exec"), space)
    assert list(space["gradients"]) == [name for name, _ in LAYERS]
    found = np.concatenate(list(space["gradients"].values()), 1)
    np.testing.assert_array_equal(found, decode(encode(g, of), of)[2:7])
    np.testing.assert_array_equal(space["losses"], np.arange(2, 7))


def test_the_format_page_names_every_attribute_and_array(tmp_path: Path) -> None:
    page = (Path(index.__file__).parent / "FORMAT.md").read_text("utf-8")
    store = written(tmp_path, shape("int8"))
    attributes = json.loads(store.folder.read_bytes("zarr.json"))["attributes"]
    for name in (*attributes, *store.shape.arrays):
        assert f"`{name}`" in page, name
    for value in (store_module.FORMAT, attributes["encoding"]):
        assert f'"{value}"' in page
    assert attributes["format_version"] == store_module.VERSION and f"format version {store_module.VERSION}" in page


def test_folder_children_share_the_place(tmp_path: Path) -> None:
    assert Folder(tmp_path).child("a").path == tmp_path / "a"
