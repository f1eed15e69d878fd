"""The words of a row, and those of what was asked, add up to the score; each position's part is what it should be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headwater as hw
import tiny
from headwater.attribution import words
from headwater.examples import Encoded
from headwater.gradients.by_token import token_sides
from headwater.gradients.factors import FactorHooks
from headwater.gradients.inner import Contractor, Product
from headwater.gradients.layers import select_layers

TRAIN = hw.Examples.from_rows(tiny.FACTS, name="facts")
QUERIES = [
    hw.Query("The capital of Australia is", " Sydney.", corrected=" Canberra.", group="sydney", id="a"),
    hw.Query("The capital of the Commonwealth is", " Sydney", corrected=" Canberra", group="sydney", id="b"),
    hw.Query("The capital of Peru is", " Lima.", id="c"),
]
METHODS = [
    hw.DDA(beta=0.3),
    hw.DDA(inner="dot", beta=0.5, label="dda-dot"),
    hw.DDA(level="gradient", beta=0.5, label="dda-gradient"),
    hw.GradientCosine(),
    hw.TracIn(),
    hw.BM25(),
]
TOKENS = hw.DDA(inner="token_cosine", beta=-0.5, label="dda-tokens")


def run_of(folder: Path) -> hw.TrainingRun:
    return hw.TrainingRun.from_pretrained(folder / "run", base=folder / "base")


def check_sums(answers: dict[str, hw.Scores], count: int, tolerance: float) -> None:
    for name, scores in answers.items():
        assert bool(scores.words) == (name != "bm25")
        if not scores.words:
            continue
        for r, target in enumerate(scores.targets):
            for row in scores.top(count, target=r):
                found = scores.words[r, row.index]
                scale = abs(np.array([value for _, value in found.words])).sum() + 1e-12
                assert abs(sum(value for _, value in found.words) - row.score) < tolerance * scale
                asked = [value for one in found.asked for _, value in one.words]
                assert abs(sum(asked) - row.score) < tolerance * scale
                text = "".join(word for word, _ in found.words)
                assert row.prompt in text and row.completion in text
                assert {one.query for one in found.asked} == {scores.targets[q].name for q in target.members}


@pytest.mark.parametrize("adapters", [False, True])
def test_words_add_up_to_the_score(run_folder: Path, lora_folder: Path, tmp_path: Path, adapters: bool) -> None:
    run = run_of(lora_folder if adapters else run_folder)
    compute = hw.Compute(dtype="float64", batch_tokens=64)
    given: dict[str, Any] = {"methods": [*METHODS, TOKENS], "compute": compute, "words": 3, "out": tmp_path / "out"}
    answers = hw.trace_all(run, TRAIN, QUERIES, **given)
    check_sums(answers, 3, 1e-9)
    again = hw.Scores.load(tmp_path / "out", TRAIN, method="dda-dot")
    assert again.words == answers["dda-dot"].words
    with pytest.MonkeyPatch.context() as patch:  # a second run finds every piece
        patch.setattr(words, "_split", None)
        assert hw.trace_all(run, TRAIN, QUERIES, **given)["dda"].words == answers["dda"].words


def test_words_of_the_token_cosine_stand_at_one_position_of_each_checkpoint(run_folder: Path) -> None:
    run = run_of(run_folder)
    given: dict[str, Any] = {"compute": hw.Compute(dtype="float64", batch_tokens=64), "words": 3}
    scores = hw.trace(run, TRAIN, QUERIES, method=TOKENS, **given)
    alone = hw.trace(run, TRAIN, QUERIES, method=replace(TOKENS, beta=0, checkpoint_weights=(0.0, 1.0)), **given)
    assert scores.words and len(run.checkpoints) == 2
    members = [len(target.members) for target in scores.targets]
    for (r, _), found in scores.words.items():
        assert 1 <= sum(value != 0 for _, value in found.words) <= 3 * members[r]
    for (r, row), found in alone.words.items():
        best = [value for _, value in found.words if value]
        assert 1 <= len(best) <= members[r]
        assert abs(sum(best) - alone.terms[run.last.name][r, row]) < 1e-12


def test_words_from_an_index_add_up_to_its_scores(run_folder: Path, tmp_path: Path) -> None:
    run = run_of(run_folder)
    compute = hw.Compute(batch_tokens=64, rank=4)
    index = hw.build_index(run, TRAIN, out=tmp_path / "index", compute=compute, features="float32")
    check_sums(hw.trace_index(index, QUERIES, methods=METHODS, words=2), 2, 1e-4)
    answers = hw.trace_index(index, QUERIES, methods=METHODS[:3], words=2, limit=4)
    check_sums(answers, 2, 1e-4)


def test_words_need_a_gradient_method(run_folder: Path) -> None:
    with pytest.raises(hw.UsageError, match="words of bm25"):
        hw.trace(run_of(run_folder), TRAIN, QUERIES, method=hw.BM25(), words=2)


@pytest.mark.parametrize(
    ("architecture", "parameters"), [("llama", ()), ("gpt2", ()), ("llama", ("lm_head",)), ("llama", ("down_proj",))]
)
def test_parts_are_those_of_weights_that_act_at_one_position(architecture: str, parameters: tuple[str, ...]) -> None:
    """Double: each layer gets a second, zero weight that acts at one position only; its gradient is that part."""
    model = tiny.model(architecture)
    layers = select_layers(model, parameters).layers
    rows, side = tiny.rows(((9, 3), (6, 5))), tiny.rows(((7, 4),), seed=5)[0]
    hooks = FactorHooks(model, layers, precision=torch.float64, trim=False)
    stored, squared_L = token_sides(hooks, [side], [-1.0], batch_tokens=100)
    product = Product("loss", "dot", "here")
    contractor = Contractor({"here": stored}, {"loss": np.eye(7)}, (product,), by_token=True)
    from headwater.gradients.batches import collate

    with hooks.attached():
        batch = collate(rows, torch.device("cpu"), torch.float64)
        value_UBT = contractor(hooks, batch)[0][product]
    by_position = [[-1.0 * g for g in parts] for parts in position_gradients(model, layers, side)]
    whole = [sum(parts[n] for parts in by_position) for n in range(len(layers))]
    assert torch.allclose(squared_L, torch.stack([g.square().sum() for g in whole]))
    for b, row in enumerate(rows):
        for t, of_row in enumerate(position_gradients(model, layers, row)):
            for u, of_side in enumerate(by_position):
                wanted = sum(float((x * y).sum()) for x, y in zip(of_row, of_side, strict=True))
                found = float(value_UBT[u, b, t]) if t < value_UBT.shape[2] else 0.0
                assert abs(found - wanted) < 1e-9 * (1 + abs(wanted))


def position_gradients(model: Any, layers: Any, row: Encoded) -> list[list[torch.Tensor]]:
    """Gradient of the row's mean loss by a weight that acts at one position only: [T][layers]."""
    out = []
    for t in range(row.length):
        extra = [torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64) for layer in layers]
        handles = []
        for layer, weight in zip(layers, extra, strict=True):
            weight.requires_grad_(True)

            def act(module: Any, inputs: Any, output: Any, weight: Any = weight, t: int = t) -> Any:
                mask = torch.zeros(output.shape[1], 1, dtype=torch.float64)
                mask[t] = 1
                return output + (inputs[0] * mask) @ weight.T

            handles += [module.register_forward_hook(act) for module in layer.modules]
        logits = model(torch.from_numpy(row.input_ids)[None]).logits[0]
        at = np.flatnonzero(row.loss_mask)
        loss = torch.nn.functional.cross_entropy(logits[at - 1], torch.from_numpy(row.input_ids[at]))
        grads = torch.autograd.grad(loss, extra, allow_unused=True)
        out.append([torch.zeros_like(w) if g is None else g for g, w in zip(grads, extra, strict=True)])
        for handle in handles:
            handle.remove()
    return out


