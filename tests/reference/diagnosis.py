"""What a diagnosis measures, as plainly as it can be written: one row at a time, full gradients, full logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from reference import naive


def fitting(model: Any, names: Sequence[str], rows: Sequence[Any]) -> tuple[float, np.ndarray, float]:
    """Norm of the mean gradient, norms of the rows' gradients, and the first by the mean of the second."""
    gradients = [torch.cat([g.flatten() for g in naive.gradient(model, names, row)]) for row in rows]
    norms = np.array([float(g.norm()) for g in gradients])
    mean = float(torch.stack(gradients).mean(0).norm())
    return mean, norms, mean / float(norms.mean())


def divergence(model: Any, base: Any, row: Any) -> tuple[list[float], list[bool]]:
    """Of each target of a row: KL(model || base) in nats, and whether the first choices are the same."""
    ids = torch.as_tensor(np.asarray(row.input_ids))[None]
    with torch.no_grad():
        p, q = (one(input_ids=ids).logits[0].double().softmax(-1) for one in (model, base))
    kl, same = [], []
    for t in range(1, ids.shape[1]):
        if row.loss_mask[t]:
            kl.append(float(sum(p[t - 1] * (p[t - 1].log() - q[t - 1].log()))))
            same.append(int(p[t - 1].argmax()) == int(q[t - 1].argmax()))
    return kl, same


def expressed(g: np.ndarray, b: np.ndarray, a: np.ndarray) -> float:
    """Squared norm of the part of g [O, I] that X a + b Y can be, over all X [O, r] and Y [r, I]: least squares over
    every entry of X and Y."""
    (outputs, inputs), rank = g.shape, a.shape[0]
    columns = []
    for o in range(outputs):
        for r in range(rank):
            made = np.zeros((outputs, inputs))
            made[o] = a[r]
            columns.append(made.ravel())
    for r in range(rank):
        for i in range(inputs):
            made = np.zeros((outputs, inputs))
            made[:, i] = b[:, r]
            columns.append(made.ravel())
    design = np.stack(columns, 1)
    best = np.linalg.lstsq(design, g.ravel(), rcond=None)[0]
    return float(np.square(design @ best).sum())
