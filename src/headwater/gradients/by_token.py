"""Inner products split by token: of the examples, and of what is asked.

A gradient is a sum over the positions of its sequence, G = sum_t d_t a_t' (`headwater.gradients.factors`), so an inner
product of two gradients is a sum over pairs of positions,

    < G_q, G_i > = sum_u sum_t (a_t . b_u)(d_t . e_u)

and each position's part is exact: the parts add up to the whole.

Shapes: B examples, T tokens (padded), U tokens of all sides, K targets, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from headwater.gradients.batches import Batch, collate, length_buckets
from headwater.gradients.contraction import FactoredGradients, LayerGradients, SideGradients

if TYPE_CHECKING:
    from headwater.examples import Encoded
    from headwater.gradients.factors import FactorHooks

NOISE = 100
"""Epsilons beside the largest part of a row, up to which a position's part is noise."""


def positions(batch: Batch, seen: int) -> torch.Tensor:
    """Which position of its sequence [seen] each of the tokens is that a layer saw.

    A layer that is applied several times sees the sequence as often; an output head may see predicting positions only.
    """
    tokens = batch.shape[1]
    if seen % tokens == 0:
        return torch.arange(seen, device=batch.place_K.device) % tokens
    at: torch.Tensor = torch.unique(batch.place_K % tokens)
    return at


def at_positions(x_SBX: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sums numbers [S, B, seen] of the tokens that a layer saw at the positions they have [S, B, T]."""
    if x_SBX.shape[2] == batch.shape[1]:
        return x_SBX
    out_SBT = x_SBX.new_zeros(*x_SBX.shape[:2], batch.shape[1])
    return out_SBT.index_add_(2, positions(batch, x_SBX.shape[2]), x_SBX)


def token_norms(a_BTI: torch.Tensor, d_BTO: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Squared norms of the positions' parts of one layer's gradient [B, T]; 0 for what is noise beside the largest part
    of the row. A position of a layer that is applied several times has one part, the sum over its applications.

    The first token, for one, sees itself alone, so that no query or key changes anything there: what rounding leaves
    of its gradient has no direction.
    """
    rows, tokens = batch.shape
    uses = a_BTI.shape[1] // tokens
    if uses < 2:
        squared_BT = at_positions((a_BTI.square().sum(2) * d_BTO.square().sum(2))[None], batch)[0]
    else:
        a_BKTI, d_BKTO = (x.view(rows, uses, tokens, -1) for x in (a_BTI, d_BTO))
        kernel_BTKJ = torch.einsum("bkti,bjti->btkj", a_BKTI, a_BKTI) * torch.einsum("bkto,bjto->btkj", d_BKTO, d_BKTO)
        squared_BT = kernel_BTKJ.sum((2, 3)).clamp_min(0)
    least = (NOISE * torch.finfo(squared_BT.dtype).eps) ** 2
    return torch.where(squared_BT > least * squared_BT.amax(1, keepdim=True), squared_BT, 0.0)


def token_sides(
    hooks: FactorHooks, sides: Sequence[Encoded], weights: Sequence[float], *, batch_tokens: int
) -> tuple[SideGradients, torch.Tensor]:
    """The gradient of a weighted sum of losses, token by token.

    Args:
        hooks: without trimming, so that every position is seen.
        weights: of each side's loss.

    Returns:
        The gradients, where every token of every side is a side of its own (U of them, side after side); and the
        squared norm of the whole sum in each layer [L].
    """
    first, total = [], 0
    for side in sides:
        first.append(total)
        total += side.length
    parts: list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = [[] for _ in hooks.shapes]
    with hooks.attached():
        for numbers in length_buckets([side.length for side in sides], batch_tokens):
            batch = collate([sides[n] for n in numbers], hooks.device, hooks.precision)
            first_B = torch.tensor([first[n] for n in numbers], device=hooks.device)
            weight_B = torch.tensor([weights[n] for n in numbers], device=hooks.device, dtype=hooks.precision)

            def keep(
                number: int,
                a_BTI: torch.Tensor,
                d_BTO: torch.Tensor,
                batch: Batch = batch,
                first_B: torch.Tensor = first_B,
                weight_B: torch.Tensor = weight_B,
            ) -> None:
                row, seen = (d_BTO != 0).any(2).nonzero(as_tuple=True)
                token = first_B[row] + positions(batch, d_BTO.shape[1])[seen]
                parts[number].append((a_BTI[row, seen], d_BTO[row, seen] * weight_B[row, None], token))

            hooks.backward(batch, keep)
    layers, squared = [], []
    for pieces in parts:
        b, e, token = (torch.cat(one) for one in zip(*pieces, strict=True))
        layers.append(LayerGradients(tokens=FactoredGradients(b, e, token, total)))
        squared.append((e.T @ b).square().sum())
    squared_L = torch.stack(squared)
    return SideGradients(tuple(layers), squared_L[:, None, None]), squared_L
