"""What contractions cost, which form is taken, and that blocks, slices and low ranks change no number."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from headwater.gradients import contraction
from headwater.gradients.contraction import (
    FORMS,
    SKINNY,
    TOUCH,
    Contraction,
    DenseGradients,
    FactoredGradients,
    LayerGradients,
    SideGradients,
    cheapest,
    costs,
    example_norm,
    forms_taken,
    forward_passes,
    side_bytes,
    side_gradients,
)
from headwater.gradients.factors import FactorHooks
from headwater.gradients.layers import select_layers

B, T, INPUTS, OUTPUTS, S, U = 3, 7, 5, 6, 2, 9
"""Examples, tokens of each, features, sides, and tokens of all sides."""
CHANCE = np.random.default_rng(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.from_numpy(CHANCE.normal(size=shape))


def factored(side_U: Any = (0, 1, 1, 0, 1, 1, 0, 0, 1)) -> FactoredGradients:
    return FactoredGradients(normal(U, INPUTS), normal(U, OUTPUTS), torch.tensor(side_U), S)


def formed(a_BTI: torch.Tensor, d_BTO: torch.Tensor) -> torch.Tensor:
    """The examples' gradients [B, O, I], one token at a time."""
    out = torch.zeros(len(a_BTI), d_BTO.shape[2], a_BTI.shape[2], dtype=a_BTI.dtype)
    for b, t in itertools.product(*(range(n) for n in a_BTI.shape[:2])):
        out[b] += torch.outer(d_BTO[b, t], a_BTI[b, t])
    return out


def sides_of(stored: FactoredGradients) -> torch.Tensor:
    out = torch.zeros(stored.sides, OUTPUTS, INPUTS, dtype=torch.float64)
    for u, side in enumerate(stored.side_U.tolist()):
        out[side] += torch.outer(stored.e_UO[u], stored.b_UI[u])
    return out


def inner(one_SOI: torch.Tensor, other_BOI: torch.Tensor) -> torch.Tensor:
    return one_SOI.flatten(1) @ other_BOI.flatten(1).T


# What it costs


@pytest.mark.parametrize("norm", [False, True])
def test_costs_are_those_counted_at_the_head_of_the_module(norm: bool) -> None:
    """Multiplications, and TOUCH for each number of a gradient, kernel or product that is written and read again."""
    tokens = B * T
    wanted = {
        "factored": tokens * U * (INPUTS + OUTPUTS) + TOUCH * tokens * U,
        "applied": S * tokens * INPUTS * OUTPUTS + TOUCH * S * tokens * OUTPUTS,
        "materialised": tokens * INPUTS * OUTPUTS
        + TOUCH * B * INPUTS * OUTPUTS
        + B * INPUTS * OUTPUTS * (TOUCH + SKINNY * S),
    }
    if norm:
        gram = B * (T * T * (INPUTS + OUTPUTS) + TOUCH * T * T)
        by_matrix = tokens * INPUTS * OUTPUTS + TOUCH * B * INPUTS * OUTPUTS + TOUCH * B * INPUTS * OUTPUTS
        wanted["factored"] += min(gram, by_matrix)
        wanted["applied"] += min(gram, by_matrix)
        wanted["materialised"] += TOUCH * B * INPUTS * OUTPUTS
    assert costs(B, T, (INPUTS, OUTPUTS), S, U, norm=norm) == pytest.approx(wanted)


def test_long_examples_get_their_norm_from_the_matrix() -> None:
    long, plain = (costs(1, 1000, (INPUTS, OUTPUTS), S, U, norm=norm)["applied"] for norm in (True, False))
    assert long - plain == pytest.approx((1000 + 2 * TOUCH) * INPUTS * OUTPUTS)


def test_the_cheapest_form_is_taken_of_those_that_may_be() -> None:
    few_tokens: dict[str, Any] = {"rows": 4, "tokens": 8, "shape": (4096, 4096), "sides": 3, "norm": False}
    assert cheapest(**few_tokens, pairs=5, forms=FORMS) == "factored"
    assert cheapest(**few_tokens, pairs=10**6, forms=FORMS) == "applied"
    assert cheapest(**few_tokens, pairs=5, forms=FORMS[1:]) == "applied"
    many_sides: dict[str, Any] = {"rows": 4, "tokens": 512, "shape": (64, 64), "sides": 500, "norm": True}
    assert cheapest(**many_sides, pairs=10**6, forms=FORMS) == "materialised"
    assert cheapest(**many_sides, pairs=10**6, forms=FORMS[:2]) == "applied"


