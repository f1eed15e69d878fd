"""Rows of tokens to padded tensors, one number at a time; and batches of similar length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from headwater.gradients.batches import collate, length_buckets

CPU = torch.device("cpu")
ROWS = [*tiny.rows(((5, 2), (9, 4), (3, 0), (4, 3)), seed=2)]
ROWS[1].loss_mask[:] = [False, True, False, True, True, False, False, True, False]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_number_of_a_batch(whole: bool, dtype: Any) -> None:
    batch = collate(ROWS, CPU, dtype, whole=whole, numbers=(7, 3, 5, 1))
    lengths = [5, 9, 3, 4] if whole else [4, 7, 3, 3]  # up to the last target, which is not an input
    assert batch.shape == (4, max(lengths))
    places, tokens, weights = [], [], []
    for b, (row, length) in enumerate(zip(ROWS, lengths, strict=True)):
        padding = [0] * (max(lengths) - length)
        assert batch.input_ids_BT[b].tolist() == [*row.input_ids[:length].tolist(), *padding]
        assert batch.attention_BT[b].tolist() == [1] * length + padding
        own = [t for t in range(row.length) if row.loss_mask[t]]
        places += [b * max(lengths) + t - 1 for t in own]
        tokens += [int(row.input_ids[t]) for t in own]
        weights += [1 / len(own) for _ in own]
        first = b * max(lengths)
        assert batch.column_BC[b].tolist() == [first + t - 1 for t in own] + [first] * (4 - len(own))
        assert batch.real_BC[b].tolist() == [True] * len(own) + [False] * (4 - len(own))
    assert (batch.place_K.tolist(), batch.target_K.tolist()) == (places, tokens)
    assert batch.weight_K.dtype == dtype and batch.weight_K.tolist() == pytest.approx(weights)
    assert {batch.input_ids_BT.dtype, batch.attention_BT.dtype, batch.place_K.dtype} == {torch.int64}
    assert (batch.numbers, batch.margin, batch.uniform_K) == ((7, 3, 5, 1), False, None)


def test_losses_that_are_no_likelihoods_of_the_data() -> None:
    plain, margin, sampled = (
        collate(ROWS, CPU, torch.float64, loss=kind) for kind in ("likelihood", "margin", "sampled")
    )
    assert margin.margin and not sampled.margin and margin.uniform_K is None and plain.numbers == ()
    assert torch.equal(margin.weight_K, plain.weight_K)
    torch.testing.assert_close(sampled.weight_K, plain.weight_K.sqrt())
    assert sampled.uniform_K is not None and sampled.uniform_K.shape == sampled.target_K.shape
    assert ((sampled.uniform_K >= 0) & (sampled.uniform_K < 1)).all()


def test_sampled_labels_depend_on_the_seed_and_the_examples_own_tokens_alone() -> None:
    def drawn(rows: Any, seed: int = 0) -> list[float]:
        found = collate(rows, CPU, torch.float64, loss="sampled", seed=seed).uniform_K
        assert found is not None
        return found.tolist()

    assert drawn(ROWS) == [*drawn(ROWS[:1]), *drawn(ROWS[1:])]
    assert drawn(ROWS) == drawn(ROWS, 0) != drawn(ROWS, 1)
    other_tokens, other_mask = (tiny.rows(((5, 2),), seed=2) for _ in range(2))
    other_tokens[0].input_ids[0] += 1
    other_mask[0].loss_mask[:] = [False, True, False, True, False]
    assert len({tuple(drawn(rows)) for rows in (ROWS[:1], other_tokens, other_mask)}) == 3
    assert drawn(ROWS[:1]) == pytest.approx(GOLDEN, abs=1e-12)


GOLDEN = [0.3318477071427609, 0.32024426838310494]
"""Written down: a fit that goes on must draw the labels it drew before."""


def test_a_row_without_targets_alone() -> None:
    batch = collate(tiny.rows(((3, 0),)), CPU, torch.float64)
    assert batch.shape == (1, 3) and batch.target_K.numel() == 0
    assert (batch.column_BC.tolist(), batch.real_BC.tolist()) == ([[0]], [[False]])


@pytest.mark.parametrize("tokens", [1, 12, 13, 20, 10_000])
def test_batches_are_rows_of_similar_length_and_as_many_as_fit(tokens: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 14, 50).tolist()
    batches = list(length_buckets(lengths, tokens))
    order = [row for batch in batches for row in batch]
    assert order == sorted(range(50), key=lambda row: (lengths[row], row))
    for batch, after in zip(batches, [*batches[1:], None], strict=True):
        padded = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * padded <= tokens
        if after is not None:  # one row more would have been too many
            assert (len(batch) + 1) * lengths[after[0]] > tokens
    assert list(length_buckets([], 9)) == []
