"""BM25 against its formula, written out."""

from __future__ import annotations

import math
from typing import Any

import bm25s
import numpy as np
import pytest

import headwater as hw
import tiny

TRAIN = hw.Examples.from_rows(tiny.FACTS, name="facts")
QUERIES = [
    hw.Query("The capital of Australia is", " Sydney", corrected=" Canberra"),
    hw.Query("The capital of the Commonwealth of Australia is", " Sydney"),
    hw.Query("Australia, Australia and Peru:", " Lima"),
    hw.Query("Xyzzy plugh", " qux"),
]


def words(text: str) -> list[str]:
    tokens: Any = bm25s.tokenize([text], stopwords=None, return_ids=False, show_progress=False)
    return list(tokens[0])


def lucene(query: str, documents: list[str], k1: float, b: float) -> list[float]:
    """sum over the query's words of idf tf / (tf + k1 (1 - b + b length / mean length)), with
    idf = log(1 + (N - n + 1/2) / (n + 1/2))."""
    split = [words(document) for document in documents]
    mean_length = sum(map(len, split)) / len(split)
    out = []
    for document in split:
        score = 0.0
        for word in words(query):
            holding = sum(word in other for other in split)
            count = document.count(word)
            idf = math.log(1 + (len(split) - holding + 0.5) / (holding + 0.5))
            score += idf * count / (count + k1 * (1 - b + b * len(document) / mean_length))
        out.append(score)
    return out


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.0), (2.0, 1.0)])
def test_bm25_is_lucenes_formula(k1: float, b: float) -> None:
    found = hw.BM25(k1=k1, b=b).score_text(QUERIES, TRAIN)
    documents = [row.prompt_text + row.completion_text for row in TRAIN]
    wanted = [lucene(f"{q.prompt}{q.output}", documents, k1, b) for q in QUERIES]
    assert found == pytest.approx(np.array(wanted), rel=1e-5)
    assert found[0].max() > 0


def test_output_alone_can_be_searched() -> None:
    found = hw.BM25(query_text="output").score_text(QUERIES, TRAIN)
    assert found[0].argmax() == 11
    assert np.count_nonzero(found[0]) == 1


def test_words_that_no_row_has_score_nothing() -> None:
    assert hw.BM25().score_text(QUERIES[3:], TRAIN).tolist() == [[0.0] * len(TRAIN)]


def test_prompt_and_output_are_joined_without_a_seam() -> None:
    """The output begins where the prompt ends: a word that is split between them is one word."""
    split = hw.BM25().score_text([hw.Query("The capital of Aus", "tralia")], TRAIN)
    whole = hw.BM25().score_text([hw.Query("The capital of", " Australia")], TRAIN)
    assert np.array_equal(split, whole)


def test_unknown_query_text_is_refused() -> None:
    with pytest.raises(hw.UsageError, match="query_text='prompt'"):
        hw.BM25(query_text="prompt")  # type: ignore[arg-type]