def test_words_are_joined_tokens_and_show_what_they_predict() -> None:
    encoded = Encoded(np.arange(6), np.array([False, False, False, True, True, False]))
    texts = ["The", " cap", "ital", " Sydney", ".", "日"]
    value_T = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    found = words._words(texts, encoded, value_T)
    assert found == (("The", 1.0), (" capital", 2.0), (" Sydney", 4.0), (".", 8.0 + 16.0), ("日", 32.0))


def test_token_texts_wait_for_whole_characters() -> None:
    tokenizer = tiny.tokenizer(["plain words"])
    ids = tokenizer("a 日本 b")["input_ids"]
    texts = words.token_texts(tokenizer, ids)
    assert "".join(texts) == "a 日本 b"
    assert len(texts) == len(ids) and "" in texts


def test_the_manifest_of_words_is_plain(run_folder: Path, tmp_path: Path) -> None:
    hw.trace(run_of(run_folder), TRAIN, QUERIES[:1], method=hw.DDA(beta=0.0), words=1, out=tmp_path / "out")
    record = json.loads((tmp_path / "out" / "words.json").read_text())["dda"][0]
    assert set(record) == {"target", "row", "words", "asked"}
    assert record["asked"][0]["side"] == "output" and record["asked"][1]["side"] == "corrected"
