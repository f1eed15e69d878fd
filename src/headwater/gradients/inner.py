"""Inner products of measurements with examples: the right-hand side of the one equation, for one checkpoint.

    dot            < g_q, g_i >                                  g = all layers laid end to end
    cosine         < g_q, g_i > / (|g_q| |g_i|)
    layer_cosine   1/L sum_l < g_ql, g_il > / (|g_ql| |g_il|)
    token_cosine   max_t 1/L sum_l < g_ql, g_ilt > / (|g_ql| |g_ilt|)

g_ilt is the part of position t in g_il (`headwater.gradients.by_token`): a row teaches a fault at one place, and its
other places say other things. The maximum is over the positions that have a gradient (in a layer, one above rounding).

A gradient of zero length has inner product 0 with everything: a row without target tokens teaches nothing.

For dot and cosine g_q of a group is the sum over its queries (as LESS has it for a task, arXiv 2402.04333). The
layer_cosine and token_cosine of a group are the means of its queries': each counts alike, however long its gradient is,
and each finds its own position of the row.

Shapes: R targets, S sides, B examples of a batch, T tokens (padded), L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headwater.gradients.batches import Batch
from headwater.gradients.by_token import at_positions, token_norms
from headwater.gradients.contraction import Contraction, Form, SideGradients
from headwater.gradients.curvature.options import PLAIN, Space, Step
from headwater.gradients.curvature.spectrum import Map
from headwater.gradients.factors import FactorHooks
from headwater.gradients.measurement import InnerProduct, Measurement, Target


@dataclass(frozen=True, order=True)
class Product:
    """One number per target and example: which measurement, by which inner product, with the query's gradient
    taken at which checkpoint (its name).

    Attributes:
        space: what is done to the gradients of both sides first. steps: what the query's gradient is multiplied by.
        rows: the same for the example's.
    """

    measurement: Measurement
    inner: InnerProduct
    query_at: str
    space: Space = PLAIN
    steps: tuple[Step, ...] = ()
    rows: tuple[Step, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether it is an inner product of gradients as they are."""
        return self.space == PLAIN and not self.steps and not self.rows

    @property
    def query(self) -> str:
        """Name of the query's gradients: their checkpoint, and what they are multiplied by."""
        return self.query_at if not self.steps else f"{self.query_at} {self.steps}"


def is_mean(inner: InnerProduct) -> bool:
    """Whether a group's number is the mean of its queries'."""
    return inner in ("layer_cosine", "token_cosine")


def grouped(value_QX: np.ndarray, inner: InnerProduct, targets: Sequence[Target]) -> np.ndarray:
    """Values of all targets [R, ...], of those of the queries where groups have their means, else of all."""
    if not is_mean(inner):
        return value_QX
    groups = [value_QX[list(one.members)].mean(0) for one in targets if one.kind == "group"]
    queries = len(targets) - len(groups)
    return np.stack([*value_QX[:queries], *groups]) if groups else value_QX


