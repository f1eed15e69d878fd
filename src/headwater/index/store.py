"""One checkpoint's projected gradients on disk: a Zarr v3 group, written chunk by chunk. FORMAT.md has the layout.

    g_il ~= norm_il * scale_il * features_il        row i, layer l; scale is 1 unless the type is int8

What is stored are unit directions u_il = g_il / |g_il| and, apart from them, the lengths |g_il|: half precision then
never overflows, and what it rounds is at most 2^-11 = 4.9e-4 of each number.

A chunk is finished when all its files are there. Each file is written whole or not at all, the features last.

Shapes: B rows of a chunk, C rows of a whole chunk, L layers, F features, S features of one layer.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np

from headwater.errors import NumericalError, RunError
from headwater.index.folder import Folder
from headwater.records import among, fault, text, whole

if TYPE_CHECKING:
    import torch

FORMAT, VERSION = "headwater gradient index", 1
FeatureType = Literal["float32", "float16", "int8"]
Place = Folder | str | os.PathLike[str]
CHECKSUM = 4
"""Bytes of the crc32c behind the numbers in each file."""


@dataclass(frozen=True)
class Shape:
    """How many rows, of which layers, in which type.

    Args:
        rows: number of rows, 1 or more.
        chunk_rows: rows of a chunk; the last chunk may hold fewer.
        layers: name and number of features of each layer, in the order of the columns.
        dtype: type of the stored features.

    Raises:
        RunError: a number below 1, no layers, layers of one name, or another type.
    """

    rows: int
    chunk_rows: int
    layers: tuple[tuple[str, int], ...]
    dtype: FeatureType

    def __post_init__(self) -> None:
        names = {name for name, _ in self.layers}
        sound = min(self.rows, self.chunk_rows, *(size for _, size in self.layers)) >= 1
        if not (sound and self.layers and len(names) == len(self.layers) and self.dtype in get_args(FeatureType)):
            raise RunError(
                f"an index of {self.rows} rows in chunks of {self.chunk_rows}, {len(names)} layers, type {self.dtype}",
                expected=f"one row, one layer and one feature at least, and one of {', '.join(get_args(FeatureType))}",
                fix="correct the shape",
            )

    @property
    def features(self) -> int:
        """F: features of a row, all layers together."""
        return sum(size for _, size in self.layers)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First column of each layer."""
        return tuple(accumulate((size for _, size in self.layers[:-1]), initial=0))

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.rows // self.chunk_rows)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row in all arrays, checksums not counted."""
        return sum(dtype.itemsize * max(width, 1) for dtype, width in self.arrays.values())

    @cached_property
    def arrays(self) -> dict[str, tuple[np.dtype[Any], int]]:
        """Type and columns of each array, in the order in which they are written; one column is a vector."""
        number = np.dtype("<f4")
        scale = {"scale": (number, len(self.layers))} if self.dtype == "int8" else {}
        features = {"features": (np.dtype(self.dtype).newbyteorder("<"), self.features)}
        return {"norm": (number, len(self.layers)), **scale, "loss": (number, 0), **features}

    def chunk_range(self, chunk: int) -> tuple[int, int]:
        """First row of a chunk, and the first row behind it."""
        if not 0 <= chunk < self.chunks:
            raise RunError(f"chunk {chunk}", expected=f"0 to {self.chunks - 1}", fix="ask for a chunk that exists")
        return chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.rows)


@dataclass(frozen=True)
class Encoded:
    """Gradients as they are stored: features [B, F], norm [B, L], and scale [B, L] for int8."""

    features: np.ndarray
    norm: np.ndarray
    scale: np.ndarray | None


@dataclass(frozen=True)
class Chunk(Encoded):
    """Rows start to stop of a store, with their losses [B] in nats."""

    loss: np.ndarray
    start: int
    stop: int


