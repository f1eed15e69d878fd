"""Sides, targets, and parts of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwater as hw
import tiny
from headwater.errors import DataError
from headwater.examples import Encoder
from headwater.gradients.measurement import Target, check_queries, encode_queries, targets_of

QUERIES = [
    hw.Query("Where is", " here", corrected=" there", id="a", group="g"),
    hw.Query("Where is", " near"),
    hw.Query("Who is", " she", corrected=" he", id="c", group="g"),
    hw.Query("Who was", " she", corrected=" he", id="d", group="h"),
]
TOKENIZER = tiny.tokenizer(["Where is here there near Who was she he"])
ENCODER = Encoder(TOKENIZER)


def test_targets_are_every_query_and_then_every_group() -> None:
    assert targets_of(QUERIES) == [
        Target(name="a", kind="query", members=(0,)),
        Target(name="q2", kind="query", members=(1,)),
        Target(name="c", kind="query", members=(2,)),
        Target(name="d", kind="query", members=(3,)),
        Target(name="g", kind="group", members=(0, 2)),
        Target(name="h", kind="group", members=(3,)),
    ]


def test_measurements_are_linear_in_the_sides() -> None:
    sides = encode_queries(QUERIES, ENCODER)
    assert (sides.output_Q, sides.corrected_Q) == ((0, 2, 3, 5), (1, -1, 4, 6))
    words = ["here", "there", "near", "she", "he", "she", "he"]
    for encoded, word in zip(sides.encoded, words, strict=True):
        kept = encoded.input_ids[encoded.loss_mask].tolist()
        assert TOKENIZER.decode(kept).strip() == word
    loss = np.zeros((6, 7))
    for target, outputs in enumerate([(0,), (2,), (3,), (5,), (0, 3), (5,)]):
        loss[target, list(outputs)] = 1
    contrast = loss.copy()
    for target, corrected in enumerate([(1,), (), (4,), (6,), (1, 4), (6,)]):
        contrast[target, list(corrected)] = -1
    assert np.array_equal(sides.matrix("loss"), loss) and np.array_equal(sides.matrix("contrast"), contrast)


@pytest.mark.parametrize("queries", [[0], [1], [1, 2], [2, 0], [3, 1, 0], [0, 1, 2, 3]])
def test_a_part_measures_what_the_whole_measures(queries: list[int]) -> None:
    sides = encode_queries(QUERIES, ENCODER)
    part = sides.part(queries)
    numbers = sides.numbers(part)
    wanted = [n for n, target in enumerate(sides.targets) if set(target.members) <= set(queries)]
    assert numbers == wanted and [sides.targets[n].name for n in wanted] == [target.name for target in part.targets]
    values = {id(one): float(n + 1) ** 2 for n, one in enumerate(sides.encoded)}
    for measurement in ("loss", "contrast"):
        whole, of_part = (
            one.matrix(measurement) @ [values[id(side)] for side in one.encoded]  # type: ignore[arg-type]
            for one in (sides, part)
        )
        assert whole[numbers] == pytest.approx(of_part)
    assert (part is sides) == (len(queries) == 4)
    assert len(part.encoded) == sum(1 + (QUERIES[q].corrected is not None) for q in queries)


@pytest.mark.parametrize(
    ("span", "corrected", "counted"),
    [
        ("auto", " he here", ["she", "he"]),
        ("diff", " he here", ["she", "he"]),
        ("all", " he here", ["she here", "he here"]),
        ("auto", " she", ["she here", "she"]),  # only one side has a word of its own: all of both
        ((1, 4), " he here", ["she", "he here"]),
        ("auto", None, ["she here"]),
    ],
)
def test_spans_choose_the_tokens_of_both_sides(span: Any, corrected: str | None, counted: list[str]) -> None:
    sides = encode_queries([hw.Query("Who is", " she here", corrected=corrected, span=span)], ENCODER)
    assert [TOKENIZER.decode(one.input_ids[one.loss_mask].tolist()).strip() for one in sides.encoded] == counted


def test_what_is_known_before_a_model_answers_is_checked() -> None:
    check_queries(QUERIES, ENCODER)
    check_queries([hw.Query("Where is"), hw.Query("Who is", corrected=" he")], ENCODER)
    twice = [hw.Query("Who", " she", id="x"), hw.Query("Who", " he", id="x")]
    for bad in (twice, [hw.Query("a", "b", id="x", group="x")]):
        with pytest.raises(DataError):
            check_queries(bad, ENCODER)
