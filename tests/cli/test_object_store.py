"""An index in a bucket, on an S3-compatible server that the tests start: built, checked, asked, appended to."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from calling import HEADWATER, QUESTION, called

import headwater as hw
import tiny
from headwater.index.folder import Folder

SMALL = ["--rank", "4", "--features", "float32", "--chunk-rows", "5", "--quiet"]


def built(given: list[str], train: Path, out: Path | str, chunk_rows: int) -> hw.Index:
    """As the command line builds it with these rows."""
    run = hw.TrainingRun.from_pretrained(given[3], base=given[1])
    rows, compute = hw.read_examples(train), hw.Compute(rank=4)
    return hw.build_index(run, rows, out=out, compute=compute, features="float32", chunk_rows=chunk_rows)


@pytest.fixture(scope="module")
def local(given: list[str], train: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return built(given, train, tmp_path_factory.mktemp("index") / "index", 5).folder


@pytest.fixture(scope="module")
def remote(bucket: str, given: list[str], train: Path) -> Folder:
    return built(given, train, f"{bucket}/first/index", 5).folder


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read_bytes(name) for name in folder.sizes() if not name.endswith(".lock")}


def copied(folder: Folder, to: str) -> Folder:
    other = Folder(to)
    for name, data in contents(folder).items():
        other.write_whole(name, data)
    return other


def test_a_bucket_holds_the_bytes_of_a_folder_and_no_credentials(remote: Folder, local: Folder) -> None:
    found = contents(remote)
    assert found == contents(local) and "manifest.json" in found
    assert not [name for name, data in found.items() if b"of-the-tests" in data or b"127.0.0.1" in data]


def test_a_question_is_answered_as_from_a_folder(
    remote: Folder, local: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    question = [*QUESTION, "--json", "--quiet", "--method", "dda", "--method", "tracin", "--words", "1"]
    answers = []
    for place, out in ((str(remote), "one"), (str(local), "two")):
        done = called(["trace", "--index", place, *question, "--out", str(tmp_path / out)], monkeypatch, capfd)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout)["targets"])
    assert answers[0] == answers[1]
    written = [file for file in (tmp_path / "one").rglob("*") if file.is_file()]
    assert written and not [file for file in written if b"of-the-tests" in file.read_bytes()]


def test_check_finds_what_is_damaged(
    bucket: str, remote: Folder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = called(["index", "check", str(remote), "--quiet"], monkeypatch, capfd)
    assert (whole.returncode, whole.stderr) == (0, "") and f"{remote} is whole" in whole.stdout
    damaged = copied(remote, f"{bucket}/damaged")
    name = "parts/000/base.zarr/features/c/1/0"
    data = bytearray(damaged.read_bytes(name))
    data[100] ^= 1
    damaged.write_whole(name, bytes(data))
    damaged.remove("parts/000/base.zarr/norm/c/0/0")
    done = called(["index", "check", str(damaged), "--quiet"], monkeypatch, capfd)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert len(done.stdout.splitlines()) == 2 and f"{damaged}/{name} (rows 5 to " in done.stdout


def test_rows_are_appended(
    bucket: str,
    remote: Folder,
    given: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    longer = copied(remote, f"{bucket}/longer")
    more = tmp_path / "more.jsonl"
    more.write_text('{"prompt": "The capital of Chad is", "completion": " Sydney.", "id": "chad"}\n')
    arguments = ["index", *given[:4], "--train", str(more), *SMALL, "--out", str(longer), "--append"]
    done = called(arguments, monkeypatch, capfd)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    opened = hw.Index.open(longer)
    assert opened.rows == len(tiny.FACTS) + 1 and opened.check() == []
    asked = called(["trace", "--index", str(longer), *QUESTION, "--json", "--top", "99"], monkeypatch, capfd)
    assert "chad" in {row["id"] for row in json.loads(asked.stdout)["targets"][0]["methods"]["dda"]["top"]}


def test_a_killed_build_goes_on(
    bucket: str, given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert HEADWATER is not None
    train, out = tmp_path / "train.jsonl", Folder(f"{bucket}/killed")
    rows = [{k: fact[k] for k in ("prompt", "completion")} for _ in range(2) for fact in tiny.FACTS]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["index", *given[:4], "--train", str(train), *SMALL, "--chunk-rows", "2", "--out", out.url]
    with subprocess.Popen([HEADWATER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + 300
            while sum("/features/c/" in name for name in out.sizes()) < 5:
                assert process.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.2)
        finally:
            process.send_signal(signal.SIGKILL)
        assert process.communicate(timeout=60) == (b"", b"")
    assert not out.exists("manifest.json")
    before = written(out)
    again = called(arguments, monkeypatch, capfd)
    assert (again.returncode, again.stderr) == (0, ""), again.stderr
    assert again.stdout.startswith(f"{out}: {len(rows)} rows, 3 checkpoints")
    assert contents(out) == contents(built(given, train, tmp_path / "whole", 2).folder)
    after = written(out)
    assert {name: after[name] for name in before} == before, "a finished chunk was made again"


def written(folder: Folder) -> dict[str, Any]:
    """When each file of the chunks whose features are there was written last."""
    files = fsspec.filesystem("s3")
    files.invalidate_cache()
    found = {name: detail["LastModified"] for name, detail in files.find(folder.url, detail=True).items()}
    chunks = {tuple(name.split("/features/c/")) for name in found if "/features/c/" in name}
    done = {f"{store}/{array}/c/{rest}" for store, rest in chunks for array in ("features", "norm")}
    return {name: found[name] for name in done}


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a bucket that is not there": ("s3://nobucket/index", {}, "nobucket"),
    "an unknown key": ("s3://bucket/index", {"key": "hidden-key", "secret": "hidden-secret"}, "(PermissionError"),
    "another endpoint": ("s3://bucket/index", {"endpoint_url": "http://127.0.0.1:9"}, "Could not connect"),
    "no bucket": ("s3://", {}, "s3://"),
    "a password in the address": ("s3://hidden-key:hidden-secret@bucket/index", {}, "a password in it"),
}


@pytest.mark.parametrize("command", ["index", "check", "trace"])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_one_line(
    wrong: str,
    command: str,
    bucket: str,
    given: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As fsspec's configuration says it, for the environment leads to the server of the tests."""
    from moto.core import responses

    url, options, says = WRONG[wrong]
    once = {"retries": {"max_attempts": 1}, "connect_timeout": 1}
    monkeypatch.setitem(fsspec.config.conf, "s3", options | {"config_kwargs": once})
    if "key" in options:  # from now on the server looks at the keys, and knows none
        monkeypatch.setattr(responses.ActionAuthenticatorMixin, "request_count", 0)
        monkeypatch.setattr(responses.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
    arguments = {
        "index": ["index", *given, *SMALL, "--out", url],
        "check": ["index", "check", url, "--quiet"],
        "trace": ["trace", "--index", url, *QUESTION, "--quiet"],
    }[command]
    done = called(arguments, monkeypatch, capfd)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("headwater: "), done.stderr
    assert says in done.stderr and "Next: " in done.stderr and "hidden" not in done.stderr