def test_forward_passes_are_the_costs_over_the_multiplications_of_a_forward_pass() -> None:
    shapes, lengths, tokens = [(INPUTS, OUTPUTS), (40, 30)], (4.0, 100.0, 700.0), 350
    each = []
    for length in lengths:
        rows = max(1.0, tokens / length)
        found = [costs(rows, length, shape, S, 0, norm=False) for shape in shapes]
        forward = rows * length * (INPUTS * OUTPUTS + 40 * 30)
        each.append(sum(min(one["applied"], one["materialised"]) for one in found) / forward)
    assert forward_passes(shapes, lengths, S, tokens) == pytest.approx(np.mean(each))


def test_the_sentence_says_how_often_each_form_was_taken() -> None:
    said = "contractions, by layer and batch: "
    assert forms_taken({"factored": 3, "applied": 0, "materialised": 1}) == f"{said}factored 75 %, materialised 25 %"
    assert forms_taken({"factored": 0, "applied": 2, "materialised": 0}) == f"{said}applied 100 %"
    assert forms_taken(dict.fromkeys(FORMS, 0)) == f"{said}none"
    assert Contraction([], norm=False).sentence() == f"{said}none"


# The same numbers


@pytest.mark.parametrize("block", [1, 70, 1 << 18])
def test_tokens_are_contracted_block_by_block(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(contraction, "TOKEN_BLOCK", block)
    stored, a, d = factored(), normal(B, T, INPUTS), normal(B, T, OUTPUTS)
    wanted = torch.einsum("soi,bto,bti->sbt", sides_of(stored), d, a)
    torch.testing.assert_close(stored.by_token(a, d), wanted)
    torch.testing.assert_close(stored.dots(a, d), inner(sides_of(stored), formed(a, d)))
    torch.testing.assert_close(stored.matrices(), sides_of(stored))
    torch.testing.assert_close(stored.gram(), inner(sides_of(stored), sides_of(stored)))


@pytest.mark.parametrize("width", [1, 4, 64])
def test_matrices_are_cut_along_the_outputs(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(contraction, "SLICE", width)
    g, a, d = normal(S, OUTPUTS, INPUTS), normal(B, T, INPUTS), normal(B, T, OUTPUTS)
    stored = DenseGradients.of(g)
    assert [piece.shape[1] for piece in stored.slices] == [
        min(width, OUTPUTS - start) for start in range(0, OUTPUTS, width)
    ]
    assert all(piece.is_contiguous() for piece in stored.slices) and stored.sides == S
    torch.testing.assert_close(stored.gram(), inner(g, g))
    torch.testing.assert_close(stored.by_token(a, d), torch.einsum("soi,bto,bti->sbt", g, d, a))
    torch.testing.assert_close(LayerGradients(None, stored).matrix(), g)
    torch.testing.assert_close(SideGradients.of_matrices([g, 2 * g]).flat(), torch.cat([g, 2 * g], 1).flatten(1))


@pytest.mark.parametrize(("width", "block"), [(64, 1 << 22), (4, 1), (4, 50), (1, 11)])
def test_examples_gradients_are_formed_block_by_block(monkeypatch: pytest.MonkeyPatch, width: int, block: int) -> None:
    monkeypatch.setattr(contraction, "SLICE", width)
    monkeypatch.setattr(contraction, "BLOCK_NUMBERS", {"cpu": block})
    a, d = normal(B, T, INPUTS), normal(B, T, OUTPUTS)
    pieces = list(contraction._matrices(a, d))
    assert all(piece.numel() <= max(block, width * INPUTS) for _, piece in pieces)
    wanted = formed(a, d)
    parts = torch.zeros_like(wanted)
    at = dict.fromkeys(range(B), 0)
    for rows, piece in contraction._matrices(a, d):
        start = at[rows.start]
        parts[rows, start : start + piece.shape[1]] = piece
        at[rows.start] += piece.shape[1]
    torch.testing.assert_close(parts, wanted)

    g = normal(S, OUTPUTS, INPUTS)
    stored = [SideGradients.of_matrices([g]), SideGradients.of_matrices([3 * g])]
    for form in FORMS[1:]:
        (one, other), squared = Contraction(stored, norm=True, form=form)(0, a, d)
        torch.testing.assert_close(one, inner(g, wanted))
        torch.testing.assert_close(other, 3 * inner(g, wanted))
        torch.testing.assert_close(squared, wanted.square().sum((1, 2)))
    twice = Contraction(stored, norm=True, mapped=lambda number, g_BOI: (2 + number) * g_BOI)
    (one, other), squared = twice(0, a, d)
    torch.testing.assert_close(one, 2 * inner(g, wanted))
    torch.testing.assert_close(other, 6 * inner(g, wanted))
    torch.testing.assert_close(squared, 4 * wanted.square().sum((1, 2)))
    assert twice.chosen == {"factored": 0, "applied": 0, "materialised": 1}
    assert Contraction(stored, norm=False, mapped=lambda number, g_BOI: g_BOI)(0, a, d)[1] is None


@pytest.mark.parametrize("form", [None, *FORMS])
def test_both_representations_give_the_form_that_is_asked_for_or_the_cheapest(form: Any) -> None:
    stored, a, d = factored(), normal(B, T, INPUTS), normal(B, T, OUTPUTS)
    both = SideGradients((LayerGradients(stored, DenseGradients.of(stored.matrices())),), stored.gram()[None])
    contract = Contraction([both], norm=False, form=form)
    (dots,), squared = contract(0, a, d)
    assert squared is None
    torch.testing.assert_close(dots, inner(sides_of(stored), formed(a, d)))
    taken = form or cheapest(B, T, (INPUTS, OUTPUTS), S, U, norm=False, forms=FORMS)
    assert contract.chosen == {one: int(one == taken) for one in FORMS}
    (by_token,), _ = contract.by_token(0, a, d)
    torch.testing.assert_close(by_token.sum(2), dots)


@pytest.mark.parametrize("tokens", [1, 2, 40, 400])
def test_norms_by_tokens_and_by_matrices_are_the_same(tokens: int) -> None:
    a, d = normal(B, tokens, INPUTS), normal(B, tokens, OUTPUTS)
    torch.testing.assert_close(example_norm(a, d), formed(a, d).square().sum((1, 2)))


def test_a_low_rank_is_found_and_changes_nothing() -> None:
    b, e = normal(U, INPUTS), normal(U, OUTPUTS)
    b[[0, 3, 6]] = b[:1] * torch.tensor([[1.0], [2.0], [-1.0]])  # side 0: three of four pairs are multiples of one
    stored = FactoredGradients(b, e, factored().side_U, S)
    found = stored.low_rank()
    assert [int((found.side_U == s).sum()) for s in range(S)] == [2, 5] and found.sides == S
    torch.testing.assert_close(found.matrices(), stored.matrices())
    torch.testing.assert_close(found.gram(), stored.gram())
    own = stored.side_U == 1  # no fewer pairs: as they were
    assert torch.equal(found.b_UI[found.side_U == 1], b[own]) and torch.equal(found.e_UO[found.side_U == 1], e[own])


def test_a_side_without_pairs_has_rank_zero() -> None:
    stored = FactoredGradients(normal(2, INPUTS), normal(2, OUTPUTS), torch.tensor([1, 1]), S)
    found = stored.low_rank()
    assert found.matrices()[0].abs().max() == 0 and set(found.side_U.tolist()) == {1}


def test_a_low_rank_is_searched_for_where_it_saves_ten_times_the_search() -> None:
    """Per side of p pairs: 4 p^2 (I + O) for the two triangular forms and 30 p^3 for the singular values."""
    stored = factored((0, 1, 1, 0, 1, 1, 0, 0, 1))
    each = U / S
    search = S * (4 * each**2 * (INPUTS + OUTPUTS) + 30 * each**3)
    enough = 10 * search / (0.5 * U * (INPUTS + OUTPUTS))
    assert contraction._worth_compressing(stored, (INPUTS, OUTPUTS), 1.01 * enough)
    assert not contraction._worth_compressing(stored, (INPUTS, OUTPUTS), 0.99 * enough)
    broken = FactoredGradients(stored.b_UI, stored.e_UO * torch.nan, stored.side_U, S)
    assert not contraction._worth_compressing(broken, (INPUTS, OUTPUTS), 1e9 * enough)


# What is kept of the sides

SIDES = tiny.rows(((6, 2), (11, 5)), seed=4)
LONG = tiny.rows(((20, 2), (22, 5)), seed=4)
PAIRS = 19 + 21
"""Tokens of LONG up to the last that is predicted: enough for matrices to pay where examples are long."""


def hooks_of(hidden: int = 16) -> FactorHooks:
    model = tiny.model("llama", hidden=hidden)
    return FactorHooks(model, select_layers(model).layers, precision=torch.float64)


def kinds(stored: SideGradients) -> list[tuple[bool, bool]]:
    return [(layer.tokens is not None, layer.matrices is not None) for layer in stored.layers]


def numbers(stored: SideGradients) -> int:
    tokens = [one for layer in stored.layers if layer.tokens for one in (layer.tokens.b_UI, layer.tokens.e_UO)]
    matrices = [one for layer in stored.layers if layer.matrices for one in layer.matrices.slices]
    return sum(one.numel() for one in (*tokens, *matrices))


def test_a_side_takes_the_smaller_of_its_representations() -> None:
    hooks = hooks_of()
    wanted = sum(min(11 * (i + o), i * o) for i, o in hooks.shapes)
    assert side_bytes(hooks, SIDES[1]) == 8 * wanted
    hooks.uses = [2] * len(hooks.uses)
    assert side_bytes(hooks, SIDES[1]) == 8 * sum(min(22 * (i + o), i * o) for i, o in hooks.shapes)


def test_lengths_on_both_sides_of_a_threshold_keep_both_representations() -> None:
    for lengths in ((1.0,), (1.0, 5000.0)):
        stored = side_gradients(hooks_of(64), LONG, batch_tokens=5000, lengths=lengths)
        wanted = []
        for inputs, outputs in hooks_of(64).shapes:
            taken = {
                cheapest(max(1.0, 5000 / t), t, (inputs, outputs), 2, PAIRS, norm=True, forms=FORMS) for t in lengths
            }
            wanted.append(("factored" in taken, bool(taken - {"factored"})))
        assert kinds(stored) == wanted
        assert ((True, True) in wanted) == (len(lengths) > 1)


def test_a_weight_that_is_applied_several_times_makes_as_many_pairs() -> None:
    taken = []
    for uses in (1, 3):
        hooks = hooks_of(64)
        hooks.uses = [uses] * len(hooks.uses)
        stored = side_gradients(hooks, LONG, batch_tokens=5000, lengths=(1.0,))
        taken.append(kinds(stored))
        form = {shape: cheapest(5000, 1.0, shape, 2, uses * PAIRS, norm=True, forms=FORMS) for shape in hooks.shapes}
        assert taken[-1] == [(form[s] == "factored", form[s] != "factored") for s in hooks.shapes]
    assert taken[0] != taken[1]


def test_where_memory_is_short_the_smaller_representation_is_kept() -> None:
    hooks = hooks_of(64)
    options: dict[str, Any] = {"batch_tokens": 5000, "lengths": (1.0, 5000.0)}
    free = side_gradients(hooks, LONG, **options)
    held = 8 * sum(
        is_t * PAIRS * (i + o) + is_m * 2 * i * o
        for (i, o), (is_t, is_m) in zip(hooks.shapes, kinds(free), strict=True)
    )
    assert kinds(side_gradients(hooks, LONG, **options, memory=held)) == kinds(free)
    short = side_gradients(hooks, LONG, **options, memory=held - 1)
    wanted = [2 * i * o < PAIRS * (i + o) for i, o in hooks.shapes]
    assert kinds(short) == [(not one, one) for one in wanted]
    torch.testing.assert_close(short.gram_LSS, free.gram_LSS)
    for form, kind in (("factored", (True, False)), ("applied", (False, True)), ("materialised", (False, True))):
        asked = side_gradients(hooks, LONG, **options, memory=1, form=form)  # type: ignore[arg-type]
        assert set(kinds(asked)) == {kind}
    never = side_gradients(hooks, LONG, **options, forms=("factored",))
    assert set(kinds(never)) == {(True, False)}


def test_many_examples_make_a_low_rank_worth_it() -> None:
    hooks = hooks_of(64)
    rows = tiny.rows(((90, 89),))
    options: dict[str, Any] = {"batch_tokens": 99, "lengths": (90.0,), "form": "factored"}
    few, many = (side_gradients(hooks, rows, **options, examples=count) for count in (1, 10**9))
    assert [layer.pairs for layer in few.layers] == [89] * len(few.layers)
    assert max(layer.pairs for layer in many.layers) <= 64
    assert numbers(many) < numbers(few)
    torch.testing.assert_close(many.gram_LSS, few.gram_LSS)
    for one, other in zip(few.layers, many.layers, strict=True):
        torch.testing.assert_close(one.matrix(), other.matrix())


def test_all_layers_as_matrices() -> None:
    hooks = hooks_of(64)
    stored = side_gradients(hooks, SIDES, batch_tokens=99, lengths=(9.0,), form="factored")
    dense = stored.dense()
    assert set(kinds(dense)) == {(False, True)} and dense.dense() is dense
    assert [layer.pairs for layer in dense.layers] == [0] * len(hooks.shapes)
    torch.testing.assert_close(dense.gram_LSS, stored.gram_LSS)
    wanted = torch.cat([layer.matrix().flatten(1) for layer in stored.layers], 1)
    torch.testing.assert_close(dense.flat(), wanted)
    mixed = SideGradients((dense.layers[0], stored.layers[1]), stored.gram_LSS[:2])
    assert set(kinds(mixed.dense())) == {(False, True)}


def test_sides_in_batches_of_any_size_are_the_same() -> None:
    sides = tiny.rows(((6, 2), (11, 5), (4, 3), (6, 1)), seed=5)
    whole, single = (side_gradients(hooks_of(), sides, batch_tokens=t, lengths=(9.0,)) for t in (9999, 1))
    torch.testing.assert_close(whole.gram_LSS, single.gram_LSS)
    for one, other in zip(whole.layers, single.layers, strict=True):
        torch.testing.assert_close(one.matrix(), other.matrix())
