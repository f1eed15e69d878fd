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
