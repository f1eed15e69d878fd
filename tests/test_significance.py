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
from headwater.significance import (
    LEVEL,
    STANDS_OUT,
    STANDS_OUT_OF_MAXIMA,
    deviations_needed,
    out_sentence,
    p_values,
    q_values,
    stands_out,
)

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


# ------------------------------------------------------------------------------------------------ by definition


def by_definition(scores: np.ndarray, placebo: np.ndarray) -> list[float]:
    """p-values one score at a time: the share in the bulk, the fitted tail above the tenth of the highest."""
    rising = sorted(placebo.tolist())
    count = round(len(rising) / 10)
    start, excess = rising[-count - 1], [value - rising[-count - 1] for value in rising[-count:]]
    mean = sum(excess) / count
    weighted = sum((1 - (i - 0.35) / count) * value for i, value in enumerate(excess, 1)) / count
    shape = min(max(2 - mean / (mean - 2 * weighted), 1 / 3), 0.9)
    scale = mean * (1 - shape)
    return [
        count / len(rising) * (1 + shape * (score - start) / scale) ** (-1 / shape)
        if score > start
        else (1 + sum(value >= score for value in rising)) / (len(rising) + 1)
        for score in scores.tolist()
    ]


@pytest.mark.parametrize("size", [1e-150, 1.0, 1e200])
@pytest.mark.parametrize("count", [100, 137, 1000])
@pytest.mark.parametrize("power", [0.5, 3.0, 6.0, 40.0])
def test_p_values_are_those_of_the_definition(power: float, count: int, size: float) -> None:
    """Tails thinner than the thinnest that is fitted, heavier, and heavier than the heaviest."""
    chance = np.random.default_rng(count)
    placebo, scores = np.abs(chance.normal(size=(2, count))) ** power
    scores = np.r_[scores, placebo[:20], 5 * placebo.max()]
    assert p_values(size * scores, size * placebo) == pytest.approx(by_definition(scores, placebo), rel=1e-6)


def test_the_shapes_of_these_tails_are_fitted_at_both_bounds_and_between() -> None:
    def shape(power: float) -> float:
        excess = np.sort(np.abs(np.random.default_rng(1000).normal(size=(2, 1000))[0]) ** power)[-101:]
        excess = excess[1:] - excess[0]
        weighted = float(np.mean(excess * (1 - (np.arange(1, 101) - 0.35) / 100)))
        return 2 - float(excess.mean()) / (float(excess.mean()) - 2 * weighted)

    assert shape(0.5) < 1 / 3 < shape(6.0) < 0.9 < shape(40.0)


def test_a_tail_without_excess_is_the_bulk() -> None:
    placebo = np.r_[np.zeros(80), np.ones(40)]
    assert p_values([-1.0, 0.0, 0.5, 1.0, 2.0], placebo) == pytest.approx([1, 1, 41 / 121, 41 / 121, 1 / 121])


def test_a_score_infinitely_far_out_has_no_chance() -> None:
    assert p_values([1e308], np.random.default_rng(0).normal(size=100) * 1e-300).tolist() == [0.0]


def test_the_fewest_placebo_rows_will_do_and_fewer_are_refused_in_one_line() -> None:
    assert len(p_values([0.0, 1.0], np.arange(100.0))) == 2
    with pytest.raises(DataError) as caught:
        p_values([1.0], np.zeros(99))
    assert str(caught.value) == (
        "99 placebo rows; expected at least 100, better as many as training rows. Next: hold back more rows"
    )


@pytest.mark.parametrize("rows", [None, 50, 400])
def test_q_is_the_smallest_level_at_which_benjamini_and_hochberg_reject(rows: int | None) -> None:
    p = np.random.default_rng(3).random(50) ** 3
    p[7] = p[8]  # a tie
    total = len(p) if rows is None else rows
    rising = np.sort(p)
    wanted = [min(1.0, *(total * rising[j] / (j + 1) for j in range(50) if rising[j] >= one)) for one in p]
    found = q_values(p, rows)
    assert found == pytest.approx(wanted)
    assert found.max() <= 1 and found.min() < found.max()


def test_a_row_stands_out_by_its_q_value_or_else_by_its_deviations() -> None:
    deviations, q = np.array([7.9, 8.0, 9.0]), np.array([0.05, 0.0501, 0.0])
    assert stands_out(deviations, q, 3).tolist() == [True, False, True]
    assert stands_out(deviations, None, 20).tolist() == [False, True, True]
    assert stands_out(deviations, None, 19).tolist() == [False, False, False]


@pytest.mark.parametrize(
    ("out", "scores", "first", "last"),
    [
        (0, [0, 3], "No row stands out", "0 scores above"),
        (1, [0, 4], "1 row stands out", "1 score above"),
        (2, [4, 5], "2 rows stand out", "2 scores above"),
    ],
)
def test_the_sentence_beside_placebo_rows(out: int, scores: list[float], first: str, last: str) -> None:
    assert out_sentence(np.array(scores, float), out, np.r_[np.zeros(1199), 3.0]) == (
        f"{first} from 1,200 rows that were never trained on (q at most 0.05); {last} all of these."
    )


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        (0, "No row stands out from the rest: do not read the order of the first rows as an answer."),
        (1, "1 row stands out from the rest (at least 8 robust deviations above the median)."),
        (12, "12 rows stand out from the rest (at least 8 robust deviations above the median)."),
    ],
)
def test_the_sentence_without_placebo_rows(out: int, sentence: str) -> None:
    assert out_sentence(np.zeros(3), out, None) == sentence


def test_maxima_have_a_longer_tail_and_need_more() -> None:
    noise = np.random.default_rng(0).normal(size=(500, 40))
    assert deviations_needed(noise[:, 0]) == deviations_needed(np.zeros(500)) == STANDS_OUT
    assert deviations_needed(noise.max(1)) == deviations_needed(-noise.max(1)) == STANDS_OUT_OF_MAXIMA
    deviations = np.array([9.0, 13.0])
    assert stands_out(deviations, None, 500, STANDS_OUT_OF_MAXIMA).tolist() == [False, True]
    assert "at least 12 robust deviations" in out_sentence(deviations, 1, None, STANDS_OUT_OF_MAXIMA)
