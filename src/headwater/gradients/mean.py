"""The gradient of a mean of losses, and how far from a stationary point it says that a model is.

    G = sum_i w_i grad l(z_i)            the sum over the rows, layer by layer, without any row's gradient being kept
    e = |grad mean l| / mean_i |grad l(z_i)|          fitting error, status D

At a stationary point of the training loss the rows' gradients cancel out: e = 0. Where all rows pull the same way,
e = 1. It has no unit, so it can be compared between checkpoints whose gradients differ in length.

Shapes: B examples, T tokens (padded), I inputs, O outputs, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from headwater.gradients.batches import Batch
from headwater.gradients.contraction import example_norm
from headwater.gradients.curvature.fitting import Stage
from headwater.gradients.factors import FactorHooks


class GradientSum(Stage):
    """The sum of the examples' gradients (`matrix`), and each example's loss and squared gradient norm in the order
    they came (`sums["loss"]`, `sums["squared"]`)."""

    def batch(self, hooks: FactorHooks, batch: Batch) -> None:
        squared_B = torch.zeros(batch.shape[0], dtype=hooks.precision, device=hooks.device)

        def layer(number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> None:
            self.add(f"{number}/sum", d_BTO.flatten(0, 1).T @ a_BTI.flatten(0, 1))
            squared_B.add_(example_norm(a_BTI, d_BTO))

        loss_B = hooks.backward(batch, layer)
        for name, value_B in (("loss", loss_B), ("squared", squared_B)):
            before = self.sums.get(name)
            self.sums[name] = value_B if before is None else torch.cat([before, value_B])

    def matrix(self, number: int) -> torch.Tensor:
        """The sum in one layer [O, I], in float64."""
        return self.sums[f"{number}/sum"].double()


def weighted(batch: Batch, weights: Sequence[float]) -> Batch:
    """The batch whose sum of losses is weighted, one weight for each example."""
    weight_B = torch.tensor(weights, dtype=batch.weight_K.dtype, device=batch.weight_K.device)
    return replace(batch, weight_K=batch.weight_K * weight_B[batch.place_K // batch.shape[1]])


def mean_gradient_norm(mean_squared: float, squared_N: np.ndarray, population: int) -> float:
    """|grad mean l| over a population of rows of which N were drawn without replacement.

    The mean g of the drawn gradients has E|g|^2 = |G|^2 + (1 - N/M) S^2 / N, with G the mean over all M rows and S^2
    the rows' spread about it, which s^2 = N/(N-1) (mean_i |g_i|^2 - |g|^2) estimates without bias (Cochran, Sampling
    Techniques, chapter 2). What the draw alone adds is taken off: status D. Nothing is taken off where all rows were
    drawn; an estimate below 0 is 0.

    Args:
        mean_squared: |g|^2. squared_N: |g_i|^2 of the drawn rows. population: M.
    """
    count = len(squared_N)
    if count < 2 or population <= count:
        return float(np.sqrt(mean_squared))
    spread = count / (count - 1) * (float(np.mean(squared_N)) - mean_squared)
    return float(np.sqrt(max(0.0, mean_squared - (1 - count / population) * spread / count)))


def fitting_error(mean_squared: float, squared_N: np.ndarray, population: int) -> float:
    """|grad mean l| / mean_i |grad l(z_i)|, in [0, 1]; 0 where no row has a gradient."""
    each = float(np.mean(np.sqrt(squared_N)))
    return mean_gradient_norm(mean_squared, squared_N, population) / each if each > 0 else 0.0
