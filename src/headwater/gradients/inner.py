"""Inner products of measurements with examples: the right-hand side of the one equation, for one checkpoint.

    dot            < g_q, g_i >                                  g = all layers laid end to end
    cosine         < g_q, g_i > / (|g_q| |g_i|)
    layer_cosine   1/L sum_l < g_ql, g_il > / (|g_ql| |g_il|)

A gradient of zero length has inner product 0 with everything: a row without target tokens teaches nothing.

Shapes: R targets, S sides, B examples of a batch, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from headwater.gradients.batches import Batch
from headwater.gradients.contraction import SideGradients, contract
from headwater.gradients.factors import FactorHooks
from headwater.gradients.measurement import Measurement

InnerProduct = Literal["dot", "cosine", "layer_cosine"]


@dataclass(frozen=True, order=True)
class Product:
    """One number per target and example: which measurement, by which inner product, with the query's gradient
    taken at which checkpoint (its name)."""

    measurement: Measurement
    inner: InnerProduct
    query_at: str


class Contractor:
    """Contracts batches of examples at one checkpoint against stored gradients of the sides.

    Args:
        stored: checkpoint name -> gradients of the sides there.
        matrices: measurement -> M [R, S].
        products: what to compute.
        precision: type of the multiplications.
    """

    def __init__(
        self,
        stored: Mapping[str, SideGradients],
        matrices: Mapping[Measurement, np.ndarray],
        products: tuple[Product, ...],
        precision: torch.dtype,
    ) -> None:
        self._names = sorted({product.query_at for product in products})
        self._stored = [stored[name] for name in self._names]
        self._products = products
        self._precision = precision
        self._norm = any(product.inner != "dot" for product in products)
        device = self._stored[0].gram_LSS.device
        self._matrix_RS = {m: torch.from_numpy(matrix).to(device, precision) for m, matrix in matrices.items()}
        self._inverse_LR = {
            (m, name): _inverse_norm(_squared_norms(matrix, stored[name])).to(precision)
            for m, matrix in matrices.items()
            for name in self._names
        }
        self._inverse_R = {
            (m, name): _inverse_norm(_squared_norms(matrix, stored[name]).sum(0)).to(precision)
            for m, matrix in matrices.items()
            for name in self._names
        }

    def __call__(self, hooks: FactorHooks, batch: Batch) -> tuple[dict[Product, torch.Tensor], torch.Tensor]:
        """Returns product -> scores [R, B], and the losses [B] in nats."""
        rows = batch.shape[0]
        sums = {
            p: batch.weight_BT.new_zeros(len(self._matrix_RS[p.measurement]), rows, dtype=self._precision)
            for p in self._products
        }
        norm_B = batch.weight_BT.new_zeros(rows, dtype=self._precision)

        def consume(number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> None:
            a, d = a_BTI.to(self._precision), d_BTO.to(self._precision)
            dots, squared_B = contract([one.layers[number] for one in self._stored], a, d, norm=self._norm)
            if squared_B is not None:
                norm_B.add_(squared_B)
            for product, sum_RB in sums.items():
                value_RB = self._matrix_RS[product.measurement] @ dots[self._names.index(product.query_at)]
                if product.inner == "layer_cosine" and squared_B is not None:
                    value_RB *= self._inverse_LR[product.measurement, product.query_at][number, :, None]
                    value_RB *= _inverse_norm(squared_B)
                sum_RB.add_(value_RB)

        losses_B = hooks.backward(batch, consume)
        for product, sum_RB in sums.items():
            if product.inner == "cosine":
                sum_RB *= self._inverse_R[product.measurement, product.query_at][:, None] * _inverse_norm(norm_B)
            elif product.inner == "layer_cosine":
                sum_RB /= len(self._stored[0].layers)
        return sums, losses_B


def _squared_norms(matrix_RS: np.ndarray, stored: SideGradients) -> torch.Tensor:
    """Squared norms of the measurements' gradients [L, R]: the diagonal of M gram M'."""
    gram_LSS = stored.gram_LSS.double()
    m_RS = torch.from_numpy(matrix_RS).to(gram_LSS.device)
    return torch.einsum("rs,lst,rt->lr", m_RS, gram_LSS, m_RS).clamp_min(0)


def _inverse_norm(squared: torch.Tensor) -> torch.Tensor:
    return torch.where(squared > 0, squared.clamp_min(torch.finfo(squared.dtype).tiny).rsqrt(), 0.0)