def encode(g_BF: torch.Tensor, shape: Shape) -> Encoded:
    """Splits gradients into lengths and directions, and rounds the directions. Runs where the tensor lies.

    Raises:
        NumericalError: a gradient, or its length in float32, is not finite.
        RunError: the tensor does not have F columns.
    """
    import torch

    if g_BF.ndim != 2 or g_BF.shape[1] != shape.features:
        raise RunError(
            f"gradients {list(g_BF.shape)}", expected=f"[rows, {shape.features}]", fix="project to the shape"
        )
    g_BF = g_BF.detach().float()
    rows, layers = len(g_BF), len(shape.layers)
    features_BF = torch.empty(rows, shape.features, dtype=getattr(torch, shape.dtype), device=g_BF.device)
    norm_BL, scale_BL = g_BF.new_empty(rows, layers), g_BF.new_empty(rows, layers)
    for number, ((_, size), start) in enumerate(zip(shape.layers, shape.offsets, strict=True)):
        g_BS = g_BF[:, start : start + size]
        # |g| = max|g| * |g / max|g||: squares neither over- nor underflow
        peak_B1 = g_BS.abs().amax(1, keepdim=True)
        u_BS = g_BS / peak_B1.where(peak_B1 != 0, 1)
        length_B1 = torch.linalg.vector_norm(u_BS, dim=1, keepdim=True)
        norm_BL[:, number] = (peak_B1 * length_B1)[:, 0]
        u_BS /= length_B1.where(length_B1 != 0, 1)
        if shape.dtype == "int8":
            scale_B1 = u_BS.abs().amax(1, keepdim=True) / 127
            scale_BL[:, number] = scale_B1[:, 0]
            u_BS = (u_BS / scale_B1.where(scale_B1 != 0, 1)).round_()
        features_BF[:, start : start + size] = u_BS
    norm = norm_BL.cpu().numpy()
    if not np.isfinite(norm).all():
        row, layer = np.argwhere(~np.isfinite(norm))[0]
        raise NumericalError(
            f"the gradient of row {row} of the chunk in layer {shape.layers[layer][0]} has length {norm[row, layer]}",
            expected="a finite number",
            fix="check the model and the row, or compute in float32",
        )
    return Encoded(features_BF.cpu().numpy(), norm, scale_BL.cpu().numpy() if shape.dtype == "int8" else None)


def encode_chunk(
    g_BF: torch.Tensor, loss_B: torch.Tensor | np.ndarray, shape: Shape, left_out: Sequence[int] = ()
) -> tuple[Encoded, np.ndarray]:
    """Gradients and losses as they are stored; NaN for the rows that are left out, so that nobody takes them for
    gradients of zero (int8 features are 0, their scale is NaN)."""
    rows = list(left_out)
    if rows:
        g_BF, loss_B = g_BF.clone(), np.array(loss_B) if isinstance(loss_B, np.ndarray) else loss_B.clone()
        g_BF[rows] = 0
        loss_B[rows] = 0
    found, losses = encode(g_BF, shape), _losses(loss_B)
    if rows:
        for array in (found.norm, found.scale, losses, found.features if shape.dtype != "int8" else None):
            if array is not None:
                array[rows] = np.nan
    return found, losses


def decode(stored: Encoded, shape: Shape) -> np.ndarray:
    """The gradients [B, F] float32, up to what the encoding rounded."""
    length_BL = stored.norm if stored.scale is None else stored.norm * stored.scale
    g_BF = stored.features.astype(np.float32)
    g_BF *= np.repeat(length_BL, [size for _, size in shape.layers], axis=1)
    return g_BF


