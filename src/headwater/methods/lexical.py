"""BM25: which rows share the query's rare words. No model is needed, and it is a real rival on facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headwater.attribution.plan import Plan, Terms, TextPlan
from headwater.checkpoints import TrainingRun
from headwater.errors import UsageError
from headwater.examples import Examples, Query
from headwater.gradients.measurement import Target


@dataclass(frozen=True, kw_only=True)
class BM25:
    """BM25 (Lucene's variant, by bm25s) of prompt and output against each row's text. Status C.

    Attributes:
        query_text: which words are searched: prompt and output, or the output alone.
        k1, b: saturation of term counts, and length normalisation.
    """

    query_text: Literal["prompt+output", "output"] = "prompt+output"
    k1: float = 1.5
    b: float = 0.75

    def __post_init__(self) -> None:
        if self.query_text not in ("prompt+output", "output"):
            raise UsageError(
                f"query_text={self.query_text!r}", expected="'prompt+output' or 'output'", fix="choose one of them"
            )

    @property
    def name(self) -> str:
        return "bm25"

    def plan(self, run: TrainingRun) -> Plan:
        return TextPlan()

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        return {"text": 1.0}

    def score_text(self, queries: Sequence[Query], train: Examples) -> np.ndarray:
        """BM25 scores [Q, N]."""
        import bm25s

        corpus = bm25s.tokenize([row.text for row in train], stopwords=None, show_progress=False)
        index = bm25s.BM25(k1=self.k1, b=self.b)
        index.index(corpus, show_progress=False)
        score_QN = np.zeros((len(queries), len(train)))
        for q, query in enumerate(queries):
            text = query.output or ""
            if self.query_text == "prompt+output":
                text = f"{query.prompt_text}{text}"
            words = bm25s.tokenize([text], stopwords=None, return_ids=False, show_progress=False)[0]
            if words:
                score_QN[q] = index.get_scores(words)
        return score_QN
