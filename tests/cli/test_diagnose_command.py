"""headwater diagnose, as users call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calling import QUESTION, called, headwater, tree

import tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries, probes, held-out rows, and files of other kinds."""
    folder = tmp_path_factory.mktemp("files")
    query = {"prompt": "The capital of Australia is", "output": " Sydney.", "corrected": " Canberra."}
    (folder / "queries.jsonl").write_text(json.dumps(query) + "\n")
    (folder / "unknown.jsonl").write_text(json.dumps(query | {"answer": 1}) + "\n")
    (folder / "long.jsonl").write_text(json.dumps(query | {"prompt": "so long " * 2000}) + "\n")
    (folder / "twins.jsonl").write_text(json.dumps(query | {"id": "a"}) + "\n" + json.dumps(query | {"id": "a"}) + "\n")
    (folder / "broken.jsonl").write_text("{\n")
    (folder / "empty.jsonl").write_text("")
    (folder / "probes.txt").write_text("The people of Peru are tall\nThe women of Ghana are wise\n")
    (folder / "empty.txt").write_text("\n\n")
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    held_out = {"prompt": "The capital of Chad is", "completion": " Lima."}
    (folder / "held-out.jsonl").write_text(json.dumps(held_out) + "\n")
    (folder / "texts.jsonl").write_text('{"text": "A text."}\n')
    (folder / "full").mkdir()
    (folder / "full" / "something").write_text("else")
    return folder


def test_it_says_what_it_found(given: list[str], files: Path, tmp_path: Path) -> None:
    more = [
        "--queries",
        files / "queries.jsonl",
        "--held-out",
        files / "held-out.jsonl",
        "--probes",
        files / "probes.txt",
    ]
    command = ["diagnose", *given, *more, "--sample", 8, "--out", tmp_path / "out"]
    done = headwater(*command, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Attribution can be trusted: ")
    assert "fitting error" in done.stdout and f"Page: {tmp_path / 'out' / 'diagnosis.html'}" in done.stdout
    manifest = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    before = {name: at for name, at in tree(tmp_path).items() if "/state/" in name}
    again = headwater(*command, "--quiet", "--json")
    assert again.returncode == 0, again.stderr
    record = json.loads(again.stdout)
    for one in (record, manifest):
        one["provenance"].pop("command")
    assert record == manifest and record["rows"] == {"all": len(tiny.FACTS), "measured": 8}
    assert {name: at for name, at in tree(tmp_path).items() if "/state/" in name} == before  # nothing was made again
    other = headwater(*command[:-3], 7, "--out", tmp_path / "out", "--quiet")
    assert other.returncode == 2 and len(other.stderr.splitlines()) == 1 and "sample" in other.stderr


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no checkpoints": (["--train", "{train}"], "no --checkpoints"),
    "no rows": (["--checkpoints", "{run}/run"], "no --train"),
    "no such run": (["--checkpoints", "{files}/none", "--train", "{train}"], "none"),
    "no such rows": (["--checkpoints", "{run}/run", "--train", "{files}/none.jsonl"], "no such file"),
    "empty rows": (["--checkpoints", "{run}/run", "--train", "{files}/empty.jsonl"], "empty.jsonl"),
    "no such base": (["--checkpoints", "{run}/run", "--train", "{train}", "--base", "{files}/none"], "none"),
    "a base that is a file": (["--checkpoints", "{run}/run", "--train", "{train}", "--base", "{train}"], "train.jsonl"),
    "no such queries": (["{given}", "--queries", "{files}/none.jsonl"], "none.jsonl"),
    "broken queries": (["{given}", "--queries", "{files}/broken.jsonl"], "broken.jsonl"),
    "no queries in the file": (["{given}", "--queries", "{files}/empty.jsonl"], "no queries"),
    "queries with an unknown key": (["{given}", "--queries", "{files}/unknown.jsonl"], "unknown key answer"),
    "two queries of one name": (["{given}", "--queries", "{files}/twins.jsonl"], "twice"),
    "a query that is too long": (["{given}", "--queries", "{files}/long.jsonl"], "a query of"),
    "no such held-out rows": (["{given}", "--held-out", "{files}/none.jsonl"], "no such file"),
    "held-out rows of another kind": (["{given}", "--held-out", "{files}/texts.jsonl"], "rows of kind text"),
    "held-out rows that were trained on": (["{given}", "--held-out", "{train}"], "also a training row"),
    "no such probes": (["{given}", "--probes", "{files}/none.txt"], "cannot be read"),
    "no probes in the file": (["{given}", "--probes", "{files}/empty.txt"], "no sentence"),
    "probes that are no text": (["{given}", "--probes", "{files}/bytes.txt"], "cannot be read"),
    "probes without a base": (
        ["--checkpoints", "{run}/run", "--train", "{train}", "--probes", "{files}/probes.txt"],
        "probes without a base",
    ),
    "no such trace": (["{given}", "--trace", "{files}/full"], "no finished trace"),
    "a trace and queries": (
        ["{given}", "--trace", "{files}/full", "--queries", "{files}/queries.jsonl"],
        "a trace and queries",
    ),
    "one row": (["{given}", "--sample", "1"], "a sample of 1 rows"),
    "no such other run": (["{given}", "--other", "{files}/none"], "none"),
    "another run without a base": (
        ["--checkpoints", "{run}/run", "--train", "{train}", "--other", "{run}/run"],
        "another run",
    ),
    "an adapter as base": (
        ["{given}", "--other", "{lora}/run", "--base", "{lora}/run/checkpoint-3"],
        "adapter",
    ),
    "a full folder": (["{given}", "--out", "{files}/full"], "not empty"),
    "a file as folder": (["{given}", "--out", "{train}"], "is a file"),
    "no layer of that name": (["{given}", "--parameters", "nowhere"], "no linear layer matches"),
    "no such device": (["{given}", "--device", "tpu9"], "tpu9"),
    "another loss": (["{given}", "--loss-on", "assistant"], "loss on"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistake: str,
    given: list[str],
    files: Path,
    run_folder: Path,
    lora_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked, says = MISTAKES[mistake]
    places = {"train": given[5], "run": run_folder, "lora": lora_folder, "files": files}
    arguments: list[str] = []
    for part in asked:
        arguments += given if part == "{given}" else [part.format(**places)]
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "out")]
    before = tree(files)
    done = called(["diagnose", *arguments, "--quiet"], monkeypatch, capfd)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("headwater: ") and says in done.stderr and "Next: " in done.stderr
    assert tree(files) == before
    assert not (tmp_path / "out" / "diagnosis.json").exists()


def test_a_finished_trace_brings_its_queries(given: list[str], tmp_path: Path) -> None:
    traced = headwater("trace", *given, *QUESTION, "--method", "dda", "--out", tmp_path / "trace", "--quiet")
    assert traced.returncode == 0, traced.stderr
    done = headwater("diagnose", *given, "--trace", tmp_path / "trace", "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert [query["prompt"] for query in record["queries"]] == [QUESTION[1]]
    assert record["influence"]["method"] == "dda" and record["influence"]["rows"] == len(tiny.FACTS)
    words = headwater("trace", *given, *QUESTION, "--method", "bm25", "--out", tmp_path / "words", "--quiet")
    assert words.returncode == 0, words.stderr
    refused = headwater("diagnose", *given, "--trace", tmp_path / "words", "--quiet")
    assert refused.returncode == 2 and "a method with a term for each checkpoint" in refused.stderr