class CheckpointStore:
    """The gradients of one checkpoint and part. Made by `create` or `open`; one process writes at a time."""

    def __init__(self, folder: Folder, shape: Shape) -> None:
        self.folder, self.shape = folder, shape

    @classmethod
    def create(cls, folder: Place, name: str, shape: Shape) -> Self:
        """Makes `folder`/`name`.zarr, or goes on with it where it was made with the same shape.

        Raises:
            RunError: it was made with another shape, or cannot be written.
        """
        inside = _inside(folder, name)
        if inside.exists("zarr.json"):
            found = cls.open(folder, name).shape
            if found != shape:
                raise RunError(
                    f"{inside} was made with another shape: {_difference(found, shape)}",
                    expected="the same shape to go on with it",
                    fix="remove it, or write to another folder",
                )
        else:
            documents = _documents(shape)
            for file in sorted(documents, key=lambda file: file == "zarr.json"):  # the group's own last: it exists then
                inside.write_whole(file, documents[file])
        inside.sweep()
        return cls(inside, shape)

    @classmethod
    def open(cls, folder: Place, name: str) -> Self:
        """Opens `folder`/`name`.zarr.

        Raises:
            RunError: it is missing, not a store of this format and version, or its metadata are damaged.
        """
        inside = _inside(folder, name)
        shape = _shape(inside)
        for array, (dtype, width) in shape.arrays.items():
            columns = [width] if width else []
            chunk_shape = {"chunk_shape": [shape.chunk_rows, *columns]}
            wanted = {
                "shape": [shape.rows, *columns],
                "data_type": dtype.name,
                "chunk_grid": {"name": "regular", "configuration": chunk_shape},
                "codecs": ["bytes", "crc32c"],
            }
            found = _essence(_metadata(inside, f"{array}/zarr.json"))
            for key in wanted:
                if found[key] != wanted[key]:
                    raise _damaged(f"{inside}/{array}/zarr.json: {key} is {found[key]}", str(wanted[key]))
        return cls(inside, shape)

    def write(self, chunk: int, g_BF: torch.Tensor, loss_B: torch.Tensor | np.ndarray) -> None:
        """Encodes and writes the rows of a chunk: gradients [B, F] in float32, losses [B] in nats.

        Raises:
            NumericalError: a gradient or a loss is not finite.
            RunError: not the rows of this chunk, or the files cannot be written.
        """
        self.write_encoded(chunk, *encode_chunk(g_BF, loss_B, self.shape))

    def write_encoded(self, chunk: int, encoded: Encoded, loss_B: np.ndarray) -> None:
        """Writes an encoded chunk: each file whole or not at all, the features last."""
        start, stop = self.shape.chunk_range(chunk)
        if {len(encoded.features), len(encoded.norm), len(loss_B)} != {stop - start}:
            raise RunError(
                f"{len(encoded.features)} gradients and {len(loss_B)} losses for chunk {chunk}",
                expected=f"{stop - start} of each",
                fix="give all rows of the chunk at once",
            )
        given = {"features": encoded.features, "norm": encoded.norm, "scale": encoded.scale, "loss": loss_B}
        for array, (dtype, _) in self.shape.arrays.items():
            self.folder.write_whole(self._file(array, chunk), _packed(given[array], dtype, self.shape.chunk_rows))

    def finished(self, verify: bool = False) -> set[int]:
        """Numbers of the chunks whose files are all there in full size; with `verify`, and whose checksums are right,
        which reads everything."""
        sizes = self.folder.sizes()
        return {
            chunk
            for chunk in range(self.shape.chunks)
            if all(self._problem(array, chunk, sizes, verify) is None for array in self.shape.arrays)
        }

    def read(self, chunk: int, verify: bool = False, loss: bool = True) -> Chunk:
        """Reads a chunk. Local features are mapped into memory, not copied, and their checksum is computed only with
        `verify`: it costs as much as scoring. All else, and remote features, is always verified.

        Args:
            loss: whether the losses are wanted; else there are none.

        Raises:
            RunError: a file is missing, truncated or damaged.
        """
        start, stop = self.shape.chunk_range(chunk)
        out: dict[str, Any] = {"scale": None, "loss": np.empty(0, np.float32)}
        for array, (dtype, width) in self.shape.arrays.items():
            if array == "loss" and not loss:
                continue
            verified = verify or array != "features" or not self.folder.is_local
            try:
                raw = self.folder.mapped(self._file(array, chunk))
            except RunError as error:
                raise _damaged(f"{error.got} ({self._rows(chunk)})", "every file of a finished chunk") from None
            problem = self._wrong(array, raw.size, raw if verified else None)
            if problem:
                raise _damaged(f"{self.folder}/{self._named(array, chunk)}: {problem}", "the file as it was written")
            rows = raw[:-CHECKSUM].view(dtype).reshape(self.shape.chunk_rows, *((width,) if width else ()))
            out[array] = rows[: stop - start]
        return Chunk(**out, start=start, stop=stop)

    def require_whole(self) -> None:
        """Raises RunError, naming a file, where one is missing or has another size. Reads nothing."""
        sizes = self.folder.sizes()
        for chunk in range(self.shape.chunks):
            for array in self.shape.arrays:
                problem = self._problem(array, chunk, sizes, verify=False)
                if problem:
                    raise _damaged(
                        f"{self.folder}/{self._named(array, chunk)}: {problem}", "the file as it was written"
                    )

    def check(self, advance: Callable[[int], None] | None = None) -> list[str]:
        """Reads everything once and returns what is wrong, one line per file with its rows; calls `advance(1)` after
        each chunk. Chunks that were not written yet are missing."""
        sizes = self.folder.sizes()
        problems = []
        for chunk in range(self.shape.chunks):
            for array in self.shape.arrays:
                problem = self._problem(array, chunk, sizes, verify=True)
                if problem:
                    problems.append(f"{self.folder}/{self._named(array, chunk)}: {problem}")
            if advance is not None:
                advance(1)
        return problems

    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.folder.sizes().values())

    def _problem(self, array: str, chunk: int, sizes: Mapping[str, int], verify: bool) -> str | None:
        """What is wrong with a file."""
        name = self._file(array, chunk)
        if name not in sizes:
            return "missing"
        problem = self._wrong(array, sizes[name], None)
        if problem or not verify:
            return problem
        try:
            raw = self.folder.mapped(name)
        except RunError as error:
            return error.got
        return self._wrong(array, raw.size, raw)

    def _wrong(self, array: str, size: int, raw: np.ndarray | None) -> str | None:
        """What is wrong with a file of this size, and of this content where it is to be verified."""
        dtype, width = self.shape.arrays[array]
        expected = dtype.itemsize * max(width, 1) * self.shape.chunk_rows + CHECKSUM
        if size != expected:
            return f"{'truncated' if size < expected else 'too long'}, {size} of {expected} bytes"
        if raw is not None and _crc32c(raw[:-CHECKSUM]) != raw[-CHECKSUM:].tobytes():
            return "checksum differs, its bytes have changed"
        return None

    def _file(self, array: str, chunk: int) -> str:
        return f"{array}/c/{chunk}/0" if self.shape.arrays[array][1] else f"{array}/c/{chunk}"

    def _rows(self, chunk: int) -> str:
        start, stop = self.shape.chunk_range(chunk)
        return f"rows {start} to {stop - 1}"

    def _named(self, array: str, chunk: int) -> str:
        return f"{self._file(array, chunk)} ({self._rows(chunk)})"


