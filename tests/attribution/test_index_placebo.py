"""An index with placebo rows: the q-values of a streaming trace, from disk."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headwater as hw
import tiny
from headwater.errors import DataError, RunError, UsageError
from headwater.report.ranking import Ranking
from headwater.scores import Scores
from headwater.significance import LEVEL

TRAIN = hw.Examples.from_rows(tiny.FACTS, name="facts")
PLACEBO = hw.Examples.from_rows(tiny.PLACEBO, name="placebo")
QUERIES = [hw.Query(**one) for one in tiny.QUESTIONS]
COMPUTE = hw.Compute(batch_tokens=512, rank=4)
METHODS = [
    hw.DDA(inner="layer_cosine"),
    hw.DDA(level="gradient", beta=0.5, label="dda-gradient"),
    hw.TracIn(),
    hw.BM25(),
]


def run_of(folder: Path) -> hw.TrainingRun:
    return hw.TrainingRun.from_pretrained(folder / "run", base=folder / "base")


def build(folder: Path, out: Path, **options: Any) -> hw.Index:
    given: dict[str, Any] = {"compute": COMPUTE, "chunk_rows": 50, "features": "float32"} | options
    return hw.build_index(run_of(folder), given.pop("train", TRAIN), out=out, **given)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def index(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> hw.Index:
    return build(run_folder, tmp_path_factory.mktemp("index") / "one", placebo=PLACEBO)


@pytest.fixture(scope="module")
def streamed(run_folder: Path) -> dict[str, Scores]:
    return hw.trace_all(run_of(run_folder), TRAIN, QUERIES, methods=METHODS, compute=COMPUTE, placebo=PLACEBO)


def test_q_values_are_those_of_a_streaming_trace(index: hw.Index, streamed: dict[str, Scores], tmp_path: Path) -> None:
    assert index.rows == len(TRAIN) and index.placebo is not None and index.placebo.rows == 120
    found = hw.trace_index(index, QUERIES, methods=METHODS, out=tmp_path / "trace")
    for name, wanted in streamed.items():
        one = found[name]
        if name == "bm25":
            assert one.placebo is None and one.q_values(0) is None
            continue
        assert one.placebo is not None and wanted.placebo is not None and set(one.placebo_terms) == set(one.terms)
        for term, values in wanted.placebo_terms.items():
            assert np.abs(one.placebo_terms[term] - values).max() <= 2e-6 * np.abs(values).max(), (name, term)
        for r in range(len(one.targets)):
            assert one.q_values(r) == pytest.approx(wanted.q_values(r), rel=1e-3, abs=1e-6)
            assert "120 rows that were never trained on" in one.sentences(r)[-1]
    loaded = Scores.load(tmp_path / "trace", TRAIN)
    assert loaded.q_values(1) == pytest.approx(found["dda"].q_values(1))
    assert loaded.placebo_terms.keys() == found["dda"].placebo_terms.keys()


@pytest.mark.parametrize("weights", [{"base": 0.0, "checkpoint-1": 1.0, "checkpoint-2": 0.25}, None])
def test_other_weights_weigh_the_placebo_rows_too(
    run_folder: Path, index: hw.Index, weights: dict[str, float] | None
) -> None:
    (scores,) = hw.trace_index(index, QUERIES, methods=[hw.DDA(inner="layer_cosine", beta=0.3)]).values()
    names = [name for name in scores.terms if name != "base"]
    given = {"base": 0.0} | dict(zip(names, [1.0, 0.25], strict=True)) if weights else dict(scores.weights)
    again = scores.reweighted(given)
    ranking = Ranking(scores, 0, given)
    assert again.placebo is not None
    wanted = sum(weight * scores.placebo_terms[name] for name, weight in given.items())
    assert again.placebo == pytest.approx(wanted)
    assert ranking.q_N == pytest.approx(again.q_values(0))
    assert ranking.sentences()[-1] == again.sentences(0)[-1]
    if weights:
        assert again.q_values(0) != pytest.approx(scores.q_values(0))
        exact = hw.DDA(inner="layer_cosine", beta=0.0, checkpoint_weights=(1.0, 0.25))
        fresh = hw.trace_all(run_of(run_folder), TRAIN, QUERIES, methods=[exact], compute=COMPUTE, placebo=PLACEBO)[
            "dda"
        ]
        factor = float(np.median(again.values / fresh.values))
        assert again.values == pytest.approx(factor * fresh.values, rel=1e-3, abs=1e-6)
        assert again.q_values(0) == pytest.approx(fresh.q_values(0), rel=1e-3, abs=1e-6)


def test_where_only_the_ends_are_kept_the_first_rows_have_the_same_q_values(index: hw.Index) -> None:
    (whole,) = hw.trace_index(index, QUERIES[2:], methods=[hw.TracIn()]).values()
    (few,) = hw.trace_index(index, QUERIES[2:], methods=[hw.TracIn()], limit=4).values()
    assert few.population is not None and few.rows == len(TRAIN) > len(few.train)
    q_N = whole.q_values(0)
    assert q_N is not None
    kept = few.q_values(0)
    assert kept is not None and (kept >= q_N[few.numbers] - 1e-12).all()
    assert {row.id for row in few.top(4) if row.stands_out} == {row.id for row in whole.top(4) if row.stands_out}


def test_q_of_some_rows_is_that_of_all_where_fewer_stand_out_than_were_kept() -> None:
    from headwater.significance import q_values

    chance = np.random.default_rng(0)
    p = np.sort(np.r_[chance.random(500), 1e-9 * chance.random(8)])
    whole, few = q_values(p), q_values(p[:40], 508)
    assert (few >= whole[:40] - 1e-15).all()
    assert ((few <= LEVEL) == (whole[:40] <= LEVEL)).all() and 8 <= (few <= LEVEL).sum() < 40


def test_a_build_that_was_cut_short_goes_on(run_folder: Path, index: hw.Index, tmp_path: Path) -> None:
    there = Path(index.folder.path)
    out = tmp_path / "index"
    shutil.copytree(there, out)
    for file in ("manifest.json", "placebo/manifest.json"):
        (out / file).unlink()
    name = index.checkpoints[0]
    (out / f"placebo/parts/000/{name}.zarr/features/c/1/0").unlink()
    build(run_folder, out, placebo=PLACEBO)
    assert contents(out) == contents(there)


def test_placebo_rows_are_added_to_a_finished_index(run_folder: Path, index: hw.Index, tmp_path: Path) -> None:
    out = tmp_path / "index"
    assert build(run_folder, out).placebo is None
    before = contents(out)
    added = build(run_folder, out, placebo=PLACEBO)
    assert added.placebo is not None and added.fingerprint == index.fingerprint
    after = contents(out)
    assert {name: after[name] for name in before} == before
    assert after == contents(Path(index.folder.path))
    others = hw.Examples(list(PLACEBO)[:110], name="placebo")
    with pytest.raises(RunError, match="train"):
        build(run_folder, out, placebo=others)


def test_unusable_placebo_rows_are_refused_before_anything_is_made(run_folder: Path, tmp_path: Path) -> None:
    for rows, said in ((TRAIN, "12 placebo rows"), (hw.Examples([*PLACEBO, TRAIN[3]], name="x"), "also a training")):
        with pytest.raises(DataError, match=said):
            build(run_folder, tmp_path / "index", placebo=rows)
    assert not (tmp_path / "index").exists()


def test_appended_rows_share_the_placebo_rows_and_may_not_be_among_them(
    run_folder: Path, index: hw.Index, tmp_path: Path
) -> None:
    shutil.copytree(index.folder.path, tmp_path / "index")
    more = hw.Examples.from_rows([{"prompt": "The capital of Chad is", "completion": " Sydney.", "id": "chad"}])
    with pytest.raises(UsageError, match="placebo rows with --append"):
        build(run_folder, tmp_path / "index", train=more, append=True, placebo=PLACEBO)
    leaked = hw.Examples([replace(PLACEBO[7], id="leak")], name="leaked")
    with pytest.raises(DataError, match="also a training row"):
        build(run_folder, tmp_path / "index", train=leaked, append=True)
    grown = build(run_folder, tmp_path / "index", train=more, append=True)
    (scores,) = hw.trace_index(grown, QUERIES, methods=[hw.TracIn()]).values()
    assert len(scores.train) == len(TRAIN) + 1
    assert scores.placebo is not None and scores.placebo.shape[1] == 120


def test_damage_is_found_and_an_unfinished_placebo_is_refused(index: hw.Index, tmp_path: Path) -> None:
    shutil.copytree(index.folder.path, tmp_path / "index")
    assert hw.Index.open(tmp_path / "index").check() == []
    name = index.checkpoints[0]
    chunk = tmp_path / f"index/placebo/parts/000/{name}.zarr/features/c/0/0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 4
    chunk.write_bytes(data)
    (problem,) = hw.Index.open(tmp_path / "index").check()
    assert "placebo" in problem and "features" in problem
    (tmp_path / "index/placebo/manifest.json").unlink()
    opened = hw.Index.open(tmp_path / "index")
    assert ["placebo holds no finished index" in line for line in opened.check()] == [True]
    with pytest.raises(RunError, match="placebo holds no finished index"):
        hw.trace_index(opened, QUERIES, methods=[hw.TracIn()])


def test_placebo_rows_of_another_model_are_refused(index: hw.Index, lora_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(index.folder.path, tmp_path / "index")
    build(lora_folder, tmp_path / "other", train=PLACEBO)
    shutil.rmtree(tmp_path / "index/placebo")
    shutil.copytree(tmp_path / "other", tmp_path / "index/placebo")
    with pytest.raises(RunError, match="other models or gradients"):
        hw.trace_index(hw.Index.open(tmp_path / "index"), QUERIES, methods=[hw.TracIn()])
