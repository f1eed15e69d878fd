"""Predictive entropy of rows: how unsure a model is of their answers.

    U(z) = sum_t H(p(. | tokens before t)),  t over the tokens that the loss counts, in nats

STAR (Zhang et al. 2024, arXiv 2403.01165): sum over the answer's tokens, and for the tuned model the mean of several
passes with dropout. Status C (the authors' code, Entropy_get_value and Entropy_dynamic_get_value). A sum is larger for
longer answers.

Shapes: N rows, B rows of a batch, K targets of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from headwater.examples import Encoded
from headwater.gradients.batches import collate, length_buckets
from headwater.gradients.loss import by_example, losses
from headwater.progress import Bar

BATCH_TOKENS = 512
"""Of a batch: its logits are all held at once."""


def entropies(
    model: torch.nn.Module, rows: Sequence[Encoded], *, passes: int = 0, seed: int = 0, bar: Bar | None = None
) -> np.ndarray:
    """U of every row [N], nats; 0 for a row without counted tokens.

    Args:
        passes: 0: once, without dropout; else the mean over so many passes with it.
        seed: of the dropout.
    """
    some = [n for n, row in enumerate(rows) if row.targets]
    out_N = np.zeros(len(rows))
    device = next(model.parameters()).device
    was_training = model.training
    model.train(passes > 0)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for _ in range(max(1, passes)):
                for bucket in length_buckets([rows[n].length for n in some], BATCH_TOKENS):
                    numbers = [some[i] for i in bucket]
                    batch = collate([rows[n] for n in numbers], device, torch.float32)
                    logits = model(
                        input_ids=batch.input_ids_BT, attention_mask=batch.attention_BT, use_cache=False
                    ).logits
                    logp_KV = logits.flatten(0, 1)[batch.place_K].float().log_softmax(-1)
                    entropy_K = -(logp_KV.exp() * logp_KV).sum(-1)
                    out_N[numbers] += by_example(entropy_K, batch).cpu().numpy() / max(1, passes)
                    if bar is not None:
                        bar.advance(len(numbers))
    finally:
        model.train(was_training)
    return out_N


def row_losses(model: torch.nn.Module, rows: Sequence[Encoded]) -> np.ndarray:
    """Mean negative log-likelihood of each row's counted tokens [N], nats."""
    device = next(model.parameters()).device
    out_N = np.zeros(len(rows))
    with torch.no_grad():
        for numbers in length_buckets([row.length for row in rows], 4 * BATCH_TOKENS):
            batch = collate([rows[n] for n in numbers], device, torch.float32)
            out_N[numbers] = losses(model, batch).cpu().numpy()
    return out_N
