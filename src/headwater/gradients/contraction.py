"""Inner products of per-example gradients with stored gradients, layer by layer, by the cheapest exact way.

For one layer, side s has gradient G_s = sum_u e_u b_u' (query tokens u) and example i has G_i = sum_t d_t a_t'. Then

    < G_s, G_i > = sum_u sum_t (a_t . b_u)(d_t . e_u)          "factored":     N U (I + O) multiplications
                 = sum of the elements of G_s * G_i            "materialised": N I O + B S I O
    | G_i |^2    = sum_t sum_t' (a_t . a_t')(d_t . d_t')       "gram":         B T^2 (I + O)
                 = sum of the elements of G_i^2                "materialised": N I O + B I O

All give the same number; the counted multiplications decide, for every layer and batch.

Shapes: B examples, T tokens (padded), N = B T, I inputs, O outputs, S sides, U tokens of all sides together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from headwater.errors import NumericalError
from headwater.examples import Encoded
from headwater.gradients.batches import collate, length_buckets
from headwater.gradients.factors import FactorHooks
from headwater.gradients.layers import Layer


@dataclass(frozen=True)
class FactoredGradients:
    """Gradients of S sides in one layer, as the tokens that make them."""

    b_UI: torch.Tensor
    e_UO: torch.Tensor
    side_U: torch.Tensor
    sides: int

    def gram(self) -> torch.Tensor:
        """< G_s, G_s' > [S, S]."""
        kernel_UU = (self.b_UI @ self.b_UI.T) * (self.e_UO @ self.e_UO.T)
        return self._sum_tokens(self._sum_tokens(kernel_UU).T)

    def dots(self, a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> torch.Tensor:
        """< G_s, G_i > [S, B]."""
        kernel_NU = (a_BTI.flatten(0, 1) @ self.b_UI.T) * (d_BTO.flatten(0, 1) @ self.e_UO.T)
        return self._sum_tokens(kernel_NU.view(*a_BTI.shape[:2], -1).sum(1).T)

    def _sum_tokens(self, x_UX: torch.Tensor) -> torch.Tensor:
        out_SX = x_UX.new_zeros(self.sides, x_UX.shape[1])
        return out_SX.index_add_(0, self.side_U, x_UX)


@dataclass(frozen=True)
class DenseGradients:
    """Gradients of S sides in one layer, as matrices."""

    g_SOI: torch.Tensor

    def gram(self) -> torch.Tensor:
        flat = self.g_SOI.flatten(1)
        return flat @ flat.T

    def dots(self, g_BOI: torch.Tensor) -> torch.Tensor:
        return self.g_SOI.flatten(1) @ g_BOI.flatten(1).T


@dataclass(frozen=True)
class SideGradients:
    """Gradients of every side in every layer, at one checkpoint: what the examples are contracted against.

    Attributes:
        layers: one entry per layer.
        gram_LSS: inner products of the sides with each other, per layer.
    """

    layers: tuple[FactoredGradients | DenseGradients, ...]
    gram_LSS: torch.Tensor

    def arrays(self) -> dict[str, np.ndarray]:
        """As plain arrays, to be kept for a later visit."""
        out = {"gram_LSS": self.gram_LSS.cpu().numpy()}
        for number, layer in enumerate(self.layers):
            if isinstance(layer, DenseGradients):
                out[f"{number}/g"] = layer.g_SOI.cpu().numpy()
            else:
                out |= {f"{number}/{k}": getattr(layer, k).cpu().numpy() for k in ("b_UI", "e_UO", "side_U")}
        return out

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], device: torch.device) -> SideGradients:
        """The inverse of `arrays`."""
        layers: list[FactoredGradients | DenseGradients] = []
        tensors = {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}
        gram_LSS = tensors["gram_LSS"]
        for number in range(len(gram_LSS)):
            if f"{number}/g" in tensors:
                layers.append(DenseGradients(tensors[f"{number}/g"]))
            else:
                b, e, side = (tensors[f"{number}/{k}"] for k in ("b_UI", "e_UO", "side_U"))
                layers.append(FactoredGradients(b, e, side, gram_LSS.shape[1]))
        return cls(tuple(layers), gram_LSS)


def side_bytes(layers: Sequence[Layer], side: Encoded, precision: torch.dtype) -> int:
    """Bytes that the gradients of one side take at most, in the smaller of the two representations."""
    numbers = sum(
        min(side.length * len(layer.modules) * (layer.in_features + layer.out_features), layer.size) for layer in layers
    )
    return numbers * precision.itemsize


def factored_is_cheaper(layer: Layer, sides: int, side_tokens: int, example_tokens: float) -> bool:
    """Whether S sides of U tokens in all are better kept as tokens than as matrices.

    Counts multiplications per token of an example (see the module's head) for the inner products and the norm,
    with `example_tokens` the mean length of an example, and never stores more numbers than the matrices would be.
    """
    i, o, area = layer.in_features, layer.out_features, layer.size
    norm = min(example_tokens * (i + o), area + area / example_tokens)
    factored = side_tokens * (i + o) + norm
    materialised = area + (sides + 1) * area / example_tokens
    return side_tokens * (i + o) <= sides * area and factored <= materialised


