"""headwater index, headwater index check and headwater trace --index, as users call them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from calling import HEADWATER, QUESTION, called, headwater, tree

import headwater as hw
import tiny


@pytest.fixture(scope="module")
def index(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index") / "index"
    done = headwater("index", *given, "--rank", 4, "--features", "float32", "--chunk-rows", 5, "--out", out, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(tiny.FACTS)} rows, 3 checkpoints" in done.stdout
    return out


@pytest.mark.parametrize(
    ("indexed", "rows"), [([], ["--inner", "layer_cosine"]), (["--second-look", str(len(tiny.FACTS))], [])]
)
def test_an_index_answers_as_streaming_does(
    index: Path, given: list[str], tmp_path: Path, indexed: list[str], rows: list[str]
) -> None:
    methods = ["--method", "dda", "--method", "tracin"]
    question = [*QUESTION, *methods, "--json", "--quiet", "--top", "5"]
    from_index = headwater("trace", "--index", index, *question, *indexed, "--out", tmp_path / "indexed", "--words", 1)
    streamed = headwater("trace", *given, *question, *rows, "--rank", 4)
    assert (from_index.returncode, from_index.stderr) == (0, "")
    found, wanted = (json.loads(done.stdout)["targets"][0]["methods"] for done in (from_index, streamed))
    for name in ("dda", "tracin"):
        assert [row["id"] for row in found[name]["top"]] == [row["id"] for row in wanted[name]["top"]]
        values, exact = ([row["score"] for row in one[name]["top"]] for one in (found, wanted))
        assert np.allclose(values, exact, rtol=1e-4)
        assert "words" in found[name]["top"][0] and "words" not in found[name]["top"][1]
    assert {"report.html", "scores.parquet", "trace.json", "words.json"} <= {
        file.name for file in (tmp_path / "indexed").iterdir()
    }


def test_only_the_ends_are_kept(index: Path, tmp_path: Path) -> None:
    done = headwater("trace", "--index", index, *QUESTION, "--limit", 2, "--out", tmp_path / "few", "--quiet")
    assert done.returncode == 0, done.stderr
    assert f"2 of {len(tiny.FACTS)} rows" in done.stdout or f"of {len(tiny.FACTS)} rows" in done.stdout
    manifest = json.loads((tmp_path / "few" / "trace.json").read_text())
    assert manifest["scored_rows"] == len(tiny.FACTS) > manifest["rows"]
    assert (tmp_path / "few" / "sample.parquet").exists() and (tmp_path / "few" / "report.html").exists()


def test_the_same_command_again_builds_nothing(index: Path, given: list[str]) -> None:
    before = tree(index)
    done = headwater("index", *given, "--rank", 4, "--features", "float32", "--chunk-rows", 5, "--out", index)
    assert done.returncode == 0, done.stderr
    assert "is finished already" in done.stderr
    assert tree(index) == before


def test_rows_are_appended(index: Path, given: list[str], tmp_path: Path) -> None:
    shutil.copytree(index, tmp_path / "index")
    more = tmp_path / "more.jsonl"
    more.write_text('{"prompt": "The capital of Chad is", "completion": " Sydney.", "id": "chad"}\n')
    arguments = [*given[:4], "--train", more, "--rank", 4, "--features", "float32", "--out", tmp_path / "index"]
    done = headwater("index", *arguments, "--append", "--quiet")
    assert done.returncode == 0, done.stderr
    opened = hw.Index.open(tmp_path / "index")
    assert opened.rows == len(tiny.FACTS) + 1
    found = headwater("trace", "--index", tmp_path / "index", *QUESTION, "--json", "--quiet", "--top", 99)
    top = json.loads(found.stdout)["targets"][0]["methods"]["dda"]["top"]
    assert "chad" in {row["id"] for row in top} and len(top) == opened.rows


def test_placebo_rows_are_added_and_give_q_values(index: Path, given: list[str], tmp_path: Path) -> None:
    shutil.copytree(index, tmp_path / "index")
    held = [{"prompt": f"The capital of land {n} is", "completion": f" City {n % 7}."} for n in range(100)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    same = [*given, "--rank", 4, "--features", "float32", "--chunk-rows", 5, "--out", tmp_path / "index", "--quiet"]
    done = headwater("index", *same, "--placebo", tmp_path / "held.jsonl")
    assert done.returncode == 0, done.stderr
    assert f"{len(tiny.FACTS)} rows" in done.stdout and "100 placebo rows" in done.stdout
    found = headwater("trace", "--index", tmp_path / "index", *QUESTION, "--json", "--quiet", "--top", 99)
    answer = json.loads(found.stdout)["targets"][0]["methods"]["dda"]
    assert "100 rows that were never trained on" in answer["sentences"][-1]
    assert all(0 <= row["q_value"] <= 1 for row in answer["top"]) and len(answer["top"]) == len(tiny.FACTS)
    whole = headwater("index", "check", tmp_path / "index", "--quiet")
    assert whole.returncode == 0 and "100 placebo rows" in whole.stdout


def test_check_finds_a_flipped_bit(index: Path, tmp_path: Path) -> None:
    whole = headwater("index", "check", index, "--quiet")
    assert (whole.returncode, whole.stderr) == (0, "") and "is whole" in whole.stdout
    shutil.copytree(index, tmp_path / "index")
    chunk = sorted((tmp_path / "index").glob("parts/000/base.zarr/features/c/1/*"))[0]
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    done = headwater("index", "check", tmp_path / "index", "--quiet", "--json")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    record = json.loads(done.stdout)
    assert len(record["problems"]) == 1 and "base" in record["problems"][0]
    norms = sorted((tmp_path / "index").glob("parts/000/base.zarr/norm/c/1/*"))[0]
    norms.write_bytes(norms.read_bytes()[:-1])
    asked = headwater("trace", "--index", tmp_path / "index", *QUESTION, "--beta", 0.5, "--quiet")
    assert asked.returncode == 2 and len(asked.stderr.splitlines()) == 1, asked.stderr
    assert "headwater: " in asked.stderr and "base.zarr" in asked.stderr


MISTAKES = {
    "no such index": (["trace", *QUESTION, "--index", "{place}/none"], "none"),
    "a folder of something else": (["trace", *QUESTION, "--index", "{place}"], "index"),
    "rows beside an index": (["trace", *QUESTION, "--index", "{index}", "--train", "{train}"], "--train with --index"),
    "another precision": (["trace", *QUESTION, "--index", "{index}", "--dtype", "float64"], "--dtype with --index"),
    "another engine": (["trace", *QUESTION, "--index", "{index}", "--engine", "auto"], "--engine with --index"),
    "a method of another kind": (["trace", *QUESTION, "--index", "{index}", "--method", "repsim"], "repsim from"),
    "the ends of words": (["trace", *QUESTION, "--index", "{index}", "--method", "bm25", "--limit", "3"], "--limit"),
    "a limit without an index": (["trace", "{given}", *QUESTION, "--limit", "3"], "--limit without --index"),
    "other models": (
        ["trace", *QUESTION, "--index", "{index}", "--checkpoints", "{run}/base", "--base", "{run}/base"],
        "2 models",
    ),
    "no folder for the index": (["index", "{given}"], "no --out"),
    "append to nothing": (["index", "{given}", "--out", "{place}/new", "--append"], "no finished index to append to"),
    "the same rows again": (
        ["index", "{given}", "--rank", "4", "--features", "float32", "--out", "{index}", "--append"],
        "are in",
    ),
    "another rank in the same folder": (["index", "{given}", "--rank", "5", "--out", "{index}"], "rank"),
    "an index in a full folder": (["index", "{given}", "--out", "{place}"], "not empty"),
    "check of nothing": (["index", "check", "{place}/none"], "none"),
    "a bucket without its library": (["index", "{given}", "--out", "nosuch://bucket/index"], "nosuch"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistake: str,
    index: Path,
    given: list[str],
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked, says = MISTAKES[mistake]
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "something").write_text("else")
    arguments: list[str] = []
    for part in asked:
        places = {"index": index, "train": given[5], "run": run_folder, "place": tmp_path / "place"}
        arguments += given if part == "{given}" else [part.format(**places)]
    before = tree(index) | tree(tmp_path)
    done = called([*arguments, "--quiet"], monkeypatch, capfd)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("headwater: ") and says in done.stderr and "Next: " in done.stderr
    assert tree(index) | tree(tmp_path) == before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_build_goes_on_to_the_same_bytes(given: list[str], tmp_path: Path, how: signal.Signals) -> None:
    assert HEADWATER is not None
    rows = [{"prompt": f"The capital of {n} is", "completion": f[
        "completion"
    ]} for n in range(20) for f in tiny.FACTS]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["index", *given[:4], "--train", str(tmp_path / "train.jsonl"), "--chunk-rows", "4", "--quiet", "--out"]
    whole = tmp_path / "whole" / "index"
    out = tmp_path / "stopped" / "index"
    assert headwater(*arguments, whole).returncode == 0
    process = subprocess.Popen([HEADWATER, *arguments, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list(out.glob("parts/*/*.zarr/features/c/*"))) < 10:
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(how)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert len(said.splitlines()) == (1 if how == signal.SIGINT else 0), said
    assert not (out / "manifest.json").exists()
    refused = headwater("trace", "--index", out, *QUESTION, "--quiet")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert headwater(*arguments, out).returncode == 0
    one, two = (
        {str(f.relative_to(place)): f.read_bytes() for f in place.rglob("*") if f.is_file() and f.name != ".lock"}
        for place in (whole, out)
    )
    assert one == two
