"""Forms of contraction, recomputed activations, scores by token and projection: the same numbers by other ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from headwater.gradients.batches import collate
from headwater.gradients.contraction import FORMS, side_gradients
from headwater.gradients.factors import FactorHooks
from headwater.gradients.inner import Contractor, Product
from headwater.gradients.layers import select_layers
from headwater.gradients.projection import Projection, signs

ROWS = tiny.rows(((5, 1), (9, 4), (9, 2), (14, 6)), seed=3)
SIDES = tiny.rows(((6, 2), (11, 5)), seed=4)
PRODUCTS = tuple(Product("loss", inner, "here") for inner in ("dot", "cosine", "layer_cosine"))


def scores(
    architecture: str, *, form: Any = None, by_token: bool = False, rank: int | None = None, recompute: bool = False
) -> dict[Product, np.ndarray]:
    model = tiny.model(architecture)
    layers = select_layers(model).layers
    projection = Projection.of(layers, rank) if rank else None
    hooks = FactorHooks(model, layers, precision=torch.float64, projection=projection, recompute=recompute)
    stored = side_gradients(hooks, SIDES, batch_tokens=99, lengths=(9.0,), form=form)
    contractor = Contractor({"here": stored}, {"loss": np.eye(2)}, PRODUCTS, form=form, by_token=by_token)
    with hooks.attached():
        found, _ = contractor(hooks, collate(ROWS, torch.device("cpu"), torch.float64))
    return {product: value.numpy() for product, value in found.items()}


def same(one: dict[Product, np.ndarray], two: dict[Product, np.ndarray]) -> None:
    for product in PRODUCTS:
        assert np.abs(two[product]).max() > 0
        np.testing.assert_allclose(one[product], two[product], rtol=1e-8, atol=1e-10 * np.abs(two[product]).max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_form_gives_the_same_number(architecture: str, form: str) -> None:
    same(scores(architecture, form=form), scores(architecture))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_recomputed_activations_change_nothing(architecture: str) -> None:
    same(scores(architecture, recompute=True), scores(architecture))


@pytest.mark.parametrize("form", FORMS)
def test_scores_by_token_add_up_and_are_zero_at_padding(form: str) -> None:
    tokens = scores("llama", form=form, by_token=True)
    same({product: value.sum(2) for product, value in tokens.items()}, scores("llama"))
    for value in tokens.values():
        assert (value[:, 0, 5:] == 0).all()


def test_a_rank_as_wide_as_the_layers_is_exact() -> None:
    same(scores("llama", rank=512), scores("llama"))


def test_signs_are_decided_by_the_key_alone() -> None:
    one = signs("0/layer/in", 300, 16)
    assert np.array_equal(one, signs("0/layer/in", 300, 16))
    assert not np.array_equal(one, signs("1/layer/in", 300, 16))
    assert set(np.unique(one).tolist()) == {-0.25, 0.25}
    assert abs(one.mean()) < 0.02
