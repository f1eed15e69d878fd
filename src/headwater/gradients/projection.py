"""Two-sided random projection of gradients, layer by layer (LoGra, Choe et al. 2024, arXiv 2405.13954, section 3.2).

    G = sum_t d_t a_t'   ->   P_o G P_i' = sum_t (P_o d_t) (P_i a_t)'

so that a gradient of O x I numbers becomes one of r_o x r_i, and is never formed at full size. The entries of P_i and
P_o are +1 or -1, divided by the square root of their rank: inner products keep their expectation (Johnson and
Lindenstrauss; Achlioptas 2003). A side not wider than its rank is left as it is, and the other side gets the rank
that this saves: every layer has the same number of features where it can.

The signs come from Philox, a counter-based generator, keyed by seed, layer name and side: the same on every device
and machine, so that no matrix is stored.

Shapes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headwater.errors import UsageError
from headwater.gradients.layers import Layer


@dataclass(frozen=True, kw_only=True)
class LayerRanks:
    """One layer's shape and what is left of it.

    Attributes:
        rank_in: r_i, at most in_features. rank_out: r_o, at most out_features.
    """

    name: str
    in_features: int
    out_features: int
    rank_in: int
    rank_out: int

    @property
    def features(self) -> int:
        return self.rank_in * self.rank_out


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What is done to each layer.

    Attributes:
        seed: another seed is another projection: gradients of two seeds cannot be compared.
    """

    layers: tuple[LayerRanks, ...]
    seed: int = 0

    @classmethod
    def of(cls, layers: Sequence[Layer], rank: int, seed: int = 0) -> Projection:
        """Ranks of every layer for a budget of rank x rank features each.

        Raises:
            UsageError: a rank below 1.
        """
        if rank < 1:
            raise UsageError(f"a projection of rank {rank}", expected="at least 1", fix="raise --rank")
        chosen = []
        for layer in layers:
            inputs, outputs = layer.in_features, layer.out_features
            if min(inputs, outputs) > rank:
                rank_in = rank_out = rank
            elif inputs <= outputs:
                rank_in, rank_out = inputs, min(outputs, rank * rank // inputs)
            else:
                rank_in, rank_out = min(inputs, rank * rank // outputs), outputs
            chosen.append(
                LayerRanks(
                    name=layer.name, in_features=inputs, out_features=outputs, rank_in=rank_in, rank_out=rank_out
                )
            )
        return cls(layers=tuple(chosen), seed=seed)

    @property
    def features(self) -> int:
        return sum(layer.features for layer in self.layers)

    def matrices(self, device: torch.device, dtype: torch.dtype) -> ProjectionMatrices:
        """The matrices themselves, made anew."""

        def side(layer: LayerRanks, name: str, size: int, rank: int) -> torch.Tensor | None:
            if rank >= size:
                return None
            return torch.from_numpy(signs(f"{self.seed}/{layer.name}/{name}", size, rank)).to(device, dtype)

        return ProjectionMatrices(
            tuple(side(layer, "in", layer.in_features, layer.rank_in) for layer in self.layers),
            tuple(side(layer, "out", layer.out_features, layer.rank_out) for layer in self.layers),
        )


Scales = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Factors of each layer's inputs [I] and outputs [O]."""


@dataclass(frozen=True)
class ProjectionMatrices:
    """P_i' [I, r_i] and P_o' [O, r_o] of every layer; None where a side is left as it is, [I] where it is scaled."""

    inputs: tuple[torch.Tensor | None, ...]
    outputs: tuple[torch.Tensor | None, ...]

    @classmethod
    def none(cls, layers: int) -> ProjectionMatrices:
        return cls((None,) * layers, (None,) * layers)

    def scaled(self, scales: Scales) -> ProjectionMatrices:
        """The same after scaling: P_i diag(scale)."""

        def side(matrix: torch.Tensor | None, scale: torch.Tensor) -> torch.Tensor:
            return scale if matrix is None else scale.to(matrix)[:, None] * matrix

        return ProjectionMatrices(
            tuple(side(matrix, pair[0]) for matrix, pair in zip(self.inputs, scales, strict=True)),
            tuple(side(matrix, pair[1]) for matrix, pair in zip(self.outputs, scales, strict=True)),
        )

    def on(self, devices: Sequence[torch.device]) -> ProjectionMatrices:
        """The same, each layer's on a device of its own."""

        def moved(sides: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
            return tuple(None if m is None else m.to(device) for m, device in zip(sides, devices, strict=True))

        return ProjectionMatrices(moved(self.inputs), moved(self.outputs))

    def activations(self, number: int, a: torch.Tensor) -> torch.Tensor:
        """P_i a of layer `number`, for a [..., I]."""
        return _times(a, self.inputs[number])

    def output_gradients(self, number: int, d: torch.Tensor) -> torch.Tensor:
        """P_o d of layer `number`, for d [..., O]."""
        return _times(d, self.outputs[number])


def signs(key: str, size: int, rank: int) -> np.ndarray:
    """A matrix [size, rank] of +-1/sqrt(rank), float32, decided by `key` alone."""
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "little")
    count = size * rank
    raw = np.random.Philox(key=number).random_raw(-(-count // 64)).astype("<u8").view(np.uint8)
    bits = np.unpackbits(raw, count=count, bitorder="little").reshape(size, rank)
    return (bits.astype(np.float32) * 2 - 1) / np.float32(np.sqrt(rank))


def _times(x: torch.Tensor, matrix: torch.Tensor | None) -> torch.Tensor:
    if matrix is None:
        return x
    return x.to(matrix.dtype) * matrix if matrix.ndim == 1 else x.to(matrix.dtype) @ matrix
