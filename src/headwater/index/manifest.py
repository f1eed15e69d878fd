"""What an index holds: its parts, its layers, its rows. The folder is described in FORMAT.md.

Shapes: N rows of all parts together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from io import BytesIO
from typing import Any, Self, TypeVar, cast, get_args

import numpy as np

from headwater.errors import RunError
from headwater.examples import Encoded, Example, Examples, Kind, Template
from headwater.index.folder import Folder
from headwater.index.store import CheckpointStore, FeatureType, Place, Shape
from headwater.records import among, fault, maybe, parsed, plain_name, record, text, whole

T = TypeVar("T")

MANIFEST, ROWS, FORMAT = "manifest.json", "rows.parquet", 1
PLACEBO = "placebo"
"""Of an index: an index of rows that were never trained on."""


@dataclass(frozen=True, kw_only=True)
class IndexedLayer:
    """One layer's shape before and after the projection."""

    name: str
    in_features: int
    out_features: int
    rank_in: int
    rank_out: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows that were added together.

    Attributes:
        name: of its folder in parts/. first: number of its first row among all rows.
        train: name, fingerprint and prompt template of the training data. kind: of its rows.
        quarantined: rows that were left out: number in the part, id, source, checkpoint, reason.
    """

    name: str
    first: int
    rows: int
    chunk_rows: int
    train: Mapping[str, Any]
    quarantined: Sequence[Mapping[str, Any]] = ()

    def record(self) -> dict[str, Any]:
        """As JSON values; `quarantined` only where there are some."""
        return {key: value for key, value in asdict(self).items() if key != "quarantined" or value}


@dataclass(frozen=True, kw_only=True)
class Index:
    """A finished index.

    Attributes:
        checkpoints: names; the last one may be "base".
        config: what was asked for when the first part was made: models with fingerprints, token format, gradients.
        layers: in the order of the columns.
        features: type of the stored numbers.
    """

    folder: Folder
    config: Mapping[str, Any]
    layers: tuple[IndexedLayer, ...]
    features: FeatureType
    parts: tuple[Part, ...]

    @classmethod
    def open(cls, place: Place) -> Self:
        """Opens a finished index.

        Raises:
            RunError: there is none, or it was made by another version.
        """
        folder = place if isinstance(place, Folder) else Folder(place)
        if not folder.exists(MANIFEST):
            raise RunError(
                f"{folder} holds no finished index",
                expected=f"a folder with {MANIFEST}",
                cause="the build was interrupted" if folder.exists("parts") else "another folder",
                fix="run the headwater index command again: it goes on where it stopped"
                if folder.exists("parts")
                else "build one with headwater index",
            )
        place = f"{folder}/{MANIFEST}"
        manifest = parsed(folder.read_bytes(MANIFEST), place, {"format": whole(0)}, **_MESSAGE)
        if manifest["format"] != FORMAT:
            raise RunError(
                f"{place}: format {manifest['format']}",
                expected=f"format {FORMAT}",
                cause="an index of another version of headwater",
                fix="build it again",
            )
        said = fault(manifest, _WANTED) or _contradiction(manifest)
        if said:
            raise RunError(f"{place} cannot be read ({said})", cause="damage, or a change by hand", **_EXPECTED)
        return cls(
            folder=folder,
            config=manifest["config"],
            layers=tuple(_made(IndexedLayer, layer) for layer in manifest["layers"]),
            features=manifest["features"],
            parts=tuple(_made(Part, part) for part in manifest["parts"]),
        )

    def save(self) -> None:
        """Writes the manifest: from now on the index exists, with all its parts."""
        record = {
            "format": FORMAT,
            "config": self.config,
            "layers": [asdict(layer) for layer in self.layers],
            "features": self.features,
            "parts": [part.record() for part in self.parts],
        }
        self.folder.write_whole(MANIFEST, json.dumps(record, indent=1, ensure_ascii=False).encode())

    @property
    def checkpoints(self) -> list[str]:
        """Names of the checkpoints, the base included."""
        return [checkpoint["name"] for checkpoint in self.config["checkpoints"]]

    @property
    def rows(self) -> int:
        """N."""
        return sum(part.rows for part in self.parts)

    @property
    def quarantined(self) -> dict[int, Mapping[str, Any]]:
        """Row number among all rows -> what is known of a row that was left out."""
        return {part.first + int(one["row"]): one for part in self.parts for one in part.quarantined}

    @cached_property
    def placebo(self) -> Index | None:
        """The index of the placebo rows, which were never trained on; None where there is none.

        Raises:
            RunError: it is not finished, or not of the same models and gradients.
        """
        folder = self.folder.child(PLACEBO)
        if not folder.exists():
            return None
        found = Index.open(folder)
        same = ("checkpoints", "quantization", "format")
        if found.layers != self.layers or any(found.config[key] != self.config[key] for key in same):
            raise RunError(
                f"{folder} has other models or gradients than {self.folder}",
                expected="placebo rows indexed like the training rows",
                cause="a folder that was copied by hand",
                fix=f"remove {folder} and run the headwater index command with --placebo again",
            )
        return found

    @property
    def columns(self) -> int:
        """F: features of a row at one checkpoint."""
        return sum(layer.rank_in * layer.rank_out for layer in self.layers)

    def shape(self, part: Part) -> Shape:
        return Shape(part.rows, part.chunk_rows, sizes(self.layers), self.features)

    def store(self, part: Part, checkpoint: str) -> CheckpointStore:
        """The gradients of a part at a checkpoint.

        Raises:
            RunError: missing, damaged or of another shape than the manifest says.
        """
        store = CheckpointStore.open(self.part_folder(part.name), checkpoint)
        if store.shape != self.shape(part):
            raise RunError(
                f"{store.folder} has another shape than {MANIFEST} says",
                expected=f"{part.rows} rows of {self.columns} features",
                cause="a part that was replaced by hand",
                fix="build the index again",
            )
        return store

    def part_folder(self, name: str) -> Folder:
        return part_folder(self.folder, name)

    def require_whole(self) -> None:
        """Raises RunError where a file is missing or has another size or form, before anything is computed. Contents
        are compared by `check`."""
        if self.placebo is not None:
            self.placebo.require_whole()
        for part in self.parts:
            _table(self.part_folder(part.name), dict.fromkeys(_TEXTS, "string"), part.rows, values=False)
            for name in self.checkpoints:
                self.store(part, name).require_whole()

    def check(self, advance: Callable[[int], None] | None = None) -> list[str]:
        """Reads everything, the placebo rows too, and compares the checksums; returns what is wrong, a line for each
        file. Calls `advance` with the number of rows of a checkpoint that were read."""
        problems: list[str] = []
        try:
            problems += self.placebo.check(advance) if self.placebo is not None else []
        except RunError as error:
            problems.append(error.got)
        for part in self.parts:
            try:
                count = len(self.examples(range(part.first, part.first + part.rows)))
                if count != part.rows:
                    problems.append(f"{self.part_folder(part.name)}/{ROWS}: {count} of {part.rows} rows")
            except RunError as error:
                problems.append(error.got)
            for name in self.checkpoints:
                try:
                    store = self.store(part, name)
                except RunError as error:
                    problems.append(error.got)
                    continue
                problems += store.check(None if advance is None else partial(_advance, advance, part.chunk_rows))
        return problems

    def bytes(self) -> int:
        """Bytes of all stores, without those of the placebo rows."""
        return sum(self.store(part, name).bytes() for part in self.parts for name in self.checkpoints)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies rows, models and projection."""
        from headwater.run import digest

        return digest(self.folder.read_bytes(MANIFEST))

    def examples(self, rows: Iterable[int] | None = None) -> Examples:
        """The training rows, or those of the given numbers, in order.

        Raises:
            RunError: rows.parquet is missing or damaged.
        """
        wanted = None if rows is None else np.unique(np.fromiter(rows, np.int64))
        found: list[Example] = []
        for part in self.parts:
            chosen = None
            if wanted is not None:
                chosen = wanted[(wanted >= part.first) & (wanted < part.first + part.rows)] - part.first
                if not len(chosen):
                    continue
            found += _read_rows(self.part_folder(part.name), part.rows, chosen)
        first = self.parts[0].train
        return Examples(found, name=first["name"], template=first["template"])

    def lengths(self) -> tuple[float, ...]:
        """Tokens of short, middling and long rows of the first part."""
        part = self.parts[0]
        table = _table(self.part_folder(part.name), {"tokens": "int32"}, part.rows)
        return tuple(float(x) for x in np.quantile(table.column("tokens").to_numpy(), [0.1, 0.5, 0.9]))