class Contractor:
    """Contracts batches of examples at one checkpoint against stored gradients of the sides.

    Args:
        stored: name of the queries' gradients (`Product.query`) -> gradients of the sides.
        matrices: measurement -> M [R, S].
        products: what to compute.
        form: the only form of contraction to use, where a layer has it; None: the cheapest for each layer and batch.
        by_token: scores of every token of the examples, whose sum is the example's score. For token_cosine the targets
            are then parts of one measurement, and every token but the best one for all of them together has 0.
        queries: how many of the targets are queries: of an inner product whose groups have means these alone are
            computed; None: all.
        squared: squared norms of the measurements' gradients [L, R], by measurement and checkpoint; None: those of
            M times the sides. Others are given where the targets are parts of a measurement.
        mapped: what is done to the examples' gradients, layer by layer, before anything else (`Product.rows`).
    """

    def __init__(
        self,
        stored: Mapping[str, SideGradients],
        matrices: Mapping[Measurement, np.ndarray],
        products: tuple[Product, ...],
        *,
        form: Form | None = None,
        by_token: bool = False,
        queries: int | None = None,
        squared: Mapping[tuple[Measurement, str], torch.Tensor] | None = None,
        mapped: Map | None = None,
    ) -> None:
        self._names = sorted({product.query for product in products})
        sets = [stored[name] for name in self._names]
        self._products, self._by_token = products, by_token
        self._whole = [product for product in products if product.inner != "token_cosine"]
        self._at_one = [product for product in products if product.inner == "token_cosine"]
        if self._at_one and mapped is not None:
            raise ValueError("token_cosine takes no examples that are changed first")
        norm = any(product.inner != "dot" for product in self._whole)
        self.contraction = Contraction(sets, norm=norm, form=form, mapped=mapped)
        self._at_positions = Contraction(sets, norm=False)
        self._at_positions.chosen = self.contraction.chosen
        gram = sets[0].gram_LSS
        self._layers = len(gram)
        self._matrix_RS = {m: torch.from_numpy(matrix).to(gram) for m, matrix in matrices.items()}
        squared_LR = squared or {
            (m, name): _squared_norms(matrix, stored[name]) for m, matrix in matrices.items() for name in self._names
        }
        self._queries = queries
        self._inverse_LR = {key: _inverse_norm(squared).to(gram.dtype) for key, squared in squared_LR.items()}
        self._inverse_R = {key: _inverse_norm(squared.sum(0)).to(gram.dtype) for key, squared in squared_LR.items()}

    def __call__(self, hooks: FactorHooks, batch: Batch) -> tuple[dict[Product, torch.Tensor], torch.Tensor]:
        """Returns product -> scores [R, B] (by token [R, B, T]; [Q, ...] of queries alone), and the losses [B] in nats.

        Raises:
            ValueError: hooks that leave positions out, where positions are told apart.
        """
        if hooks.trim and (self._by_token or self._at_one):
            raise ValueError("scores by token need hooks with trim=False")
        norm_B = batch.weight_K.new_zeros(batch.shape[0], dtype=hooks.precision)
        sums = {p: self._zeros(p, norm_B, batch) for p in self._products}
        seen_BT = torch.zeros(batch.shape, dtype=torch.bool, device=norm_B.device)

        def consume(number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> None:
            if self._whole:
                contract = self.contraction.by_token if self._by_token else self.contraction
                dots, squared_B = contract(number, a_BTI, d_BTO)
                if self._by_token:
                    dots = [at_positions(one, batch) for one in dots]
                if squared_B is not None:
                    norm_B.add_(squared_B)
            for product in self._whole:
                value_RX = self._measured(product, dots)
                if product.inner == "layer_cosine" and squared_B is not None:
                    value_RX *= _spread(self._inverse(product, number), 0, value_RX)
                    value_RX *= _spread(_inverse_norm(squared_B), 1, value_RX)
                sums[product].add_(value_RX)
            if self._at_one:
                dots = [at_positions(one, batch) for one in self._at_positions.by_token(number, a_BTI, d_BTO)[0]]
                squared_BT = token_norms(a_BTI, d_BTO, batch)
                seen_BT.logical_or_(squared_BT > 0)
            for product in self._at_one:
                value_RBT = self._measured(product, dots)
                value_RBT *= _spread(self._inverse(product, number), 0, value_RBT)
                sums[product].add_(value_RBT * _inverse_norm(squared_BT))

        losses_B = hooks.backward(batch, consume)
        for product, sum_RX in sums.items():
            if product.inner == "cosine":
                sum_RX *= _spread(self._inverse_R[product.measurement, product.query], 0, sum_RX)
                sum_RX *= _spread(_inverse_norm(norm_B), 1, sum_RX)
            elif product.inner in ("layer_cosine", "token_cosine"):
                sum_RX /= self._layers
        for product in self._at_one:
            highest = _best_alone if self._by_token else _highest
            sums[product] = highest(sums[product], seen_BT)
        return sums, losses_B

    def _zeros(self, product: Product, like: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Of every target [R, B], or [R, B, T] where tokens are told apart."""
        shape = batch.shape if self._by_token or product.inner == "token_cosine" else batch.shape[:1]
        return like.new_zeros(len(self._matrix(product)), *shape)

    def _matrix(self, product: Product) -> torch.Tensor:
        """M of the targets that are computed."""
        matrix_RS = self._matrix_RS[product.measurement]
        return matrix_RS[: self._queries] if is_mean(product.inner) else matrix_RS

    def _inverse(self, product: Product, number: int) -> torch.Tensor:
        """1 / |g_ql| of the targets that are computed, in one layer."""
        inverse_R = self._inverse_LR[product.measurement, product.query][number]
        return inverse_R[: self._queries] if is_mean(product.inner) else inverse_R

    def _measured(self, product: Product, dots: list[torch.Tensor]) -> torch.Tensor:
        """Of the sides' inner products [S, ...], the measurements' [R, ...]."""
        value_RX: torch.Tensor = torch.tensordot(self._matrix(product), dots[self._names.index(product.query)], 1)
        return value_RX


def _highest(value_RBT: torch.Tensor, seen_BT: torch.Tensor) -> torch.Tensor:
    """The largest values among the positions that are seen [R, B]; 0 where there are none."""
    highest_RB = value_RBT.masked_fill(~seen_BT, -torch.inf).amax(2)
    return torch.where(seen_BT.any(1), highest_RB, 0.0)


def _best_alone(value_RBT: torch.Tensor, seen_BT: torch.Tensor) -> torch.Tensor:
    """The values at the position where their sum over the targets is largest, 0 at the others [R, B, T]."""
    best_B = value_RBT.sum(0).masked_fill(~seen_BT, -torch.inf).argmax(1)
    best_BT = torch.nn.functional.one_hot(best_B, seen_BT.shape[1]).bool() & seen_BT
    return value_RBT * best_BT


def _spread(values: torch.Tensor, axis: int, like: torch.Tensor) -> torch.Tensor:
    """Values along one axis of `like`, the others of length 1."""
    return values.view([-1 if n == axis else 1 for n in range(like.ndim)])


def _squared_norms(matrix_RS: np.ndarray, stored: SideGradients) -> torch.Tensor:
    """Squared norms of the measurements' gradients [L, R]: the diagonal of M gram M'."""
    gram_LSS = stored.gram_LSS.double()
    m_RS = torch.from_numpy(matrix_RS).to(gram_LSS.device)
    return torch.einsum("rs,lst,rt->lr", m_RS, gram_LSS, m_RS).clamp_min(0)


def _inverse_norm(squared: torch.Tensor) -> torch.Tensor:
    return torch.where(squared > 0, squared.clamp_min(torch.finfo(squared.dtype).tiny).rsqrt(), 0.0)
