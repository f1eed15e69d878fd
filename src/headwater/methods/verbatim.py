"""Verbatim overlap: which rows share long, rare runs of words with the query. No model is needed.

The rows' words are sorted once, all their endings together (a suffix array, by divsufsort); the words from each place
of the query are then looked up as far as any row goes on with them.

Shapes: N rows, Q queries, n positions in all rows, T words of a query.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headwater.attribution.plan import Plan, Terms, TextPlan
from headwater.checkpoints import TrainingRun
from headwater.errors import UsageError
from headwater.examples import Examples, Query
from headwater.gradients.measurement import Target

_WIDE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0eff"
"""Scripts that are written without spaces between words: every character counts as a word."""

_WORD = re.compile(rf"[{_WIDE}]|[^\W{_WIDE}]+|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class Verbatim:
    """Sum over the longest spans that query and row share of -log of the span's chance by single words.

    A span counts from `min_words` words on, and where no longer shared span contains it. Its weight, the sum of -log
    p(word) in nats with p the word's share of all words of the rows, is OLMoTrace's measure of a span's rarity (Liu et
    al. 2025, arXiv 2504.07096, section 3); the sum over spans is ours. Status D.

    Attributes:
        query_text: which words are looked up: prompt and output, or the output alone.
        min_words: words of the shortest span that counts.
    """

    query_text: Literal["prompt+output", "output"] = "prompt+output"
    min_words: int = 2

    def __post_init__(self) -> None:
        if self.query_text not in ("prompt+output", "output"):
            raise UsageError(
                f"query_text={self.query_text!r}", expected="'prompt+output' or 'output'", fix="choose one of them"
            )
        if self.min_words < 1:
            raise UsageError(f"min_words={self.min_words}", expected="at least 1", fix="raise it")

    @property
    def name(self) -> str:
        return "verbatim"

    def plan(self, run: TrainingRun) -> Plan:
        return TextPlan()

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        return {"text": 1.0}

    def score_text(self, queries: Sequence[Query], train: Examples) -> np.ndarray:
        """Scores [Q, N], 0 where no span is shared."""
        index = _Endings([words(row.text) for row in train])
        score_QN = np.zeros((len(queries), len(train)))
        for q, query in enumerate(queries):
            text = query.output or ""
            if self.query_text == "prompt+output":
                text = f"{query.prompt_text}{text}"
            asked = words(text)
            rarity = np.concatenate([[0.0], np.cumsum([index.rarity(word) for word in asked])])
            before_N = np.zeros(len(train), np.int64)
            for start in range(len(asked)):
                length_N = index.lengths(asked[start:], self.min_words)
                longest = (length_N > 0) & (length_N >= before_N)  # else the span before contains it
                score_QN[q, longest] += rarity[start + length_N[longest]] - rarity[start]
                before_N = length_N
        return score_QN


def words(text: str) -> list[str]:
    """Words and punctuation marks, case folded."""
    return _WORD.findall(text.casefold())


class _Endings:
    """All rows' words laid end to end, and where each ending of them stands in alphabetical order."""

    def __init__(self, rows: Sequence[Sequence[str]]) -> None:
        from pydivsufsort import divsufsort

        counts = Counter(word for row in rows for word in row)
        total = max(1, sum(counts.values()))
        self._rarity = {word: float(np.log(total / count)) for word, count in counts.items()}
        self._number = {word: number for number, word in enumerate(sorted(counts), 1)}
        laid = [number for row in rows for number in (*(self._number[word] for word in row), 0)]  # 0 ends a row
        self._words_n = np.array(laid, np.int64)
        self._row_n = np.repeat(np.arange(len(rows)), [len(row) + 1 for row in rows])
        self._order_n = divsufsort(self._words_n).astype(np.int64) if laid else np.zeros(0, np.int64)
        self._rows = len(rows)

    def rarity(self, word: str) -> float:
        """-log p of a word, in nats; 0 for one that no row has (no span holds it)."""
        return self._rarity.get(word, 0.0)

    def lengths(self, asked: Sequence[str], least: int) -> np.ndarray:
        """How many of the first words each row has in a run [N]; 0 where fewer than `least`."""
        length_N = np.zeros(self._rows, np.int64)
        low, high = 0, len(self._order_n)
        for depth, word in enumerate(asked):
            number = self._number.get(word)
            if number is None:
                break
            low = self._first(low, high, depth, number.__le__)
            high = self._first(low, high, depth, number.__lt__)
            if low == high:
                break
            if depth + 1 >= least:
                length_N[self._row_n[self._order_n[low:high]]] = depth + 1
        return length_N

    def _first(self, low: int, high: int, depth: int, reached: Callable[[int], bool]) -> int:
        """The first ending from low to high whose word at `depth` has reached something."""
        while low < high:
            middle = (low + high) // 2
            at = self._order_n[middle] + depth
            if reached(int(self._words_n[at])):
                high = middle
            else:
                low = middle + 1
        return low
