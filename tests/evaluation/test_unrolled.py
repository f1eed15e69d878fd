"""Exact influence against finite differences of training itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from headwater.errors import UsageError
from headwater.evaluation.unrolled import Recipe, Unrolled

ROWS = tiny.rows(((6, 3), (9, 4), (4, 2), (7, 6), (5, 1), (6, 3)))
SIDES = tiny.rows(((6, 2), (8, 3), (5, 2)), seed=5)
QUERIES = [[(SIDES[0], 1.0), (SIDES[1], -1.0)], [(SIDES[2], 1.0)]]


def model(architecture: str = "gpt2") -> Any:
    torch.set_num_threads(1)
    made = tiny.model(architecture)
    made.set_attn_implementation("eager")
    return made


def unrolled(optimizer: Any, architecture: str = "gpt2") -> Unrolled:
    recipe = Recipe(optimizer=optimizer, learning_rate=3e-3, epochs=2, batch_size=4, weight_decay=0.01)
    return Unrolled(model(architecture), ROWS, recipe)


def measured(one: Unrolled, weights: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return one.measure(one.train(weights)[-1][0], QUERIES).numpy()


@pytest.mark.parametrize(
    ("architecture", "optimizer", "size", "tolerance"),
    [
        ("gpt2", "sgd", 1e-5, 1e-6),
        ("gpt2", "adamw", 1e-6, 1e-5),
        ("llama", "sgd", 3e-2, 2e-2),  # transformers' Llama computes its norms in float32, whose rounding shows
    ],
)
def test_equals_finite_differences_of_training(
    architecture: str, optimizer: str, size: float, tolerance: float
) -> None:
    one = unrolled(optimizer, architecture)
    found = one.influence(one.train(), QUERIES)
    for row in range(len(ROWS)):
        step = np.zeros(len(ROWS))
        step[row] = size
        slope = (measured(one, 1 + step) - measured(one, 1 - step)) / (2 * size)
        assert found[:, row] == pytest.approx(-slope, rel=tolerance, abs=tolerance * float(np.abs(found).max()))


def test_leaving_out_is_training_with_weight_zero() -> None:
    one = unrolled("sgd")
    weights = np.ones(len(ROWS))
    weights[3] = 0
    wanted = measured(one, weights) - measured(one, np.ones(len(ROWS)))
    assert one.left_out(3, QUERIES) == pytest.approx(wanted, rel=1e-12)
    exact = one.influence(one.train(), QUERIES)[:, 3]
    assert np.sign(wanted).tolist() == np.sign(exact).tolist()


def test_the_same_run_twice_is_the_same() -> None:
    first, again = unrolled("adamw").train()[-1][0], unrolled("adamw").train()[-1][0]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_attention_without_second_derivative_is_refused() -> None:
    made = tiny.model("llama")
    made.set_attn_implementation("sdpa")
    with pytest.raises(UsageError, match="eager"):
        Unrolled(made, ROWS, Recipe())
