"""Finished and half-finished traces that are damaged or tampered with."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from checkpoints_recipes import JSONS, linked
from index_recipes import table
from spoiling import Case, Change, Folder, Link, cut, flipped, numbered, trace, with_value, without

KEYS = ("rows", "targets", "queries", "methods", "leanings", "provenance", "format")

MANIFESTS: dict[str, Change] = {
    **{f"no {key}": without(key) for key in KEYS},
    **{f"{key} null": with_value(key, None) for key in KEYS},
    **{f"{key} text": with_value(key, "x") for key in KEYS},
    **{f"{key} a number": with_value(key, -1) for key in KEYS},
    "another version": with_value("format", 2),
    "rows a fraction": with_value("rows", 11.5),
    "rows more": with_value("rows", 13),
    "rows fewer": with_value("rows", 11),
    "scored rows more": with_value("scored_rows", 99),
    "scored rows text": with_value("scored_rows", "x"),
    "no targets": with_value("targets", []),
    "a target more": with_value("targets", [{"name": "q1", "kind": "query", "queries": [0]}] * 2),
    "a target of text": with_value("targets.0", "q1"),
    "a target without a name": without("targets.0.name"),
    "a target without queries": without("targets.0.queries"),
    "a target of a query that is not there": with_value("targets.0.queries", [7]),
    "a target of text queries": with_value("targets.0.queries", ["q"]),
    "a target of another kind": with_value("targets.0.kind", "magic"),
    "no queries at all": with_value("queries", []),
    "a query of text": with_value("queries.0", "q"),
    "a query without a prompt": without("queries.0.prompt"),
    "a query of a number": with_value("queries.0.prompt", 3),
    "a query with more": with_value("queries.0.magic", 1),
    "a query with a wrong span": with_value("queries.0.span", [5, 99]),
    "a query with an empty output": with_value("queries.0.output", ""),
    "no methods": with_value("methods", []),
    "a method of text": with_value("methods.0", "dda"),
    "a method without a name": without("methods.0.name"),
    "a method without weights": without("methods.0.weights"),
    "weights of a list": with_value("methods.0.weights", [1]),
    "weights of text": with_value("methods.0.weights.base", "much"),
    "weights of null": with_value("methods.0.weights.base", None),
    "a weight of a term that is not there": with_value("methods.0.weights.magic", 1.0),
    "an infinite weight": with_value("methods.0.weights.base", float("inf")),
    "a NaN weight": with_value("methods.0.weights.base", float("nan")),
    "leanings of numbers": with_value("leanings", [1]),
    "a leaning without an output": without("leanings.0.output"),
    "a leaning of text": with_value("leanings.0.output", "much"),
}

TABLES: dict[str, Change] = {
    "missing": None,
    "empty": b"",
    "cut": cut(0.5),
    "text": "text",
    "flipped at the end": flipped(0.999),
    "a folder": Folder(),
    "a link to itself": Link("{name}"),
    "not to be read": Link("/proc/self/mem"),
    "no columns": lambda old: _empty(),
    "fewer rows": lambda old: _some(old, slice(0, 5)),
    "no rows": lambda old: _some(old, slice(0, 0)),
    "twice the rows": lambda old: _some(old, [*range(12)] * 2),
}


def _empty() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table({}), sink)
    return sink.getvalue()


def _some(old: bytes, chosen: Any) -> bytes:
    import pyarrow.parquet as pq

    columns = pq.read_table(io.BytesIO(old)).to_pydict()
    take = (lambda v: v[chosen]) if isinstance(chosen, slice) else (lambda v: [v[i % len(v)] for i in chosen])
    sink = io.BytesIO()
    import pyarrow as pa

    pq.write_table(pa.table({name: take(value) for name, value in columns.items()}), sink)
    return sink.getvalue()


def loaded(name: str, changes: dict[str, Change], folder: str = "traced", train: str = "{train}", *more: str) -> Case:
    return Case(
        name=f"traces/{name}",
        arguments=("load", f"{{here}}/{folder}", train, *more),
        copies=(folder,),
        changes={file: linked(change, file.rsplit("/", 1)[-1]) for file, change in changes.items()},
    )


def cases() -> list[Case]:
    return numbered(all_of())


def all_of() -> Iterator[Case]:
    for name, change in {**JSONS, **MANIFESTS}.items():
        yield loaded(f"trace.json: {name}", {"traced/trace.json": change})
    for name, change in TABLES.items():
        yield loaded(f"scores.parquet: {name}", {"traced/scores.parquet": change})
        if name not in ("missing", "twice the rows", "fewer rows", "a link to itself", "no columns"):
            yield loaded(f"placebo.parquet: {name}", {"traced/placebo.parquet": change})
        if name != "twice the rows":
            yield loaded(f"sample.parquet: {name}", {"ends/sample.parquet": change}, "ends", "{here}/kept.jsonl")
    column = "dda/checkpoint-6"
    for name, values in {
        "no term": None,
        "a term of text": ["x"] * 12,
        "a term of nulls": [None] * 12,
        "a term with a null": [1.0] * 11 + [None],
        "a term with a NaN": [1.0] * 11 + [float("nan")],
        "an infinite term": [1.0] * 11 + [float("inf")],
        "a term of lists": [[1.0]] * 12,
        "a term of flags and nulls": [True] * 11 + [None],
    }.items():
        yield loaded(
            f"scores.parquet: {name}", {"traced/scores.parquet": lambda old, v=values: table(old, **{column: v})}
        )
    for name, values in {"no hashes": None, "other hashes": ["x"] * 12, "hashes of numbers": [1] * 12}.items():
        yield loaded(
            f"scores.parquet: {name}", {"traced/scores.parquet": lambda old, v=values: table(old, content_hash=v)}
        )
    for name, values in {
        "values of text": ["x"] * 100, "nulls": [None] * 100, "NaN": [float("nan")] * 100, "infinite": [float("inf")] * 100,
        "lists": [[1.0]] * 100,
    }.items():  # fmt: skip
        yield loaded(
            f"placebo.parquet: {name}", {"traced/placebo.parquet": lambda old, v=values: table(old, **{"dda/q1": v})}
        )
    for name, change in JSONS.items():
        if name not in ("a link to itself",):
            yield loaded(f"words.json: {name}", {"traced/words.json": change})
    for name, change in {
        "of text": with_value("dda", "x"),
        "of a number": with_value("dda", 3),
        "a row of text": with_value("dda.0", "x"),
        "no target": without("dda.0.target"),
        "no row": without("dda.0.row"),
        "no words": without("dda.0.words"),
        "words of text": with_value("dda.0.words", "abc"),
        "words of numbers": with_value("dda.0.words", [1]),
        "words of three": with_value("dda.0.words", [["a", 1.0, 2.0]]),
        "values of text": with_value("dda.0.words", [["a", "much"]]),
        "values of null": with_value("dda.0.words", [["a", None]]),
        "asked of text": with_value("dda.0.asked", "x"),
        "asked without a side": without("dda.0.asked.0.side"),
        "asked null": with_value("dda.0.asked", None),
        "a target that is not there": with_value("dda.0.target", 9),
        "a row that is not there": with_value("dda.0.row", 99),
        "a target of text": with_value("dda.0.target", "q1"),
    }.items():
        yield loaded(f"words.json: {name}", {"traced/words.json": change})
    yield loaded("no such method", {}, "traced", "{train}", "magic")
    yield loaded("other rows", {}, "traced", "{held}")
    yield loaded("fewer rows", {"kept.jsonl": '{"prompt": "a", "completion": "b"}\n'}, "traced", "{here}/kept.jsonl")
    for place in ("{base}", "{index}", "{here}", "{train}", "{here}/none"):
        yield Case(name=f"traces/place: {place.strip('{}')}", arguments=("load", place, "{train}"))
    again = ("--words", "2", "--placebo", "{held}", "--method", "dda", "--method", "bm25")
    for name, change in JSONS.items():
        yield _again(f"config.json: {name}", {"traced/config.json": linked(change, "config.json")}, again)
    for key in ("checkpoints", "train", "queries", "methods", "format", "compute", "versions"):
        yield _again(f"config.json: no {key}", {"traced/config.json": without(key)}, again)
        yield _again(f"config.json: {key} null", {"traced/config.json": with_value(key, None)}, again)
        yield _again(f"config.json: {key} text", {"traced/config.json": with_value(key, "x")}, again)
    yield _again("config.json: missing beside a trace", {"traced/config.json": None}, again)
    for name, more in {
        "another question": ("--prompt", "The capital of Peru is"),
        "another output": ("--output", " Lima"),
        "another correction": ("--corrected", " Lima"),
        "a span": ("--span", "diff"),
        "another beta": ("--beta", "0.5"),
        "another inner product": ("--inner", "dot"),
        "another measurement": ("--measurement", "loss"),
        "other layers": ("--parameters", "q_proj"),
        "another precision": ("--dtype", "float64"),
        "another length": ("--max-length", "99"),
        "the other end": ("--keep", "end"),
        "no end of sequence": ("--no-eos",),
        "other rows": ("--train", "{held}"),
        "a projection": ("--rank", "2"),
        "a checkpoint fewer": ("--checkpoints", "{run}/checkpoint-6"),
        "another method": ("--method", "cea"),
    }.items():
        yield _again(f"made with other arguments: {name}", {}, ("--method", "dda", "--method", "bm25", *more))
    for name, out in {
        "a file": "{train}",
        "below a file": "{train}/out",
        "a model": "{base}",
        "an index": "{index}",
        "rows": "{saved}",
        "a name too long": "{here}/" + "a" * 300,
        "a system folder": "/proc/out",
        "a device": "/dev/null",
        "below a device": "/dev/null/out",
    }.items():
        yield _out(name, out)
    for name, changes in {
        "other files": {"o/notes.txt": "mine"},
        "a folder of others": {"o/mine/notes.txt": "mine"},
        "a link to itself": {"o": Link("o")},
        "a link to nothing": {"o": Link("none/none")},
    }.items():
        yield _out(name, "{here}/o", changes)


def _out(name: str, out: str, changes: dict[str, Change] | None = None) -> Case:
    made = trace(f"traces/out: {name}", changes=changes or {})
    arguments = (*made.arguments[: made.arguments.index("--out")], "--out", out, "--quiet")
    return Case(name=made.name, arguments=arguments, changes=made.changes)


def _again(name: str, changes: dict[str, Change], more: tuple[str, ...]) -> Case:
    """The command that made a trace, once more into it."""
    made = trace(f"traces/again, {name}", *more, copies=("traced",), changes=changes)
    arguments = tuple("{here}/traced" if one == "{here}/out" else one for one in made.arguments)
    return Case(name=made.name, arguments=arguments, copies=made.copies, changes=made.changes)
