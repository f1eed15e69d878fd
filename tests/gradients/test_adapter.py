"""What a LoRA adapter can express: against least squares over every entry of the adapter's matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import pytest
import torch

import tiny
from headwater.gradients.adapter import Adapter, trained_whole
from headwater.gradients.layers import select_layers
from reference import diagnosis


def matrices(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    module = layer.modules[0]
    return module.lora_B["default"].weight.detach().numpy(), module.lora_A["default"].weight.detach().numpy()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_projection_is_least_squares(architecture: str) -> None:
    layers = select_layers(tiny.with_lora(tiny.model(architecture))).layers
    for layer in layers[:3]:
        adapter = Adapter.of(layer)
        assert adapter is not None and adapter.rank == 3
        g_OI = torch.randn(layer.out_features, layer.in_features, dtype=torch.float64)
        wanted = diagnosis.expressed(g_OI.numpy(), *matrices(layer))
        assert adapter.expressed(g_OI) == pytest.approx(wanted, rel=1e-9)
        assert wanted < 0.9 * float(g_OI.square().sum())


def test_what_the_adapter_could_be_is_expressed_whole_and_the_rest_not_at_all() -> None:
    layer = select_layers(tiny.with_lora(tiny.model("llama"))).layers[0]
    adapter = Adapter.of(layer)
    assert adapter is not None
    b_Or, a_rI = (torch.from_numpy(one) for one in matrices(layer))
    inside = torch.randn(layer.out_features, 3, dtype=torch.float64) @ a_rI
    inside += b_Or @ torch.randn(3, layer.in_features, dtype=torch.float64)
    assert adapter.expressed(inside) == pytest.approx(float(inside.square().sum()), rel=1e-9)
    out, into = adapter.outputs_Or, adapter.inputs_Ir
    outside = torch.randn(layer.out_features, layer.in_features, dtype=torch.float64)
    outside = outside - out @ (out.T @ outside)
    outside = outside - (outside @ into) @ into.T
    assert adapter.expressed(outside) == pytest.approx(0, abs=1e-9)


def test_the_share_of_random_gradients() -> None:
    layer = select_layers(tiny.with_lora(tiny.model("llama"))).layers[0]
    adapter = Adapter.of(layer)
    assert adapter is not None
    torch.manual_seed(0)
    g_NOI = torch.randn(400, layer.out_features, layer.in_features, dtype=torch.float64)
    shares = [adapter.expressed(g_OI) / float(g_OI.square().sum()) for g_OI in g_NOI]
    assert np.mean(shares) == pytest.approx(adapter.of_random, abs=0.01)


def test_an_adapter_that_has_not_moved_expresses_its_inputs_alone() -> None:
    untouched = peft.get_peft_model(
        tiny.model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    layers = select_layers(untouched.double()).layers
    adapters = {layer.name.rsplit(".", 1)[1]: Adapter.of(layer) for layer in layers}
    assert adapters["k_proj"] is None
    assert adapters["q_proj"] is not None
    assert adapters["q_proj"].outputs_Or.shape[1] == 0 and adapters["q_proj"].inputs_Ir.shape[1] == 2


def test_other_adapters_are_not_taken_for_lora() -> None:
    dora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", use_dora=True)
    layers = select_layers(peft.get_peft_model(tiny.model("llama").float(), dora)).layers
    assert all(Adapter.of(layer) is None for layer in layers)
    whole = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["k_proj"], task_type="CAUSAL_LM")
    layers = select_layers(peft.get_peft_model(tiny.model("llama").float(), whole)).layers
    assert {layer.name.rsplit(".", 1)[1] for layer in layers if trained_whole(layer)} == {"k_proj"}
