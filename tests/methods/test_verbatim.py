"""Verbatim overlap against a double that compares every pair of places."""

from __future__ import annotations

import time

import numpy as np
import pytest

import headwater as hw
from headwater.methods.verbatim import Verbatim, words

ROWS = ["the cat sat on the mat", "a dog sat on the log, the cat ran", "", "x", "The CAT sat!", "on the mat on the mat"]
QUERIES = [hw.Query("the cat sat", " on the log"), hw.Query("nothing like it", " at all"), hw.Query("x", " mat mat")]


def train(texts: list[str]) -> hw.Examples:
    return hw.Examples.from_rows([{"prompt": "", "completion": text, "id": f"r{n}"} for n, text in enumerate(texts)])


def naive(texts: list[str], query: str, least: int) -> list[float]:
    rows, asked = [words(text) for text in texts], words(query)
    every = [word for row in rows for word in row]
    out = []
    for row in rows:
        spans = set()
        for i in range(len(asked)):
            longest = max(
                (
                    n
                    for j in range(len(row))
                    for n in range(1, len(asked) - i + 1)
                    if row[j : j + n] == asked[i : i + n]
                ),
                default=0,
            )
            if longest >= least:
                spans.add((i, i + longest))
        maximal = [s for s in spans if not any(o != s and o[0] <= s[0] and s[1] <= o[1] for o in spans)]
        out.append(sum(np.log(len(every) / every.count(word)) for a, b in maximal for word in asked[a:b]))
    return out


@pytest.mark.parametrize("least", [1, 2, 3])
def test_equals_the_double(least: int) -> None:
    found = Verbatim(min_words=least).score_text(QUERIES, train(ROWS))
    for q, query in enumerate(QUERIES):
        assert found[q] == pytest.approx(naive(ROWS, f"{query.prompt}{query.output}", least), abs=1e-12)


def test_equals_the_double_on_random_words() -> None:
    chance = np.random.default_rng(0)
    texts = [" ".join(chance.choice(list("abcd"), size=chance.integers(1, 12))) for _ in range(30)]
    query = " ".join(chance.choice(list("abcd"), size=14))
    found = Verbatim(query_text="output").score_text([hw.Query("a b c d", query)], train(texts))
    assert found[0] == pytest.approx(naive(texts, query, 2), abs=1e-10)


def test_scripts_without_spaces_are_read_by_character() -> None:
    assert words("東京は Tokyo-Stadt, été") == ["東", "京", "は", "tokyo", "-", "stadt", ",", "été"]
    found = Verbatim().score_text([hw.Query("日本の首都は", "東京です")], train(["首都は東京", "北京"]))
    assert found[0, 0] > found[0, 1] == 0


def test_no_words_at_all() -> None:
    assert Verbatim().score_text([hw.Query("?", " ")], train([" "])).tolist() == [[0.0]]


def test_many_rows_are_quick() -> None:
    chance = np.random.default_rng(0)
    vocabulary = np.array([f"w{n}" for n in range(3000)])
    texts = [" ".join(vocabulary[chance.zipf(1.3, 40) % 3000]) for _ in range(5000)]
    began = time.process_time()
    found = Verbatim().score_text([hw.Query(texts[7], " and more")], train(texts))
    assert found[0].argmax() == 7
    assert time.process_time() - began < 20


def test_options() -> None:
    with pytest.raises(hw.UsageError, match="min_words=0"):
        Verbatim(min_words=0)
    with pytest.raises(hw.UsageError, match="query_text='prompt'"):
        Verbatim(query_text="prompt")  # type: ignore[arg-type]
