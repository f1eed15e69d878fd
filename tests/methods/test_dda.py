"""DDA: the automatic beta, the paper's form, weights, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headwater as hw
import tiny
from headwater.methods.dda import BETAS, choose_beta

TRAIN = hw.Examples.from_rows(tiny.FACTS, name="facts")
QUERIES = [
    hw.Query("The capital of Australia is", " Sydney.", corrected=" Canberra.", id="a"),
    hw.Query("The capital of Peru is", " Cairo.", corrected=" Lima.", id="b"),
]
EXACT = hw.Compute(dtype="float64")


def run_of(folder: Path) -> hw.TrainingRun:
    return hw.TrainingRun.from_pretrained(folder / "run", base=folder / "base")


def planted(beta: float, queries: int = 4, rows: int = 400, culprits: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Tuned scores = a signal of few high rows + beta times what the base says, which is loud and says nothing."""
    chance = np.random.default_rng(0)
    base = chance.normal(size=(queries, rows)) * 5
    signal = chance.normal(size=(queries, rows)) * 0.1
    signal[:, :culprits] += 3
    return signal + beta * base, base


# Automatic beta


@pytest.mark.parametrize("beta", [-0.8, -0.3, 0.25, 0.6])
def test_auto_finds_the_beta_that_lets_the_signal_stick_out(beta: float) -> None:
    assert choose_beta(*planted(beta)) == pytest.approx(beta)


def test_auto_leaves_alone_what_the_base_did_not_disturb() -> None:
    assert choose_beta(*planted(0.0)) == 0


def test_ties_go_to_the_beta_nearest_to_zero() -> None:
    tuned, base = planted(0.0)
    assert choose_beta(tuned, np.zeros_like(base)) == 0
    assert choose_beta(tuned, np.ones_like(base)) == 0
    # the base is the tuned scores again: every beta below 1 keeps their shape
    assert choose_beta(tuned, tuned) == 0


def test_constant_scores_give_zero() -> None:
    for value in (0.0, 3.0):
        assert choose_beta(np.full((2, 50), value), np.full((2, 50), value)) == 0
    assert choose_beta(np.full((1, 1), 2.0), np.full((1, 1), 1.0)) == 0


def test_auto_does_not_depend_on_the_scale_or_on_a_constant_per_query() -> None:
    tuned, base = planted(0.4)
    shift = np.arange(len(tuned))[:, None] * 7.0
    assert choose_beta(1e-6 * tuned, 1e-6 * base) == choose_beta(tuned, base)
    assert choose_beta(tuned + shift, base - shift) == choose_beta(tuned, base)


@pytest.mark.parametrize(("inner", "beta"), [("layer_cosine", -0.5), ("cosine", -0.5), ("dot", 0.0)])
def test_the_default_beta_follows_the_inner_product(run_folder: Path, inner: Any, beta: float) -> None:
    run = run_of(run_folder)
    scores = hw.trace(run, TRAIN, QUERIES, method=hw.DDA(inner=inner), compute=EXACT)
    chosen = hw.trace(run, TRAIN, QUERIES, method=hw.DDA(inner=inner, beta=beta), compute=EXACT)
    assert scores.weights.get("base", 0.0) == -beta
    assert np.array_equal(scores.values, chosen.values)


def test_auto_is_on_the_grid_and_one_for_all_queries(run_folder: Path) -> None:
    scores = hw.trace(run_of(run_folder), TRAIN, QUERIES, method=hw.DDA(beta="auto"), compute=EXACT)
    beta = -scores.weights["base"]
    assert np.isclose(BETAS, beta).any()
    assert BETAS.min() == -1
    assert BETAS.max() == 1
    tuned = (scores.terms["checkpoint-3"] + scores.terms["checkpoint-6"]) / 2
    assert beta == choose_beta(tuned, scores.terms["base"])


def test_auto_looks_at_queries_not_at_groups(run_folder: Path) -> None:
    import dataclasses

    grouped = [dataclasses.replace(q, group="g") for q in QUERIES]
    run = run_of(run_folder)
    alone, together = (hw.trace(run, TRAIN, q, method=hw.DDA(beta="auto"), compute=EXACT) for q in (QUERIES, grouped))
    assert alone.weights == together.weights
    assert len(together.targets) == 3


