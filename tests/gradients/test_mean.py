"""The gradient of a mean of losses: against one row at a time, and over every draw of rows."""

from __future__ import annotations

import copy
from itertools import combinations

import numpy as np
import pytest
import torch

import tiny
from headwater.gradients.batches import collate
from headwater.gradients.factors import FactorHooks
from headwater.gradients.layers import select_layers
from headwater.gradients.mean import GradientSum, fitting_error, mean_gradient_norm, weighted
from reference import diagnosis, naive

ROWS = tiny.rows(((5, 1), (9, 4), (9, 2), (14, 6), (7, 3)), seed=3)
CPU = torch.device("cpu")


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_fitting_error_is_that_of_single_rows(architecture: str, lora: bool) -> None:
    model = tiny.model(architecture)
    model = tiny.with_lora(model) if lora else model
    layers = select_layers(model).layers
    hooks = FactorHooks(model, layers, precision=torch.float64)
    total = GradientSum(hooks.shapes)
    with hooks.attached():
        for batch in (ROWS[:2], ROWS[2:]):
            total.batch(hooks, collate(batch, CPU, torch.float64))
    squared_N = total.sums["squared"].numpy()
    mean = sum(float(total.matrix(n).square().sum()) for n in range(len(layers))) / len(ROWS) ** 2
    plain = copy.deepcopy(model).merge_and_unload() if lora else model
    norm, norms, error = diagnosis.fitting(plain, [layer.name for layer in layers], ROWS)
    np.testing.assert_allclose(np.sqrt(squared_N), norms, rtol=1e-8)
    np.testing.assert_allclose(mean_gradient_norm(mean, squared_N, len(ROWS)), norm, rtol=1e-8)
    np.testing.assert_allclose(fitting_error(mean, squared_N, len(ROWS)), error, rtol=1e-8)
    losses = [float(naive.loss(plain, row).detach()) for row in ROWS]
    np.testing.assert_allclose(total.sums["loss"].numpy(), losses, rtol=1e-8)


def test_weights_make_the_gradient_of_a_contrast() -> None:
    model = tiny.model("llama")
    layers = select_layers(model).layers
    hooks = FactorHooks(model, layers, precision=torch.float64)
    total = GradientSum(hooks.shapes)
    with hooks.attached():
        total.batch(hooks, weighted(collate(ROWS[:2], CPU, torch.float64), [1.0, -1.0]))
    wanted = naive.measurement(model, [layer.name for layer in layers], [ROWS[0]], [ROWS[1]])
    for number, g in enumerate(wanted):
        torch.testing.assert_close(total.matrix(number), g, rtol=1e-8, atol=1e-12)


def test_the_draw_of_rows_does_not_change_the_norm_on_average() -> None:
    g_MF = np.random.default_rng(0).normal(size=(6, 4)) + 2.0
    truth = float(np.square(g_MF.mean(0)).sum())
    found, plain = [], []
    for chosen in combinations(range(6), 3):
        drawn = g_MF[list(chosen)]
        mean = float(np.square(drawn.mean(0)).sum())
        plain.append(mean)
        found.append(mean_gradient_norm(mean, np.square(drawn).sum(1), 6) ** 2)
    assert np.mean(found) == pytest.approx(truth, rel=1e-12)
    assert np.mean(plain) > 1.01 * truth  # what is taken off is not nothing


def test_rows_without_gradients_have_no_error() -> None:
    assert fitting_error(0.0, np.zeros(3), 3) == 0.0
    assert fitting_error(0.0, np.array([4.0, 4.0]), 99) == 0.0  # opposite gradients: the estimate is not below 0
    assert fitting_error(9.0, np.array([9.0]), 99) == 1.0
