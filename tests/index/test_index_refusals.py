"""Every refusal of the index, word for word: what was got, what was expected, the likely cause and the next step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from headwater.errors import HeadwaterError, NumericalError, RunError, UsageError
from headwater.index.folder import Folder
from headwater.index.scoring import TopK, dots
from headwater.index.store import CheckpointStore, Shape, encode

LAYERS = (("a", 2), ("b", 3))
SHAPE = Shape(5, 2, LAYERS, "float16")
NORM = "norm/c/0/0"
DAMAGE = "(likely cause: damage). Next: build the index again; what is whole is kept"


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    made = CheckpointStore.create(tmp_path, "last", SHAPE)
    for chunk in range(SHAPE.chunks):
        start, stop = SHAPE.chunk_range(chunk)
        made.write(chunk, torch.ones(stop - start, 5), torch.zeros(stop - start))
    return made


def refused(call: Callable[[], object], kind: type[HeadwaterError], line: str) -> None:
    with pytest.raises(HeadwaterError) as caught:
        call()
    assert (type(caught.value), str(caught.value)) == (kind, line)


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        ((0, 2, LAYERS, "int8"), "0 rows in chunks of 2, 2 layers, type int8"),
        ((5, 0, LAYERS, "int8"), "5 rows in chunks of 0, 2 layers, type int8"),
        ((1, 1, (("a", 0),), "int8"), "1 rows in chunks of 1, 1 layers, type int8"),
        ((1, 1, (), "int8"), "1 rows in chunks of 1, 0 layers, type int8"),
        ((1, 1, (("a", 1), ("a", 2)), "int8"), "1 rows in chunks of 1, 1 layers, type int8"),
        ((1, 2, LAYERS, "bfloat16"), "1 rows in chunks of 2, 2 layers, type bfloat16"),
    ],
)
def test_shapes(shape: tuple[int, int, tuple[tuple[str, int], ...], object], got: str) -> None:
    expected = "one row, one layer and one feature at least, and one of float32, float16, int8"
    refused(lambda: Shape(*shape), RunError, f"an index of {got}; expected {expected}. Next: correct the shape")  # type: ignore[arg-type]
    assert Shape(1, 1, (("a", 1),), "int8").features == 1  # the smallest that there is


@pytest.mark.parametrize("chunk", [-1, 3])
def test_chunks_that_do_not_exist(chunk: int) -> None:
    line = f"chunk {chunk}; expected 0 to 2. Next: ask for a chunk that exists"
    refused(lambda: SHAPE.chunk_range(chunk), RunError, line)


def test_gradients_and_losses_that_cannot_be_stored(store: CheckpointStore) -> None:
    for shape in ((2, 4), (2,), (1, 2, 5)):
        line = f"gradients {list(shape)}; expected [rows, 5]. Next: project to the shape"
        refused(lambda shape=shape: encode(torch.zeros(shape), SHAPE), RunError, line)  # type: ignore[misc]
    again = "expected a finite number. Next: check the model and the row, or compute in float32"
    g = torch.ones(2, 5)
    g[1, 3] = torch.inf
    line = f"the gradient of row 1 of the chunk in layer b has length nan; {again}"
    refused(lambda: store.write(0, g, torch.zeros(2)), NumericalError, line)
    for losses in (torch.tensor([0, torch.inf]), np.array([0, np.inf])):
        line = f"the loss of row 1 of the chunk is inf; {again}"
        refused(lambda losses=losses: store.write(0, torch.ones(2, 5), losses), NumericalError, line)  # type: ignore[misc]
    line = "1 gradients and 2 losses for chunk 0; expected 2 of each. Next: give all rows of the chunk at once"
    refused(lambda: store.write(0, torch.ones(1, 5), torch.zeros(2)), RunError, line)


def test_a_store_of_another_shape_or_none(store: CheckpointStore, tmp_path: Path) -> None:
    refused(
        lambda: CheckpointStore.create(tmp_path, "last", Shape(6, 3, LAYERS[:1], "int8")),
        RunError,
        f"{tmp_path}/last.zarr was made with another shape: rows was 5, is now 6; chunk_rows was 2, is now 3; dtype "
        "was float16, is now int8; layers were 2, are now 1; expected the same shape to go on with it. Next: remove "
        "it, or write to another folder",
    )
    refused(
        lambda: CheckpointStore.open(tmp_path, "first"),
        RunError,
        f"{tmp_path}/first.zarr is missing; expected a store of an index. Next: check the folder and the checkpoint",
    )


@pytest.mark.parametrize(
    ("file", "before", "after", "said"),
    [
        (
            "zarr.json", None, "{",
            "/zarr.json is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
            f"expected the metadata of a Zarr v3 group {DAMAGE}",
        ),
        (
            "zarr.json", None, "[]",
            f"/zarr.json is not a JSON object; expected the metadata of a Zarr v3 group {DAMAGE}",
        ),
        (
            "zarr.json", None, "{}",
            " holds something else; expected a headwater gradient index. Next: give the folder of an index",
        ),
        (
            "zarr.json", "headwater gradient", "cooking",
            " holds something else; expected a headwater gradient index. Next: give the folder of an index",
        ),
        (
            "zarr.json", '"format_version": 1', '"format_version": 2',
            " has format version 2; expected version 1 (likely cause: it was written by another version of "
            "headwater). Next: install that version, or build the index again",
        ),
        (
            "zarr.json", '"rows": 5', '"rows": 0',
            "/zarr.json does not describe a shape (rows is 0, not an integer of at least 1); expected the attributes "
            f"of a store {DAMAGE}",
        ),
        (
            "norm/zarr.json", "float32", "float64",
            f"/norm/zarr.json: data_type is float64; expected float32 {DAMAGE}",
        ),
        (
            "loss/zarr.json", '"shape": [\n    5\n  ]', '"shape": [\n    6\n  ]',
            f"/loss/zarr.json: shape is [6]; expected [5] {DAMAGE}",
        ),
        (
            "features/zarr.json", '"name": "regular"', '"name": "other"',
            "/features/zarr.json: chunk_grid is {'name': 'other', 'configuration': {'chunk_shape': [2, 5]}}; expected "
            f"{{'name': 'regular', 'configuration': {{'chunk_shape': [2, 5]}}}} {DAMAGE}",
        ),
        (
            "norm/zarr.json", '"name": "bytes"', '"name": "blosc"',
            f"/norm/zarr.json: codecs is ['blosc', 'crc32c']; expected ['bytes', 'crc32c'] {DAMAGE}",
        ),
        ("norm/zarr.json", None, "{}", f"/norm/zarr.json: shape is None; expected [5, 2] {DAMAGE}"),
    ],
)  # fmt: skip
def test_metadata(store: CheckpointStore, tmp_path: Path, file: str, before: str | None, after: str, said: str) -> None:
    path = store.folder.path / file
    text = path.read_text()
    assert before is None or before in text
    path.write_text(after if before is None else text.replace(before, after))
    refused(lambda: CheckpointStore.open(tmp_path, "last"), RunError, f"{store.folder}{said}")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda data: data[:-1], "truncated, 19 of 20 bytes"),
        (lambda data: data + b"1", "too long, 21 of 20 bytes"),
        (lambda data: b"1" + data[1:], "checksum differs, its bytes have changed"),
        (None, "missing"),
    ],
)
def test_damaged_files(store: CheckpointStore, damage: Callable[[bytes], bytes] | None, named: str) -> None:
    path = store.folder.path / NORM
    data = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(data))
    said = f"{store.folder}/{NORM} (rows 0 to 1): {named}"
    assert store.check() == [said]
    line = f"{said}; expected the file as it was written {DAMAGE}"
    if named.startswith("checksum"):
        store.require_whole()  # sizes alone
    else:
        refused(store.require_whole, RunError, line)
    if damage is None:
        line = f"{store.folder}/{NORM} is missing (rows 0 to 1); expected every file of a finished chunk {DAMAGE}"
    refused(lambda: store.read(0), RunError, line)


def test_queries_that_cannot_be_scored(store: CheckpointStore) -> None:
    q = torch.zeros(3, 5)
    kinds = "expected some of dot, cosine, layer_cosine. Next: ask for these"
    refused(lambda: dots(store, q, {"euclid", "dot"}), UsageError, f"kinds ['dot', 'euclid']; {kinds}")  # type: ignore[arg-type]
    refused(lambda: dots(store, q, set()), UsageError, f"kinds []; {kinds}")
    for wrong in (q[:, 1:], q[0]):
        refused(
            lambda wrong=wrong: dots(store, wrong, {"dot"}),  # type: ignore[misc]
            RunError,
            f"query gradients {list(wrong.shape)}; expected [targets, 5], as {store.folder} has it. Next: project the "
            "queries as the index was projected",
        )
    q[0, 0] = torch.nan
    line = "a query gradient is not finite; expected numbers. Next: check the query and the model"
    refused(lambda: dots(store, q, {"dot"}), NumericalError, line)


def test_ranking() -> None:
    refused(lambda: TopK(0, 1), UsageError, "k = 0; expected 1 or more. Next: ask for one row at least")
    refused(
        lambda: TopK(1, 2).update(4, np.array([[1, 2], [1, np.inf]])),
        NumericalError,
        "the score of row 5 for target 1 is inf; expected a finite number. Next: check the query and the learning "
        "rates, or build the index again",
    )


def test_addresses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for call, kind, line in (
        (
            lambda: Folder("s3://key:hidden@bucket/index"),
            UsageError,
            "a s3:// address with a password in it; expected an address without credentials. Next: give them in the "
            "environment, in the provider's own files, or in fsspec's configuration",
        ),
        (
            lambda: Folder("nowhere://x"),
            UsageError,
            "nowhere://x: Protocol not known: nowhere; expected a folder, or a URL that fsspec knows, such as "
            "s3://bucket/index. Next: correct the address",
        ),
        (
            lambda: Folder("abfs://x/y"),
            UsageError,
            "abfs://x/y needs a package that is not installed (Install adlfs to access Azure Datalake Gen2 and Azure "
            "Blob Storage); expected the fsspec package for abfs://. Next: install it (s3fs for s3://, gcsfs for "
            "gs://, adlfs for az://), or give a local folder",
        ),
        (
            lambda: Folder("memory://x").path,
            UsageError,
            "memory://x is remote; expected a folder on this machine. Next: copy it here, give its path",
        ),
        (
            lambda: Folder("memory://x").read_bytes("a"),
            RunError,
            "memory://x/a is missing; expected a file of an index. Next: check the address",
        ),
        (
            lambda: Folder(tmp_path / "file").read_bytes("a"),
            RunError,
            f"{tmp_path}/file/a cannot be read (Not a directory); expected a folder or URL that can be reached and "
            "used (likely cause: a wrong address, missing permission or credentials, no network, or a full disk). "
            "Next: mend that, or give another place",
        ),
    ):
        refused(call, kind, line)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda folder: folder.write_whole("a", b""), "/a cannot be written"),
        (lambda folder: folder.read_bytes("a"), "/a cannot be read"),
        (lambda folder: folder.sizes(), " cannot be listed"),
        (lambda folder: folder.names(), " cannot be listed"),
        (lambda folder: folder.exists("a"), "/a cannot be looked into"),
        (lambda folder: folder.remove("a"), "/a cannot be removed"),
    ],
)
def test_remote_storage_that_fails(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[Folder], object], said: str
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    long = " ".join(["no credentials"] * 20)
    folder = Folder("memory://bucket/failing")
    folder.write_whole("a", b"1")
    for message, shown in (("no\n credentials", "no credentials"), ("", "no message"), (long, long[:157] + "...")):

        def fail(*_: object, message: str = message, **__: object) -> None:
            raise Exception(message)

        with monkeypatch.context() as patched:
            for name in ("cat_file", "pipe_file", "find", "ls", "exists", "rm"):
                patched.setattr(MemoryFileSystem, name, fail)
            with pytest.raises(RunError) as caught:
                call(folder)
        assert caught.value.got == f"memory://bucket/failing{said} (Exception: {shown})"