_EXPECTED = {"expected": "the manifest of a headwater index", "fix": "build the index again"}
_MESSAGE = {"what": _EXPECTED["expected"], "fix": _EXPECTED["fix"]}
_WANTED = {
    "config": {
        "checkpoints": [{"name": plain_name, "location": text, "kind": among("full", "adapter"), "fingerprint": text}],
        "quantization": maybe(among("4bit", "8bit")),
        "format": record,
        "compute": {"rank": whole(1), "seed": whole(0), "parameters": [text]},
    },
    "layers": [
        {
            "name": text,
            "in_features": whole(1),
            "out_features": whole(1),
            "rank_in": whole(1),
            "rank_out": whole(1),
        }
    ],
    "features": among(*get_args(FeatureType)),
    "parts": [
        {
            "name": plain_name,
            "first": whole(0),
            "rows": whole(1),
            "chunk_rows": whole(1),
            "train": {"name": text, "fingerprint": text, "template": among(*get_args(Template))},
        }
    ],
}
"""Of a manifest: names become folders, numbers sizes."""


def _contradiction(manifest: Mapping[str, Any]) -> str | None:
    """What in a manifest does not fit together."""
    names = [checkpoint["name"] for checkpoint in manifest["config"]["checkpoints"]]
    for what, found in (
        ("checkpoints", names),
        ("layers", [layer["name"] for layer in manifest["layers"]]),
        ("parts", [part["name"] for part in manifest["parts"]]),
    ):
        if not found or len(set(found)) < len(found):
            return f"{what}: {'none' if not found else 'a name twice'}"
    first = 0
    for part in manifest["parts"]:
        if part["first"] != first:
            return f"the part {part['name']} begins at row {part['first']}, not {first}"
        first += part["rows"]
    return None


