"""The loss from hidden states and from the model's own logits: which head is taken, blocks, margins, sampled labels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tiny
from headwater.gradients import loss as loss_module
from headwater.gradients.batches import collate
from headwater.gradients.loss import by_example, can_slice_logits, head_of, losses, token_logits, token_losses

ROWS = tiny.rows(((7, 3), (40, 37), (5, 2), (9, 1)), seed=1)
CPU = torch.device("cpu")


def batch(loss: Any = "likelihood", rows: Any = ROWS) -> Any:
    return collate(rows, CPU, torch.float64, loss=loss)


def hidden_gradients(model: Any, of: Any, *, own_head: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of the targets, and the gradient of their sum at the first block's output."""
    kept: dict[str, torch.Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        kept["x"] = first.detach().requires_grad_()
        return (kept["x"], *output[1:]) if isinstance(output, tuple) else kept["x"]

    handle = model.model.layers[0].register_forward_hook(keep)
    found = token_losses(model, of, own_head=own_head)
    handle.remove()
    (gradient,) = torch.autograd.grad(found.sum(), kept["x"])
    return found.detach(), gradient


@pytest.mark.parametrize("block", [1, 97 * 20, 1 << 20])
@pytest.mark.parametrize("kind", ["likelihood", "margin", "sampled"])
def test_blocks_of_positions_change_nothing(monkeypatch: pytest.MonkeyPatch, kind: str, block: int) -> None:
    model, of = tiny.model("llama"), batch(kind)
    assert head_of(model, of) is not None and len(of.target_K) == 43
    monkeypatch.setattr(loss_module, "BLOCK_NUMBERS", {"cpu": block})
    found, gradient = hidden_gradients(model, of, own_head=False)
    wanted, wanted_gradient = hidden_gradients(model, of, own_head=True)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-9, atol=1e-12)