class Writer:
    """Writes chunks in a thread of its own, so that computing does not wait for the disk.

    Encoding happens in `put`, in the caller's thread and on the tensor's device; at most two encoded chunks wait.
    What fails in the thread is raised by the next `put` and when the block ends; nothing is written after a failure.

        with Writer(store) as writer:
            writer.put(chunk, g_BF, loss_B)
    """

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._waiting: queue.Queue[tuple[int, Encoded, np.ndarray] | None] = queue.Queue(maxsize=2)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="index-writer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def put(
        self,
        chunk: int,
        g_BF: torch.Tensor,
        loss_B: torch.Tensor | np.ndarray,
        left_out: Sequence[int] = (),
    ) -> None:
        """Encodes a chunk and hands it to the thread; waits while two others wait. Raises as `write` does.

        Args:
            left_out: rows of the chunk of which there is no gradient: NaN is stored.
        """
        encoded = (chunk, *encode_chunk(g_BF, loss_B, self._store.shape, left_out))
        if self._error is not None:
            raise self._error
        self._waiting.put(encoded)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._waiting.put(None)
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            if self._error is None:
                try:
                    self._store.write_encoded(*item)
                except BaseException as error:
                    self._error = error


def _inside(folder: Place, name: str) -> Folder:
    return (folder if isinstance(folder, Folder) else Folder(folder)).child(f"{name}.zarr")


def _losses(loss_B: torch.Tensor | np.ndarray) -> np.ndarray:
    """A copy of the losses [B] float32, which the caller may not change afterwards."""
    losses = np.array(loss_B if isinstance(loss_B, np.ndarray) else loss_B.detach().float().cpu().numpy(), np.float32)
    if not np.isfinite(losses).all():
        row = np.argmax(~np.isfinite(losses))
        raise NumericalError(
            f"the loss of row {row} of the chunk is {losses[row]}",
            expected="a finite number",
            fix="check the model and the row, or compute in float32",
        )
    return losses


def _packed(array: np.ndarray | None, dtype: np.dtype[Any], chunk_rows: int) -> bytes:
    """The bytes of a chunk file, as zarr writes them: a last chunk is filled up, and the crc32c stands behind."""
    assert array is not None
    numbers = np.ascontiguousarray(array, dtype)
    rest = np.full((chunk_rows - len(numbers), *numbers.shape[1:]), _fill(dtype), dtype)
    body = numbers.tobytes() + rest.tobytes()
    return b"".join((body, _crc32c(body)))


