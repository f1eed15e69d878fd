"""Naive doubles of curvature: every row alone, unpadded; whole matrices per layer; dense inverses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from reference import naive


def sampled_loss(model: Any, row: Any, uniform_K: np.ndarray) -> torch.Tensor:
    """-log p of labels drawn by inverting the running sum, each token weighted by 1 / sqrt(targets)."""
    ids = torch.as_tensor(np.asarray(row.input_ids))
    log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    terms, places = [], [t - 1 for t in range(1, len(ids)) if row.loss_mask[t]]
    for place, u in zip(places, uniform_K, strict=True):
        running = log_p[place].detach().exp().cumsum(0)
        label = min(int((running <= u * running[-1]).sum()), len(running) - 1)
        terms.append(-log_p[place, label])
    return torch.stack(terms).sum() / len(terms) ** 0.5


def margin_loss(model: Any, row: Any) -> torch.Tensor:
    """Mean over the targets of -log(p / (1 - p))."""
    ids = torch.as_tensor(np.asarray(row.input_ids))
    p = model(input_ids=ids[None]).logits[0].softmax(-1)
    terms = [p[t - 1, ids[t]] for t in range(1, len(ids)) if row.loss_mask[t]]
    return torch.stack([-torch.log(one / (1 - one)) for one in terms]).mean()


def gradients(model: Any, names: Sequence[str], loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, naive.weights(model, names)))


def kronecker_factors(
    model: Any, names: Sequence[str], rows: Sequence[Any], uniforms: Sequence[np.ndarray]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """A = mean over positions of a a', S = sum over positions, mean over rows, of d d'; positions before the last
    target."""
    found_a: list[list[torch.Tensor]] = [[] for _ in names]
    found_d: list[list[torch.Tensor]] = [[] for _ in names]
    for row, uniform_K in zip(rows, uniforms, strict=True):
        last = int(np.flatnonzero(row.loss_mask)[-1])
        seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def keep(n: int, seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = seen) -> Any:
            def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
                output.retain_grad()
                seen[n] = (inputs[0], output)

            return hook

        naive.weights(model, names)
        handles = [model.get_submodule(name).register_forward_hook(keep(n)) for n, name in enumerate(names)]
        sampled_loss(model, row, uniform_K).backward()
        for handle in handles:
            handle.remove()
        for n, (a, y) in seen.items():
            assert y.grad is not None
            found_a[n] += list(a[0, :last].detach())
            found_d[n] += list(y.grad[0, :last])
    a_II = [torch.stack([torch.outer(a, a) for a in one]).mean(0) for one in found_a]
    s_OO = [torch.stack([torch.outer(d, d) for d in one]).sum(0) / len(rows) for one in found_d]
    return a_II, s_OO


def damped_inverse(h_DD: torch.Tensor, damping: float) -> torch.Tensor:
    """(H + damping x mean eigenvalue)^-1."""
    mean = h_DD.trace() / len(h_DD)
    return torch.linalg.inv(h_DD + damping * mean * torch.eye(len(h_DD), dtype=h_DD.dtype))
