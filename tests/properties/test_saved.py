"""Manifests, configurations and scores: they come back as they were, and any change of them is refused or harmless."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from any_values import changed, texts, values
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import headwater as hw
import tiny
from headwater.errors import HeadwaterError, ModelError, RunError
from headwater.gradients.measurement import Target
from headwater.index.scoring import TopK
from headwater.model_files import check_model_files
from headwater.records import among, fault, maybe, number, parsed, plain_name, text, whole
from headwater.run import run_directory
from headwater.scores import Leaning, Scores
from headwater.significance import p_values, q_values

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
few_names = st.lists(texts.filter(bool), min_size=1, max_size=3, unique=True)


@st.composite
def scores(draw: st.DrawFn) -> Scores:
    train = hw.Examples.from_rows(
        [{"prompt": draw(texts), "completion": str(n)} for n in range(draw(st.integers(1, 5)))]
    )
    names, checkpoints = draw(few_names), draw(few_names)
    shape = (len(names), len(train))
    return Scores.combine(
        "dda",
        {name: draw(arrays(np.float64, shape, elements=finite)) for name in checkpoints},
        {name: draw(st.floats(-2, 2)) for name in checkpoints},
        queries=[hw.Query(draw(texts), draw(texts.filter(bool)), id=name) for name in names],
        targets=[Target(name=name, kind="query", members=(q,)) for q, name in enumerate(names)],
        train=train,
        leanings=[Leaning(query=names[0], checkpoint="base", output=draw(finite), corrected=draw(st.none() | finite))],
        provenance=draw(st.dictionaries(texts, texts)),
    )


@given(made=scores())
def test_scores_come_back_as_they_were_saved(made: Scores, tmp_path: Path) -> None:
    made.save(tmp_path)
    found = Scores.load(tmp_path, made.train)
    assert np.array_equal(found.values, made.values)
    assert found.terms.keys() == made.terms.keys() and found.weights == made.weights
    assert all(np.array_equal(found.terms[name], made.terms[name]) for name in made.terms)
    assert (found.queries, found.targets, found.leanings) == (
        list(made.queries),
        list(made.targets),
        list(made.leanings),
    )
    assert found.provenance == made.provenance
    assert found.top(3) == made.top(3)


@pytest.fixture(scope="module")
def whole_folders(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    place = tmp_path_factory.mktemp("saved")
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    train = hw.Examples.from_rows(tiny.FACTS)
    hw.build_index(run, train, out=place / "index", compute=hw.Compute(rank=2), chunk_rows=5)
    hw.trace(run, train, [hw.Query("a", " b")], method=hw.BM25(), out=place / "trace")
    yield {"index": place / "index", "trace": place / "trace", "base": run_folder / "base"}


@given(data=st.data())
def test_any_change_of_an_index_manifest_is_refused_or_harmless(
    data: st.DataObject, whole_folders: dict[str, Path], tmp_path: Path
) -> None:
    found = data.draw(changed(json.loads((whole_folders["index"] / "manifest.json").read_text())))
    (tmp_path / "manifest.json").write_text(json.dumps(found))
    (tmp_path / "parts").exists() or shutil.copytree(whole_folders["index"] / "parts", tmp_path / "parts")
    try:
        index = hw.Index.open(tmp_path)
        for part in index.parts:
            assert (tmp_path / "parts" / part.name).parent == tmp_path / "parts"
            for name in index.checkpoints:
                index.store(part, name)
        assert len(index.examples()) == index.rows
    except HeadwaterError as error:
        assert "\n" not in str(error)


@given(data=st.data())
def test_any_change_of_zarr_metadata_is_refused_or_harmless(
    data: st.DataObject, whole_folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "index").exists() or shutil.copytree(whole_folders["index"], tmp_path / "index")
    file = data.draw(st.sampled_from(["zarr.json", "norm/zarr.json", "features/zarr.json", "loss/zarr.json"]))
    place = Path("parts/000/base.zarr", file)
    (tmp_path / "index" / place).write_text(
        json.dumps(data.draw(changed(json.loads((whole_folders["index"] / place).read_text()))))
    )
    try:
        index = hw.Index.open(tmp_path / "index")
        index.store(index.parts[0], "base").read(0, verify=True)
    except HeadwaterError as error:
        assert "\n" not in str(error)
    finally:
        shutil.copy(whole_folders["index"] / place, tmp_path / "index" / place)


@given(data=st.data())
def test_any_change_of_a_trace_is_refused_or_harmless(
    data: st.DataObject, whole_folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(whole_folders["trace"], tmp_path, dirs_exist_ok=True)
    found = data.draw(changed(json.loads((tmp_path / "trace.json").read_text())))
    (tmp_path / "trace.json").write_text(json.dumps(found))
    try:
        hw.Scores.load(tmp_path, hw.Examples.from_rows(tiny.FACTS)).sentences()
    except HeadwaterError as error:
        assert "\n" not in str(error)


def said(config: Any) -> str:
    """A configuration without what is None: an option that is not there says the same."""
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if value is not None}
    return json.dumps(config, sort_keys=True)


@given(data=st.data())
def test_another_configuration_is_refused(data: st.DataObject, tmp_path: Path) -> None:
    config: dict[str, Any] = {"queries": [{"prompt": "a"}], "compute": {"rank": 2, "dtype": "float32"}, "limit": None}
    out = tmp_path / "out"
    with run_directory(out, config) as state:
        state.save("piece", {"a": np.arange(3)})
    other = data.draw(changed(config))
    if said(other) == said(config):
        return
    with pytest.raises(RunError, match="other arguments"), run_directory(out, other):
        pass
    (out / "config.json").write_text(json.dumps(other))
    with pytest.raises(RunError), run_directory(out, config):
        pass
    shutil.rmtree(out)


@given(name=st.text(max_size=6) | st.sampled_from(["../a", "a/b", "/a", "..", ".", "a\\b", "C:a", "a\0b", ""]))
def test_a_plain_name_stays_in_its_folder(name: str) -> None:
    if plain_name.holds(name):
        assert Path("/here", name).parent == Path("/here") and "\\" not in name


@given(found=values)
def test_any_document_is_as_wanted_or_one_error(found: Any) -> None:
    wanted = {"id": whole(0), "content": [{"role": text, "span": maybe(number)}], "text": among("a", "b")}
    said = fault(found, wanted)
    try:
        assert parsed(json.dumps(found).encode(), "here", wanted, what="it", fix="mend it") is not None
        assert said is None
    except RunError as error:
        assert "\n" not in str(error)


@given(data=st.binary(max_size=80) | values.map(lambda v: _header(json.dumps(v).encode())))
def test_any_weights_are_whole_or_one_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(data)
    try:
        check_model_files(tmp_path, "full", allow_pickle=False)
    except ModelError as error:
        assert "\n" not in str(error)


def _header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


# Numbers


@given(
    found=arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 20)), elements=st.integers(-3, 3).map(float)),
    k=st.integers(1, 25),
    cuts=st.lists(st.integers(0, 20), max_size=3),
)
def test_the_ends_are_those_of_a_sort(found: np.ndarray, k: int, cuts: list[int]) -> None:
    top, count = TopK(k, len(found)), found.shape[1]
    edges = sorted({0, count, *(cut for cut in cuts if cut < count)})
    for start, stop in itertools.pairwise(edges):
        top.update(start, found[:, start:stop])
    ends = top.result()
    for target, score_N in enumerate(found):
        highest = np.argsort(-score_N, kind="stable")[:k]
        assert np.array_equal(ends.highest_rows[target], highest)
        assert np.array_equal(ends.highest_scores[target], score_N[highest])
        assert np.array_equal(ends.lowest_rows[target], np.argsort(score_N, kind="stable")[:k])


@given(
    placebo=arrays(np.float64, st.integers(100, 130), elements=st.floats(-5, 5)),
    score=arrays(np.float64, st.integers(1, 20), elements=st.floats(-10, 10)),
)
def test_a_higher_score_is_never_less_significant(placebo: np.ndarray, score: np.ndarray) -> None:
    p, order = p_values(score, placebo), np.argsort(score)
    assert ((p > 0) | (score > placebo.max())).all() and (p >= 0).all() and (p <= 1).all()
    assert (np.diff(p[order]) <= 1e-12).all()
    q = q_values(p)
    assert (q >= p - 1e-12).all() and (np.diff(q[order]) <= 1e-12).all()
    assert all(math.isfinite(one) for one in q)
