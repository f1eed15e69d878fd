"""Scores by token where a layer saw the sequence twice, or predicting positions only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from headwater.gradients.batches import collate
from headwater.gradients.by_token import at_positions, positions, token_sides
from headwater.gradients.contraction import side_gradients
from headwater.gradients.factors import FactorHooks
from headwater.gradients.inner import Contractor, Product
from headwater.gradients.layers import select_layers

ROWS = tiny.rows(((5, 1), (9, 4), (9, 2)), seed=3)
SIDES = tiny.rows(((6, 2), (11, 5)), seed=4)
BATCH = collate(ROWS, torch.device("cpu"), torch.float64)


def test_positions_of_what_a_layer_saw() -> None:
    assert BATCH.shape == (3, 8)
    assert positions(BATCH, 8).tolist() == list(range(8))
    assert positions(BATCH, 16).tolist() == [*range(8), *range(8)]
    assert positions(BATCH, 5).tolist() == [3, 4, 5, 6, 7]  # those that predict anything in any row


def test_numbers_are_added_up_at_their_positions() -> None:
    x = torch.arange(2.0 * 3 * 16).view(2, 3, 16)
    assert at_positions(x[..., :8], BATCH).data_ptr() == x.data_ptr()
    torch.testing.assert_close(at_positions(x, BATCH), x[..., :8] + x[..., 8:])
    few = at_positions(x[..., :5], BATCH)
    assert few.shape == (2, 3, 8) and few.dtype == x.dtype
    assert not few[..., :3].any() and torch.equal(few[..., 3:], x[..., :5])


@pytest.mark.parametrize("patterns", [("lm_head", r"layers\.1\.mlp"), (r"up_proj",)])
def test_tokens_add_up_to_scores_for_heads_and_for_layers_that_are_applied_twice(patterns: tuple[str, ...]) -> None:
    model = tiny.model("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    layers = select_layers(model, patterns).layers
    products = tuple(Product("loss", inner, "here") for inner in ("dot", "cosine", "layer_cosine"))
    found = []
    for by_token in (True, False):
        hooks = FactorHooks(model, layers, precision=torch.float64, trim=False)
        stored = side_gradients(hooks, SIDES, batch_tokens=99, lengths=(9.0,))
        contractor = Contractor({"here": stored}, {"loss": np.eye(2)}, products, by_token=by_token)
        with hooks.attached():
            found.append(contractor(hooks, BATCH)[0])
    for product in products:
        tokens, whole = found[0][product], found[1][product]
        assert tokens.shape == (2, 3, 8) and whole.abs().min() > 0
        torch.testing.assert_close(tokens.sum(2), whole)
        assert not tokens[:, 0, 4:].any()  # padding


@pytest.mark.parametrize("batch_tokens", [1, 99])
@pytest.mark.parametrize("patterns", [(), ("lm_head", "up_proj")])
def test_the_tokens_of_a_weighted_sum_are_its_gradient(patterns: tuple[str, ...], batch_tokens: int) -> None:
    model = tiny.model("llama")
    layers = select_layers(model, patterns).layers
    hooks = FactorHooks(model, layers, precision=torch.float64, trim=False)
    weights = [0.5, -2.0]
    tokens, squared_L = token_sides(hooks, SIDES, weights, batch_tokens=batch_tokens)
    sides = side_gradients(hooks, SIDES, batch_tokens=99, lengths=(9.0,), form="applied")
    assert len(tokens.layers) == len(layers)
    for number, (one, other) in enumerate(zip(tokens.layers, sides.layers, strict=True)):
        assert one.tokens is not None and one.tokens.sides == 6 + 11
        by_token = one.tokens.matrices()
        weighted = [weight * g_OI for weight, g_OI in zip(weights, other.matrix(), strict=True)]
        torch.testing.assert_close(by_token[:6].sum(0), weighted[0])
        torch.testing.assert_close(by_token[6:].sum(0), weighted[1])
        torch.testing.assert_close(squared_L[number], (weighted[0] + weighted[1]).square().sum())
        for s, side in enumerate(SIDES):  # nothing from the last target on
            start, last = (0, 6)[s], int(side.loss_mask.nonzero()[0][-1])
            assert not by_token[start + last : start + side.length].any()
    assert tokens.gram_LSS.flatten().tolist() == squared_L.tolist()