def side_gradients(
    model: nn.Module,
    layers: tuple[Layer, ...],
    sides: Sequence[Encoded],
    *,
    batch_tokens: int,
    example_tokens: float,
    precision: torch.dtype,
    memory: int | None = None,
) -> SideGradients:
    """Gradient of the mean negative log-likelihood of every side.

    Args:
        batch_tokens: tokens of a batch, padding included.
        example_tokens: mean length of the examples that will be contracted, for the choice of representation.
        precision: type the gradients are kept and multiplied in.
        memory: bytes for all of it; where the cheaper representation would take more, the smaller one is kept.

    Raises:
        NumericalError: NaN or infinity in a gradient.
    """
    device = next(model.parameters()).device
    parts: list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = [[] for _ in layers]
    kept: list[DenseGradients | None] = []
    tokens = [int(side.loss_mask.nonzero()[0][-1]) for side in sides]  # d is zero from the last target on
    uses = [len(layer.modules) for layer in layers]
    dense = [
        not factored_is_cheaper(layer, len(sides), sum(tokens) * n, example_tokens)
        for layer, n in zip(layers, uses, strict=True)
    ]
    held = [
        len(sides) * layer.size if as_matrix else sum(tokens) * n * (layer.in_features + layer.out_features)
        for layer, n, as_matrix in zip(layers, uses, dense, strict=True)
    ]
    if memory is not None and sum(held) * precision.itemsize > memory:
        dense = [
            len(sides) * layer.size < sum(tokens) * n * (layer.in_features + layer.out_features)
            for layer, n in zip(layers, uses, strict=True)
        ]
    for layer, as_matrix in zip(layers, dense, strict=True):
        shape = (len(sides), layer.out_features, layer.in_features)
        kept.append(DenseGradients(torch.zeros(shape, dtype=precision, device=device)) if as_matrix else None)
    hooks = FactorHooks(model, layers)
    with hooks.attached():
        for rows in length_buckets([side.length for side in sides], batch_tokens):
            batch = collate([sides[row] for row in rows], device, precision)
            numbers = torch.tensor(rows, device=device)

            def keep(number: int, a_BTI: torch.Tensor, d_BTO: torch.Tensor, numbers: torch.Tensor = numbers) -> None:
                a, d = a_BTI.to(precision), d_BTO.to(precision)
                matrices = kept[number]
                if matrices is not None:
                    matrices.g_SOI[numbers] = torch.bmm(d.mT, a)
                    return
                row, token = (d != 0).any(2).nonzero(as_tuple=True)
                parts[number].append((a[row, token], d[row, token], numbers[row]))

            losses_B = hooks.backward(batch, keep)
            if not torch.isfinite(losses_B).all():
                raise _not_finite("the loss of a query")
    built: list[FactoredGradients | DenseGradients] = []
    for number, matrices in enumerate(kept):
        if matrices is not None:
            built.append(matrices)
        else:
            b, e, side = (torch.cat(pieces) for pieces in zip(*parts[number], strict=True))
            built.append(FactoredGradients(b, e, side, len(sides)))
    gram_LSS = torch.stack([layer.gram() for layer in built])
    if not torch.isfinite(gram_LSS).all():
        raise _not_finite("the gradient of a query")
    return SideGradients(tuple(built), gram_LSS)


def example_norm(a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> torch.Tensor:
    """Squared norms |G_i|^2 of one layer [B], by Gram matrices of the tokens or by the matrix itself."""
    tokens, inputs, outputs = a_BTI.shape[1], a_BTI.shape[2], d_BTO.shape[2]
    if tokens * tokens * (inputs + outputs) <= (tokens + 1) * inputs * outputs:
        gram = torch.bmm(a_BTI, a_BTI.mT) * torch.bmm(d_BTO, d_BTO.mT)
        return gram.sum((1, 2)).clamp_min(0)
    return torch.bmm(d_BTO.mT, a_BTI).square().sum((1, 2))


def contract(
    stored: Sequence[FactoredGradients | DenseGradients], a_BTI: torch.Tensor, d_BTO: torch.Tensor, *, norm: bool
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """One layer: inner products [S, B] with each stored set of gradients, and squared norms [B] if asked for."""
    g_BOI: torch.Tensor | None = None
    if any(isinstance(one, DenseGradients) for one in stored):
        g_BOI = torch.bmm(d_BTO.mT, a_BTI)
    dots: list[Any] = [
        one.dots(a_BTI, d_BTO) if isinstance(one, FactoredGradients) else one.dots(g_BOI)  # type: ignore[arg-type]
        for one in stored
    ]
    if not norm:
        return dots, None
    return dots, g_BOI.square().sum((1, 2)) if g_BOI is not None else example_norm(a_BTI, d_BTO)


def _not_finite(what: str) -> NumericalError:
    return NumericalError(
        f"{what} is NaN or infinite",
        expected="finite numbers",
        cause="a model whose weights are broken, or half precision that overflows",
        fix="check the checkpoint, or use --dtype float32",
    )
