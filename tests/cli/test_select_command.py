"""headwater select, on the tiny run: files, comparison, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calling import called, tree


def test_chosen_rows_and_a_comparison(
    given: list[str], train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target.jsonl"
    target.write_text("".join(f'{{"prompt": "The capital of X{n} is", "completion": " Lima."}}\n' for n in range(4)))
    out = tmp_path / "chosen"
    more = ["--target", str(target), "--k", "3", "--method", "bm25", "--method", "random", "--out", str(out)]
    more += ["--compare", "--seeds", "2", "--epochs", "1", "--learning-rate", "0.001", "--quiet"]
    done = called(["select", *given, *more], monkeypatch, capfd)
    assert done.returncode == 0, done.stderr
    chosen = (out / "bm25" / "chosen.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in train.read_text("utf-8").splitlines()]
    assert len(chosen) == 3 and all(json.loads(line) in rows for line in chosen)
    assert "Lima" in chosen[0]
    record = json.loads((out / "selection.json").read_text("utf-8"))
    assert {one["name"] for one in record["reached"]} == {"bm25", "random", "untrained"}
    assert record["target"]["rows"] == 2  # the other two were held back
    assert "| bm25 | 3 |" in done.stdout and not list((out / "compare").glob("*/checkpoint-*"))
    before = tree(out / "compare")
    again = called(["select", *given, *more], monkeypatch, capfd)
    assert again.returncode == 0 and set(tree(out / "compare")) == set(before)
    other = called(["select", *given, *[x if x != "3" else "4" for x in more]], monkeypatch, capfd)
    assert other.returncode == 2 and "k was 3, is now 4" in other.stderr
    others = (["--rank", "4"], "rank was null, is now 4"), (["--max-length", "9"], "format.max_length was ")
    for option, said in others:
        other = called(["select", *given, *more, *option], monkeypatch, capfd)
        assert other.returncode == 2 and said in other.stderr, other.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [([], "--out"), (["--out", "o", "--k", "99"], "99 of 12 rows"), (["--out", "o", "--method", "luck"], "luck"),
     (["--out", "o", "--held-out", "x.jsonl"], "--compare")],
)  # fmt: skip
def test_mistakes_end_in_one_line(
    more: list[str],
    said: str,
    given: list[str],
    train: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    usual = [] if "--k" in more else ["--k", "2"]
    done = called(["select", *given, "--target", str(train), *usual, *more], monkeypatch, capfd)
    assert done.returncode == 2 and said in done.stderr
    assert not (tmp_path / "o").exists()
