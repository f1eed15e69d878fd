"""headwater clean, on the tiny run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calling import called, tree


def test_table_json_and_files(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "review"
    done = called(["clean", *given, "--folds", "3", "--out", str(out), "--quiet"], monkeypatch, capfd)
    assert done.returncode == 0, done.stderr
    assert "12 of 12 rows, ranked by" in done.stdout and "review.jsonl" in done.stdout
    lines = [json.loads(line) for line in (out / "review.jsonl").read_text("utf-8").splitlines()]
    before = tree(out / "signals")
    arguments = ["clean", *given, "--folds", "3", "--out", str(out), "--json", "--top", "3", "--quiet"]
    again = called(arguments, monkeypatch, capfd)
    assert json.loads(again.stdout)["top"] == lines[:3]
    assert tree(out / "signals") == before  # nothing was computed again
    other = called(["clean", *given, "--out", str(out)], monkeypatch, capfd)
    assert other.returncode == 2 and "folds was 3, is now 5" in other.stderr
    assert tree(out / "signals") == before


def test_without_a_model(
    train: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "twice.jsonl"
    line = train.read_text("utf-8").splitlines()[0]
    file.write_text("\n".join([line, line.replace("fact-0", "again"), line.replace("Canberra", "Sydney")]))
    file.write_text(file.read_text().replace('"fact-0"', '"first"', 1))
    done = called(["clean", "--train", str(file), "--quiet"], monkeypatch, capfd)
    assert done.returncode == 0, done.stderr
    assert "1 groups of" in done.stdout and "another answer" in done.stdout


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--train", "none.jsonl"], "no such file"), ([], "no --train"), (["--by", "luck"], "luck")],
)
def test_mistakes_end_in_one_line(
    more: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = called(["clean", *more], monkeypatch, capfd)
    assert done.returncode == 2 and said in done.stderr
