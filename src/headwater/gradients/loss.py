"""The loss every gradient is the gradient of: mean negative log-likelihood of an example's targets, in nats.

    l(z) = -1/|targets| sum_t log p(token_t | tokens before t)

The output head is the largest single matrix of a small model, and its logits the largest activation of any. Where the
model's head is a plain linear layer on its body's last hidden state (checked on the model, not assumed), the loss is
computed from hidden states at the predicting positions only, a block of positions at a time: no logits are kept, and
the gradient of the hidden state is made in the same sweep. Elsewhere the model computes its own logits.

Two other losses have the same sweep (`batches.Loss`): the margin, mean -log(p / (1 - p)), and the likelihood of labels
that are sampled from the model.

No attention mask is needed then: in a causal model no token sees the padding on its right.

Shapes: B examples, T tokens, K targets, H hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional as F

from headwater.gradients.batches import Batch

BLOCK_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 27}
"""Logits held at once."""


@dataclass(frozen=True)
class _Head:
    """A model in two parts: `body` makes hidden states, which `weight_VH` and `bias_V` turn into logits."""

    body: nn.Module
    weight_VH: torch.Tensor
    bias_V: torch.Tensor | None


_heads: WeakKeyDictionary[nn.Module, list[_Head]] = WeakKeyDictionary()  # none or one: what was found of a model


def losses(model: nn.Module, batch: Batch, *, own_head: bool = False) -> torch.Tensor:
    """Mean negative log-likelihood of each example's targets, in nats [B]; 0 for an example without targets.

    Args:
        own_head: let the model's own forward apply its output head, so that hooks on the head see it.
    """
    return by_example(token_losses(model, batch, own_head=own_head) * batch.weight_K, batch)


def token_losses(model: nn.Module, batch: Batch, *, own_head: bool = False) -> torch.Tensor:
    """The batch's loss of each target, unweighted [K]."""
    head = None if own_head else head_of(model, batch)
    return _own_token_losses(model, batch) if head is None else _token_losses(head, batch)


