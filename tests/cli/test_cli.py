"""The command line as users call it: the console script in a process of its own."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from calling import HEADWATER, QUESTION, called, headwater, tree
from safetensors.torch import load_file, save_file

import headwater as hw
import tiny
from headwater.methods.table import METHODS


@pytest.fixture(scope="module")
def traced(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """A finished trace: its folder, its command, what it printed."""
    out = tmp_path_factory.mktemp("traced") / "out"
    command = ["trace", *given, *QUESTION, "--method", "dda", "--method", "bm25", "--out", str(out), "--top", "3"]
    done = headwater(*command)
    assert done.returncode == 0, done.stderr
    return out, command, done.stdout


# Quick


def test_help_is_quick_and_names_the_commands() -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = headwater("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0
        for command in ("trace", "methods", "demo"):
            assert command in done.stdout
    assert statistics.median(seconds) < 0.5


def test_nothing_heavy_is_imported_for_the_command_line() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'scipy', 'pyarrow', 'bm25s'}"
    code = f"import headwater, headwater.cli, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version() -> None:
    assert headwater("--version").stdout.strip() == f"headwater {hw.__version__}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trace", "--no-such-option"], "--no-such-option"),
        (["trace", "--checkpoints", "a", "--train", "b", "--top", "0"], "--top"),
        (["trace", "--checkpoints", "a", "--train", "b", "--dtype", "float16"], "float16"),
        (["no-such-command"], "no-such-command"),
    ],
)
def test_a_wrong_call_is_one_line(arguments: list[str], says: str) -> None:
    done = headwater(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.startswith("headwater: ") and len(done.stderr.splitlines()) == 1


# Methods


def test_methods_lists_all_of_the_table() -> None:
    done = headwater("methods")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [name for name in METHODS if name not in lines] == []
    assert "arXiv 2410.01285" in done.stdout


def test_methods_as_json() -> None:
    listed = json.loads(headwater("methods", "--json").stdout)
    assert [entry["name"] for entry in listed] == list(METHODS)
    for entry in listed:
        info = METHODS[entry["name"]]
        assert entry == {key: getattr(info, key) for key in entry}
        assert {"computes", "cost", "status", "source", "needs_base"} <= set(entry)


# A trace


def test_trace_prints_the_answer_and_writes_the_folder(traced: tuple[Path, list[str], str]) -> None:
    out, _, printed = traced
    for file in ("config.json", "scores.parquet", "trace.json", "report.html"):
        assert (out / file).stat().st_size > 0, file
    assert "base model" in printed
    assert "Report:" in printed
    manifest = json.loads((out / "trace.json").read_text())
    assert [m["name"] for m in manifest["methods"]] == ["dda", "bm25"]
    best = manifest["answers"]["dda"]["q1"]["top"][0]
    assert best["id"] in printed


def test_the_same_command_again_says_the_same_and_computes_nothing(traced: tuple[Path, list[str], str]) -> None:
    out, command, printed = traced
    before = (out / "scores.parquet").read_bytes()
    pieces = {f: f.stat().st_mtime_ns for f in out.rglob("*.piece")}
    again = headwater(*command, "--quiet")
    assert (again.returncode, again.stdout, again.stderr) == (0, printed, "")
    assert (out / "scores.parquet").read_bytes() == before
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*.piece")} == pieces


def test_json_of_queries_in_a_file_is_what_the_library_says(given: list[str], train: Path, tmp_path: Path) -> None:
    queries = [
        {
            "prompt": "The capital of Australia is",
            "output": " Sydney",
            "corrected": " Canberra",
            "group": "g",
            "id": "a",
        },
        {"prompt": "The capital of Peru is", "output": " Cairo", "corrected": " Lima", "group": "g", "id": "b"},
    ]
    file = tmp_path / "queries.jsonl"
    file.write_text("".join(json.dumps(q) + "\n" for q in queries))
    done = headwater("trace", *given, "--queries", file, "--method", "tracin", "--method", "bm25", "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    run = hw.TrainingRun.from_pretrained(given[3], base=given[1])
    methods = [hw.TracIn(), hw.BM25()]
    wanted = hw.trace_all(run, hw.read_examples(train), hw.read_queries(file), methods=methods)
    assert [(t["name"], t["kind"]) for t in record["targets"]] == [("a", "query"), ("b", "query"), ("g", "group")]
    for r, target in enumerate(record["targets"]):
        for name, scores in wanted.items():
            found = target["methods"][name]
            assert found["sentences"] == scores.sentences(r)
            assert found["weights"] == scores.weights
            assert found["top"] == json.loads(json.dumps([vars(row) for row in scores.top(20, target=r)]))
    assert {lean["checkpoint"] for lean in record["leanings"]} == {"base", "checkpoint-6"} | set(wanted["tracin"].terms)


# Mistakes


@pytest.fixture(scope="module")
def spoilt(run_folder: Path, traced: tuple[Path, list[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs and files with a mistake each."""
    place = tmp_path_factory.mktemp("spoilt")
    shutil.copytree(run_folder, place / "nan")
    file = place / "nan" / "run" / "checkpoint-6" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, file, {"format": "pt"})
    shutil.copytree(run_folder, place / "other-words")
    for old in (place / "other-words" / "base").glob("*token*"):
        old.unlink()
    tiny.tokenizer(["wholly other words"] * 9).save_pretrained(place / "other-words" / "base")
    (place / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    (place / "queries.jsonl").write_text('{"prompt": "a", "output": "b"}\n')
    (place / "a-file").write_text("not a folder")
    shutil.copytree(traced[0], place / "other-trace")
    return place


MISTAKES = {
    "missing train file": (["--train", "{spoilt}/none.jsonl"], "no such file"),
    "broken line": (["--train", "{spoilt}/bad.jsonl"], "bad.jsonl:2"),
    "wrong column": (["--prompt-column", "question"], "question"),
    "missing checkpoints": (["--checkpoints", "{spoilt}/none"], "neither a folder nor a hub id"),
    "no model in the folder": (["--checkpoints", "{spoilt}"], "holds no model"),
    "missing base": (["--base", "{spoilt}/none"], "neither a folder nor a hub id"),
    "other tokenizer": (["--base", "{spoilt}/other-words/base"], "tokenizers"),
    "NaN model": (["--checkpoints", "{spoilt}/nan/run"], "model.norm.weight of checkpoint-6 is NaN"),
    "empty output": (["--output", ""], "output is empty"),
    "output as corrected": (["--corrected", " Sydney."], "are the same"),
    "span outside": (["--span", "3:99"], "span 3..99"),
    "span of words": (["--span", "first"], "--span first"),
    "prompt and queries": (["--queries", "{spoilt}/queries.jsonl"], "both --prompt and --queries"),
    "unknown method": (["--method", "magic"], "method 'magic'"),
    "beta of letters": (["--beta", "x"], "--beta x"),
    "beta nan": (["--beta", "nan"], "beta=nan"),
    "option of no chosen method": (["--method", "bm25", "--level", "gradient"], "--level with bm25"),
    "weights of other checkpoints": (["--checkpoint-weight", "1"], "1 checkpoint weights for 2 checkpoints"),
    "method twice": (["--method", "cea", "--method", "cea"], "methods cea, cea"),
    "no such layer": (["--parameters", "no_such_layer"], "no linear layer matches"),
    "no such device": (["--device", "abacus"], "device abacus"),
    "out is a file": (["--out", "{spoilt}/a-file"], "is a file"),
    "out holds another trace": (["--out", "{spoilt}/other-trace"], "made with other arguments"),
    "out holds something else": (["--out", "{spoilt}"], "not a headwater run"),
}


def replaced(arguments: list[str], option: str, values: list[str]) -> list[str]:
    """The arguments with an option's value replaced, or added."""
    if option in arguments and option != "--method":
        at = arguments.index(option)
        arguments = arguments[:at] + arguments[at + 2 :]
    return arguments + values


OWN_PROCESS = ("missing train file", "missing base", "other tokenizer", "NaN model", "out holds another trace")
"""The other mistakes are made in this process, to save the time of many imports."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    given: list[str],
    spoilt: Path,
    tmp_path: Path,
    mistake: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    changed, says = MISTAKES[mistake]
    changed = [part.format(spoilt=spoilt) for part in changed]
    arguments = replaced(["trace", *given, *QUESTION, "--out", str(tmp_path / "out")], changed[0], changed)
    arguments.append("--quiet")
    before = tree(spoilt)
    done = headwater(*arguments) if mistake in OWN_PROCESS else called(arguments, monkeypatch, capfd)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("headwater: ")
    assert says in done.stderr
    assert "Next: " in done.stderr
    assert not (tmp_path / "out").exists()
    assert tree(spoilt) == before


def test_no_base_for_dda_is_one_line(run_folder: Path, train: Path, tmp_path: Path) -> None:
    given = ["--checkpoints", run_folder / "run", "--train", train, "--out", tmp_path / "out", "--quiet"]
    done = headwater("trace", *given, *QUESTION)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "no base model" in done.stderr
    assert not (tmp_path / "out").exists()


# Interrupted


def started(arguments: list[object], pieces: int, out: Path) -> subprocess.Popen[str]:
    """A trace that has finished so many pieces of gradient work and is still at it."""
    assert HEADWATER is not None
    process = subprocess.Popen(
        [HEADWATER, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob("state/*/gradients-*/*.piece"))) < pieces:
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_stopped_and_killed_traces_go_on_and_end_the_same(given: list[str], tmp_path: Path) -> None:
    rows = [
        {"prompt": f"The capital of {n} is", "completion": f" {f['completion']}"} for n in range(6) for f in tiny.FACTS
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = replaced(given, "--train", ["--train", str(tmp_path / "train.jsonl")])
    command: list[object] = ["trace", *given, *QUESTION, "--batch-tokens", "1", "--quiet", "--out"]
    run = hw.TrainingRun.from_pretrained(given[3], base=given[1])
    query = hw.Query(QUESTION[1], QUESTION[3], corrected=QUESTION[5])
    examples = hw.read_examples(tmp_path / "train.jsonl")
    compute = hw.Compute(batch_tokens=1)
    hw.trace(run, examples, [query], method=hw.DDA(), compute=compute, out=tmp_path / "undisturbed")
    out = tmp_path / "disturbed"

    process = started([*command, out], 1, out)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "")
    assert len(said.splitlines()) == 1, said
    assert "interrupted" in said
    kept = {f: f.stat().st_mtime_ns for f in out.glob("state/*/gradients-*/*.piece")}
    assert 1 <= len(kept) < 3 * len(rows)
    assert not (out / "trace.json").exists()

    process = started([*command, out], len(kept) + 5, out)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "trace.json").exists()

    assert headwater(*command, out).returncode == 0
    assert (out / "scores.parquet").read_bytes() == (tmp_path / "undisturbed" / "scores.parquet").read_bytes()
    assert {f: f.stat().st_mtime_ns for f in kept} == kept
