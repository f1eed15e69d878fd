"""headwater repair, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calling import called, headwater, tree

import headwater as hw
import tiny

RECIPE = ["--epochs", "1", "--batch-size", "4", "--learning-rate", "1e-3", "--schedule", "linear"]


@pytest.fixture(scope="module")
def traced(run_folder: Path, train: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced") / "trace"
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    query = hw.Query("The capital of Australia is", " Sydney.", corrected=" Canberra.")
    hw.trace(run, hw.read_examples(train), [query], method=hw.DDA(), out=folder)
    return folder


def test_from_trace_to_report(
    traced: Path, train: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = tree(run_folder) | tree(traced) | tree(train.parent)
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": "Australia's capital:", "output": " Sydney."}) + "\n")
    arguments = [
        "repair", str(traced), "--train", str(train), "--top", "2", "--untouched", str(train), "--no-bm25",
        "--paraphrases", str(tmp_path / "more.jsonl"), "--out", str(tmp_path / "out"), "--quiet", *RECIPE,
    ]  # fmt: skip
    done = called(arguments, monkeypatch, capfd)
    assert (done.returncode, done.stderr) == (0, "")
    assert "loss moved" in done.stdout and "repaired" in done.stdout
    record = json.loads((tmp_path / "out" / "repair.json").read_text())
    kept = hw.Scores.load(traced, hw.read_examples(train))
    assert record["rows"] == [row.id for row in kept.top(2)]
    assert record["config"]["training"]["recipe"]["seed"] == 42  # Trainer's default
    assert {f.name for f in (tmp_path / "out").iterdir()} >= {"report.html", "report.md", "repair.json", "trainings"}
    again = called([*arguments, "--json"], monkeypatch, capfd)
    assert json.loads(again.stdout)["table"] == record["table"]
    assert tree(run_folder) | tree(traced) | tree(train.parent) == before


def test_by_ids_and_a_program_without_a_trace(
    given: list[str], run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": "The capital of Peru is", "output": " Quito."}) + "\n")
    arguments = [
        "repair", *given, "--id", "fact-3", "--queries", str(tmp_path / "q.jsonl"), "--random", "0", "--no-bm25",
        "--command", f"sh -c 'test -s $0 && cp -r {run_folder / 'base'} $1' {{train_file}} {{out}}",
        "--out", str(tmp_path / "out"), "--quiet", "--json",
    ]  # fmt: skip
    done = called(arguments, monkeypatch, capfd)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"] == ["fact-3"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--top", "2", "--standing-out"], "2 ways to choose rows"),
        ([], "no ways to choose rows"),
        (["--top", "2"], "do not say epochs, batch size, learning rate, schedule"),
        (["--q", "0.05", *RECIPE], "without placebo rows"),
        (["--top", "2", "--base", "b", *RECIPE], "--base without --checkpoints"),
        (["--top", "2", "--command", "sh {train_file} {out}", "--lora", "4"], "--lora with --command"),
        (["--top", "2", "--command", "sh {out}"], "without {train_file}"),
        (["--top", "2", "--from", "checkpoint-9", *RECIPE], "no checkpoint checkpoint-9"),
        (["--top", "2", "--from", "checkpoint-6", *RECIPE], "to go on from"),
        (["--id", "nobody", *RECIPE], "'nobody' for one"),
        (["--top", "12", *RECIPE], "no row is left"),
        (["--top", "2", "--method", "tracin", *RECIPE], "has no scores of tracin"),
        (["--top", "2", "--cure", "2", *RECIPE], "a cure of 2"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    change: list[str], says: str, traced: Path, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = ["repair", str(traced), "--train", str(train), "--out", str(tmp_path / "out"), "--quiet", *change]
    done = called(arguments, monkeypatch, capfd)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


def test_other_rows_than_the_traces_are_refused(traced: Path, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(tiny.FACTS)))
    out = tmp_path / "out"
    done = headwater("repair", traced, "--train", tmp_path / "other.jsonl", "--top", "1", "--out", out, *RECIPE)
    assert done.returncode == 2 and "is not the data" in done.stderr and len(done.stderr.splitlines()) == 1