def by_example(value_K: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sums of the targets' values [B]."""
    rows, tokens = batch.shape
    value_N = value_K.new_zeros(rows * tokens)
    return value_N.index_put((batch.place_K,), value_K).view(rows, tokens).sum(1)


def head_of(model: nn.Module, batch: Batch) -> _Head | None:
    """The model's head, where it is a plain linear layer. The first call for a model tries it on a part of `batch`."""
    if model not in _heads:
        found = _find_head(model)
        _heads[model] = [found] if found is not None and _holds(model, found, batch) else []
    return next(iter(_heads[model]), None)


def _token_losses(head: _Head, batch: Batch) -> torch.Tensor:
    hidden_BTH = head.body(input_ids=batch.input_ids_BT, use_cache=False).last_hidden_state
    hidden_KH = hidden_BTH.flatten(0, 1).index_select(0, batch.place_K.to(hidden_BTH.device))
    hidden_KH = hidden_KH.to(head.weight_VH.device)  # the parts of a model may lie on several devices
    weights = (head.weight_VH, head.bias_V)
    nll: torch.Tensor = _HeadLoss.apply(hidden_KH, *weights, batch, batch.weight_K.dtype)  # type: ignore[no-untyped-call]
    return nll.to(batch.weight_K.device)


class _HeadLoss(torch.autograd.Function):
    """-log softmax(W h + b)[target] of each position, its gradient made in the same sweep.

    With m the largest logit, e = exp(logits - m), r the sum of e over all but the target and s = r + e[target], the
    gradient of the logits is e/s, and -r/s at the target: no difference of nearly equal numbers, so that the small
    gradients of well-fitted tokens keep their digits. The margin's is e/r, and -1 at the target.
    """

    @staticmethod
    def forward(ctx: Any, hidden_KH: Any, weight_VH: Any, bias_V: Any, batch: Batch, dtype: torch.dtype) -> Any:
        count = len(hidden_KH)
        wanted = ctx.needs_input_grad[0]
        nll_K = hidden_KH.new_empty(count, dtype=dtype)
        grad_KH = torch.empty_like(hidden_KH) if wanted else None
        block = max(16, BLOCK_NUMBERS.get(hidden_KH.device.type, 1 << 24) // weight_VH.shape[0])
        for start in range(0, count, block):
            part = slice(start, min(start + block, count))
            logits = F.linear(hidden_KH[part], weight_VH, bias_V).to(dtype)
            target = batch.target_K[part, None].to(logits.device)
            highest = logits.max(1, keepdim=True).values
            e = logits.sub_(highest)
            if batch.uniform_K is None:
                logit_t = e.gather(1, target)
                e.exp_()
            else:
                e.exp_()
                target = _sampled(e, batch.uniform_K[part])
                logit_t = e.gather(1, target).log()
            e_t = e.gather(1, target)
            e.scatter_(1, target, 0.0)
            r = e.sum(1, keepdim=True)
            s = r + e_t
            if batch.margin:
                nll_K[part] = (r.clamp_min(torch.finfo(dtype).tiny).log() - logit_t)[:, 0]
                s = r.clamp_min(torch.finfo(dtype).tiny)
            else:
                nll_K[part] = torch.where(e_t > r, torch.log1p(r / e_t), s.log() - logit_t)[:, 0]
            if grad_KH is not None:
                e.scatter_(1, target, -r)
                grad_KH[part] = (e.to(weight_VH.dtype) @ weight_VH).div_(s)
        if grad_KH is not None:
            ctx.save_for_backward(grad_KH)
        return nll_K

    @staticmethod
    def backward(ctx: Any, *above: Any) -> Any:
        (grad_KH,) = ctx.saved_tensors
        return (grad_KH * above[0][:, None].to(grad_KH.dtype), None, None, None, None)


def _sampled(e_KV: torch.Tensor, uniform_K: torch.Tensor) -> torch.Tensor:
    """Labels [K, 1] with chances in proportion to e: the first at which the running sum exceeds u times the whole."""
    sum_KV = e_KV.cumsum(1)
    at_K1: torch.Tensor = torch.searchsorted(sum_KV, uniform_K[:, None].to(sum_KV) * sum_KV[:, -1:], right=True)
    return at_K1.clamp_max(e_KV.shape[1] - 1)


def token_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The model's own logits at the positions that predict the batch's targets [K, V]."""
    tokens = batch.shape[1]
    arguments: dict[str, Any] = {
        "input_ids": batch.input_ids_BT,
        "attention_mask": batch.attention_BT,
        "use_cache": False,
    }
    column_K = batch.place_K % tokens
    if can_slice_logits(model):
        arguments["logits_to_keep"], column_K = torch.unique(column_K, return_inverse=True)
    logits = model(**arguments).logits.to(batch.place_K.device)
    logits_KV: torch.Tensor = logits[batch.place_K // tokens, column_K].to(batch.weight_K.dtype)
    return logits_KV


def _own_token_losses(model: nn.Module, batch: Batch) -> torch.Tensor:
    logits_KV = token_logits(model, batch)
    target_K = batch.target_K
    if batch.uniform_K is not None:
        target_K = _sampled(logits_KV.detach().softmax(1), batch.uniform_K)[:, 0]
    nll_K = F.cross_entropy(logits_KV, target_K, reduction="none")
    if not batch.margin:
        return nll_K
    others_KV = logits_KV.scatter(1, target_K[:, None], -torch.inf)
    margin_K: torch.Tensor = logits_KV.gather(1, target_K[:, None])[:, 0] - others_KV.logsumexp(1)
    return -margin_K


def _find_head(model: Any) -> _Head | None:
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    body = getattr(inner, getattr(inner, "base_model_prefix", "") or "", None)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if not isinstance(body, nn.Module) or body is inner or type(head) is not nn.Linear:
        return None
    if hasattr(model, "peft_config") and any(
        getattr(one, "is_prompt_learning", False) for one in model.peft_config.values()
    ):
        return None
    if head.weight.device.type == "meta" or not head.weight.is_floating_point():
        return None
    return _Head(body, head.weight, head.bias)


def _holds(model: Any, head: _Head, batch: Batch) -> bool:
    """Whether logits are exactly the head's output, and the body's last hidden state without a mask its input.

    The head's output is blown up while the model runs, so that a cap or scale behind it cannot hide in small logits.
    """
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    seen: dict[str, torch.Tensor] = {}

    def blow_up(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        seen["hidden"] = inputs[0]
        seen["logits"] = output * (100.0 / output.abs().max().clamp_min(1e-6))
        return seen["logits"]

    lengths_B = batch.attention_BT.sum(1)
    few = torch.stack([lengths_B.argmin(), lengths_B.argmax()])
    ids, attention = batch.input_ids_BT[few, :64].clone(), batch.attention_BT[few, :64].clone()
    attention[0, max(1, ids.shape[1] // 2) :] = 0  # one of the two is padded in any case
    handle = inner.get_output_embeddings().register_forward_hook(blow_up)
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
            hidden = getattr(head.body(input_ids=ids, use_cache=False), "last_hidden_state", None)
    finally:
        handle.remove()
    if hidden is None or seen.get("hidden") is None or seen["hidden"].shape != hidden.shape:
        return False
    real = attention.bool().to(hidden.device)
    digits = 3e-2 if hidden.dtype == torch.bfloat16 else 1e-4
    scale = float(hidden[real].abs().max())
    return bool(
        logits.shape == seen["logits"].shape
        and torch.allclose(logits.float(), seen["logits"].float().to(logits.device), rtol=1e-5)
        and torch.allclose(hidden[real], seen["hidden"].to(hidden.device)[real], rtol=digits, atol=digits * scale)
    )


def can_slice_logits(model: Any) -> bool:
    """Whether the model's forward can leave out logits that nobody needs."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    model_class: type[nn.Module] = type(inner)
    return _takes_logits_to_keep(model_class)  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _takes_logits_to_keep(model_class: type[nn.Module]) -> bool:
    return "logits_to_keep" in inspect.signature(model_class.forward).parameters
