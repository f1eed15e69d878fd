"""Masks: what the loss counts, whatever the text."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
from any_values import texts
from hypothesis import given
from hypothesis import strategies as st

import tiny
from headwater.errors import HeadwaterError
from headwater.examples import Encoder, Examples, TokenFormat


@cache
def encoder(max_length: int, keep: str, add_eos: bool) -> Encoder:
    tokenizer = tiny.tokenizer([fact["prompt"] + fact["completion"] for fact in tiny.FACTS], chat=True)
    return Encoder(tokenizer, TokenFormat(max_length=max_length, keep=keep, add_eos=add_eos), "plain")  # type: ignore[arg-type]


@given(
    prompt=texts, completion=texts, length=st.sampled_from([2, 5, 64]), keep=st.sampled_from(["start", "end"]),
    eos=st.booleans(),
)  # fmt: skip
def test_the_loss_counts_the_completion_and_nothing_else(
    prompt: str, completion: str, length: int, keep: str, eos: bool
) -> None:
    row = Examples.from_rows([{"prompt": prompt, "completion": completion}])[0]
    made = encoder(length, keep, eos)
    found, whole = made.example(row), encoder(10_000, keep, eos).example(row)
    assert found.length == min(length, whole.length) and found.length == len(found.loss_mask)
    assert not found.loss_mask[:1].any()
    kept = whole.input_ids[:length] if keep == "start" else whole.input_ids[-length:]
    assert np.array_equal(found.input_ids, kept)
    counted = np.flatnonzero(whole.loss_mask)
    if len(counted):
        assert np.array_equal(counted, np.arange(counted[0], whole.length))
        said = made._tokenizer.decode(whole.input_ids[counted])
        assert (prompt + completion + "<|end|>" * eos).endswith(said) or "�" in said


@given(prompt=texts.filter(bool), output=texts.filter(bool), data=st.data())
def test_spans_that_cover_the_output_count_all_of_it(prompt: str, output: str, data: st.DataObject) -> None:
    made = encoder(10_000, "start", True)
    whole = made.query(prompt, output)
    edges = sorted({0, len(output), *data.draw(st.lists(st.integers(0, len(output)), max_size=3))})
    found = np.zeros(whole.length, bool)
    for start, end in itertools.pairwise(edges):
        try:
            part = made.query(prompt, output, span=(start, end))
        except HeadwaterError:  # a span of which no token is counted: it lies in a token of the prompt
            continue
        assert np.array_equal(part.input_ids, whole.input_ids)
        assert not (part.loss_mask & ~whole.loss_mask).any()
        found |= part.loss_mask
    assert np.array_equal(found, whole.loss_mask)


turns = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), texts), min_size=1, max_size=4)


@given(said=turns)
def test_conversations_count_the_assistant(said: list[tuple[str, str]]) -> None:
    made = encoder(10_000, "start", True)
    row = Examples.from_rows([{"messages": [{"role": role, "content": content} for role, content in said]}])[0]
    try:
        found = made.example(row)
    except HeadwaterError as error:
        assert said[0][0] == "assistant" and "begins with the assistant" in str(error)
        return
    spoken = made._tokenizer.decode(found.input_ids[found.loss_mask])
    assert all(content in spoken or "�" in spoken for role, content in said if role == "assistant")
    if all(role != "assistant" for role, _ in said):
        assert not found.targets