def test_auto_at_gradient_level_weighs_the_cross_terms(run_folder: Path) -> None:
    method = hw.DDA(beta="auto", level="gradient", checkpoint_weights=(0.25, 0.5))
    scores = hw.trace(run_of(run_folder), TRAIN, QUERIES, method=method, compute=EXACT)
    tuned = 0.25 * scores.terms["checkpoint-3"] + 0.5 * scores.terms["checkpoint-6"]
    cross = 0.25 * scores.terms["checkpoint-3 x base"] + 0.5 * scores.terms["checkpoint-6 x base"]
    assert scores.values == pytest.approx(tuned - choose_beta(tuned, cross) * cross, rel=1e-12)


# The paper's form


def test_paper_is_dot_products_mean_over_checkpoints_and_half_the_base(run_folder: Path) -> None:
    method = hw.DDA.paper()
    assert (method.inner, method.level, method.measurement) == ("dot", "score", "contrast")
    scores = hw.trace(run_of(run_folder), TRAIN, QUERIES, method=method, compute=EXACT)
    assert scores.weights == {"checkpoint-3": 0.5, "checkpoint-6": 0.5, "base": -0.5}
    literal = hw.trace(run_of(run_folder), TRAIN, QUERIES, method=hw.DDA(inner="dot", beta=0.5), compute=EXACT)
    assert np.array_equal(scores.values, literal.values)
    assert hw.DDA.paper(beta=0.1).beta == 0.1


def test_a_constant_per_query_changes_no_ranking(run_folder: Path) -> None:
    scores = hw.trace(run_of(run_folder), TRAIN, QUERIES, method=hw.DDA(beta=0.5), compute=EXACT)
    shift = np.array([[3.0], [-11.0]])
    moved = {**scores.terms, "base": scores.terms["base"] + shift}
    other = hw.Scores.combine("dda", moved, scores.weights, queries=QUERIES, targets=scores.targets, train=TRAIN)
    assert not np.allclose(other.values, scores.values)
    for r in range(2):
        assert [row.id for row in other.top(99, target=r)] == [row.id for row in scores.top(99, target=r)]
        assert other.standing_out(r) == scores.standing_out(r)


def test_checkpoint_weights_are_the_weights(run_folder: Path) -> None:
    run = run_of(run_folder)
    scores = hw.trace(run, TRAIN, QUERIES, method=hw.DDA(beta=0.5, checkpoint_weights=(0.0, 2.0)), compute=EXACT)
    assert scores.weights == {"checkpoint-3": 0.0, "checkpoint-6": 2.0, "base": -0.5}
    assert scores.values == pytest.approx(2 * scores.terms["checkpoint-6"] - 0.5 * scores.terms["base"])


# Refusals


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"engine": "directional", "level": "gradient"}, "debias at gradient level with the directional engine"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"beta": float("inf")}, "beta=inf"),
        ({"beta": "half"}, "beta='half'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: Any, match: str) -> None:
    with pytest.raises(hw.UsageError, match=match):
        hw.DDA(**options)


@pytest.mark.parametrize("weights", [(), (1.0,), (1.0, 1.0, 1.0)])
def test_a_wrong_number_of_checkpoint_weights_is_refused(run_folder: Path, weights: tuple[float, ...]) -> None:
    with pytest.raises(hw.UsageError, match=f"{len(weights)} checkpoint weights for 2 checkpoints"):
        hw.DDA(checkpoint_weights=weights).plan(run_of(run_folder))


def test_the_base_is_asked_for_only_where_it_is_used(run_folder: Path) -> None:
    run = hw.TrainingRun.from_pretrained(run_folder / "run")
    for method in (hw.DDA(), hw.DDA(beta=-0.1), hw.DDA(engine="directional"), hw.DDA.paper()):
        with pytest.raises(hw.UsageError, match="no base model"):
            method.plan(run)
    assert hw.DDA(beta=0).plan(run) == hw.DDA(beta=0.0).plan(run_of(run_folder))
