"""The second look at an index's first rows: what streaming computes, for the rows that the first look found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headwater as hw
import tiny
from headwater import progress
from headwater.attribution import passes, second_look
from headwater.attribution.models import Models
from headwater.attribution.second_look import DTYPE, FOLDER
from headwater.scores import Scores

TRAIN = hw.Examples.from_rows(tiny.FACTS, name="facts")
PLACEBO = hw.Examples.from_rows(tiny.PLACEBO, name="placebo")
QUERIES = [hw.Query(**one) for one in tiny.QUESTIONS]
COMPUTE = hw.Compute(batch_tokens=512, rank=4)
METHODS = [hw.DDA(beta=-0.5), hw.TracIn()]


def run_of(folder: Path) -> hw.TrainingRun:
    return hw.TrainingRun.from_pretrained(folder / "run", base=folder / "base")


@pytest.fixture(scope="module")
def index(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> hw.Index:
    out = tmp_path_factory.mktemp("index") / "one"
    return hw.build_index(
        run_of(run_folder), TRAIN, out=out, compute=COMPUTE, chunk_rows=50, features="float32", placebo=PLACEBO
    )


@pytest.fixture(scope="module")
def streamed(run_folder: Path) -> dict[str, Scores]:
    return hw.trace_all(run_of(run_folder), TRAIN, QUERIES, methods=METHODS, compute=COMPUTE, placebo=PLACEBO)


def test_a_look_at_all_rows_is_a_streaming_trace(index: hw.Index, streamed: dict[str, Scores], tmp_path: Path) -> None:
    found = hw.trace_index(index, QUERIES, methods=METHODS, second_look=len(TRAIN), words=2, out=tmp_path / "out")
    one, wanted = found["dda"], streamed["dda"]
    assert one.weights == wanted.weights and one.terms.keys() == wanted.terms.keys()
    assert one.numbers.tolist() == list(range(len(TRAIN)))
    for name, term in wanted.terms.items():
        assert np.abs(one.terms[name] - term).max() <= 2e-6 * np.abs(term).max()
    for r in range(len(one.targets)):
        assert [row.id for row in one.top(5, target=r)] == [row.id for row in wanted.top(5, target=r)]
        assert one.q_values(r) == pytest.approx(wanted.q_values(r), rel=1e-3, abs=1e-6)
        for row in one.top(2, target=r):
            words = one.words[r, row.index].words
            assert sum(value for _, value in words) == pytest.approx(row.score, rel=1e-3)
    assert found["tracin"].values == pytest.approx(streamed["tracin"].values, rel=1e-4)
    loaded = Scores.load(tmp_path / "out", TRAIN)
    assert np.array_equal(loaded.values, one.values.astype(loaded.values.dtype))
    assert loaded.provenance["second_look"] == len(TRAIN)


def test_it_computes_in_float32_where_half_precision_would_change_it(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, half, said = run_of(run_folder), replace(COMPUTE, dtype="bfloat16"), []
    monkeypatch.setattr(
        Models, "check_half", lambda self, rows, sides, inners: 0.5 if "token_cosine" in inners else 1.0
    )
    given: dict[str, Any] = {"chunk_rows": 50, "features": "float32"}
    index = hw.build_index(run, TRAIN, out=tmp_path / "half", compute=half, **given)
    with progress.listening(lambda text, done, total: said.append(text)):
        found = hw.trace_index(index, QUERIES, methods=METHODS, second_look=len(TRAIN), words=2, out=tmp_path / "out")
    assert any("second look computes in float32: bfloat16 changes the scores" in line for line in said)
    wanted = hw.trace(run, TRAIN, QUERIES, method=METHODS[0], compute=COMPUTE)
    assert np.abs(found["dda"].values - wanted.values).max() <= 2e-6 * np.abs(wanted.values).max()
    assert Scores.load(tmp_path / "out", TRAIN).provenance[DTYPE] == "float32"
    for r in range(len(wanted.targets)):
        for row in found["dda"].top(2, target=r):
            words = found["dda"].words[r, row.index].words
            assert sum(value for _, value in words) == pytest.approx(row.score, rel=1e-4)
    with pytest.raises(hw.UsageError, match="bfloat16 changes the scores"):
        hw.trace(run, TRAIN, QUERIES, method=METHODS[0], compute=half)


def test_it_scores_the_rows_that_the_first_look_found(index: hw.Index, streamed: dict[str, Scores]) -> None:
    (one,) = hw.trace_index(index, QUERIES[2:], methods=METHODS[:1], second_look=2).values()
    (first,) = hw.trace_index(index, QUERIES[2:], methods=METHODS[:1], limit=2).values()
    assert first.population is not None and one.population is not None
    highest = [row.number for row in first.top(2)]
    assert one.numbers.tolist() == sorted(highest)
    assert one.population.rows == len(TRAIN)
    wanted = streamed["dda"].values[2]
    assert one.values[0] == pytest.approx(wanted[one.numbers], rel=1e-4, abs=1e-7)
    assert one.population.sample[0] == pytest.approx(wanted, rel=1e-4, abs=1e-7)  # fewer rows than a sample: all
    both = hw.trace_index(index, QUERIES[2:], methods=METHODS, second_look=2)
    of_tracin = hw.trace_index(index, QUERIES[2:], methods=METHODS[1:], limit=2)["tracin"]
    assert both["dda"].numbers.tolist() == sorted({*highest, *of_tracin.numbers.tolist()})
    assert both["dda"].values[0] == pytest.approx(wanted[both["dda"].numbers], rel=1e-4, abs=1e-7)
    assert both["tracin"].top(1)[0].number == of_tracin.top(1)[0].number


def test_methods_with_samples_of_their_own_come_back_from_disk(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_look, "SAMPLE", 5)
    rows = [*tiny.FACTS, {"prompt": "x " * 2000, "completion": " y", "id": "cut"}]
    part, rest, more = (hw.Examples.from_rows(some, name="facts") for some in (rows[:8], rows[8:], rows))
    given: dict[str, Any] = {"out": tmp_path / "index", "compute": COMPUTE, "chunk_rows": 4, "features": "float32"}
    hw.build_index(run_of(run_folder), part, **given)
    built = hw.build_index(run_of(run_folder), rest, append=True, **given)
    methods = [hw.DDA(beta="auto"), hw.DDA(inner="layer_cosine", label="layers"), hw.TracIn()]
    found = hw.trace_index(built, QUERIES, methods=methods, second_look=2, out=tmp_path / "out")
    wanted = hw.trace(run_of(run_folder), more, QUERIES, method=methods[0], compute=COMPUTE)
    numbers = found["dda"].numbers
    for r in range(4):
        of = {name: one.top(2, target=r)[0].number for name, one in found.items()}
        assert of["layers"] == hw.trace_index(built, QUERIES, methods=methods[1:2])["layers"].top(1, target=r)[0].number
    for name, one in found.items():
        back = Scores.load(tmp_path / "out", one.train, method=name)
        assert back.population is not None and one.population is not None
        assert np.array_equal(back.population.sample, one.population.sample) and one.population.sample.shape == (4, 5)
        assert back.numbers.tolist() == numbers.tolist()
    for name in wanted.terms:
        assert found["dda"].terms[name] == pytest.approx(wanted.terms[name][:, numbers], rel=1e-3, abs=1e-6)
    with pytest.raises(hw.RunError, match="second_look"):
        hw.trace_index(built, QUERIES, methods=methods, second_look=3, out=tmp_path / "out")


def test_a_finished_look_is_not_made_again(index: hw.Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"methods": METHODS[:1], "second_look": 3, "out": tmp_path / "out"}

    class Killed(RuntimeError):
        pass

    saved = Scores.save

    def die(scores: Scores, folder: Path, **rest: Any) -> None:
        if folder == tmp_path / "out":
            raise Killed
        saved(scores, folder, **rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Scores, "save", die)
        hw.trace_index(index, QUERIES, **given)
    assert (tmp_path / "out" / FOLDER / "trace.json").exists()
    (fresh,) = hw.trace_index(index, QUERIES, **(given | {"out": None})).values()
    chunks = passes.run_chunks
    monkeypatch.setattr(passes, "run_chunks", lambda *given: chunks(*given[:3], None, given[4]))  # finished ones alone
    (again,) = hw.trace_index(index, QUERIES, **given).values()
    assert np.array_equal(fresh.values, again.values)


def test_the_default_from_an_index_is_the_layer_cosine(index: hw.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("headwater.progress.note", said.append)
    (layers,) = hw.trace_index(index, QUERIES, methods=[hw.DDA(inner="layer_cosine")]).values()
    assert not [line for line in said if "--second-look" in line]
    (default,) = hw.trace_index(index, QUERIES, methods=[hw.DDA()]).values()
    assert [line for line in said if "--second-look 100" in line]
    said.clear()
    hw.trace_index(index, QUERIES, methods=[hw.DDA(level="gradient", beta=0.5)])
    assert not [line for line in said if "--second-look" in line]
    assert default.method == "dda" and np.array_equal(default.values, layers.values)


def test_what_a_second_look_cannot_do(index: hw.Index) -> None:
    for given, match in [
        ({"methods": METHODS, "second_look": 2, "limit": 2}, "--second-look with --limit"),
        ({"methods": [hw.TracIn(), hw.BM25()], "second_look": 2}, "a second look by tracin, bm25"),
        ({"methods": METHODS, "second_look": -1}, "-1 rows"),
        ({"methods": [*METHODS, hw.BM25()], "second_look": 2}, "bm25 from an index with --second-look"),
        ({"methods": [hw.DDA(level="gradient")], "second_look": 2}, "a second look by dda"),
        ({"methods": [hw.DDA(inner="token_cosine")]}, "the tokens of every row"),
    ]:
        with pytest.raises(hw.UsageError, match=match):
            hw.trace_index(index, QUERIES, **given)  # type: ignore[arg-type]
