"""Builds a gradient index: the passes over the rows are made once, and every later query is answered from disk.

    for each checkpoint, and the base:        load the model
        for each chunk of rows:               projected gradients of the rows, written as one chunk

The unit of work is a chunk of one checkpoint: a killed build loses at most the chunks in flight, and the bytes of the
result do not depend on when it was killed.

Shapes: C rows of a chunk, F features.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater import progress
from headwater.attribution.compute import Compute
from headwater.attribution.loop import encode_rows
from headwater.attribution.placebo import check_rows
from headwater.attribution.quarantine import DEATHS, Attempts, Child, Quarantine, find_deadly, not_finite
from headwater.checkpoints import BASE, TrainingRun
from headwater.errors import DataError, HeadwaterError, ModelError, RunError, UsageError
from headwater.examples import Encoded, Encoder, Examples, TokenFormat
from headwater.index.folder import Folder
from headwater.index.manifest import MANIFEST, PLACEBO, ROWS, Index, IndexedLayer, Part, part_folder, sizes, write_rows
from headwater.index.store import CheckpointStore, FeatureType, Shape, Writer
from headwater.run import CONFIG, LOCK, refuse_other, remove_partial, run_directory, versions

if TYPE_CHECKING:
    from headwater.attribution.cluster import Cluster
    from headwater.attribution.models import Models, Place
    from headwater.attribution.sharding import Crew

DEFAULT_RANK = 16
"""The smallest rank that loses nothing that matters: benchmarks/results/projection.md."""

MEASURED = "measured.json"
"""Of a part: what was measured on the models before it was begun."""

CHUNK_BYTES, CHUNK_ROWS = 32 << 20, 1024
"""A chunk is at most this large: one read for a query, and what a kill may cost."""


def build_index(
    run: TrainingRun,
    train: Examples,
    *,
    out: str | os.PathLike[str],
    format: TokenFormat | None = None,
    compute: Compute | None = None,
    features: FeatureType = "float16",
    chunk_rows: int | None = None,
    append: bool = False,
    quarantine: bool = False,
    placebo: Examples | None = None,
    ray: str | None = None,
    workers: int | None = None,
    shard: bool = False,
) -> Index:
    """Builds an index of the gradients of every training row at every checkpoint and at the base.

    Args:
        run: base model and checkpoints. train: the rows it was trained on.
        out: a folder, or an fsspec URL such as s3://bucket/index. The same arguments go on where a build stopped.
        format: how training turned rows into tokens.
        compute: layers, precision, device, batch size; its rank is 16 where it says nothing.
        features: type of the stored numbers.
        chunk_rows: rows of a chunk; by default as many as fit in 32 MiB, at most 1,024.
        append: add these rows to a finished index of the same run.
        quarantine: leave out rows whose gradient is not finite, instead of refusing them. Rows that kill the process
            are always left out. `Index.quarantined` lists them.
        placebo: rows like the training rows that were never trained on; every answer from the index then has q-values
            (`headwater.significance`). They are kept apart, in `placebo/`, and may be added to a finished index.
        ray: build on the Ray cluster of this address ("auto", "local", "head:6379"); the result has the same bytes.
        workers: of the cluster; by default one for each GPU, or each CPU where there is none.
        shard: split each model over the processes of a torchrun, each of which calls this and returns the same; the
            result has the same bytes.

    Raises:
        HeadwaterError: one line for anything that the caller can mend.
    """
    format, compute = format or TokenFormat(), compute or Compute()
    if compute.rank is None:
        compute = replace(compute, rank=DEFAULT_RANK)
    if chunk_rows is not None and chunk_rows < 1:
        raise UsageError(f"chunks of {chunk_rows} rows", expected="at least 1", fix="leave it out")
    wanted = _Wanted(
        run=run,
        train=train,
        format=format,
        compute=compute,
        features=features,
        chunk_rows=chunk_rows,
        quarantine=quarantine,
    )
    if shard:
        from headwater.attribution.sharding import shared_out

        if ray is not None:
            raise UsageError("--shard with --ray", expected="one of them", fix="leave --ray out")
        return shared_out(run, compute, lambda crew: _build(wanted, Folder(out), append, placebo, crew=crew))
    return _build(wanted, Folder(out), append, placebo, ray=ray, workers=workers)


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What decides the rows and numbers of a part; see `build_index`."""

    run: TrainingRun
    train: Examples
    format: TokenFormat
    compute: Compute
    features: FeatureType
    chunk_rows: int | None
    quarantine: bool


