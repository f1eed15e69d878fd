"""Sentence embeddings: the cosines written out, and what is said when there is no model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import headwater as hw
import tiny
from headwater.errors import ModelError, UsageError
from headwater.methods.embedding import EmbeddingSimilarity

ROWS = hw.Examples.from_rows([*tiny.FACTS[:4], {"prompt": "", "completion": " "}])
QUERIES = [hw.Query("The capital of Peru is", " Lima.")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sentence_model(tmp_path_factory.mktemp("embedding"))


def by_hand(folder: Path, one: str, other: str) -> float:
    """Cosine of the means of the two texts' token vectors."""
    words = SentenceTransformer(str(folder), device="cpu")[0]
    table = words.embedding.weight.detach().double().cpu().numpy()
    a, b = (table[words.tokenizer.encode(text, add_special_tokens=False).ids].mean(axis=0) for text in (one, other))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(
    ("options", "asked", "read"),
    [
        ({}, "The capital of Peru is Lima.", "{prompt}{completion}"),
        ({"query_text": "output"}, " Lima.", "{prompt}{completion}"),
        ({"row_text": "completion"}, "The capital of Peru is Lima.", "{completion}"),
    ],
)
def test_scores_are_cosines_of_the_texts_chosen(folder: Path, options: dict[str, Any], asked: str, read: str) -> None:
    found = EmbeddingSimilarity(embedding_model=str(folder), **options).score_text(QUERIES, ROWS)
    assert found.shape == (1, 5)
    for column, fact in enumerate(tiny.FACTS[:4]):
        assert found[0, column] == pytest.approx(by_hand(folder, asked, read.format(**fact)), abs=1e-6)


def test_an_empty_text_is_like_nothing(folder: Path) -> None:
    assert EmbeddingSimilarity(embedding_model=str(folder), row_text="completion").score_text(QUERIES, ROWS)[0, 4] == 0


def test_unknown_text_is_refused() -> None:
    with pytest.raises(UsageError, match="query_text 'prompt'"):
        hw.make_method("embedding", query_text="prompt")


def test_without_the_package_its_install_command_is_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UsageError, match=r'pip install "headwater\[embedding\]"'):
        EmbeddingSimilarity(embedding_model=str(folder)).score_text(QUERIES, ROWS)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("not json")
    with pytest.raises(ModelError, match="cannot be loaded"):
        EmbeddingSimilarity(embedding_model=str(tmp_path)).score_text(QUERIES, ROWS)


def test_nothing_but_the_error_is_said_of_a_model_that_is_not_there(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelError, match="nowhere cannot be loaded"):
        EmbeddingSimilarity(embedding_model="./nowhere").score_text(QUERIES, ROWS)
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_code_in_the_models_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[0]["type"] = "foreign.Module"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "foreign.py").write_text("raise SystemExit('the code was run')")
    with pytest.raises(ModelError, match="cannot be loaded"):
        EmbeddingSimilarity(embedding_model=str(tmp_path)).score_text(QUERIES, ROWS)
