"""The one equation, as plainly as it can be written: one example at a time, full gradients of full weights by autograd.

Written against the definitions, not against the library: its own loss, its own loops, no padding, no hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def loss(model: Any, row: Any) -> torch.Tensor:
    """Mean negative log-likelihood of the target tokens of one row, from the full logits."""
    ids = torch.as_tensor(np.asarray(row.input_ids))
    logits = model(input_ids=ids[None]).logits[0]
    log_p = logits.log_softmax(-1)
    terms = [-log_p[t - 1, ids[t]] for t in range(1, len(ids)) if row.loss_mask[t]]
    return torch.stack(terms).mean()


def weights(model: Any, names: Sequence[str]) -> list[torch.nn.Parameter]:
    """The weight of each named module."""
    out = [model.get_submodule(name).weight for name in names]
    for weight in out:
        weight.requires_grad_(True)
    return out


def gradient(model: Any, names: Sequence[str], row: Any) -> list[torch.Tensor]:
    """Gradient of one row's loss for each named weight, as float64."""
    chosen = weights(model, names)
    grads = torch.autograd.grad(loss(model, row), chosen)
    return [g.double() for g in grads]


def position_gradients(model: Any, names: Sequence[str], row: Any) -> list[torch.Tensor]:
    """The parts of a row's gradient that its positions have [T, *weight], for each named weight: the gradient of what
    is added to the weight at one position alone."""
    out, handles = [], []
    for weight in weights(model, names):
        added = torch.zeros(len(row.input_ids), *weight.shape, dtype=weight.dtype, requires_grad=True)
        for module in model.modules():
            if getattr(module, "weight", None) is weight:
                form = "bti,tio->bto" if type(module).__name__ == "Conv1D" else "bti,toi->bto"

                def add(module: Any, inputs: Any, output: Any, form: str = form, added: torch.Tensor = added) -> Any:
                    return output + torch.einsum(form, inputs[0], added)

                handles.append(module.register_forward_hook(add))
        out.append(added)
    try:
        grads = torch.autograd.grad(loss(model, row), out)
    finally:
        for handle in handles:
            handle.remove()
    return [g.double() for g in grads]


def token_cosine(query: list[torch.Tensor], parts: list[torch.Tensor]) -> float:
    """The largest layer cosine of a query with one position of an example, of those that have a gradient: in a layer,
    one above rounding."""
    sizes = [max(part.norm() for part in layer) for layer in parts]
    places = [
        [layer[t] * (layer[t].norm() > 2.2e-14 * size) for layer, size in zip(parts, sizes, strict=True)]
        for t in range(len(parts[0]))
    ]
    return max(product(query, place, "layer_cosine") for place in places if any(part.any() for part in place))


def measurement(
    model: Any, names: Sequence[str], wrong: Sequence[Any], corrected: Sequence[Any | None]
) -> list[torch.Tensor]:
    """Gradient of sum over queries of loss(wrong) - loss(corrected)."""
    total: list[torch.Tensor] | None = None
    for bad, good in zip(wrong, corrected, strict=True):
        grads = gradient(model, names, bad)
        if good is not None:
            grads = [a - b for a, b in zip(grads, gradient(model, names, good), strict=True)]
        total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
    assert total is not None
    return total


def product(query: list[torch.Tensor], example: list[torch.Tensor], inner: str) -> float:
    """Inner product of two lists of gradients."""
    if inner == "layer_cosine":
        parts = []
        for q, e in zip(query, example, strict=True):
            length = q.norm() * e.norm()
            parts.append(float((q * e).sum() / length) if length > 0 else 0.0)
        return sum(parts) / len(parts)
    dot = float(sum((q * e).sum() for q, e in zip(query, example, strict=True)))
    if inner == "dot":
        return dot
    length_q = float(sum(q.square().sum() for q in query)) ** 0.5
    length_e = float(sum(e.square().sum() for e in example)) ** 0.5
    return dot / (length_q * length_e) if length_q * length_e > 0 else 0.0