def _build(
    wanted: _Wanted,
    folder: Folder,
    append: bool,
    placebo: Examples | None,
    *,
    ray: str | None = None,
    workers: int | None = None,
    crew: Crew | None = None,
) -> Index:
    config = _describe(wanted)
    before = _existing(folder, config, append)
    _check_placebo(folder, wanted.train, placebo, append)
    if placebo is not None:  # first: the manifest of the training rows is written last
        beside = replace(wanted, train=placebo)
        _build(beside, folder.child(PLACEBO), False, None, ray=ray, workers=workers, crew=crew)
    if isinstance(before, Index) and not append:
        progress.note(f"{folder} is finished already.")
        return before
    name = f"{len(before.parts) if before else 0:03d}"
    with _part_directory(folder, name, config, new=before is None):
        build = _Build(wanted, folder, name, config, before, crew)
        if ray is None:
            return build.run()
        from headwater.attribution.cluster import connected

        with connected(ray, workers) as cluster:
            return build.run_on(cluster)


def _check_placebo(folder: Folder, train: Examples, placebo: Examples | None, append: bool) -> None:
    """Refuses placebo rows that cannot be used, and new training rows that are placebo rows."""
    if placebo is not None and append:
        raise UsageError(
            "placebo rows with --append",
            expected="placebo rows that are given once, with the first rows",
            fix="leave --placebo out: the rows that are there serve the appended rows too",
        )
    if placebo is None and append:
        found = Index.open(folder).placebo
        placebo = None if found is None else found.examples()
    if placebo is not None:
        check_rows(placebo, train)


def _describe(wanted: _Wanted) -> dict[str, Any]:
    """Everything that decides the content of a part, as JSON values: its config.json."""
    deciding = ("parameters", "dtype", "device", "batch_tokens", "rank", "seed")
    run, train = wanted.run, wanted.train
    config = {
        "checkpoints": [
            {key: value for key, value in asdict(c).items() if value is not None} | {"fingerprint": c.fingerprint()}
            for c in (*run.checkpoints, *([run.base] if run.base else []))
        ],
        "quantization": run.quantization,
        "train": {
            "name": train.name,
            "rows": len(train),
            "fingerprint": train.fingerprint,
            "template": train.template,
        },
        "format": asdict(wanted.format),
        "compute": {key: value for key, value in asdict(wanted.compute).items() if key in deciding},
        "features": wanted.features,
        "chunk_rows": wanted.chunk_rows,
        "versions": versions("zarr"),
    }
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def _existing(folder: Folder, config: Mapping[str, Any], append: bool) -> Index | None:
    """The index that is there, where it fits what is asked for."""
    if not folder.exists(MANIFEST):
        if append:
            raise RunError(
                f"{folder} holds no finished index to append to",
                expected=f"a folder with {MANIFEST}",
                fix="build the index without --append first",
            )
        if folder.is_local and folder.path.is_file():
            raise RunError(f"{folder} is a file", expected="a folder", fix="give another --out")
        others = [name for name in folder.names() if name not in ("parts", PLACEBO, LOCK) and ".partial-" not in name]
        if others:
            raise RunError(
                f"{folder} is not empty and not a headwater index ({others[0]})",
                expected="a new folder, or one of an earlier build",
                fix="give another --out",
            )
        return None
    index = Index.open(folder)
    if not append:
        refuse_other(folder, index.config, config)
        return index
    apart = ("train", "versions", "chunk_rows")
    refuse_other(folder, _without(index.config, apart), _without(config, apart))
    for part in index.parts:
        if part.train["fingerprint"] == config["train"]["fingerprint"]:
            raise RunError(
                f"the rows of {config['train']['name']} are in {folder} already (part {part.name})",
                expected="new rows",
                fix="give the file with the rows to add",
            )
    return index


