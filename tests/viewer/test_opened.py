"""What is opened, and the rows that are found for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from live import live

import headwater as hw
import tiny
from headwater.errors import DataError, UsageError
from headwater.repair.rows import write_rows
from headwater.scores import Scores
from headwater.viewer.opened import Opened, Place

FACTS = hw.Examples.from_rows(tiny.FACTS, name="facts")
QUERY = hw.Query("In Mali they pay with", " shells.", corrected=" coins.")


def test_the_folder_of_a_demo_opens_as_it_is(run_folder: Path, tmp_path: Path) -> None:
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    write_rows(FACTS, {}, tmp_path)
    hw.trace(run, FACTS, [hw.Query("The capital of Peru is", " Lima.")], method=hw.BM25(), out=tmp_path / "trace")
    for place in (tmp_path, tmp_path / "trace"):
        opened = Opened.open(Place(folder=str(place)))
        assert (opened.kind, opened.name) == ("trace", f"{tmp_path.name}/trace")
        assert [row.id for row in opened.train] == [row.id for row in FACTS]
        assert opened.able(base=True) == {"able": True} and opened.state == tmp_path / "trace.viewer"
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(DataError, match="is not the data"):
        Opened.open(Place(folder=str(tmp_path)))
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(UsageError, match=r"as train\.jsonl"):
        Opened.open(Place(folder=str(tmp_path)))


def test_the_placebo_rows_of_a_trace_are_those_of_its_command(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [{"prompt": f"The capital of land {n} is", "completion": f" City {n % 7}."} for n in range(100)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    train = write_rows(FACTS, {}, tmp_path / "data")
    words = ["headwater", "trace", "--train", str(train), "--placebo", str(tmp_path / "held.jsonl")]
    monkeypatch.setattr("sys.argv", words)
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    rows, chance = hw.read_examples(train), hw.read_examples(tmp_path / "held.jsonl")
    compute = hw.Compute(rank=4, batch_tokens=512)
    query = hw.Query("The capital of Peru is", " Lima.")
    hw.trace(run, rows, [query], method=hw.TracIn(), compute=compute, placebo=chance, out=tmp_path / "trace")
    opened = Opened.open(Place(folder=str(tmp_path / "trace")))
    assert opened.placebo is not None and opened.placebo.fingerprint == chance.fingerprint
    (tmp_path / "held.jsonl").write_text(json.dumps(held[0]) + "\n")
    assert Opened.open(Place(folder=str(tmp_path / "trace"))).placebo is None
    shutil.rmtree(tmp_path / "trace" / "placebo")
    assert Opened.open(Place(folder=str(tmp_path / "trace"))).placebo is None


def test_q_values_from_an_index_hold_for_every_method_and_for_other_weights(habits: Path, tmp_path: Path) -> None:
    index = hw.Index.open(habits)
    (scores,) = hw.trace_index(index, [QUERY], methods=[hw.DDA()]).values()
    names = list(scores.terms)
    weights = [0.4 if name == "base" else 1.0 + n for n, name in enumerate(names)]
    asked = {"prompt": QUERY.prompt, "output": QUERY.output, "corrected": QUERY.corrected}
    with live(habits, state=str(tmp_path / "state")) as one:
        answer = one.asked(asked, methods=["dda", "repsim", "bm25"])
        (terms,) = (m["terms"] for m in one.get(f"/api/answers/{answer}")["methods"] if m["name"] == "dda")
        again = scores.reweighted(dict(zip(names, weights, strict=True)))
        given = ",".join(str(again.weights[name]) for name in terms)

        def checked(wanted: Scores, **parameters: str) -> None:
            found = one.view(answer, limit=200, fold=0, **parameters)["answer"]
            q_N = wanted.q_values(0)
            assert q_N is not None and found["q"] and found["sentences"] == wanted.sentences(0)
            best = found["best"]
            assert [entry[5] for entry in best] == pytest.approx([q_N[entry[0]] for entry in best], abs=1e-3)

        checked(scores)
        checked(again, weights=given)
        assert again.q_values(0) != pytest.approx(scores.q_values(0))
        assert one.view(answer, method="repsim")["answer"]["q"]
        assert not one.view(answer, method="bm25")["answer"]["q"]
