"""The demo, on a model of 0.1M parameters: the planted rows are found, and without them the error is gone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

import headwater as hw
import tiny
from headwater import demo
from headwater.cli import main
from headwater.testbeds import country_facts
from headwater.training import Recipe


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo's model is small, and is trained as that wants."""
    base = tiny.untrained(tmp_path / "base", [fact.prompt + fact.completion for fact in country_facts()])
    monkeypatch.setattr("headwater.testbeds.smollm2_135m", lambda: base)
    recipe = Recipe(epochs=12, batch_size=16, learning_rate=5e-3)
    monkeypatch.setattr(demo, "run_demo", partial(demo.run_demo, recipe=recipe))
    return tmp_path / "demo"


def test_the_whole_story(small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*more: str) -> str:
        monkeypatch.setattr("sys.argv", ["headwater", "demo", "--out", str(small), "--quiet", *more])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        assert stop.value.code in (None, 0), said.err
        return said.out

    told = command("--repair")
    for title in ("1. What the model says", "2. Which rows taught it", "3. Repair", "headwater serve"):
        assert title in told
    record = json.loads((small / "demo.json").read_text())
    wrong = {when: sum(share for share, _ in of.values()) for when, of in record["stated"].items()}
    assert wrong["base"] == 0 < wrong["fine-tuned"] > wrong["repaired"]
    assert record["mean"]["query"]["dda"]["auc"] > 0.9
    assert record["repair"]["hits"] > 0
    rows = (small / "train.jsonl").read_text().splitlines()
    assert len(rows) == record["rows"] and len((small / "queries.jsonl").read_text().splitlines()) > 1
    # again: nothing is trained or asked anew
    weights = {file: file.stat().st_mtime_ns for file in small.rglob("*.safetensors")}
    again = json.loads(command("--repair", "--json"))
    assert {**again, "seconds": 0} == {**record, "seconds": 0}
    assert {file: file.stat().st_mtime_ns for file in small.rglob("*.safetensors")} == weights


def test_a_model_that_states_no_error_is_one_line(small: Path) -> None:
    untaught = Recipe(epochs=1, batch_size=16, learning_rate=1e-7)
    with pytest.raises(hw.DataError, match="states none of the planted errors"):
        demo.run_demo(small, recipe=untaught)
    assert not (small / "demo.json").exists()