def _without(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


@contextmanager
def _part_directory(folder: Folder, name: str, config: Mapping[str, Any], *, new: bool) -> Iterator[None]:
    """Keeps a local part to one process; resumes or refuses what is there."""
    part = part_folder(folder, name)
    if part.is_local:
        try:
            with run_directory(part.path, config):
                remove_partial(Path(folder.path), deep=False)  # a manifest that was being written
                yield
        except HeadwaterError:
            if new and not part.path.exists():  # nothing was made: leave nothing behind
                for empty in (part.path.parent, Path(folder.path)):
                    if empty.is_dir() and not any(empty.iterdir()):
                        empty.rmdir()
            raise
        return
    if part.exists(CONFIG):
        refuse_other(part, json.loads(part.read_bytes(CONFIG)), config)
    else:
        part.write_whole(CONFIG, json.dumps(config, indent=1, ensure_ascii=False).encode())
    yield


class _Build:
    def __init__(
        self,
        wanted: _Wanted,
        folder: Folder,
        name: str,
        config: Mapping[str, Any],
        before: Index | None,
        crew: Crew | None,
    ) -> None:
        self._wanted, self._run, self._train, self._compute = wanted, wanted.run, wanted.train, wanted.compute
        self._crew = crew
        self._folder, self._name, self._config, self._before = folder, name, config, before
        self._layers: tuple[IndexedLayer, ...] = ()
        self._shape: Shape | None = None
        self._part = part_folder(folder, name)
        self._quarantine, self._attempts = Quarantine(self._part, self._train, wanted.quarantine), Attempts(self._part)

    def run(self) -> Index:
        """All checkpoints, then the rows, then the manifest."""
        from headwater.attribution.models import Models

        notes: dict[str, Any] = {}
        encoded = self._encoded(notes)
        models = Models(self._run, self._compute, encoded, notes, self._crew)
        self._measure(self._part, models, encoded)
        with progress.bar("Indexing", self._tokens(encoded)) as bar, self._attempts.kept():
            for name in self._order():
                bar.describe(f"Indexing: {name}")
                self._checkpoint(self._part, name, models, encoded, bar)
        return self._finish(encoded)

    def run_on(self, cluster: Cluster) -> Index:
        """The same on a Ray cluster: chunks are made by its workers."""
        from headwater.attribution.cluster import Job, Spread

        encoded, part = self._encoded({}), self._part
        kept = self._kept_measurements()
        job = Job(
            run=self._run,
            compute=self._compute,
            part=part.url,
            fingerprints={one["name"]: one["fingerprint"] for one in self._config["checkpoints"]},
            batch_tokens=kept["batch_tokens"] if kept else self._compute.batch_tokens,
        )
        prepared, first = cluster.prepare(job, *self._samples(encoded, checked=kept is None))
        self._keep_measurements(kept, prepared.batch_tokens, kept["half"] if kept else prepared.half, encoded)
        self._layers = prepared.layers
        todo = {}
        with progress.bar("Indexing", self._tokens(encoded)) as bar:
            for name in self._order():
                store = self._opened(part, name) or CheckpointStore.create(part, name, self._decided_shape())
                done = store.finished(verify=True)
                todo[name] = [chunk for chunk in range(store.shape.chunks) if chunk not in done]
                bar.advance(sum(_tokens(encoded, *store.shape.chunk_range(chunk)) for chunk in done))
            bar.describe(f"Indexing with {cluster.count} workers")
            job = replace(job, batch_tokens=prepared.batch_tokens)
            Spread(cluster, job, self._decided_shape(), encoded, self._quarantine, first).run(todo, bar)
        return self._finish(encoded)

    def _encoded(self, notes: dict[str, Any]) -> list[Encoded]:
        self._check_ids()
        return encode_rows(
            Encoder(self._run.tokenizer(), self._wanted.format, self._train.template), self._train, notes
        )

    def _order(self) -> list[str]:
        """The checkpoints, the last first: it may be loaded already; the base at the end."""
        names = [checkpoint["name"] for checkpoint in self._config["checkpoints"]]
        tuned = [name for name in names if name != BASE]
        return [*reversed(tuned), *names[len(tuned) :]]

    def _tokens(self, encoded: Sequence[Encoded]) -> int:
        """Tokens of all rows at all checkpoints: what the bar counts."""
        return sum(one.length for one in encoded if one.targets) * len(self._config["checkpoints"])

    def _samples(self, encoded: Sequence[Encoded], *, checked: bool) -> tuple[list[Encoded], list[Encoded]]:
        """Rows that decide what is measured: the longest, that with the highest token; and those that half precision
        is checked with."""
        from headwater.attribution.measuring import CHECKED_ROWS, sampled

        rows = [one for one in encoded if one.targets]
        first = [max(rows, key=lambda row: row.length), max(rows, key=lambda row: int(row.input_ids.max()))]
        half = sampled(encoded, CHECKED_ROWS) if checked and self._compute.dtype == "bfloat16" else []
        return first, list(half)

    def _measure(self, part: Folder, models: Models, encoded: Sequence[Encoded]) -> None:
        """The size of a batch, and whether half precision is safe; measured once, for a build that is gone on with
        must round as it began."""
        kept = self._kept_measurements()
        tokens = models.measure(encoded, None if kept is None else kept["batch_tokens"])
        correlation = None if kept is None else kept["half"]
        if self._compute.dtype == "bfloat16" and kept is None:
            correlation = models.check_half(encoded, (), ("dot", "layer_cosine"))
        self._keep_measurements(kept, tokens, correlation, encoded)

    def _kept_measurements(self) -> dict[str, Any] | None:
        return json.loads(self._part.read_bytes(MEASURED)) if self._part.exists(MEASURED) else None

    def _keep_measurements(
        self, kept: Mapping[str, Any] | None, tokens: int, correlation: float | None, encoded: Sequence[Encoded]
    ) -> None:
        from headwater.attribution.loop import half_note

        if self._compute.dtype == "bfloat16":
            sentence = half_note(float("nan") if correlation is None else correlation, encoded)
            progress.note(sentence[0].upper() + sentence[1:] + ".")
        if kept is None and (self._compute.batch_tokens is None or correlation is not None):
            self._part.write_whole(MEASURED, json.dumps({"batch_tokens": tokens, "half": correlation}).encode())

    def _check_ids(self) -> None:
        if self._before is None:
            return
        known = {row.id: row.source for row in self._before.examples()}
        for row in self._train:
            if row.id in known:
                raise DataError(
                    f'id "{row.id}" is in the index already ({known[row.id]})',
                    expected="an id of its own for every row",
                    cause="a file of the same name, whose rows are called by their line",
                    fix="rename the file, or choose a column with --id-column",
                )

    def _checkpoint(
        self, part: Folder, name: str, models: Models, encoded: Sequence[Encoded], bar: progress.Bar
    ) -> None:
        store = self._opened(part, name)
        todo: list[int] | None = None
        if store is not None:
            done = store.finished(verify=True)
            todo = [chunk for chunk in range(store.shape.chunks) if chunk not in done]
            bar.advance(sum(_tokens(encoded, *store.shape.chunk_range(chunk)) for chunk in done))
            if not todo:
                return
        place = models.load(name)
        self._layers = layers_of(place)
        if store is None:
            store = CheckpointStore.create(part, name, self._decided_shape())
            todo = list(range(store.shape.chunks))
        self._chunks(store, name, todo or [], place, models, encoded, bar)
        self._check_unchanged(name)

    def _chunks(
        self,
        store: CheckpointStore,
        name: str,
        todo: Sequence[int],
        place: Place,
        models: Models,
        encoded: Sequence[Encoded],
        bar: progress.Bar,
    ) -> None:
        from headwater.attribution.chunks import ChunkGradients

        left_out = self._quarantine
        gradients = ChunkGradients(place, encoded, models.batch_tokens)
        with Writer(store) as writer, gradients.hooks.attached():
            for chunk in todo:
                start, stop = store.shape.chunk_range(chunk)
                if self._attempts.deaths(name, chunk) >= DEATHS:
                    self._try_apart(name, start, stop, encoded, models.batch_tokens)
                self._attempts.begin(name, chunk)
                g_CF, loss_C = gradients(start, stop, bar, left_out)
                if broken := not_finite(g_CF, loss_C):
                    left_out.broken([start + row for row in broken], stop - start, name)
                writer.put(chunk, g_CF, loss_C, left_out.inside(start, stop))

    def _try_apart(self, name: str, start: int, stop: int, encoded: Sequence[Encoded], batch_tokens: int) -> None:
        """Finds the rows of a chunk that kill a process, in a process of their own."""
        if self._crew is not None:
            raise RunError(
                f"{DEATHS} times a process died in rows {start} to {stop - 1} at {name}",
                expected="rows that every process lives through",
                cause="a row that is too long for the memory, or a machine that fails",
                fix="lower --batch-tokens or --max-length, or take the longest of these rows out",
            )
        rows = [row for row in range(start, stop) if encoded[row].targets and row not in self._quarantine]
        with Child(self._run, self._compute, name, batch_tokens) as child:
            find_deadly(name, rows, lambda some: child.survives([encoded[row] for row in some]), self._quarantine)

    def _check_unchanged(self, name: str) -> None:
        """Raises ModelError where a checkpoint is not what it was when the build began; its chunks are removed."""
        before = next(one["fingerprint"] for one in self._config["checkpoints"] if one["name"] == name)
        checkpoint = self._run.named(name)
        if checkpoint.fingerprint() == before:
            return
        self._part.child(f"{name}.zarr").remove()
        raise ModelError(
            f"{checkpoint.location} has changed since this build began",
            expected="the same weights and tokenizer files from beginning to end",
            cause="a training that still writes there, or a copy",
            fix="put the files back and run this command again (what was made of them is made anew), or build into "
            "another --out",
        )

    def _opened(self, part: Folder, name: str) -> CheckpointStore | None:
        if not part.child(f"{name}.zarr").exists("zarr.json"):
            return None
        store = CheckpointStore.open(part, name)
        self._shape = store.shape
        return store

    def _decided_shape(self) -> Shape:
        """Decided at the first checkpoint, the same for all."""
        if self._shape is None:
            layers = sizes(self._layers)
            row_bytes = Shape(1, 1, layers, self._wanted.features).bytes_per_row
            chunk_rows = self._wanted.chunk_rows or max(1, min(CHUNK_ROWS, CHUNK_BYTES // row_bytes))
            self._shape = Shape(len(self._train), min(chunk_rows, len(self._train)), layers, self._wanted.features)
        return self._shape

    def _finish(self, encoded: Sequence[Encoded]) -> Index:
        """The rows, then the manifest."""
        for name in self._order():
            self._check_unchanged(name)
        if not self._part.exists(ROWS):
            write_rows(self._part, self._train, encoded)
        if self._shape is None:
            raise RuntimeError("no checkpoint was indexed")
        if not self._layers:  # every chunk was there: only the manifest was missing
            self._layers = self._before.layers if self._before else self._layers_of_store()
        first = self._before.rows if self._before else 0
        part = Part(
            name=self._name,
            first=first,
            rows=len(self._train),
            chunk_rows=self._shape.chunk_rows,
            train={**self._config["train"], "kind": self._train.kind},
            quarantined=tuple(self._quarantine.records[row] for row in sorted(self._quarantine.records)),
        )
        index = Index(
            folder=self._folder,
            config=self._before.config if self._before else self._config,
            layers=self._layers,
            features=self._wanted.features,
            parts=(*(self._before.parts if self._before else ()), part),
        )
        index.save()
        return index

    def _layers_of_store(self) -> tuple[IndexedLayer, ...]:
        """Needs a model, to know the shapes before the projection."""
        from headwater.attribution.models import Models

        return layers_of(Models(self._run, self._compute, (), {}, self._crew).load(self._run.last.name))


def layers_of(place: Place) -> tuple[IndexedLayer, ...]:
    """The layers of an index of a loaded model."""
    if place.projection is None:
        raise RuntimeError("an index is made of projected gradients")
    return tuple(IndexedLayer(**asdict(layer)) for layer in place.projection.layers)


def _tokens(encoded: Sequence[Encoded], start: int, stop: int) -> int:
    return sum(one.length for one in encoded[start:stop] if one.targets)
