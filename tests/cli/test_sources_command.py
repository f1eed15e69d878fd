"""headwater sources, on a trace of the tiny run."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from calling import QUESTION, called

import tiny


@pytest.fixture(scope="module")
def traced(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trace, and its rows with a column of authors."""
    import headwater as hw

    folder = tmp_path_factory.mktemp("sources")
    train = folder / "train.jsonl"
    rows = [{**fact, "author": ["ann", "bob", None][n % 3]} for n, fact in enumerate(tiny.FACTS)]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    query = hw.Query(QUESTION[1], QUESTION[3], corrected=QUESTION[5])
    hw.trace(run, hw.read_examples(train), [query], method=hw.DDA(), out=folder / "trace")
    return folder / "trace", train


def test_table_json_and_csv(
    traced: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    trace, train = traced

    def run(*more: str) -> Any:
        done = called(["sources", str(trace), *more, "--resamples", "20", "--quiet"], monkeypatch, capfd)
        assert done.returncode == 0, done.stderr
        return done.stdout

    by = ("--by", "author", "--train", str(train))
    table = run(*by)
    assert "ann" in table and "(none)" in table and "%" in table
    found = json.loads(run(*by, "--json"))["targets"][0]["sources"]
    assert {one["name"]: one["rows"] for one in found} == {"ann": 4, "bob": 4, "(none)": 4}
    assert sum(one["share"] for one in found) == pytest.approx(1)
    lines = list(csv.DictReader(io.StringIO(run(*by, "--csv"))))
    assert {one["source"]: float(one["share"]) for one in lines} == {one["name"]: one["share"] for one in found}
    assert "train.jsonl" in run()  # by file, which the trace knows itself


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--by", "author"], "--train"), (["--json", "--csv"], "one of them"), (["--target", "x"], "no query or group"),
     (["--method", "bm25"], "no scores of bm25")],
)  # fmt: skip
def test_mistakes_end_in_one_line(
    more: list[str],
    said: str,
    traced: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    done = called(["sources", str(traced[0]), *more], monkeypatch, capfd)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_a_folder_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = called(["sources", str(tmp_path)], monkeypatch, capfd)
    assert done.returncode == 2 and "no finished trace" in done.stderr