def _made(kind: type[T], found: Mapping[str, Any]) -> T:
    """An object of the keys that it has; a newer headwater may write more."""
    known = {field.name for field in fields(cast(Any, kind))}
    return kind(**{key: value for key, value in found.items() if key in known})


def _advance(advance: Callable[[int], None], chunk_rows: int, chunks: int) -> None:
    advance(chunks * chunk_rows)


def sizes(layers: Sequence[IndexedLayer]) -> tuple[tuple[str, int], ...]:
    """Name and number of features of each layer."""
    return tuple((layer.name, layer.rank_in * layer.rank_out) for layer in layers)


def part_folder(folder: Folder, name: str) -> Folder:
    return folder.child("parts").child(name)


def write_rows(folder: Folder, train: Examples, encoded: Sequence[Encoded]) -> None:
    """Writes rows.parquet: what each row is, and how many tokens it has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    columns: dict[str, Any] = {
        "row": np.arange(len(train), dtype=np.int64),
        "tokens": np.array([one.length for one in encoded], np.int32),
        "targets": np.array([one.targets for one in encoded], np.int32),
    }
    for name in ("id", "source", "content_hash", "kind"):
        columns[name] = [getattr(row, name) for row in train]
    for name in ("prompt", "completion", "metadata"):
        columns[name] = [json.dumps(_plain(getattr(row, name)), ensure_ascii=False, default=str) for row in train]
    pq.write_table(pa.table(columns), sink, row_group_size=16384)
    folder.write_whole(ROWS, sink.getvalue().to_pybytes())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


_TEXTS = ("id", "source", "content_hash", "kind", "prompt", "completion", "metadata")


def _table(folder: Folder, wanted: Mapping[str, str], count: int, *, values: bool = True) -> Any:
    """Columns of rows.parquet.

    Args:
        wanted: name -> type of its values, of which none may be null. count: of the rows.
        values: read them; otherwise names and types alone are looked at.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = folder.read_bytes(ROWS)
    try:
        with pq.ParquetFile(BytesIO(data)) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            for name, kind in wanted.items():
                if schema.names.count(name) != 1 or str(schema.field(name).type) != kind:
                    raise _damaged_rows(folder, f"no column {name} of type {kind}")
            if rows != count:
                raise _damaged_rows(folder, f"{rows} rows, not {count} as in {MANIFEST}")
            table = file.read(list(wanted)) if values else schema.empty_table()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged_rows(folder, (str(error).splitlines() or [""])[0][:100]) from None
    for name in wanted:
        if table.column(name).null_count:
            raise _damaged_rows(folder, f"nulls in column {name}")
    return table.select(list(wanted))


def _damaged_rows(folder: Folder, why: str) -> RunError:
    return RunError(
        f"{folder}/{ROWS} cannot be read ({why})", expected="the rows of the index", fix="build this index again"
    )


def _read_rows(folder: Folder, count: int, rows: np.ndarray | None) -> list[Example]:
    table = _table(folder, dict.fromkeys(_TEXTS, "string"), count)
    if rows is not None:
        table = table.take(rows)
    try:
        return [_row(found) for found in table.to_pylist()]
    except (ValueError, RecursionError) as error:
        raise _damaged_rows(folder, str(error)[:160]) from None


def _row(found: Mapping[str, Any]) -> Example:
    metadata = json.loads(found["metadata"])
    if not isinstance(metadata, dict) or found["kind"] not in get_args(Kind):
        raise ValueError(f"the row {found['id']}: kind {found['kind']}, metadata of {type(metadata).__name__}")
    return Example(
        id=found["id"],
        source=found["source"],
        content_hash=found["content_hash"],
        kind=found["kind"],
        prompt=_content(found, "prompt"),
        completion=_content(found, "completion"),
        metadata=metadata,
    )


def _content(found: Mapping[str, Any], name: str) -> Any:
    """A prompt or completion: text, or the turns of a conversation."""
    value = json.loads(found[name])
    if isinstance(value, str):
        return value
    said = fault(value, [{"role": text}])
    if said:
        raise ValueError(f"the {name} of the row {found['id']}: {said}")
    return tuple(value)
