"""Forms of contraction, recomputed activations, scores by token and projection: the same numbers by other ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from headwater.gradients import trimming
from headwater.gradients.batches import collate
from headwater.gradients.contraction import FORMS, side_gradients
from headwater.gradients.factors import FactorHooks
from headwater.gradients.inner import Contractor, Product
from headwater.gradients.layers import select_layers
from headwater.gradients.projection import Projection, signs
from headwater.gradients.trimming import _found

ROWS = tiny.rows(((5, 1), (9, 4), (9, 2), (14, 6), (4, 3)), seed=3)
"""The last one predicts from its first position on, as a row without a prompt does."""
SIDES = tiny.rows(((6, 2), (11, 5)), seed=4)
PRODUCTS = tuple(Product("loss", inner, "here") for inner in ("dot", "cosine", "layer_cosine"))


def scores(
    architecture: str,
    *,
    form: Any = None,
    by_token: bool = False,
    rank: int | None = None,
    recompute: bool = False,
    trim: bool = True,
    model: Any = None,
) -> dict[Product, np.ndarray]:
    model = model or tiny.model(architecture)
    layers = select_layers(model).layers
    projection = Projection.of(layers, rank) if rank else None
    options: dict[str, Any] = {"projection": projection, "recompute": recompute, "trim": trim and not by_token}
    hooks = FactorHooks(model, layers, precision=torch.float64, **options)
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


NARROW = {
    "llama": {"q_proj", "o_proj", "mlp"},
    "llama-bias": {"q_proj", "o_proj", "mlp"},
    "llama-tied": {"q_proj", "o_proj", "mlp"},
    "qwen2": {"q_proj", "o_proj", "mlp"},
    "mistral": {"q_proj", "o_proj", "mlp"},
    "gemma": {"q_proj", "o_proj", "mlp"},
    "gpt2": {"c_proj", "mlp"},
    "gpt_neox": {"dense", "mlp"},
}
"""What of the last block only predicting positions need."""


@pytest.mark.parametrize("options", [{}, {"rank": 3}, {"recompute": True}, {"form": "materialised"}])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_trimmed_last_block_changes_nothing(architecture: str, options: dict[str, Any]) -> None:
    model = tiny.model(architecture)
    found = scores(architecture, model=model, **options)
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if module in _found[model]}
    assert names == NARROW[architecture]
    same(found, scores(architecture, trim=False, **options))
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_adapters_are_trimmed_too() -> None:
    model = tiny.with_lora(tiny.model("llama"))
    found = scores("llama", model=model)
    assert len(_found[model]) == 3
    same(found, scores("llama", model=tiny.with_lora(tiny.model("llama")), trim=False))


def test_half_precision_is_trimmed_too() -> None:
    model = tiny.model("llama").bfloat16()
    hooks = FactorHooks(model, select_layers(model).layers, precision=torch.float32)
    with hooks.attached():
        hooks.backward(collate(ROWS, torch.device("cpu"), torch.float32), lambda number, a, d: None)
    assert len(_found[model]) == 3


def test_nothing_is_trimmed_where_every_token_counts_or_another_block_follows() -> None:
    model = tiny.model("llama")
    layers = select_layers(model, ("layers.0",)).layers
    hooks = FactorHooks(model, layers, precision=torch.float64)
    rows = tiny.rows(((9, 8), (12, 11)))
    for batch_rows in (rows, ROWS):
        with hooks.attached():
            batch = collate(batch_rows, torch.device("cpu"), torch.float64)
            hooks.backward(batch, lambda number, a, d: None)
        assert not hooks._narrow
    assert trimming.trims(collate(ROWS, torch.device("cpu"), torch.float64))


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
