"""Inner products of every kind on every architecture equal the naive double."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import numpy as np
import pytest
import torch

import tiny
from headwater.errors import ModelError, NumericalError
from headwater.gradients.batches import collate, length_buckets
from headwater.gradients.contraction import SideGradients, side_gradients
from headwater.gradients.factors import FactorHooks
from headwater.gradients.inner import Contractor, Product
from headwater.gradients.layers import select_layers
from headwater.gradients.loss import losses
from headwater.gradients.measurement import InnerProduct
from reference import naive

ROWS = tiny.rows(((7, 3), (12, 4), (5, 2), (12, 12 - 1), (9, 1)), seed=1)
SIDES = tiny.rows(((6, 2), (8, 1), (10, 3)), seed=2)
MATRICES = {
    "loss": np.array([[1.0, 0, 0], [0, 0, 1.0], [1.0, 0, 1.0]]),
    "contrast": np.array([[1.0, -1.0, 0], [0, 0, 1.0], [1.0, -1.0, 1.0]]),
}
PRODUCTS = tuple(Product(m, i, "here") for m, i in itertools.product(("loss", "contrast"), get_args(InnerProduct)))
WHOLE = tuple(p for p in PRODUCTS if p.inner != "token_cosine")
AT_ONE = tuple(p for p in PRODUCTS if p.inner == "token_cosine")


def engine(
    model: Any,
    dtype: torch.dtype,
    *,
    rows: Any = ROWS,
    tokens: int = 30,
    example_tokens: float = 9.0,
    patterns: tuple[str, ...] = (),
) -> dict[Product, np.ndarray]:
    """Scores of all rows by the library, [R, N]."""
    layers, out = select_layers(model, patterns).layers, {}
    for products in (WHOLE, AT_ONE):
        hooks = FactorHooks(model, layers, precision=dtype, trim=products is WHOLE)
        stored = side_gradients(hooks, SIDES, batch_tokens=tokens, lengths=(example_tokens,))
        out |= contract_all(hooks, stored, rows, tokens, products)
    return out


def contract_all(
    hooks: FactorHooks, stored: SideGradients, rows: Any, tokens: int, products: tuple[Product, ...]
) -> dict[Product, np.ndarray]:
    contractor = Contractor({"here": stored}, MATRICES, products)
    out = {p: np.zeros((3, len(rows))) for p in products}
    with hooks.attached():
        for batch in length_buckets([r.length for r in rows], tokens):
            sums, _ = contractor(hooks, collate([rows[i] for i in batch], torch.device("cpu"), hooks.precision))
            for p, value in sums.items():
                out[p][:, batch] = value.numpy()
    return out


def expected(model: Any, names: list[str], rows: Any = ROWS) -> dict[Product, np.ndarray]:
    sides = [naive.gradient(model, names, side) for side in SIDES]
    examples = [naive.gradient(model, names, row) for row in rows]
    parts = [naive.position_gradients(model, names, row) for row in rows]
    out = {}
    for p in PRODUCTS:
        queries = [
            [sum(float(w) * side[n] for w, side in zip(weights, sides, strict=True)) for n in range(len(names))]
            for weights in MATRICES[p.measurement]
        ]
        if p.inner == "token_cosine":
            out[p] = np.array([[naive.token_cosine(q, e) for e in parts] for q in queries])
        else:
            out[p] = np.array([[naive.product(q, e, p.inner) for e in examples] for q in queries])
    return out


def close(found: dict[Product, np.ndarray], wanted: dict[Product, np.ndarray], tolerance: float) -> None:
    for p in PRODUCTS:
        scale = np.abs(wanted[p]).max()
        assert scale > 0
        assert np.abs(found[p] - wanted[p]).max() <= tolerance * scale, p


def factored_names(model: Any, example_tokens: float) -> list[str]:
    hooks = FactorHooks(model, select_layers(model).layers, precision=torch.float64)
    stored = side_gradients(hooks, SIDES, batch_tokens=99, lengths=(example_tokens,))
    return sorted({type(one).__name__ for layer in stored.layers for one in (layer.tokens, layer.matrices) if one})


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_float64_equals_naive(architecture: str) -> None:
    model = tiny.model(architecture)
    names = select_layers(model).names
    close(engine(model, torch.float64), expected(model, names), 1e-9)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_float32_equals_naive_in_float64(architecture: str) -> None:
    model = tiny.model(architecture)
    wanted = expected(model, select_layers(model).names)
    close(engine(model.float(), torch.float32), wanted, 1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_lora_equals_gradient_of_merged_weights(architecture: str) -> None:
    adapted = tiny.with_lora(tiny.model(architecture))
    names = select_layers(adapted).names
    found = engine(adapted, torch.float64)
    merged = adapted.merge_and_unload()
    close(found, expected(merged, names), 1e-9)


def test_layer_names_are_the_same_with_and_without_adapter() -> None:
    plain = select_layers(tiny.model("llama")).names
    assert select_layers(tiny.with_lora(tiny.model("llama"))).names == plain
    assert len(plain) == 14


def test_factored_and_dense_give_the_same() -> None:
    """The widths make the one or the other cheaper; both are exact."""
    wide = tiny.model("llama", hidden=128)
    assert "FactoredGradients" in factored_names(wide, 9.0)
    narrow = tiny.model("llama")
    assert "DenseGradients" in factored_names(narrow, 9.0)
    for model in (wide, narrow):
        close(engine(model, torch.float64), expected(model, select_layers(model).names), 1e-9)


@pytest.mark.parametrize("tokens", [1, 17, 40, 10_000])
def test_batch_size_changes_nothing(tokens: int) -> None:
    model = tiny.model("llama")
    close(engine(model, torch.float64, tokens=tokens), engine(model, torch.float64), 1e-12)


def test_order_and_duplicates_change_nothing() -> None:
    model = tiny.model("qwen2")
    plain = engine(model, torch.float64)
    shuffled = [4, 2, 0, 3, 1, 0, 0]
    found = engine(model, torch.float64, rows=[ROWS[i] for i in shuffled])
    close(found, {p: plain[p][:, shuffled] for p in PRODUCTS}, 1e-12)


def test_shared_weight_is_exact() -> None:
    """Two modules of one weight are one layer, whose gradient is the sum."""
    model = tiny.model("llama")
    blocks = model.model.layers
    blocks[1].mlp.up_proj.weight = blocks[0].mlp.up_proj.weight
    blocks[1].mlp.gate_proj = blocks[0].mlp.gate_proj
    selection = select_layers(model)
    assert len(selection.layers) == 12
    close(engine(model, torch.float64), expected(model, selection.names), 1e-9)


def test_tied_output_head_is_refused_and_untied_is_exact() -> None:
    with pytest.raises(ModelError, match="tied to the embedding"):
        select_layers(tiny.model("llama-tied"), ["lm_head"])
    untied = tiny.model("llama")
    found = engine(untied, torch.float64, patterns=("lm_head", r"layers\.1\.mlp"))
    names = select_layers(untied, ["lm_head", r"layers\.1\.mlp"]).names
    assert names == [f"model.layers.1.mlp.{n}_proj" for n in ("gate", "up", "down")] + ["lm_head"]
    close(found, expected(untied, names), 1e-9)


def test_gpt2_counts_conv1d_and_says_what_is_left_out() -> None:
    selection = select_layers(tiny.model("gpt2"))
    assert selection.names[0] == "transformer.h.0.attn.c_attn"
    assert len(selection.layers) == 8
    assert selection.parameters + sum(selection.left_out.values()) == selection.total
    assert "embeddings" in selection.sentence()


def test_no_layer_matches() -> None:
    with pytest.raises(ModelError, match="no linear layer matches"):
        select_layers(tiny.model("llama"), ["nothing_like_this"])


def test_loss_equals_naive_and_model_is_left_as_it_was() -> None:
    model = tiny.model("gpt_neox")
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    found = losses(model, collate(ROWS, torch.device("cpu"), torch.float64))
    wanted = torch.stack([naive.loss(model, row) for row in ROWS])
    assert torch.allclose(found, wanted, rtol=1e-12)
    engine(model, torch.float64)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    assert all(not module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_nan_weight_raises() -> None:
    model = tiny.model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="NaN"):
        engine(model, torch.float64)


def test_kept_side_gradients_come_back_the_same() -> None:
    for hidden in (16, 128):
        model = tiny.model("llama", hidden=hidden)
        hooks = FactorHooks(model, select_layers(model).layers, precision=torch.float64, trim=False)
        stored = side_gradients(hooks, SIDES, batch_tokens=64, lengths=(9.0,))
        back = SideGradients.of_arrays(stored.arrays(), torch.device("cpu"))
        one = contract_all(hooks, stored, ROWS, 64, PRODUCTS)
        two = contract_all(hooks, back, ROWS, 64, PRODUCTS)
        for p in PRODUCTS:
            assert np.array_equal(one[p], two[p])


def test_positions_need_all_positions() -> None:
    model = tiny.model("llama")
    hooks = FactorHooks(model, select_layers(model).layers, precision=torch.float64)
    stored = side_gradients(hooks, SIDES, batch_tokens=64, lengths=(9.0,))
    with pytest.raises(ValueError, match="trim=False"):
        contract_all(hooks, stored, ROWS, 64, AT_ONE)