def _crc32c(data: Any) -> bytes:
    from google_crc32c import value

    return int(value(data)).to_bytes(CHECKSUM, "little")


def _fill(dtype: np.dtype[Any]) -> float | int:
    """What zarr shows where a chunk is missing: NaN, so that nobody takes it for a gradient of zero."""
    return 0 if dtype.kind == "i" else float("nan")


def _documents(shape: Shape) -> dict[str, bytes]:
    """The zarr.json files of a group of this shape, as the zarr package makes them."""
    import zarr
    from zarr.codecs import Crc32cCodec
    from zarr.storage import MemoryStore

    attributes = {
        "format": FORMAT,
        "format_version": VERSION,
        "encoding": "unit directions by row and layer",
        "rows": shape.rows,
        "chunk_rows": shape.chunk_rows,
        "dtype": shape.dtype,
        "layers": [{"name": name, "size": size} for name, size in shape.layers],
    }
    files: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(files), attributes=attributes)
    for name, (dtype, width) in shape.arrays.items():
        columns = (width,) if width else ()
        group.create_array(
            name,
            shape=(shape.rows, *columns),
            chunks=(shape.chunk_rows, *columns),
            dtype=dtype,
            fill_value=_fill(dtype),
            filters=None,
            compressors=[Crc32cCodec()],
            dimension_names=["row", "feature" if name == "features" else "layer"][: 1 + len(columns)],
        )
    return {file: content.to_bytes() for file, content in files.items()}


def _essence(document: Mapping[str, Any]) -> dict[str, Any]:
    """What decides how an array's files are read; the rest of its zarr.json may vary with the writer."""
    codecs = document.get("codecs")
    codecs = codecs if isinstance(codecs, list) else []
    return {
        "shape": document.get("shape"),
        "data_type": document.get("data_type"),
        "chunk_grid": document.get("chunk_grid"),
        "codecs": [codec.get("name") if isinstance(codec, dict) else None for codec in codecs],
    }


_ATTRIBUTES = {
    "rows": whole(1),
    "chunk_rows": whole(1),
    "dtype": among(*get_args(FeatureType)),
    "layers": [{"name": text, "size": whole(1)}],
}


def _shape(folder: Folder) -> Shape:
    """The shape that the attributes of a group describe."""
    if not folder.exists("zarr.json"):
        raise RunError(
            f"{folder} is missing", expected="a store of an index", fix="check the folder and the checkpoint"
        )
    attributes = _metadata(folder, "zarr.json").get("attributes")
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise RunError(f"{folder} holds something else", expected=f"a {FORMAT}", fix="give the folder of an index")
    if attributes.get("format_version") != VERSION:
        raise RunError(
            f"{folder} has format version {attributes.get('format_version')}",
            expected=f"version {VERSION}",
            cause="it was written by another version of headwater",
            fix="install that version, or build the index again",
        )
    said = fault(attributes, _ATTRIBUTES)
    if said:
        raise _damaged(f"{folder}/zarr.json does not describe a shape ({said})", "the attributes of a store")
    layers = tuple((layer["name"], layer["size"]) for layer in attributes["layers"])
    return Shape(attributes["rows"], attributes["chunk_rows"], layers, attributes["dtype"])


def _metadata(folder: Folder, file: str) -> dict[str, Any]:
    try:
        found = json.loads(folder.read_bytes(file).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(f"{folder}/{file} is not JSON ({str(error)[:160]})", "the metadata of a Zarr v3 group") from None
    if not isinstance(found, dict):
        raise _damaged(f"{folder}/{file} is not a JSON object", "the metadata of a Zarr v3 group")
    return found


def _difference(found: Shape, wanted: Shape) -> str:
    parts = [
        f"{name} was {getattr(found, name)}, is now {getattr(wanted, name)}"
        for name in ("rows", "chunk_rows", "dtype")
        if getattr(found, name) != getattr(wanted, name)
    ]
    if found.layers != wanted.layers:
        pairs = zip(found.layers, wanted.layers, strict=False)
        old, new = next((pair for pair in pairs if pair[0] != pair[1]), (len(found.layers), len(wanted.layers)))
        parts.append(f"layers were {old}, are now {new}")
    return "; ".join(parts)


def _damaged(got: str, expected: str) -> RunError:
    return RunError(got, expected=expected, cause="damage", fix="build the index again; what is whole is kept")
