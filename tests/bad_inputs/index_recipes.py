"""Index folders that are damaged, tampered with or of another version."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from checkpoints_recipes import JSONS, linked
from spoiling import Case, Change, Folder, Link, cut, flipped, numbered, trace, with_value, without

PART = "index/parts/000"
STORE = f"{PART}/base.zarr"

MANIFESTS: dict[str, Change] = {
    **{f"no {key}": without(key) for key in ("format", "config", "layers", "features", "parts")},
    **{f"{key} null": with_value(key, None) for key in ("format", "config", "layers", "features", "parts")},
    **{f"{key} a number": with_value(key, 7) for key in ("format", "config", "layers", "features", "parts")},
    **{f"{key} text": with_value(key, "x") for key in ("format", "config", "layers", "features", "parts")},
    "another version": with_value("format", 2),
    "no layers": with_value("layers", []),
    "no parts": with_value("parts", []),
    "an unknown type": with_value("features", "float8"),
    "another type": with_value("features", "float32"),
    **{
        f"a layer without {key}": without(f"layers.0.{key}")
        for key in ("name", "in_features", "out_features", "rank_in", "rank_out")
    },
    "a layer of text": with_value("layers.0", "q_proj"),
    "a rank of text": with_value("layers.0.rank_in", "two"),
    "a rank of 0": with_value("layers.0.rank_in", 0),
    "a rank negative": with_value("layers.0.rank_out", -2),
    "a rank huge": with_value("layers.0.rank_out", 10**30),
    "a layer twice": with_value("layers.1.name", "model.layers.0.self_attn.q_proj"),
    "a name that is a number": with_value("layers.0.name", 3),
    **{f"a part without {key}": without(f"parts.0.{key}") for key in ("name", "first", "rows", "chunk_rows", "train")},
    "a part outside": with_value("parts.0.name", "../../elsewhere"),
    "a part of the system": with_value("parts.0.name", "/etc"),
    "a part of no name": with_value("parts.0.name", ""),
    "a part of a number": with_value("parts.0.name", 0),
    "a part that is not there": with_value("parts.0.name", "007"),
    "rows text": with_value("parts.0.rows", "twelve"),
    "rows null": with_value("parts.0.rows", None),
    "rows 0": with_value("parts.0.rows", 0),
    "rows negative": with_value("parts.0.rows", -12),
    "rows fewer": with_value("parts.0.rows", 11),
    "rows more": with_value("parts.0.rows", 10**12),
    "rows a fraction": with_value("parts.0.rows", 12.5),
    "first text": with_value("parts.0.first", "0"),
    "first later": with_value("parts.0.first", 5),
    "chunks of 0": with_value("parts.0.chunk_rows", 0),
    "chunks of others": with_value("parts.0.chunk_rows", 6),
    "training data of nothing": with_value("parts.0.train", {}),
    "training data of text": with_value("parts.0.train", "train.jsonl"),
    "an unknown template": with_value("parts.0.train.template", "magic"),
    "no checkpoints": without("config.checkpoints"),
    "checkpoints of text": with_value("config.checkpoints", "run"),
    "checkpoints of nothing": with_value("config.checkpoints", []),
    "a checkpoint of text": with_value("config.checkpoints.0", "run"),
    "a checkpoint without a name": without("config.checkpoints.0.name"),
    "a checkpoint without a place": without("config.checkpoints.0.location"),
    "a checkpoint without a fingerprint": without("config.checkpoints.0.fingerprint"),
    "a checkpoint of another kind": with_value("config.checkpoints.0.kind", "magic"),
    "a checkpoint with more": with_value("config.checkpoints.0.magic", 1),
    "a checkpoint outside": with_value("config.checkpoints.0.name", "../../../elsewhere"),
    "a checkpoint elsewhere": with_value("config.checkpoints.0.location", "/nowhere/checkpoint-3"),
    "a checkpoint in a list": with_value("config.checkpoints.0.location", ["a"]),
    "another fingerprint": with_value("config.checkpoints.0.fingerprint", "0" * 16),
    "no compute": without("config.compute"),
    "compute of text": with_value("config.compute", "cpu"),
    "compute without a rank": without("config.compute.rank"),
    "compute with more": with_value("config.compute.magic", 1),
    "a compute rank of text": with_value("config.compute.rank", "two"),
    "a compute rank of nothing": with_value("config.compute.rank", None),
    "a compute seed of text": with_value("config.compute.seed", "zero"),
    "parameters of a number": with_value("config.compute.parameters", 3),
    "an unknown precision": with_value("config.compute.dtype", "float8"),
    "no format of tokens": without("config.format"),
    "format of tokens with more": with_value("config.format.magic", 1),
    "a length of text": with_value("config.format.max_length", "long"),
    "an unknown loss": with_value("config.format.loss_on", "magic"),
    "quantized by magic": with_value("config.quantization", "1bit"),
    "no quantization": without("config.quantization"),
}

GROUPS: dict[str, Change] = {
    "no attributes": without("attributes"),
    "attributes of a list": with_value("attributes", [1]),
    "attributes null": with_value("attributes", None),
    "something else": with_value("attributes.format", "my own"),
    "another version": with_value("attributes.format_version", 9),
    **{f"no {key}": without(f"attributes.{key}") for key in ("format", "format_version", "rows", "chunk_rows", "dtype", "layers")},
    "rows text": with_value("attributes.rows", "many"),
    "rows 0": with_value("attributes.rows", 0),
    "rows negative": with_value("attributes.rows", -1),
    "rows fewer": with_value("attributes.rows", 11),
    "rows infinite": with_value("attributes.rows", float("inf")),
    "rows null": with_value("attributes.rows", None),
    "chunks of 0": with_value("attributes.chunk_rows", 0),
    "chunks of text": with_value("attributes.chunk_rows", "x"),
    "chunks of others": with_value("attributes.chunk_rows", 3),
    "an unknown type": with_value("attributes.dtype", "float8"),
    "a type of a list": with_value("attributes.dtype", ["float16"]),
    "another type": with_value("attributes.dtype", "int8"),
    "layers text": with_value("attributes.layers", "q"),
    "layers of nothing": with_value("attributes.layers", []),
    "layers of text": with_value("attributes.layers.0", "q"),
    "a layer of 0": with_value("attributes.layers.0.size", 0),
    "a layer of another size": with_value("attributes.layers.0.size", 5),
    "a layer of text size": with_value("attributes.layers.0.size", "x"),
    "a layer without a size": without("attributes.layers.0.size"),
    "a layer twice": lambda old: _twice(old),
}  # fmt: skip

ARRAYS: dict[str, Change] = {
    "missing": None,
    "no shape": without("shape"),
    "another shape": with_value("shape", [3]),
    "another type": with_value("data_type", "float64"),
    "other chunks": with_value("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [1]}}),
    "no chunks": without("chunk_grid"),
    "other codecs": with_value("codecs", [{"name": "bytes"}, {"name": "gzip"}]),
    "codecs of text": with_value("codecs", "gzip"),
    "codecs of names": with_value("codecs", ["bytes", "crc32c"]),
    "codecs null": with_value("codecs", None),
}


def _twice(old: bytes) -> bytes:
    found = json.loads(old)
    found["attributes"]["layers"][1]["name"] = found["attributes"]["layers"][0]["name"]
    return json.dumps(found).encode()


def asked(name: str, *more: str, **given: Any) -> Case:
    """A trace from an index."""
    return trace(
        f"index/{name}", "--index", "{here}/index", *more, without=("--base", "--checkpoints", "--train"), **given
    )


def checked(name: str, **given: Any) -> Case:
    arguments = ("index", "check", "{here}/index", "--quiet")
    return Case(name=f"index/check: {name}", arguments=arguments, copies=("index",), **given)


def manifests() -> Iterator[Case]:
    for name, change in {**JSONS, **MANIFESTS}.items():
        changes = {"index/manifest.json": linked(change, "manifest.json")}
        yield asked(f"manifest: {name}", copies=("index",), changes=changes)
    for name in ("cut", "a list", "no parts", "a part outside", "a checkpoint outside", "rows more", "parts null"):
        changes = {"index/manifest.json": {**JSONS, **MANIFESTS}[name]}
        yield Case(
            name=f"index/append: manifest, {name}",
            arguments=(
                "index", "--base", "{base}", "--checkpoints", "{run}", "--train", "{held}", "--rank", "2",
                "--append", "--out", "{here}/index", "--quiet",
            ),
            copies=("index",),
            changes=changes,
        )  # fmt: skip


def stores() -> Iterator[Case]:
    for name, change in {**JSONS, **GROUPS}.items():
        changes = {f"{STORE}/zarr.json": linked(change, "zarr.json")}
        yield asked(f"zarr.json of a checkpoint: {name}", "--beta", "0.5", copies=("index",), changes=changes)
    for array in ("norm", "features", "loss"):
        for name, change in {**{k: v for k, v in JSONS.items() if k in ("cut", "a list", "utf-16")}, **ARRAYS}.items():
            changes = {f"{STORE}/{array}/zarr.json": change}
            yield asked(f"zarr.json of {array}: {name}", "--beta", "0.5", copies=("index",), changes=changes)
    for file in ("norm/c/1/0", "features/c/1/0", "loss/c/1"):
        array = file.split("/", 1)[0]
        for name, change in {
            "missing": None,
            "empty": b"",
            "cut": cut(0.5),
            "longer": lambda old: old + b"\0",
            "a folder": Folder(),
            "a link to nothing": Link("none"),
            "not to be read": Link("/proc/self/mem"),
            **({} if array != "norm" else {"flipped": flipped(0.3), "zeros": lambda old: b"\0" * len(old)}),
        }.items():
            yield asked(
                f"chunk of {array}: {name}", "--beta", "0.5", copies=("index",), changes={f"{STORE}/{file}": change}
            )
    yield asked("a checkpoint missing", "--beta", "0.5", copies=("index",), changes={STORE: None, f"{STORE}/x": b""})
    yield asked("a part missing", copies=("index",), changes={PART: None})


def table(old: bytes, **changed: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = pq.read_table(io.BytesIO(old)).to_pydict()
    columns = {name: value for name, value in (columns | changed).items() if value is not None}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def rows() -> Iterator[Case]:
    names = ("id", "source", "content_hash", "kind", "prompt", "completion", "metadata", "tokens")
    for name, change in {
        "missing": None,
        "empty": b"",
        "cut": cut(0.5),
        "text": "text",
        "flipped at the end": flipped(0.999),
        "a folder": Folder(),
        "not to be read": Link("/proc/self/mem"),
        **{f"no {one}": (lambda old, one=one: table(old, **{one: None})) for one in names if one != "tokens"},
        **{f"{one} numbers": (lambda old, one=one: table(old, **{one: [1.5] * 12})) for one in names if one != "tokens"},
        **{f"{one} nulls": (lambda old, one=one: table(old, **{one: [None] * 11 + ["x"]})) for one in names if one != "tokens"},
        **{
            f"{one} not JSON": (lambda old, one=one: table(old, **{one: ["{"] * 12}))
            for one in ("prompt", "completion", "metadata")
        },
        "an unknown kind": lambda old: table(old, kind=["magic"] * 12),
        "kinds mixed": lambda old: table(old, kind=["text", "completion"] * 6),
        "ids twice": lambda old: table(old, id=["x"] * 12),
        "prompts of numbers": lambda old: table(old, prompt=["3"] * 12),
        "metadata of a list": lambda old: table(old, metadata=["[]"] * 12),
    }.items():  # fmt: skip
        yield asked(f"rows: {name}", copies=("index",), changes={f"{PART}/rows.parquet": change})


def places() -> Iterator[Case]:
    spare = ("--base", "--checkpoints", "--train")
    for name, where in {
        "nothing there": "{here}/none",
        "an empty path": "",
        "a name too long": "{here}/" + "a" * 300,
        "a file": "{train}",
        "a model": "{base}",
        "a trace": "{traced}",
        "a part": "{index}/parts/000",
        "an unknown protocol": "magic://bucket/index",
        "a protocol without an address": "memory://",
        "a file URL of nothing": "file:///nowhere/index",
    }.items():
        yield trace(f"index/place: {name}", "--index", where, without=spare)
        yield Case(name=f"index/check, place: {name}", arguments=("index", "check", where))
    for name, out in {
        "no out": None,
        "a file": "{train}",
        "something else": "{base}",
        "a trace": "{traced}",
        "below a file": "{train}/index",
        "a name too long": "{here}/" + "a" * 300,
        "a system folder": "/proc/index",
        "an unknown protocol": "magic://bucket/index",
    }.items():
        more = () if out is None else ("--out", out)
        build = ("index", "--base", "{base}", "--checkpoints", "{run}", "--train", "{train}", "--quiet")
        yield Case(name=f"index/build, out: {name}", arguments=(*build, *more))
        if out is not None:
            yield Case(name=f"index/append, out: {name}", arguments=(*build, "--append", *more))
    for name, more in {
        "another rank": ("--rank", "3"),
        "another type": ("--features", "int8"),
        "other chunks": ("--chunk-rows", "4"),
        "other rows": ("--train", "{held}"),
        "another length": ("--max-length", "99"),
        "no end of sequence": ("--no-eos",),
        "another precision": ("--dtype", "float64"),
        "other layers": ("--parameters", "q_proj"),
        "the same rows again": ("--append",),
        "append of another rank": ("--append", "--train", "{held}", "--rank", "3"),
        "append of another type": ("--append", "--train", "{held}", "--features", "int8"),
        "append without rows": ("--append", "--train", "{here}/none.jsonl"),
    }.items():
        given = {"--train": "{train}", "--rank": "2", "--chunk-rows": "5"}
        kept = [part for key, value in given.items() if key not in more for part in (key, value)]
        yield Case(
            name=f"index/build again: {name}",
            arguments=(
                "index",
                "--base",
                "{base}",
                "--checkpoints",
                "{run}",
                *kept,
                *more,
                "--out",
                "{index}",
                "--quiet",
            ),
        )
    for name, change in {
        "cut": cut(0.5),
        "a list": "[]",
        "null": "null",
        "text": "x",
        "empty": b"",
        "utf-16": JSONS["utf-16"],
    }.items():
        yield Case(
            name=f"index/build again, config.json: {name}",
            arguments=(
                "index", "--base", "{base}", "--checkpoints", "{run}", "--train", "{train}", "--rank", "2",
                "--chunk-rows", "5", "--out", "{here}/index", "--quiet",
            ),
            copies=("index",),
            changes={"index/manifest.json": None, f"{PART}/config.json": change},
        )  # fmt: skip


LOADED = (
    r"chunk of \w+: (flipped|zeros|not to be read)|rows: \w+ (nulls|not JSON)|rows: (an unknown kind|kinds mixed"
    r"|ids twice|prompts of numbers|metadata of a list|flipped)|a rank huge"
)
"""Mistakes that only the loaded model, or the work itself, shows."""


def cases() -> list[Case]:
    def all_of() -> Iterator[Case]:
        for some in (manifests, stores, rows, places):
            yield from some()

    return numbered(all_of(), LOADED)
