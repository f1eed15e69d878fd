"""Fitted curvature: eigenvectors and eigenvalues per layer, and functions of them.

    f(H) g = Q f(x) Q' g

in one of three bases: whole layers (Q [D, D], D = I O), Kronecker products (Q_S' G Q_A), or the entries themselves.

Shapes: B examples (or sides), O outputs, I inputs, D = O I of one layer, F of all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headwater.gradients.curvature.options import Curvature, Step

Map = Callable[[int, torch.Tensor], torch.Tensor]
"""Layer number and gradients [B, O, I] to gradients [B, O, I]."""

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of Adam, where the optimizer's state does not say."""


@dataclass(frozen=True)
class Basis:
    """Eigenvectors of one layer (of all, laid end to end, where the curvature is joint).

    Attributes:
        values: eigenvalues [D], or [O, I].
        whole_DD: eigenvectors as columns, or None.
        outputs_OO, inputs_II: those of a Kronecker product, or None.
        momentum_OI: Adam's first moment, where an optimizer's state is behind it.
    """

    values: torch.Tensor
    whole_DD: torch.Tensor | None = None
    outputs_OO: torch.Tensor | None = None
    inputs_II: torch.Tensor | None = None
    momentum_OI: torch.Tensor | None = None

    def times(self, factor: torch.Tensor, g_BOI: torch.Tensor) -> torch.Tensor:
        """Q diag(factor) Q' g, for factors of the shape of the eigenvalues."""
        if self.whole_DD is not None:
            flat = g_BOI.flatten(1)
            whole = self.whole_DD.to(flat)
            return (((flat @ whole) * factor.to(flat)) @ whole.T).view_as(g_BOI)
        if self.outputs_OO is not None and self.inputs_II is not None:
            q_O, q_I = self.outputs_OO.to(g_BOI), self.inputs_II.to(g_BOI)
            return q_O @ ((q_O.T @ g_BOI @ q_I) * factor.to(g_BOI)) @ q_I.T
        return g_BOI * factor.to(g_BOI)


@dataclass(frozen=True)
class Spectrum:
    """Curvature fitted at one checkpoint.

    Attributes:
        bases: one per layer, or a single one over all layers.
    """

    curvature: Curvature
    bases: tuple[Basis, ...]

    def apply(self, step: Step, layers: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """f(H) times gradients of all layers [B, O, I] each."""
        if not self.curvature.joint:
            mapped = self.map(step)
            return [mapped(number, g_BOI) for number, g_BOI in enumerate(layers)]
        flat_BF = torch.cat([g_BOI.flatten(1) for g_BOI in layers], 1)
        basis = self.bases[0]
        out_BF = basis.times(self._factor(step, basis.values), flat_BF[:, None])[:, 0]
        pieces = torch.split(out_BF, [g[0].numel() for g in layers], 1)
        return [piece.reshape(g.shape) for piece, g in zip(pieces, layers, strict=True)]

    def map(self, step: Step) -> Map:
        """The same, layer by layer. The factors are made once."""
        if step.function == "direction":
            return self._direction
        factors = [self._factor(step, basis.values) for basis in self.bases]
        return lambda number, g_BOI: self.bases[number].times(factors[number], g_BOI)

    def _factor(self, step: Step, values: torch.Tensor) -> torch.Tensor:
        x = values.double().clamp_min(0)
        damped = x + self.curvature.damping * (x.mean() if self.curvature.relative else 1.0)
        # a direction without any curvature and damping has no inverse: nothing was learnt along it
        inverse = torch.where(damped > 0, 1 / damped.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
        if step.function == "inverse":
            return inverse
        if step.function == "inverse_root":
            return inverse.sqrt()
        if step.function == "decay":
            return torch.exp(-step.amount * damped)
        small = step.amount * damped
        return torch.where(small > 1e-12, -torch.expm1(-small) * inverse, step.amount)

    def _direction(self, number: int, g_BOI: torch.Tensor) -> torch.Tensor:
        """(b1 m + (1 - b1) g) / sqrt(b2 v + (1 - b2) g^2 + eps): LESS, Xia et al. 2024, section 3.1, and its code."""
        basis = self.bases[number]
        assert basis.momentum_OI is not None
        first, second = BETAS
        m_OI, v_OI = basis.momentum_OI.to(g_BOI), basis.values.to(g_BOI).square()
        step_BOI = first * m_OI + (1 - first) * g_BOI
        return step_BOI / (second * v_OI + (1 - second) * g_BOI.square() + EPSILON).sqrt()

    def arrays(self) -> dict[str, np.ndarray]:
        """As plain arrays."""
        out = {}
        for number, basis in enumerate(self.bases):
            for key in ("values", "whole_DD", "outputs_OO", "inputs_II", "momentum_OI"):
                tensor = getattr(basis, key)
                if tensor is not None:
                    out[f"{number}/{key}"] = tensor.cpu().numpy()
        return out

    @classmethod
    def of_arrays(cls, curvature: Curvature, arrays: Mapping[str, np.ndarray], device: torch.device) -> Spectrum:
        """The inverse of `arrays`."""
        found: dict[int, dict[str, torch.Tensor]] = {}
        for name, array in arrays.items():
            number, key = name.split("/")
            found.setdefault(int(number), {})[key] = torch.from_numpy(np.array(array, order="C")).to(device)
        return cls(curvature, tuple(Basis(**found[number]) for number in range(len(found))))
