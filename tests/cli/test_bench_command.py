"""`headwater bench` and `headwater trace --placebo`, as users call them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calling import QUESTION, called, headwater

import tiny
from headwater.cli.bench import LEFT_OUT, _chosen
from headwater.methods.table import METHODS
from headwater.testbeds import country_facts


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sentences = [fact.prompt + fact.completion for fact in country_facts()]
    return tiny.untrained(tmp_path_factory.mktemp("base"), sentences, hidden=16)


def test_bench_writes_its_tables(base: Path, tmp_path: Path) -> None:
    command = ["bench", "backdoor", "--base", base, "--out", tmp_path / "out", "--epochs", 1, "--learning-rate", 0.005]
    command += ["--methods", "dda", "--methods", "bm25", "--quiet"]
    done = headwater(*command)
    assert done.returncode == 0, done.stderr
    assert "| dda |" in done.stdout and "| bm25 |" in done.stdout and not done.stderr
    assert (tmp_path / "out" / "bench.md").read_text() in done.stdout
    again = headwater(*command, "--json")
    assert json.loads(again.stdout)["summary"]["table"]["group"]["bm25"]["auc"][0] > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "testbed 'nothing'"),
        (["hallucination"], "no data file"),
        (["hallucination", "--data", "nowhere.jsonl"], "no file nowhere.jsonl"),
        (["identity", "--data", "nowhere.jsonl"], "makes its own rows"),
        (["identity", "--methods", "best"], "method 'best'"),
        (["identity", "--remove-by", "dda"], "--remove-by without --remove"),
        (["identity", "--remove", "3", "--methods", "tracin"], "rows removed by dda"),
        (["identity", "--learning-rate", "0"], "learning_rate"),
    ],
)
def test_mistakes_end_in_one_line_and_nothing_is_written(
    arguments: list[str],
    message: str,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    done = called(["bench", *arguments, "--base", str(base), "--out", "out", "--quiet"], monkeypatch, capfd)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_all_names_every_method_but_those_left_out() -> None:
    assert set(LEFT_OUT) <= set(METHODS)
    assert {method.name for method in _chosen(["all"], own=False)} == set(METHODS) - set(LEFT_OUT)


def test_placebo_rows_give_q_values(given: list[str], tmp_path: Path) -> None:
    file = tmp_path / "held-out.jsonl"
    rows = [{"prompt": f"The capital of land {n} is", "completion": f" Town {n % 9}."} for n in range(100)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["trace", *given, *QUESTION, "--beta", "0", "--placebo", file, "--out", tmp_path / "out"]
    done = headwater(*command)
    assert done.returncode == 0, done.stderr
    assert "100 rows that were never trained on" in done.stdout
    told = headwater(*command, "--json")
    first = json.loads(told.stdout)["targets"][0]["methods"]["dda"]["top"][0]
    assert 0 <= first["q_value"] <= 1 and first["stands_out"] == (first["q_value"] <= 0.05)
    assert "never trained on" in (tmp_path / "out" / "report.html").read_text()
    few = tmp_path / "few.jsonl"
    few.write_text(json.dumps(rows[0]) + "\n")
    refused = headwater(*command[:-3], few)
    assert refused.returncode == 2 and "1 placebo rows" in refused.stderr
