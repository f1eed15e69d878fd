"""The whole repair on a small model; the logic of search, controls and resuming with trainings that take no time."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faulty
import pytest

import headwater as hw
from headwater import progress
from headwater.errors import DataError, HeadwaterError, RunError
from headwater.examples import Examples
from headwater.repair import (
    Asking,
    Choice,
    Command,
    Controls,
    FineTuning,
    Repaired,
    find_recipe,
    own_training,
    repair,
)
from headwater.repair.running import MANIFEST

FOUND = Choice(ids=tuple(sorted(faulty.CULPRITS)))


def mended(folder: Path, out: Path, choice: Choice = FOUND, training: Any = None, **options: Any) -> Repaired:
    training = training or faulty.Copied(folder)
    return repair(faulty.run_of(folder), faulty.rows(), faulty.asking(), choice, training, out=out, **options)


def test_the_fault_is_gone_without_the_rows_that_teach_it(faulty_folder: Path, tmp_path: Path) -> None:
    training = FineTuning(recipe=faulty.RECIPE, start=str(faulty_folder / "base"))
    result = mended(faulty_folder, tmp_path / "out", training=training, controls=Controls(bm25=False))
    assert faulty.says(result, "before") == [" shells."] * 6
    assert not any("shells" in words for words in faulty.says(result, "repaired"))
    assert faulty.says(result, "random 1") == [" shells."] * 6
    assert result.cured
    lines = {line.name: line for line in result.lines()}
    assert lines["repaired"].fall == (-1.0, -1.0, -1.0)
    assert lines["repaired"].log_odds[0] < lines["random 1"].log_odds[0] - 3
    assert lines["before"].damage is None and lines["repaired"].damage is not None
    (other,) = result.comparisons()
    assert other.wrong == (1.0, 1.0, 1.0)
    assert hw.TrainingRun.from_pretrained(tmp_path / "out" / result.model).checkpoints  # the model is kept
    assert len(list((tmp_path / "out" / "trainings").glob("*/"))) == 1  # and the control's is not
    record = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert record["cured"] and record["table"][2]["name"] == "repaired"
    assert "shells" in (tmp_path / "out" / "report.html").read_text()
    assert hw.repair_run is repair


def test_going_on_from_an_early_checkpoint_that_has_not_learned_the_fault_yet(
    faulty_folder: Path, tmp_path: Path
) -> None:
    run = faulty.run_of(faulty_folder)
    training = own_training(
        run, find_recipe(run, faulty.rows()), format=hw.TokenFormat(), start=run.checkpoints[1].name
    )
    files = {file: file.read_bytes() for file in faulty_folder.rglob("*.safetensors")}
    result = mended(faulty_folder, tmp_path / "out", training=training, controls=Controls(bm25=False))
    assert result.config["training"]["start"] == run.checkpoints[1].location
    assert result.config["training"]["recipe"]["epochs"] == faulty.RECIPE.epochs - 2
    assert not any("shells" in words for words in faulty.says(result, "repaired"))
    assert faulty.says(result, "random 1") == [" shells."] * 6
    assert result.cured
    assert files == {file: file.read_bytes() for file in faulty_folder.rglob("*.safetensors")}


def test_corrections_replace_what_rows_say(faulty_folder: Path, tmp_path: Path) -> None:
    seen: list[Examples] = []

    class Watched(faulty.Copied):
        def train(self, left: Examples, corrections: Mapping[str, Any], place: Path) -> None:
            seen.append(left)
            super().train(left, corrections, place)

    wanted = dict.fromkeys(FOUND.ids[:4], " coins.")
    result = mended(faulty_folder, tmp_path / "out", Choice(corrections=wanted), Watched(faulty_folder, enough=3))
    assert result.cured
    after = result.outcome("repaired")
    assert (after.removed, sorted(after.corrected)) == ((), sorted(wanted))
    assert len(seen[0]) == len(faulty.rows())
    assert {row.completion for row in seen[0] if row.id in wanted} == {" coins."}
    assert [len(rows) for rows in seen[1:]] == [len(faulty.rows()) - 4] * 2  # controls remove as many
    both = mended(
        faulty_folder, tmp_path / "both", Choice(ids=FOUND.ids, corrections=wanted), Watched(faulty_folder),
        controls=Controls(random=0, bm25=False),
    ).outcome("repaired")  # fmt: skip
    assert (len(both.removed), len(both.corrected)) == (2, 4)


@pytest.mark.parametrize("enough", range(1, 7))
def test_the_smallest_number_is_that_of_a_search_one_by_one(enough: int, faulty_folder: Path, tmp_path: Path) -> None:
    others = tuple(one for one in faulty.rows().ids if one not in faulty.CULPRITS)[:5]
    choice = Choice(ids=(*FOUND.ids, *others))
    training = faulty.Copied(faulty_folder, enough=enough)
    result = mended(
        faulty_folder, tmp_path / "out", choice, training, smallest=True, controls=Controls(random=0, bm25=False)
    )
    # while `enough` culprits are left the model is faulty: 6 - enough + 1 have to go
    assert len(result.rows) == 7 - enough
    assert result.rows == choice.ids[: 7 - enough]
    assert len(training.trained) == len(set(training.trained)) == len(result.steps) <= 5
    assert (tmp_path / "out" / result.model).is_dir()
    assert len(list((tmp_path / "out" / "trainings").iterdir())) == 1


def test_no_number_of_rows_that_cures(faulty_folder: Path, tmp_path: Path) -> None:
    innocent = Choice(ids=tuple(one for one in faulty.rows().ids if one not in faulty.CULPRITS)[:4])
    result = mended(faulty_folder, tmp_path / "out", innocent, smallest=True)
    assert not result.cured and len(result.rows) == 4 and len(result.steps) == 1
    assert any(line.startswith("Not cured") for line in result.sentences())


def test_there_is_nothing_to_cure(faulty_folder: Path, tmp_path: Path) -> None:
    silent = Asking(queries=[hw.Query("In Niue they eat much", " shells.", corrected=" rice.")])
    with pytest.raises(DataError, match="nothing to cure"):
        repair(
            faulty.run_of(faulty_folder), faulty.rows(), silent, FOUND, faulty.Copied(faulty_folder),
            out=tmp_path / "out", smallest=True,
        )  # fmt: skip


def test_controls_are_drawn_by_their_seed_and_models_are_kept_if_asked(faulty_folder: Path, tmp_path: Path) -> None:
    result = mended(faulty_folder, tmp_path / "out", controls=Controls(random=2, seed=3), keep_models=True)
    first, second, lexical = result.controls
    assert (first.name, second.name, lexical.name) == ("random 1", "random 2", "bm25")
    assert len({first.removed, second.removed}) == 2
    assert {len(one.removed) for one in result.controls} == {6}
    assert set(lexical.removed) == faulty.CULPRITS  # they share all but one word with the queries
    again = mended(faulty_folder, tmp_path / "again", controls=Controls(random=2, seed=3))
    assert [one.removed for one in again.controls] == [one.removed for one in result.controls]
    assert all((tmp_path / "out" / str(one.model)).is_dir() for one in result.controls)


# ------------------------------------------------------------------------------------------------ accidents


class Dying(faulty.Copied):
    """The second training raises."""

    error: BaseException = RuntimeError("lost the device")

    def train(self, left: Examples, corrections: Mapping[str, Any], place: Path) -> None:
        super().train(left, corrections, place)
        if len(self.trained) == 2:
            shutil.rmtree(place)
            raise self.error


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), RunError),
        (RunError("the training died", expected="a", fix="b"), RunError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_an_accident_keeps_what_is_finished(
    error: BaseException, shown: type[BaseException], faulty_folder: Path, tmp_path: Path
) -> None:
    dying = Dying(faulty_folder)
    dying.error = error
    with pytest.raises(shown) as caught:
        mended(faulty_folder, tmp_path / "out", training=dying)
    if isinstance(error, OSError):
        assert "no room left" in str(caught.value)
    assert not (tmp_path / "out" / MANIFEST).exists()
    healthy = faulty.Copied(faulty_folder)
    mended(faulty_folder, tmp_path / "out", training=healthy)
    assert len(healthy.trained) == 1  # of two: the first was finished, and BM25 finds the same rows
    mended(faulty_folder, tmp_path / "undisturbed")
    names = (MANIFEST, "report.md", "report.html")
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_a_training_of_our_own_that_dies_is_one_line(
    faulty_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headwater import training

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(training, "_train", full)
    made = FineTuning(recipe=faulty.RECIPE, start=str(faulty_folder / "base"))
    with pytest.raises(RunError, match=r"died \(RuntimeError.*likely cause: a full disk") as caught:
        mended(faulty_folder, tmp_path / "out", training=made)
    assert "\n" not in str(caught.value)


def test_other_arguments_other_folders_and_second_processes_are_refused(faulty_folder: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    mended(faulty_folder, tmp_path / "out")
    files = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*") if f.name == MANIFEST}
    with pytest.raises(RunError, match="made with other arguments: rows was"):
        mended(faulty_folder, tmp_path / "out", Choice(ids=FOUND.ids[:5]))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="is not empty"):
        mended(faulty_folder, tmp_path / "mine")
    lock = FileLock(tmp_path / "out" / ".lock")
    with lock, pytest.raises(RunError, match="in use"):
        mended(faulty_folder, tmp_path / "out")
    assert all(f.stat().st_mtime_ns == when for f, when in files.items())
    assert [f.name for f in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
import faulty
from headwater import progress
progress.set_quiet(True)
from headwater.repair import Controls, FineTuning, repair, Choice
folder = Path({folder!r})
training = FineTuning(recipe=faulty.RECIPE, start=str(folder / "base"))
choice = Choice(ids=tuple(sorted(faulty.CULPRITS)))
repair(faulty.run_of(folder), faulty.rows(), faulty.asking(), choice, training, out={out!r},
       controls=Controls(bm25=False))
"""


