"""What a LoRA adapter can express of a gradient.

A layer's weight is W = W_0 + s B A, with B [O, r] and A [r, I] trained and W_0 fixed. A small change of the adapter
changes W by s (dB A + B dA), to first order: the tangent space

    T = { X A + B Y :  X [O, r], Y [r, I] }

Let P_B and P_A be the orthogonal projections onto the columns of B and onto the rows of A. X A is any matrix M with
M P_A = M, and B Y any with P_B M = M; so M is orthogonal to T exactly where P_B M = 0 and M P_A = 0, that is where
M = (1 - P_B) M (1 - P_A). The projection of a gradient G onto T is therefore G - (1 - P_B) G (1 - P_A), and as
P_B G P_A lies in both P_B G and G P_A,

    |P_T G|^2 = |P_B G|^2 + |G P_A|^2 - |P_B G P_A|^2

(status D). The share |P_T G|^2 / |G|^2 is how much of a step along G the adapter could follow from where it stands. Of
a random gradient it is r/O + r/I - r^2/(O I). A layer without an adapter follows nothing; one that is trained whole
(`modules_to_save`) follows everything.

Shapes: O outputs, I inputs, r rank of the adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headwater.gradients.layers import Layer


@dataclass(frozen=True)
class Adapter:
    """Orthonormal bases of one layer's tangent space.

    Attributes:
        outputs_Or: of the columns of B. inputs_Ir: of the rows of A. Fewer than r columns where B or A has less rank.
        rank: r, as it was trained.
    """

    outputs_Or: torch.Tensor
    inputs_Ir: torch.Tensor
    rank: int

    @classmethod
    def of(cls, layer: Layer) -> Adapter | None:
        """The LoRA adapter of a layer; None where it has none, or one of another kind (DoRA among them)."""
        module: Any = layer.modules[0]
        active = [name for name in getattr(module, "active_adapters", ()) if name in getattr(module, "lora_A", {})]
        if not active or any(getattr(module, "use_dora", {}).get(name, False) for name in active):
            return None
        a_rI = torch.cat([module.lora_A[name].weight for name in active]).detach().double()
        b_Or = torch.cat([module.lora_B[name].weight for name in active], 1).detach().double()
        return cls(_basis(b_Or), _basis(a_rI.T), len(a_rI))

    def expressed(self, g_OI: torch.Tensor) -> float:
        """|P_T G|^2."""
        left, right = self.outputs_Or.T @ g_OI, g_OI @ self.inputs_Ir
        return float(left.square().sum() + right.square().sum() - (left @ self.inputs_Ir).square().sum())

    @property
    def of_random(self) -> float:
        """The share of a random gradient."""
        out, into = (basis.shape[1] / basis.shape[0] for basis in (self.outputs_Or, self.inputs_Ir))
        return out + into - out * into


def trained_whole(layer: Layer) -> bool:
    """Whether a copy of the layer was trained beside the adapters."""
    return hasattr(layer.modules[0], "original_module")


def _basis(x_Xr: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns that span those of x."""
    u, values, _ = torch.linalg.svd(x_Xr, full_matrices=False)
    least = max(x_Xr.shape) * torch.finfo(torch.float32).eps * float(values[:1].sum())
    basis: torch.Tensor = u[:, values > least] if least > 0 else u[:, :0]
    return basis
