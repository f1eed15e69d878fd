"""The directional engine: what its differences tend to, and that it leaves the model as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from headwater.errors import ModelError, UsageError
from headwater.gradients.batches import collate
from headwater.gradients.directional import Step, nudged
from headwater.gradients.layers import select_layers
from headwater.gradients.loss import losses
from reference import naive

ROWS = tiny.rows(((7, 3), (12, 4), (5, 2), (9, 1), (10, 6), (8, 8 - 1)), seed=1)
WRONG, CORRECTED = tiny.rows(((6, 2), (6, 2)), seed=2)
F64 = torch.float64


def losses_of(model: Any, rows: Any = ROWS) -> np.ndarray:
    with torch.no_grad():
        return losses(model, collate(rows, torch.device("cpu"), F64)).numpy()


def difference(model: Any, step: Step) -> np.ndarray:
    """l(z; ground) - l(z; error) of every row."""
    layers = select_layers(model).layers
    out = []
    for side in (CORRECTED, WRONG):
        with nudged(model, layers, [side], step, F64):
            out.append(losses_of(model))
    return out[0] - out[1]


def first_order(model: Any) -> np.ndarray:
    """< grad (l(wrong) - l(corrected)), grad l(z) > of every row, plainly."""
    names = select_layers(model).names
    contrast = naive.measurement(model, names, [WRONG], [CORRECTED])
    return np.array([naive.product(contrast, naive.gradient(model, names, row), "dot") for row in ROWS])


@pytest.mark.parametrize(
    ("architecture", "steps"),
    [
        ("gpt2", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6]),
        ("gpt_neox", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6]),
        ("llama", [1e-2, 1e-3, 1e-4]),  # its norms round to float32 inside, whatever the model's type
    ],
)
def test_plain_steps_tend_to_the_contrast_dot_product(architecture: str, steps: list[float]) -> None:
    model = tiny.model(architecture)
    wanted = first_order(model)
    errors = []
    for size in steps:
        found = difference(model, Step(optimizer="sgd", learning_rate=size, steps=1)) / size
        errors.append(np.abs(found - wanted).max() / np.abs(wanted).max())
    assert errors[-1] < 100 * steps[-1]
    ratios = np.array(errors[1:-1]) / errors[2:]  # the error of a first-order form is linear in a small step
    assert ((ratios > 7) & (ratios < 14)).all(), errors
    assert errors[0] > 3 * errors[1]


def test_several_small_steps_tend_to_their_number_times_one_step() -> None:
    model = tiny.model("gpt2")
    found = difference(model, Step(optimizer="sgd", learning_rate=1e-7, steps=3)) / 1e-7
    assert found == pytest.approx(3 * first_order(model), rel=1e-3)


def test_adamw_pair_separates_the_two_sides() -> None:
    """The error model finds the wrong output easier than the ground model does, the ground model the corrected one."""
    model = tiny.model("llama")
    layers = select_layers(model).layers
    found = {}
    for name, side in (("error", WRONG), ("ground", CORRECTED)):
        with nudged(model, layers, [side], Step(), F64):
            found[name] = losses_of(model, [WRONG, CORRECTED])
    wrong, corrected = found["ground"] - found["error"]
    assert wrong > 0 > corrected
    assert np.isfinite(difference(model, Step())).all()


def test_adamw_first_step_moves_every_weight_by_the_learning_rate() -> None:
    model = tiny.model("llama")
    layers = select_layers(model).layers
    before = [layer.modules[0].weight.detach().clone() for layer in layers]
    with nudged(model, layers, [WRONG], Step(learning_rate=1e-3, steps=1), F64):
        for old, layer in zip(before, layers, strict=True):
            moved = (layer.modules[0].weight.detach() - old).abs()
            assert float(moved.max()) == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_only_the_chosen_weights_move_and_all_come_back_bit_for_bit(optimizer: Any, adapted: bool) -> None:
    model = tiny.model("llama")
    model = tiny.with_lora(model) if adapted else model
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    required = {n: p.requires_grad for n, p in model.named_parameters()}
    before = {n: v.clone() for n, v in model.state_dict().items()}
    layers = select_layers(model, [r"layers\.1\.mlp"]).layers
    with nudged(model, layers, [WRONG, CORRECTED], Step(optimizer=optimizer, learning_rate=0.1, steps=2), F64):
        moved = sorted(n for n, v in model.state_dict().items() if not torch.equal(v, before[n]))
    suffix = ".base_layer.weight" if adapted else ".weight"
    prefix = "base_model.model." if adapted else ""
    assert moved == sorted(f"{prefix}{layer.name}{suffix}" for layer in layers)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == required
    assert all(p.grad is None for p in model.parameters())


def test_the_model_comes_back_after_an_error_inside() -> None:
    model = tiny.model("llama")
    before = {n: v.clone() for n, v in model.state_dict().items()}
    with (
        pytest.raises(KeyboardInterrupt),
        nudged(model, select_layers(model).layers, [WRONG], Step(learning_rate=0.1), F64),
    ):
        raise KeyboardInterrupt
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_no_rows_leave_the_model_as_it_is() -> None:
    model = tiny.model("llama")
    plain = losses_of(model)
    with nudged(model, select_layers(model).layers, [], Step(), F64):
        assert np.array_equal(losses_of(model), plain)


def test_steps_that_make_no_sense_are_refused() -> None:
    for options in ({"optimizer": "adam"}, {"learning_rate": 0.0}, {"steps": 0}):
        with pytest.raises(UsageError, match="a step of"):
            Step(**options)  # type: ignore[arg-type]


def test_weights_that_cannot_move_are_refused() -> None:
    model = tiny.model("llama")
    layers = select_layers(model, [r"layers\.0\.mlp\.up_proj"]).layers
    module = layers[0].modules[0]
    module.weight = torch.nn.Parameter(torch.zeros(24, 16, dtype=torch.int8), requires_grad=False)
    with (
        pytest.raises(ModelError, match=r"layers\.0\.mlp\.up_proj is quantised"),
        nudged(model, layers, [WRONG], Step(), F64),
    ):
        pass