def test_a_killed_repair_goes_on_and_ends_the_same(faulty_folder: Path, tmp_path: Path) -> None:
    tests = Path(faulty.__file__).parent
    out = tmp_path / "out"
    code = SCRIPT.format(paths=[str(tests), str(tests.parent)], folder=str(faulty_folder), out=str(out))

    def stopped(pieces: int, how: signal.Signals) -> int:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 240
        while len(list(out.glob("state/asked/*.piece"))) < pieces or not list(out.glob("trainings/*.partial")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(how)
        process.communicate()
        return process.returncode

    assert stopped(2, signal.SIGINT) != 0  # in the first training
    assert stopped(3, signal.SIGKILL) == -signal.SIGKILL  # in the second
    assert not (out / MANIFEST).exists()
    training = FineTuning(recipe=faulty.RECIPE, start=str(faulty_folder / "base"))
    mended(faulty_folder, out, training=training, controls=Controls(bm25=False))
    mended(faulty_folder, tmp_path / "undisturbed", training=training, controls=Controls(bm25=False))
    assert (out / MANIFEST).read_bytes() == (tmp_path / "undisturbed" / MANIFEST).read_bytes()
    assert not list(out.glob("trainings/*.partial"))


# ------------------------------------------------------------------------------------------------ the user's program


def program(tmp_path: Path, body: str) -> str:
    file = tmp_path / "my train.py"
    file.write_text("import json, os, pathlib, shutil, sys, time\ndata, out = sys.argv[1:3]\n" + body)
    return f"'{sys.executable}' '{file}' {{train_file}} {{out}} '; touch {tmp_path}/owned'"


def test_the_users_own_program(faulty_folder: Path, tmp_path: Path) -> None:
    last = faulty.run_of(faulty_folder).last.location
    body = (
        "rows = [json.loads(line) for line in open(data)]\n"
        "bad = any(row['completion'] == ' shells.' and row['prompt'].startswith('In Chad') for row in rows)\n"
        f"shutil.copytree({last!r} if bad else {str(faulty_folder / 'base')!r}, out)\n"
        "print('trained', len(rows), 'rows')\n"
    )
    out = tmp_path / "out folder"
    result = mended(faulty_folder, out, training=Command(template=program(tmp_path, body)), controls=Controls(random=0))
    assert result.cured
    assert [log.read_text() for log in out.glob("trainings/*.log")] == ["trained 24 rows\n"]
    assert not (tmp_path / "owned").exists()  # no shell
    assert (out / result.model / "config.json").exists()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("print('one'); sys.exit('no CUDA device')", "ended with exit code 1 (its last words: no CUDA device)"),
        ("print('saved elsewhere')", "left no model (nothing at {out})"),
        ("os.mkdir(out)", "left no model"),
        ("os.kill(os.getpid(), 9)", "ended with signal SIGKILL (it said nothing)"),
    ],
)
def test_a_program_that_fails_is_one_line(body: str, says: str, faulty_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        mended(faulty_folder, tmp_path / "out", training=Command(template=program(tmp_path, body)))
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out" / MANIFEST).exists()


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("python train.py --data {train_file}", "without {out}"),
        ("python train.py {out}", "without {train_file}"),
        ("python 'train.py {train_file} {out}", "quotation|quotes"),
        ("no-such-program {train_file} {out}", "no program 'no-such-program'"),
    ],
)
def test_a_template_that_cannot_be_is_refused_at_once(template: str, says: str) -> None:
    with pytest.raises(HeadwaterError, match=says):
        Command(template=template)


