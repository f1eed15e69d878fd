"""A whole index made by hand: what is written comes back, rows by number, and what is wrong is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headwater as hw
from headwater.errors import RunError
from headwater.examples import Encoded
from headwater.index.folder import Folder
from headwater.index.manifest import Index, IndexedLayer, Part, part_folder, write_rows
from headwater.index.store import CheckpointStore

LAYERS = (
    IndexedLayer(name="up", in_features=9, out_features=8, rank_in=3, rank_out=2),
    IndexedLayer(name="down", in_features=8, out_features=9, rank_in=2, rank_out=2),
)
CONFIG = {
    "checkpoints": [
        {"name": "last", "location": "/run/last", "kind": "full", "fingerprint": "1"},
        {"name": "base", "location": "/base", "kind": "full", "fingerprint": "2"},
    ],
    "quantization": None,
    "format": {},
    "compute": {"rank": 3, "seed": 0, "parameters": []},
}
CAUSE = "(likely cause: damage, or a change by hand)"


def examples(first: int, count: int, *, talks: bool = False) -> hw.Examples:
    rows: list[Any] = [
        {"prompt": f"Frage {n}?", "completion": f" Zürich {n}", "id": f"r{n}", "source": "ä", "year": 2000 + n}
        for n in range(first, first + count)
    ]
    if talks:
        turns = [{"role": "user", "content": "Wo?"}, {"role": "assistant", "content": "Dort."}]
        rows = [{"messages": turns, "id": row["id"], "year": row["year"]} for row in rows]
    return hw.Examples.from_rows(rows, name=f"rows-{first}")


def made(folder: Path, *, placebo: bool = False, talks: bool = False) -> Index:
    index = Index(
        folder=Folder(folder),
        config=CONFIG,
        layers=LAYERS,
        features="float16",
        parts=tuple(
            Part(
                name=name,
                first=first,
                rows=count,
                chunk_rows=2,
                train={"name": f"rows-{first}", "fingerprint": "f", "template": "plain"},
                quarantined=quarantined,
            )
            for name, first, count, quarantined in (
                ("000", 0, 5, ()),
                ("001", 5, 3, ({"row": 1, "id": "r6", "source": "ä", "checkpoint": "base", "reason": "NaN"},)),
            )
        ),
    )
    for part in index.parts:
        encoded = [Encoded(np.arange(n + 2), np.arange(n + 2) > 0) for n in range(part.rows)]
        write_rows(index.part_folder(part.name), examples(part.first, part.rows, talks=talks), encoded)
        for number, name in enumerate(index.checkpoints, 1):
            store = CheckpointStore.create(index.part_folder(part.name), name, index.shape(part))
            for chunk in range(store.shape.chunks):
                start, stop = store.shape.chunk_range(chunk)
                g = torch.full((stop - start, index.columns), float(number))
                store.write(chunk, g, torch.full((stop - start,), float(part.first)))
    if placebo:
        made(folder / "placebo")
    index.save()
    return index


def test_what_is_saved_is_opened(tmp_path: Path) -> None:
    index = made(tmp_path / "index")
    back = Index.open(tmp_path / "index")
    assert (back.config, back.layers, back.features) == (CONFIG, LAYERS, "float16")
    assert [part.record() for part in back.parts] == [
        {key: list(value) if isinstance(value, tuple) else value for key, value in part.record().items()}
        for part in index.parts
    ]
    assert "quarantined" not in index.parts[0].record() and "quarantined" in index.parts[1].record()
    assert (back.checkpoints, back.rows, back.columns) == (["last", "base"], 8, 3 * 2 + 2 * 2)
    assert back.quarantined == {6: back.parts[1].quarantined[0]}
    assert back.placebo is None and back.fingerprint == index.fingerprint
    assert Index.open(Folder(tmp_path / "index")).fingerprint == back.fingerprint
    assert back.lengths() == pytest.approx((2.4, 4.0, 5.6))  # of two to six tokens
    for part in back.parts:
        for number, name in enumerate(back.checkpoints, 1):
            store = back.store(part, name)
            assert store.shape.layers == (("up", 6), ("down", 4)) and store.read(0).loss[0] == part.first
            assert store.read(0).norm[0].tolist() == pytest.approx([number * 6**0.5, number * 2.0])
    assert back.bytes() == sum(
        file.stat().st_size
        for store in (tmp_path / "index").rglob("*.zarr")
        for file in store.rglob("*")
        if file.is_file()
    )
    text = (tmp_path / "index" / "manifest.json").read_text("utf-8")
    assert '"source": "ä"' in text and json.loads(text)["format"] == 1


@pytest.mark.parametrize("talks", [False, True])
def test_rows_come_back_as_they_were(tmp_path: Path, talks: bool) -> None:
    index = made(tmp_path / "index", talks=talks)
    wanted = [*examples(0, 5, talks=talks), *examples(5, 3, talks=talks)]
    found = index.examples()
    assert list(found) == wanted and (found.name, found.template) == ("rows-0", "plain")
    assert found[0].metadata["year"] == 2000
    for rows in ([3], [7, 0, 4, 5], [1, 1]):
        assert list(index.examples(rows)) == [wanted[row] for row in sorted(set(rows))]


def test_the_table_of_rows(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    index = made(tmp_path / "index")
    table = pq.read_table(index.part_folder("001").path / "rows.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {"row": "int64", "tokens": "int32", "targets": "int32"} | dict.fromkeys(
        ("id", "source", "content_hash", "kind", "prompt", "completion", "metadata"), "string"
    )
    assert (table["row"].to_pylist(), table["tokens"].to_pylist()) == ([0, 1, 2], [2, 3, 4])
    assert table["targets"].to_pylist() == [1, 2, 3]
    assert table["completion"].to_pylist()[0] == '" Zürich 5"' and table["id"].to_pylist() == ["r5", "r6", "r7"]


def test_a_newer_headwater_may_have_written_more(tmp_path: Path) -> None:
    made(tmp_path / "index")
    file = tmp_path / "index" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["colour"] = manifest["layers"][0]["colour"] = manifest["parts"][1]["colour"] = "blue"
    file.write_text(json.dumps(manifest))
    assert Index.open(tmp_path / "index").layers == LAYERS


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["parts"][1].update(first=4), "the part 001 begins at row 4, not 5"),
        (lambda m: m["parts"][1].update(name="000"), "parts: a name twice"),
        (lambda m: m["layers"][1].update(name="up"), "layers: a name twice"),
        (lambda m: m["config"]["checkpoints"][1].update(name="last"), "checkpoints: a name twice"),
        (lambda m: m.update(parts=[]), "parts: none"),
        (lambda m: m.update(layers=[]), "layers: none"),
        (lambda m: m["config"].update(checkpoints=[]), "checkpoints: none"),
    ],
)
def test_a_manifest_that_contradicts_itself(tmp_path: Path, change: Any, said: str) -> None:
    made(tmp_path / "index")
    file = tmp_path / "index" / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(RunError) as caught:
        Index.open(tmp_path / "index")
    assert str(caught.value) == (
        f"{file} cannot be read ({said}); expected the manifest of a headwater index {CAUSE}. Next: "
        "build the index again"
    )


def test_no_index_and_one_of_another_version(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        Index.open(tmp_path / "index")
    assert str(caught.value) == (
        f"{tmp_path}/index holds no finished index; expected a folder with manifest.json (likely cause: another "
        "folder). Next: build one with headwater index"
    )
    made(tmp_path / "index")
    file = tmp_path / "index" / "manifest.json"
    text = file.read_text()
    file.unlink()
    with pytest.raises(RunError) as caught:
        Index.open(tmp_path / "index")
    assert str(caught.value) == (
        f"{tmp_path}/index holds no finished index; expected a folder with manifest.json (likely cause: the build was "
        "interrupted). Next: run the headwater index command again: it goes on where it stopped"
    )
    for number in (0, 2):
        file.write_text(text.replace('"format": 1', f'"format": {number}'))
        with pytest.raises(RunError) as caught:
            Index.open(tmp_path / "index")
        assert str(caught.value) == (
            f"{file}: format {number}; expected format 1 (likely cause: an index of another version of headwater). "
            "Next: build it again"
        )


def test_a_store_of_another_shape_than_the_manifest_says(tmp_path: Path) -> None:
    index = replace(made(tmp_path / "index"), features="int8")
    with pytest.raises(RunError) as caught:
        index.store(index.parts[0], "last")
    assert str(caught.value) == (
        f"{tmp_path}/index/parts/000/last.zarr has another shape than manifest.json says; expected 5 rows of 10 "
        "features (likely cause: a part that was replaced by hand). Next: build the index again"
    )


def test_everything_is_read_and_everything_wrong_is_named(tmp_path: Path) -> None:
    index = made(tmp_path / "index", placebo=True)
    index.require_whole()
    seen: list[int] = []
    assert index.check(seen.append) == [] == index.check()
    assert seen == [2] * (3 + 3 + 2 + 2) * 2  # of every checkpoint's chunks, the placebo rows' too
    parts = index.folder.path / "parts"
    data = (parts / "000" / "last.zarr" / "norm" / "c" / "1" / "0").read_bytes()
    (parts / "000" / "last.zarr" / "norm" / "c" / "1" / "0").write_bytes(bytes(len(data)))
    (parts / "001" / "rows.parquet").write_bytes((parts / "000" / "rows.parquet").read_bytes())
    (parts / "001" / "base.zarr" / "zarr.json").unlink()
    (index.folder.path / "placebo" / "parts" / "001" / "last.zarr" / "loss" / "c" / "1").unlink()
    opened = Index.open(index.folder)
    assert opened.check() == [
        f"{index.folder}/placebo/parts/001/last.zarr/loss/c/1 (rows 2 to 2): missing",
        f"{parts}/000/last.zarr/norm/c/1/0 (rows 2 to 3): checksum differs, its bytes have changed",
        f"{parts}/001/rows.parquet cannot be read (5 rows, not 3 as in manifest.json)",
        f"{parts}/001/base.zarr is missing",
    ]
    with pytest.raises(RunError, match=r"placebo/parts/001/last.zarr/loss/c/1"):
        opened.require_whole()


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("missing", "no column kind of type string"),
        ("type", "no column id of type string"),
        ("null", "nulls in column source"),
        ("kind", "the row r0: kind strange, metadata of dict"),
        ("metadata", "the row r0: kind pair, metadata of list"),
        ("prompt", "the prompt of the row r0: "),
        ("bytes", "Parquet magic bytes not found"),
    ],
)
def test_damaged_rows(tmp_path: Path, column: str, said: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = made(tmp_path / "index")
    file = index.part_folder("000").path / "rows.parquet"
    table = pq.read_table(file).to_pydict()
    kind = table["kind"][0]
    said = said.replace("kind pair", f"kind {kind}")
    match column:
        case "missing":
            del table["kind"]
        case "type":
            table["id"] = list(range(5))
        case "null":
            table["source"][2] = None
        case "kind":
            table["kind"][0] = "strange"
        case "metadata":
            table["metadata"][0] = "[]"
        case "prompt":
            table["prompt"][0] = "3"
    if column == "bytes":
        file.write_bytes(b"no parquet at all")
    else:
        pq.write_table(pa.table(table), file)
    if column in ("missing", "type", "bytes"):  # names and types are looked at first, contents when they are read
        with pytest.raises(RunError):
            index.require_whole()
    else:
        index.require_whole()
    with pytest.raises(RunError) as caught:
        index.examples([0])
    line = str(caught.value)
    assert line.startswith(f"{file} cannot be read ({said}")
    assert line.endswith("); expected the rows of the index. Next: build this index again")
    assert [row.id for row in index.examples([6])] == ["r6"]  # the other part is whole


def test_placebo_rows_of_other_models_are_refused(tmp_path: Path) -> None:
    index = made(tmp_path / "index", placebo=True)
    assert index.placebo is not None and index.placebo.rows == 8
    other = replace(index, layers=LAYERS[::-1])
    fix = f"Next: remove {tmp_path}/index/placebo and run the headwater index command with --placebo again"
    for one in (
        other,
        *(replace(index, config=CONFIG | {key: value}) for key, value in (
            ("checkpoints", CONFIG["checkpoints"][:1]), ("quantization", "4bit"), ("format", {"eos": True}),
        )),
    ):  # fmt: skip
        with pytest.raises(RunError) as caught:
            _ = one.placebo
        assert str(caught.value) == (
            f"{tmp_path}/index/placebo has other models or gradients than {tmp_path}/index; expected placebo rows "
            f"indexed like the training rows (likely cause: a folder that was copied by hand). {fix}"
        )


def test_a_part_lies_in_a_folder_of_its_name() -> None:
    assert str(part_folder(Folder("memory://bucket/index"), "003")) == "memory://bucket/index/parts/003"
