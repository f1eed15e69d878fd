"""The exact influence is the derivative of training: against finite differences, and against training anew."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headwater as hw
import tiny
from headwater.errors import DataError, ModelError, NumericalError, UsageError
from headwater.evaluation.exact import Recipe, exact_influence, leave_one_out, measured, save_run, train
from reference import naive

ROWS = tiny.rows(((5, 2), (9, 4), (7, 1), (12, 6), (4, 3), (8, 2), (6, 5)), seed=1)
ROWS.append(ROWS[1])
SIDES = tiny.rows(((6, 2), (8, 3), (5, 1)), seed=2)
MEASURE = [[(SIDES[0], 1.0)], [(SIDES[1], 1.0), (SIDES[2], -1.0)]]
"""A loss, and a contrast."""
RECIPES = {
    "sgd": Recipe(optimizer="sgd", learning_rate=0.05, epochs=3, batch_size=3, weight_decay=0.1, schedule="constant"),
    "sgd-linear": Recipe(optimizer="sgd", learning_rate=0.1, epochs=2, batch_size=2),
    "adamw": Recipe(learning_rate=2e-3, epochs=3, batch_size=3, weight_decay=0.1, eps=1e-3),
    "adamw-constant": Recipe(learning_rate=1e-3, epochs=3, batch_size=4, schedule="constant", betas=(0.8, 0.95)),
}


def made(architecture: str = "llama") -> Any:
    model = tiny.model(architecture)
    model.set_attn_implementation("eager")
    return model


def trained(model: Any, recipe: Recipe, weights_N: np.ndarray) -> np.ndarray:
    """m of each query after training with these weights."""
    return measured(model, train(model, ROWS, recipe, weights_N=weights_N), MEASURE)


def difference(model: Any, recipe: Recipe, rows: tuple[int, ...], size: float = 1e-5) -> np.ndarray:
    """- d m / d (the common weight of the rows) by central differences of fourth order [Q]."""
    at = {}
    for k in (-2, -1, 1, 2):
        weights = np.ones(len(ROWS))
        weights[list(rows)] += k * size
        at[k] = trained(model, recipe, weights)
    return -(8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * size)


def found(model: Any, recipe: Recipe) -> np.ndarray:
    return exact_influence(model, ROWS, recipe, train(model, ROWS, recipe), MEASURE)


@pytest.mark.parametrize("name", RECIPES)
def test_exact_influence_is_the_derivative(name: str) -> None:
    model, recipe = made(), RECIPES[name]
    wanted = np.stack([difference(model, recipe, (row,)) for row in range(len(ROWS))], 1)
    np.testing.assert_allclose(found(model, recipe), wanted, rtol=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "llama-tied", "gemma"])
def test_other_architectures(architecture: str) -> None:
    model, recipe = made(architecture), RECIPES["adamw"]
    np.testing.assert_allclose(found(model, recipe)[:, 3], difference(model, recipe, (3,)), rtol=1e-6)


def test_duplicates_share_what_their_common_weight_is_worth() -> None:
    model, recipe = made(), RECIPES["adamw"]
    assert ROWS[1] is ROWS[7]
    np.testing.assert_allclose(found(model, recipe)[:, [1, 7]].sum(1), difference(model, recipe, (1, 7)), rtol=1e-6)
    whole = dataclasses.replace(recipe, batch_size=len(ROWS))
    scores = found(model, whole)
    np.testing.assert_allclose(scores[:, 1], scores[:, 7], rtol=1e-9)


def test_the_same_call_gives_the_same_numbers_and_leaves_the_model_alone() -> None:
    model, recipe = made().train(), RECIPES["adamw"]
    before = [one.detach().clone() for one in model.parameters()]
    scores = found(model, recipe)
    assert np.array_equal(scores, found(model, recipe))
    assert model.training
    for one, other in zip(model.parameters(), before, strict=True):
        assert torch.equal(one, other)


def test_training_is_that_of_torch() -> None:
    """The naive double: torch's AdamW, one row at a time, the reference's own loss."""
    model, recipe = tiny.model("gpt2"), RECIPES["adamw"]  # whose norms are float64 without help
    model.set_attn_implementation("eager")
    trajectory = train(model, ROWS, recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, eps=recipe.eps, weight_decay=0.1)
    steps = 3 * 3
    for epoch in range(3):
        order = np.random.default_rng((recipe.seed, epoch)).permutation(len(ROWS)).tolist()
        for number in range(3):
            step = 3 * epoch + number
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 - step / steps)
            optimizer.zero_grad()
            for row in order[3 * number : 3 * number + 3]:
                (naive.loss(model, ROWS[row]) / 3).backward()
            optimizer.step()
    wanted = torch.cat([one.detach().flatten() for one in model.parameters()])
    torch.testing.assert_close(trajectory.end.theta_P, wanted, rtol=1e-9, atol=1e-10)
    assert trajectory.epoch_ends == (3, 6, 9)


def test_leave_one_out_is_training_without_the_row() -> None:
    model, recipe = made(), RECIPES["adamw"]
    rows = [5, 0]
    left_out = leave_one_out(model, ROWS, recipe, train(model, ROWS, recipe), MEASURE, rows)
    everything = np.ones(len(ROWS))
    for column, row in enumerate(rows):
        without = everything.copy()
        without[row] = 0
        wanted = trained(model, recipe, without) - trained(model, recipe, everything)
        np.testing.assert_allclose(left_out[:, column], wanted, rtol=1e-9)


def test_both_say_that_a_row_taught_itself() -> None:
    model = made()
    recipe = Recipe(optimizer="sgd", learning_rate=0.01, epochs=2, batch_size=3)
    trajectory = train(model, ROWS, recipe)
    measure = [[(row, 1.0)] for row in ROWS[:3]]
    scores = exact_influence(model, ROWS, recipe, trajectory, measure)
    left_out = leave_one_out(model, ROWS, recipe, trajectory, measure, range(len(ROWS)))
    assert (scores.diagonal() > 0).all() and (left_out.diagonal() > 0).all()
    assert np.corrcoef(scores.ravel(), left_out.ravel())[0, 1] > 0.98


def test_the_saved_training_is_an_ordinary_run(tmp_path: Path) -> None:
    words = tiny.tokenizer([fact["prompt"] + fact["completion"] for fact in tiny.FACTS])
    model = tiny.model("llama", vocabulary=len(words)).float()
    model.set_attn_implementation("eager")
    train_rows = hw.Examples.from_rows(tiny.FACTS, name="facts")
    encoded = hw.examples.Encoder(words).examples(train_rows)[0]
    recipe = Recipe(epochs=2, batch_size=4)
    trajectory = train(model, encoded, recipe)
    save_run(tmp_path, model, words, trajectory)
    run = hw.TrainingRun.from_pretrained(tmp_path / "run", base=tmp_path / "base", allow_pickle=True)
    assert [c.step for c in run.checkpoints] == [3, 6]
    assert [c.epoch for c in run.checkpoints] == [1.0, 2.0]
    assert run.checkpoints[1].learning_rate == pytest.approx(recipe.learning_rate * (3 + 2 + 1) / 6 / 3)
    for checkpoint, state in ((run.require_base(), trajectory.states[0]), (run.last, trajectory.end)):
        loaded = run.load(checkpoint, dtype=torch.float32, device=torch.device("cpu"))
        assert torch.equal(torch.cat([one.flatten() for one in loaded.parameters()]), state.theta_P)
    query = hw.Query("The capital of Peru is", " Lima.")
    methods = [hw.TracIn(), hw.make_method("influence-adam")]
    for scores in hw.trace_all(run, train_rows, [query], methods=methods).values():
        assert np.isfinite(scores.values).all()


def test_refusals() -> None:
    model, recipe = made(), RECIPES["sgd"]
    trajectory = train(model, ROWS, recipe)
    with pytest.raises(ModelError, match="sdpa"):
        train(tiny.model("llama"), ROWS, recipe)
    with pytest.raises(ModelError, match="trainable"):
        train(made().requires_grad_(False), ROWS, recipe)
    with pytest.raises(DataError, match="no training rows"):
        train(model, [], recipe)
    with pytest.raises(DataError, match="one for each"):
        train(model, ROWS, recipe, weights_N=np.ones(2))
    with pytest.raises(DataError, match="same recipe"):
        exact_influence(model, ROWS, dataclasses.replace(recipe, epochs=1), trajectory, MEASURE)
    with pytest.raises(DataError, match="other weights"):
        weighted = train(model, ROWS, recipe, weights_N=np.arange(len(ROWS)))
        exact_influence(model, ROWS, recipe, weighted, MEASURE)
    with pytest.raises(DataError, match="without a side"):
        exact_influence(model, ROWS, recipe, trajectory, [[]])
    with pytest.raises(DataError, match="row 99"):
        leave_one_out(model, ROWS, recipe, trajectory, MEASURE, [99])
    with pytest.raises(NumericalError, match="learning rate"):
        train(model, ROWS, dataclasses.replace(recipe, learning_rate=1e200))
    with pytest.raises(UsageError, match="eps"):
        Recipe(eps=0.0)