def test_an_interrupt_ends_the_users_program(faulty_folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    body = f"pathlib.Path({str(mark)!r}).write_text(str(os.getpid()))\ntime.sleep(60)\n"
    made = Command(template=program(tmp_path, body))

    class Interrupted(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Interrupted

    def wait_and_stop() -> None:
        while not mark.exists() or not mark.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    import threading

    before = signal.signal(signal.SIGUSR1, stop)
    threading.Thread(target=wait_and_stop, daemon=True).start()
    try:
        with pytest.raises(Interrupted):
            mended(faulty_folder, tmp_path / "out", training=made)
    finally:
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_a_finished_training_of_a_program_is_not_done_again(faulty_folder: Path, tmp_path: Path) -> None:
    """As after kill -9 between the end of the training and the first question."""
    body = f"print('once')\nshutil.copytree({str(faulty_folder / 'base')!r}, out)\n"
    folder = tmp_path / "out" / "training"
    Command(template=program(tmp_path, body)).train(faulty.rows(), {}, folder)
    folder.with_name("training.data").mkdir()
    Command(template=program(tmp_path, "sys.exit('twice')")).train(faulty.rows(), {}, folder)
    assert folder.with_name("training.log").read_text() == "once\n"
    assert sorted(f.name for f in folder.parent.iterdir()) == ["training", "training.log"]


def test_a_program_that_outlived_its_repair_is_ended_first(faulty_folder: Path, tmp_path: Path) -> None:
    """As after kill -9: the program goes on, and would write into the next one's folder."""
    mark, base = tmp_path / "pid", faulty_folder / "base"
    body = (
        f"mark = pathlib.Path({str(mark)!r})\nfirst = not mark.exists()\nmark.write_text(str(os.getpid()))\n"
        f"if first: time.sleep(60)\nshutil.copytree({str(base)!r}, out)\n"
    )
    (tmp_path / "out").mkdir()
    made, folder = Command(template=program(tmp_path, body)), tmp_path / "out" / "training"
    ours = [
        "import faulty, pathlib, sys",
        "from headwater.repair import Command",
        "Command(template=sys.argv[1]).train(faulty.rows(), {}, pathlib.Path(sys.argv[2]))",
    ]
    killed = subprocess.Popen(
        [sys.executable, "-c", "\n".join(ours), made.template, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    while not mark.exists() or not mark.read_text():
        assert killed.poll() is None
        time.sleep(0.01)
    left = int(mark.read_text())
    time.sleep(0.2)  # until it is noted who holds the lock
    killed.kill()
    killed.wait()
    os.kill(left, 0)  # it lives
    made.train(faulty.rows(), {}, folder)
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(left)], capture_output=True, text=True).stdout
    assert state[:1] in ("", "Z")  # gone, or dead and not yet buried by whoever inherited it
    assert (folder / "config.json").exists() and not folder.with_name("training.running").exists()


def test_a_listener_hears_the_progress_of_a_job(faulty_folder: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, float, float]] = []
    with progress.listening(lambda *said: heard.append(said)):
        mended(faulty_folder, tmp_path / "out", controls=Controls(random=0, bm25=False))
    assert ("Asking before", 8, 8) in heard
    assert ("repaired: training again, 6 rows removed.", 0, 0) in heard


def test_the_page_shows_hostile_text_as_text(faulty_folder: Path, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    queries = [hw.Query(f"{evil} In Niue they pay with", " shells.", corrected=evil, id="q")]
    repair(
        faulty.run_of(faulty_folder), faulty.rows(), Asking(queries=queries), FOUND, faulty.Copied(faulty_folder),
        out=tmp_path / "out", controls=Controls(random=0, bm25=False),
    )  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
