"""Placebo rows: exact p-values in the bulk, few false alarms, and culprits that are found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import headwater as hw
import tiny
from headwater.errors import DataError, UsageError
from headwater.scores import Scores
from headwater.significance import LEVEL, p_values, q_values

Draw = Callable[[np.random.Generator, int], np.ndarray]
SHAPES: dict[str, Draw] = {
    "normal": lambda chance, n: chance.normal(size=n),
    "laplace": lambda chance, n: chance.laplace(size=n),
    "t with 3 degrees": lambda chance, n: chance.standard_t(3, n),
    "lognormal": lambda chance, n: chance.lognormal(size=n),
    "a tenth of look-alikes": lambda chance, n: chance.normal(size=n) + 4 * (chance.random(n) < 0.1),
}


def test_in_the_bulk_p_is_the_share_of_placebo_rows_at_least_as_high() -> None:
    chance = np.random.default_rng(0)
    placebo = chance.normal(size=200)
    scores = np.quantile(placebo, [0.1, 0.5, 0.85])
    wanted = [(1 + (placebo >= score).sum()) / 201 for score in scores]
    assert p_values(scores, placebo) == pytest.approx(wanted)


def test_p_falls_with_the_score_and_meets_the_bulk_at_the_tail() -> None:
    placebo = np.random.default_rng(0).normal(size=400)
    p = p_values(np.linspace(-4, 40, 2000), placebo)
    assert (np.diff(p) <= 1e-12).all() and p[0] == 1 and 0 < p[-1] < 1e-4
    start = np.sort(placebo)[-41]
    assert p_values([start, start + 1e-9], placebo) == pytest.approx([0.1, 0.1], abs=0.005)


@pytest.mark.parametrize("shape", SHAPES)
def test_where_no_row_is_responsible_few_queries_have_one_that_stands_out(shape: str) -> None:
    chance = np.random.default_rng(1)
    draw = SHAPES[shape]
    alarms = [(q_values(p_values(draw(chance, 450), draw(chance, 400))) <= LEVEL).any() for _ in range(400)]
    assert np.mean(alarms) <= 0.08  # 5 % and three standard errors of 400 queries


@pytest.mark.parametrize("shape", ["normal", "laplace"])
def test_rows_far_above_the_placebo_rows_stand_out(shape: str) -> None:
    chance = np.random.default_rng(2)
    scores, placebo = SHAPES[shape](chance, 450), SHAPES[shape](chance, 400)
    scores[:12] += 25
    out = np.flatnonzero(q_values(p_values(scores, placebo)) <= LEVEL)
    assert set(range(12)) <= set(out.tolist()) and len(out) <= 14


def test_equal_scores_never_stand_out() -> None:
    assert (q_values(p_values(np.zeros(50), np.zeros(100))) == 1).all()


def test_few_placebo_rows_are_refused() -> None:
    with pytest.raises(DataError, match="99 placebo rows"):
        p_values([1.0], np.zeros(99))


# ------------------------------------------------------------------------------------------------ in a trace

TRAIN = hw.Examples.from_rows(tiny.FACTS, name="facts")
PLACEBO = hw.Examples.from_rows(
    [{"prompt": f"The capital of land {n} is", "completion": f" City {n % 7}.", "id": f"p{n}"} for n in range(120)],
    name="placebo",
)
QUERY = hw.Query("The capital of Peru is", " Cairo.", corrected=" Lima.", id="q")
EXACT = hw.Compute(dtype="float64", device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> hw.TrainingRun:
    folder = tiny.training_run(tmp_path_factory.mktemp("run"))
    return hw.TrainingRun.from_pretrained(folder / "run", base=folder / "base")


def test_placebo_scores_are_those_of_the_same_rows_traced_as_training_rows(run: hw.TrainingRun, tmp_path: Path) -> None:
    method = hw.DDA(beta=0.3)
    scores = hw.trace(run, TRAIN, [QUERY], method=method, compute=EXACT, placebo=PLACEBO, out=tmp_path / "trace")
    alone = hw.trace(run, PLACEBO, [QUERY], method=method, compute=EXACT)
    assert scores.placebo == pytest.approx(alone.values, rel=1e-9)
    without = hw.trace(run, TRAIN, [QUERY], method=method, compute=EXACT)
    assert np.array_equal(scores.values, without.values)
    q = scores.q_values("q")
    assert q is not None and scores.placebo is not None
    assert q == pytest.approx(q_values(p_values(scores.values[0], scores.placebo[0])))
    first = scores.top(1)[0]
    assert first.q_value == pytest.approx(q[first.index]) and first.stands_out == (first.q_value <= LEVEL)
    assert "120 rows that were never trained on" in scores.sentences("q")[-1]
    loaded = Scores.load(tmp_path / "trace", TRAIN)
    assert loaded.placebo is not None and np.array_equal(loaded.placebo, scores.placebo)
    assert loaded.sentences("q") == scores.sentences("q")


def test_the_automatic_beta_of_the_training_rows_holds_for_the_placebo_rows(run: hw.TrainingRun) -> None:
    rows = hw.Examples.from_rows(
        [{"prompt": f"A citizen of land {n} is", "completion": f" from {n % 5}.", "id": f"r{n}"} for n in range(110)]
    )
    scores = hw.trace(run, rows, [QUERY], method=hw.DDA(), compute=EXACT, placebo=PLACEBO)
    alone = hw.trace(run, PLACEBO, [QUERY], method=hw.DDA(beta=0.5), compute=EXACT).reweighted(scores.weights)
    assert scores.placebo == pytest.approx(alone.values, rel=1e-9)


def test_methods_fitted_to_all_rows_have_no_q_values(run: hw.TrainingRun) -> None:
    answers = hw.trace_all(run, TRAIN, [QUERY], methods=[hw.BM25(), hw.GradientDot()], compute=EXACT, placebo=PLACEBO)
    assert answers["bm25"].placebo is None and answers["dot"].placebo is not None
    with pytest.raises(UsageError, match="placebo rows for bm25"):
        hw.trace(run, TRAIN, [QUERY], method=hw.BM25(), placebo=PLACEBO)


def test_unusable_placebo_rows_are_refused(run: hw.TrainingRun) -> None:
    with pytest.raises(DataError, match="12 placebo rows"):
        hw.trace(run, TRAIN, [QUERY], method=hw.GradientDot(), placebo=TRAIN)
    trained = hw.Examples([*PLACEBO, TRAIN[3]], name="leaked")
    with pytest.raises(DataError, match="also a training row"):
        hw.trace(run, TRAIN, [QUERY], method=hw.GradientDot(), placebo=trained)