def test_no_more_logits_are_held_than_a_block_has(monkeypatch: pytest.MonkeyPatch) -> None:
    model, of = tiny.model("llama"), batch()
    head_of(model, of)
    seen: list[int] = []
    linear = F.linear

    def counted(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(len(x))
        return linear(x, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(loss_module, "F", SimpleNamespace(linear=counted))
        for block, wanted in ((97 * 20, [20, 20, 3]), (1, [16, 16, 11]), (1 << 20, [43])):
            patched.setattr(loss_module, "BLOCK_NUMBERS", {"cpu": block})
            seen.clear()
            losses(model, of)
            assert seen == wanted


@pytest.mark.parametrize("kind", ["likelihood", "margin"])
def test_tokens_that_are_as_good_as_certain_keep_their_digits(kind: str) -> None:
    """-log p of p = 1 - 1e-12 by the logits is a difference of nearly equal numbers; its gradient as well."""

    class Body(nn.Module):
        def forward(self, input_ids: torch.Tensor, use_cache: bool, **_: Any) -> Any:
            return SimpleNamespace(last_hidden_state=torch.eye(2)[input_ids])

    logit = 27.0
    head = loss_module._Head(Body(), torch.tensor([[logit, 0.0], [0.0, logit], [-90.0, -90.0]]), None)
    rows = tiny.rows(((3, 2),), vocabulary=3)
    rows[0].input_ids[:] = [0, 0, 1]
    of = collate(rows, CPU, torch.float32, loss=kind)  # type: ignore[arg-type]
    nll_K = loss_module._token_losses(head, of)
    if kind == "margin":
        assert nll_K.tolist() == pytest.approx([-logit, logit])
    else:
        assert nll_K.tolist() == pytest.approx([torch.tensor(-logit).exp().item(), logit], rel=1e-5)


def test_losses_add_up_by_example_and_an_example_without_targets_has_none() -> None:
    rows = [*ROWS, *tiny.rows(((6, 0),))]
    of = batch(rows=rows)
    values = torch.arange(1.0, len(of.target_K) + 1, dtype=torch.float64)
    wanted, first = [], 0
    for row in rows:
        count = int(row.loss_mask.sum())
        wanted.append(float(values[first : first + count].sum()))
        first += count
    assert by_example(values, of).tolist() == wanted
    model = tiny.model("llama")
    for own in (False, True):
        assert losses(model, of, own_head=own)[-1] == 0


def test_the_models_own_logits_are_those_of_the_predicting_positions() -> None:
    for architecture in ("llama", "gpt2"):
        model, of = tiny.model(architecture), batch()
        whole = model(input_ids=of.input_ids_BT, attention_mask=of.attention_BT).logits
        wanted = whole.flatten(0, 1)[of.place_K]
        assert can_slice_logits(model)
        torch.testing.assert_close(token_logits(model, of), wanted)


# Which head


class Doubled(nn.Module):
    """A model whose logits are not what its head says, or whose head does not see what its body gives."""

    base_model_prefix = "model"

    def __init__(self, kind: str) -> None:
        super().__init__()
        made = tiny.model("llama")
        self.kind, self.model, self.lm_head = kind, made.model, made.lm_head

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        if self.kind == "hidden":
            hidden = hidden * 1.01
        if self.kind == "masked":
            hidden = hidden + 0.01 * attention_mask.sum(1)[:, None, None]
        logits = self.lm_head(hidden)
        if self.kind == "capped":
            logits = 50 * torch.tanh(logits / 50)
        if self.kind == "scaled":
            logits = logits * 1.0001
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("kind", ["plain", "hidden", "masked", "capped", "scaled"])
def test_the_head_is_taken_only_where_logits_are_its_output_and_its_input_the_bodys(kind: str) -> None:
    model, of = Doubled(kind), batch()
    assert (head_of(model, of) is not None) == (kind == "plain")
    own = losses(model, of, own_head=True)
    torch.testing.assert_close(losses(model, of), own, rtol=1e-9, atol=1e-9)
    assert not model.lm_head._forward_hooks
    assert not can_slice_logits(model)


def test_the_head_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    for model in (tiny.model("llama"), Doubled("capped")):
        body = model.model
        body.register_forward_hook(lambda *_: runs.append(1))
        first = head_of(model, batch())
        tried = len(runs)
        assert tried == 2 and head_of(model, batch()) is first  # with its head, and the body alone
        assert len(runs) == tried
        runs.clear()


def test_a_head_that_is_no_plain_linear_layer_is_the_models_own_business() -> None:
    class Other(nn.Linear):
        pass

    for change in ("type", "none", "integers", "meta", "body"):
        model = Doubled("plain")
        if change == "type":
            model.lm_head = Other(16, 97, bias=False, dtype=torch.float64)
        elif change == "none":
            model.get_output_embeddings = lambda: None  # type: ignore[assignment,method-assign]
        elif change == "integers":
            model.lm_head.weight = nn.Parameter(torch.zeros(97, 16, dtype=torch.int8), requires_grad=False)
        elif change == "meta":
            model.lm_head = nn.Linear(16, 97, device="meta")
        else:
            model.base_model_prefix = "backbone"
        assert loss_module._find_head(model) is None, change
    found = loss_module._find_head(Doubled("plain"))
    assert found is not None and found.bias_V is None and found.weight_VH.shape == (97, 16)
    assert loss_module._find_head(nn.Linear(2, 2)) is None


def test_adapters_leave_the_head_and_learned_prompts_do_not() -> None:
    import peft

    adapted = tiny.with_lora(tiny.model("llama"))
    found = loss_module._find_head(adapted)
    assert found is not None and head_of(adapted, batch()) is not None
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert loss_module._find_head(peft.get_peft_model(tiny.model("llama"), prompt)) is None


def test_a_head_with_a_bias() -> None:
    model = tiny.model("llama")
    model.lm_head = nn.Linear(16, 97, dtype=torch.float64)
    of = batch()
    found = head_of(model, of)
    assert found is not None and found.bias_V is not None
    torch.testing.assert_close(losses(model, of), losses(model, of, own_head=True), rtol=1e-9, atol=1e-9)


def test_a_body_in_half_precision_is_recognised() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        assert head_of(tiny.model("llama").to(dtype), batch()) is not None
