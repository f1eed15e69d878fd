"""Sentence embeddings: which rows mean about the same as the query. A model of its own, not the fine-tuned one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from headwater.attribution.plan import Plan, Terms, TextPlan
from headwater.checkpoints import TrainingRun
from headwater.errors import ModelError, UsageError
from headwater.examples import Examples, Query
from headwater.gradients.measurement import Target
from headwater.progress import quiet_transformers


@dataclass(frozen=True, kw_only=True)
class EmbeddingSimilarity:
    """Cosine of sentence embeddings of query and row (Reimers and Gurevych 2019, arXiv 1908.10084). Status C.

    Attributes:
        embedding_model: a sentence-transformers model, as a local folder or a hub id. Code in its files is not run.
        query_text: what is embedded of a query: prompt and output, or the output alone.
        row_text: what is embedded of a row: prompt and completion, or the completion alone.
    """

    embedding_model: str = "sentence-transformers/all-MiniLM-L6-v2"
    query_text: Literal["prompt+output", "output"] = "prompt+output"
    row_text: Literal["prompt+completion", "completion"] = "prompt+completion"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("query_text", self.query_text, ("prompt+output", "output")),
            ("row_text", self.row_text, ("prompt+completion", "completion")),
        ):
            if value not in known:
                raise UsageError(f"{name}={value!r}", expected=" or ".join(map(repr, known)), fix="choose one of them")

    @property
    def name(self) -> str:
        return "embedding"

    def plan(self, run: TrainingRun) -> Plan:
        return TextPlan()

    def weights(self, run: TrainingRun, terms: Terms, targets: Sequence[Target]) -> dict[str, float]:
        return {"text": 1.0}

    def score_text(self, queries: Sequence[Query], train: Examples) -> np.ndarray:
        """Cosines [Q, N] in [-1, 1]. An empty text's are 0.

        Raises:
            UsageError: the package sentence-transformers is not installed.
            ModelError: the model cannot be loaded.
        """
        whole = self.query_text == "prompt+output"
        asked = [f"{query.prompt_text if whole else ''}{query.output or ''}" for query in queries]
        rows = [row.text if self.row_text == "prompt+completion" else row.completion_text for row in train]
        model = self._load()
        cosines: np.ndarray = _embed(model, asked) @ _embed(model, rows).T
        return cosines

    def _load(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UsageError(
                "the method embedding without the package sentence-transformers",
                expected="it",
                cause="headwater was installed without the extra `embedding`",
                fix='pip install "headwater[embedding]"',
            ) from error
        try:
            with quiet_transformers(), _only_errors("sentence_transformers"):
                return SentenceTransformer(self.embedding_model, trust_remote_code=False)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError) as error:
            raise ModelError(
                f"the sentence embedding model {self.embedding_model} cannot be loaded: {str(error).splitlines()[0]}",
                expected="a folder or hub id of a sentence-transformers model without code of its own",
                fix="check the name; without a network, give a local folder with --embedding-model",
            ) from error


@contextmanager
def _only_errors(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _embed(model: Any, texts: Sequence[str]) -> np.ndarray:
    """Unit embeddings [texts, features] in float64; zeros for an empty text."""
    found = np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), np.float64)
    found[[not text.strip() for text in texts]] = 0
    return found
