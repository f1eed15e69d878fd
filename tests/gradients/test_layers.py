"""Which weights are chosen, what they are called, and what is said of the others."""

from __future__ import annotations

from typing import Any

import peft
import pytest
from torch import nn

import tiny
from headwater.gradients.factors import blocks_of
from headwater.gradients.layers import inputs_first, select_layers

LINEAR = 2 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24)
"""Weights of the tiny Llama's two blocks: queries and outputs, keys and values, the three of the MLP."""


def test_everything_that_is_left_out_is_counted_by_its_kind() -> None:
    selection = select_layers(tiny.model("llama"))
    assert selection.parameters == LINEAR
    assert selection.left_out == {"embeddings": 97 * 16, "norms": 5 * 16, "other linear layers": 97 * 16}
    assert selection.total == LINEAR + 2 * 97 * 16 + 5 * 16
    assert selection.sentence() == (
        "gradients of 14 linear layers, 3,840 of 7,024 parameters; left out: embeddings 1,552, norms 80, other linear "
        "layers 1,552"
    )
    biased = select_layers(tiny.model("llama-bias"))
    assert biased.left_out["biases"] == 2 * (16 + 8 + 8 + 16 + 24 + 24 + 16)
    tied = select_layers(tiny.model("llama-tied"))
    assert tied.left_out == {"embeddings": 97 * 16, "norms": 5 * 16}  # a tensor that two modules share counts once
    assert tied.total == LINEAR + 97 * 16 + 5 * 16


def test_an_adapter_is_not_part_of_the_model() -> None:
    plain, adapted = (select_layers(model) for model in (tiny.model("llama"), tiny.with_lora(tiny.model("llama"))))
    assert (adapted.parameters, adapted.total, adapted.left_out) == (plain.parameters, plain.total, plain.left_out)
    assert all(hasattr(layer.modules[0], "base_layer") for layer in adapted.layers)
    assert [(one.in_features, one.out_features) for one in adapted.layers] == [
        (one.in_features, one.out_features) for one in plain.layers
    ]


def test_nothing_is_left_out_of_a_model_of_linear_layers() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)])
    selection = select_layers(model)
    assert selection.names == ["blocks.0", "blocks.1"]
    assert selection.sentence() == "gradients of 2 linear layers, 20 of 20 parameters; left out: nothing"
    assert [layer.size for layer in selection.layers] == [12, 8]


def test_a_parameter_that_is_no_linear_layers_is_named_by_its_module() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(3, 4)])
    model.conv = nn.Conv1d(2, 3, 5)
    assert select_layers(model).left_out == {"biases": 4 + 3, "Conv1d (not a linear layer)": 2 * 3 * 5}


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (("up_proj",), ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]),
        ((r"layers\.1\..*k_proj", "lm_head"), ["model.layers.1.self_attn.k_proj", "lm_head"]),
        (("^lm",), ["lm_head"]),
    ],
)
def test_any_pattern_that_is_found_in_a_name_chooses_it(patterns: tuple[str, ...], names: list[str]) -> None:
    assert select_layers(tiny.model("llama"), patterns).names == names


def test_modules_of_one_weight_are_one_layer_under_the_first_name() -> None:
    model = tiny.model("llama")
    first, second = (block.mlp for block in model.model.layers)
    second.up_proj.weight = first.up_proj.weight
    second.gate_proj = first.gate_proj
    layers = {layer.name: layer for layer in select_layers(model).layers}
    assert layers["model.layers.0.mlp.up_proj"].modules == (first.up_proj, second.up_proj)
    assert layers["model.layers.0.mlp.gate_proj"].modules == (first.gate_proj,)
    assert "model.layers.1.mlp.up_proj" not in layers and len(layers) == 12


def test_a_layer_that_is_trained_whole_beside_an_adapter_is_its_trained_copy() -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["up_proj"], task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(tiny.model("llama"), config)
    selection = select_layers(model, ["up_proj"])
    (module, _) = (layer.modules[0] for layer in selection.layers)
    assert selection.names == [f"model.layers.{n}.mlp.up_proj" for n in range(2)]
    assert hasattr(module, "original_module")
    plain = select_layers(tiny.model("llama"), ["up_proj"])
    assert selection.parameters == plain.parameters
    from headwater.gradients import layers as layers_module

    copy = module.modules_to_save["default"]  # type: ignore[union-attr,index]
    assert layers_module._innermost(module) is copy
    with model.disable_adapter():
        assert layers_module._innermost(module) in (copy, module.original_module)


def test_where_inputs_come_first() -> None:
    gpt2, llama = (select_layers(tiny.model(name)).layers[0] for name in ("gpt2", "llama"))
    assert inputs_first(gpt2) and not inputs_first(llama)
    assert inputs_first(select_layers(tiny.with_lora(tiny.model("gpt2"))).layers[0])
    assert (gpt2.in_features, gpt2.out_features) == (16, 48)
    assert not inputs_first(select_layers(tiny.with_lora(tiny.model("llama"))).layers[0])


def test_the_blocks_are_the_members_of_the_outermost_lists() -> None:
    model = nn.Module()
    model.one = nn.ModuleList([nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)])])
    model.two = nn.ModuleList([nn.Linear(2, 2)])
    assert blocks_of(model) == [model.one[0], model.one[1], model.two[0]]
    assert blocks_of(nn.Linear(2, 2)) == []
    llama = tiny.model("llama")
    assert blocks_of(llama) == list(llama.model.layers)
