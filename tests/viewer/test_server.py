"""Who may ask, hostile rows, workers that die, streams that close, many rows."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from live import SYDNEY, Live, live

import headwater as hw
import tiny
from headwater.errors import UsageError
from headwater.gradients.measurement import targets_of
from headwater.report.facets import facets
from headwater.report.overlap import shared_runs
from headwater.viewer.guard import MOST_BYTES, POLICY, Guard
from headwater.viewer.serving import own_state

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(3)> &amp;",
    "\x1b[31mred\x1b[0m \x00 \u202eoverride\u2066",
    "\ud800 half",
    "=HYPERLINK(1)",
    "long " * 200_000,
]


def write_trace(folder: Path, texts: list[str], values: np.ndarray | None = None) -> Path:
    """A finished trace of two terms about rows with these completions."""
    rows = [{"prompt": f"{n} {text[:50]}", "completion": text, "kind": text[:40]} for n, text in enumerate(texts)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = hw.read_examples(folder / "rows.jsonl")
    query = hw.Query("0 word", " said", id="q")
    chance = np.random.default_rng(0)
    terms = {name: chance.normal(size=(1, len(rows))) for name in ("base", "checkpoint-1")}
    given: dict[str, Any] = {"queries": [query], "targets": targets_of([query]), "train": train}
    scores = hw.Scores.combine("dda", terms, {"base": -0.2, "checkpoint-1": 1.0}, **given)
    scores.save(folder / "trace")
    return folder / "trace"


@pytest.fixture(scope="module")
def index(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("endurance") / "facts"
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    rows = hw.Examples.from_rows(tiny.FACTS, name="facts")
    hw.build_index(run, rows, out=out, compute=hw.Compute(batch_tokens=64, rank=4))
    return out


@pytest.fixture(scope="module")
def viewer(index: Path) -> Iterator[Live]:
    with live(index) as one:
        yield one


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("hostile")
    texts = [text for text in HOSTILE if text.isprintable() or "\ud800" not in text]
    trace = write_trace(folder, texts)
    with live(trace, rows={"train": str(folder / "rows.jsonl")}) as one:
        yield one


# ---- who may ask ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]", "10.0.0.1", ""])
def test_foreign_hosts_are_refused(viewer: Live, host: str) -> None:
    for path in ("/", "/api/session", "/api/events", "/assets/app.js"):
        found = httpx.get(viewer.url + path, headers={"Host": host})
        assert found.status_code == 403 and "host" in found.json()["error"]["message"]


def test_own_names_are_not_refused(viewer: Live) -> None:
    port = viewer.url.rpartition(":")[2]
    for host in (f"localhost:{port}", "LOCALHOST", f"127.0.0.1:{port}", f"[::1]:{port}", "localhost:9999"):
        assert httpx.get(viewer.url + "/api/session", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
def test_foreign_origins_are_refused_even_with_the_token(viewer: Live, origin: str) -> None:
    assert viewer.page.get("/api/session", headers={"Origin": origin}).status_code == 403
    found = viewer.page.put("/api/marks", json={"rows": [0], "action": "drop"}, headers={"Origin": origin})
    assert found.status_code == 403 and viewer.get("/api/marks") == {}
    assert viewer.page.get("/api/session", headers={"Origin": viewer.url}).status_code == 200


@pytest.mark.parametrize("token", [None, "", "wrong", "\u00e4"])
def test_nothing_is_written_without_the_token(viewer: Live, token: str | None) -> None:
    given = {} if token is None else {"X-Headwater-Token": token.encode()}
    for method, path in (
        ("POST", "/api/generate"), ("POST", "/api/answers"), ("PUT", "/api/marks"), ("DELETE", "/api/marks"),
        ("POST", "/api/jobs/j1/cancel"), ("OPTIONS", "/api/marks"), ("POST", "/api/repair"), ("PATCH", "/"),
    ):  # fmt: skip
        found = httpx.request(method, viewer.url + path, json={"rows": [0], "action": "drop"}, headers=given)
        assert found.status_code == 403 and found.json()["reload"] is True, (method, path)
    assert viewer.get("/api/marks") == {}


def test_forms_and_large_bodies_are_refused(viewer: Live) -> None:
    form = viewer.page.post("/api/answers", content="x=1", headers={"Content-Type": "text/plain"})
    assert form.status_code == 400
    large = viewer.page.post("/api/tokens", json={"prompt": "x", "output": "y" * MOST_BYTES})
    assert large.status_code == 413
    connection = HTTPConnection(viewer.url.removeprefix("http://"))

    def parts() -> Iterator[bytes]:
        for _ in range(5):
            yield b" " * (1 << 20)

    sent = {"X-Headwater-Token": "token-of-this-start", "Content-Type": "application/json"}
    connection.request("POST", "/api/tokens", body=parts(), headers=sent, encode_chunked=True)  # no length is given
    assert connection.getresponse().status == 413
    connection.close()
    for body in (b"[1]", b"{", b"\xff", b"[" * 100_000):
        found = viewer.page.post("/api/answers", content=body, headers={"Content-Type": "application/json"})
        assert found.status_code == 400 and "JSON" in found.json()["error"]["message"]


def test_every_answer_has_the_policy(viewer: Live) -> None:
    for path in ("/", "/api/session", "/nothing", "/assets/app.js", "/api/answers/x"):
        found = viewer.page.get(path)
        assert found.headers["content-security-policy"] == POLICY
        assert (
            found.headers["x-content-type-options"] == "nosniff" and "access-control-allow-origin" not in found.headers
        )
    assert "unsafe" not in POLICY and POLICY.startswith("default-src 'none'")
    page = viewer.page.get("/").text
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|https?://|javascript:", page)


@pytest.mark.parametrize(
    "path", ["/assets/../app.py", "/assets/..%2fapp.py", "/assets/%2e%2e/%2e%2e/errors.py", "/assets//etc/passwd",
             "/assets/views/../../report/html.py", "/assets/index.html", "/assets/", "/app.py", "/docs",
             "/openapi.json"],
)  # fmt: skip
def test_only_the_pages_files_are_served(viewer: Live, path: str) -> None:
    connection = HTTPConnection(viewer.url.removeprefix("http://"))
    connection.request("GET", path)  # as it stands: httpx would tidy it up
    found = connection.getresponse()
    content = found.read()
    connection.close()
    assert found.status == 404 and b"import" not in content


def test_addresses_are_ours_only_where_other_machines_may_ask() -> None:
    async def nothing(*_: Any) -> None: ...

    at_home, open_wide = Guard(nothing, token="t"), Guard(nothing, token="t", names=("box",), addresses=True)
    assert at_home._is_ours("localhost:1") and not at_home._is_ours("10.0.0.7:1")
    assert open_wide._is_ours("10.0.0.7:1") and open_wide._is_ours("BOX") and not open_wide._is_ours("evil.example")


# ---- hostile rows --------------------------------------------------------------------------------------------------


def test_hostile_rows_are_visible_text(hostile: Live) -> None:
    found = hostile.page.get("/api/answers/trace/view", params={"limit": 50})
    assert found.headers["content-type"] == "application/json"
    content = found.text
    assert not set("\x1b\x00\u202e\u2066") & set(json.dumps(found.json(), ensure_ascii=False))
    assert len(content) < 200_000  # long rows are cut
    rows = found.json()["rows"]
    texts = {n: row["c"].replace(found.json()["separator"], "") for n, row in rows.items()}
    assert texts["0"] == HOSTILE[0] and "\u241b[31mred" in texts["2"]
    table = hostile.page.get("/api/export/rows.csv", params={"answer": "trace", "search": "hyperlink"}).text
    assert "'=HYPERLINK" in table and "\x1b" not in hostile.page.get("/api/export/rows.csv?answer=trace").text
    marked = hostile.page.put("/api/marks", json={"rows": [2], "action": "drop", "note": "\u202e<b>"}).json()
    assert marked["2"]["note"] == "\ufffd<b>"
    half = b'{"rows": [2], "action": "drop", "note": "\\ud800"}'
    refused = hostile.page.put("/api/marks", content=half, headers={"Content-Type": "application/json"})
    assert refused.status_code == 400


def test_errors_hold_no_hostile_text(hostile: Live) -> None:
    for path in ("/api/answers/\u202e%1b[31m", "/api/answers/trace/view?method=%E2%80%AE%1b", "/\u202e"):
        found = hostile.page.get(path)
        assert found.status_code in (400, 404)
        assert not set("\x1b\u202e\n") & set(found.json()["error"]["message"])


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ({"rows": [99], "action": "drop"}, "not there"), ({"rows": [], "action": "drop"}, "not there"),
        ({"rows": [True], "action": "drop"}, "not there"), ({"rows": [0], "action": "burn"}, "without action"),
        ({"rows": [0], "action": "fix"}, "without a completion"),
        ({"rows": [0, 1], "action": "fix", "completion": "x"}, "one row"),
        ({"rows": [0], "action": "drop", "completion": "x"}, "with a completion"),
        ({"rows": [0], "action": "drop", "note": 3}, "note"),
    ],
)  # fmt: skip
def test_marks_that_cannot_be(hostile: Live, mark: dict[str, Any], words: str) -> None:
    found = hostile.page.put("/api/marks", json=mark)
    assert found.status_code == 400 and words in str(found.json()["error"])


# ---- endurance -----------------------------------------------------------------------------------------------------


def test_an_answer_that_was_half_removed_is_gone(viewer: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after kill -9 while files are removed: the same question is a new one."""
    name = viewer.asked(SYDNEY | {"output": " Perth."}, methods=["bm25"])
    answers = viewer.viewer.answers
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda folder, **_: (folder / "question.json").unlink())
        assert viewer.page.delete(f"/api/answers/{name}").json() == {}
    assert name not in [one["id"] for one in viewer.get("/api/answers")]
    assert viewer.asked(SYDNEY | {"output": " Perth."}, methods=["bm25"]) == name
    assert [row for row, *_ in viewer.view(name)["answer"]["best"]]
    (answers.folder / name / "question.json.partial-1").touch()
    (answers.opened.state / "marks.json.partial-1").touch()
    answers.tidy()
    assert not [*answers.opened.state.rglob("*.partial-*"), *answers.folder.glob("*.removed")]
    assert viewer.view(name)["total"]


def test_a_question_of_before_spans_chose_themselves_is_about_whole_outputs(viewer: Live) -> None:
    name = viewer.asked(SYDNEY | {"output": " Perth now.", "corrected": " Canberra now."}, methods=["bm25"])
    answers = viewer.viewer.answers
    assert [query.span for query in answers.queries(name)] == ["auto"]
    file = answers.folder / name / "question.json"
    record = json.loads(file.read_text())
    for query in record["queries"]:
        del query["span"]
    file.write_text(json.dumps(record))
    assert [query.span for query in answers.queries(name)] == ["all"]


def test_one_server_for_each_state(viewer: Live, tmp_path: Path) -> None:
    opened = viewer.viewer.opened
    with own_state(opened), pytest.raises(UsageError, match="in use by another headwater serve"), own_state(opened):
        pass
    with own_state(opened):
        pass


def slow(viewer: Live, number: int) -> Any:
    """A job that takes a while: many queries."""
    queries = [SYDNEY | {"output": f" Sydney {number} {n}."} for n in range(60)]
    return viewer.post("/api/answers", queries=queries)


def running(viewer: Live, job: dict[str, Any]) -> dict[str, Any]:
    """The job once the worker works on it."""
    for _ in range(600):
        found: dict[str, Any] = viewer.get(f"/api/jobs/{job['id']}")
        if (found["state"] == "running" and found["total"]) or found["state"] not in ("queued", "running"):
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def test_a_killed_worker_is_noticed_and_replaced(viewer: Live) -> None:
    asked = slow(viewer, 1)
    waiting = viewer.post("/api/tokens", prompt="The capital of Peru is", output=" Lima.")["job"]
    assert running(viewer, asked["job"])["state"] == "running"
    first = viewer.viewer.jobs.pid
    os.kill(first, signal.SIGKILL)  # type: ignore[arg-type]
    failed = viewer.finished(asked["job"])
    assert failed["state"] == "failed"
    message = failed["error"]["message"]
    assert "SIGKILL" in message and "not enough memory" in message and "\n" not in message
    assert viewer.finished(waiting)["state"] == "done"  # by a new worker
    assert viewer.viewer.jobs.pid != first
    again = slow(viewer, 1)
    assert again["answer"] == asked["answer"]
    assert viewer.finished(again["job"])["state"] == "done"
    os.kill(viewer.viewer.jobs.pid, signal.SIGKILL)  # type: ignore[arg-type]
    for _ in range(100):
        worker = viewer.get("/api/session")["worker"]
        if worker["state"] == "stopped":
            break
        time.sleep(0.05)
    assert worker["state"] == "stopped" and "SIGKILL" in worker["message"]
    assert viewer.finished(viewer.post("/api/tokens", prompt="p", output=" q")["job"])["state"] == "done"
    assert viewer.get("/api/session")["worker"] == {"state": "idle", "message": None}


def test_closed_tabs_stop_nothing_and_two_tabs_see_the_same(viewer: Live) -> None:
    with viewer.events() as mine, viewer.events() as theirs:
        next(mine), next(theirs)
        asked = slow(viewer, 2)
        assert asked["job"]["id"] == slow(viewer, 2)["job"]["id"]  # the second tab joins
        assert any(event == "job" and data["id"] == asked["job"]["id"] for event, data in theirs)
    with viewer.events() as later:
        event, state = next(later)
        assert event == "state" and asked["job"]["id"] in {job["id"] for job in state["jobs"]}
    assert viewer.finished(asked["job"])["state"] == "done"
    assert viewer.view(asked["answer"])["total"] == len(tiny.FACTS)
    for _ in range(100):
        if not viewer.viewer.events._streams:
            break
        time.sleep(0.05)
        viewer.viewer.events.publish("worker", {})  # a closed stream is noticed when something is said
    assert len(viewer.viewer.events._streams) == 0


def test_a_job_can_be_cancelled(viewer: Live) -> None:
    asked, waiting = slow(viewer, 3), slow(viewer, 4)
    assert viewer.post(f"/api/jobs/{waiting['job']['id']}/cancel")["state"] == "cancelled"
    running(viewer, asked["job"])
    pid = viewer.viewer.jobs.pid
    viewer.post(f"/api/jobs/{asked['job']['id']}/cancel")
    assert viewer.finished(asked["job"])["state"] == "cancelled"
    assert viewer.viewer.jobs.pid == pid  # its models are still loaded
    unfinished = viewer.page.get(f"/api/answers/{asked['answer']}")
    assert unfinished.status_code == 409 and "not finished" in unfinished.json()["error"]["message"]
    again = slow(viewer, 3)
    assert again["answer"] == asked["answer"] and viewer.finished(again["job"])["state"] == "done"


def test_a_hundred_thousand_rows_are_ranked_anew_at_once(tmp_path: Path) -> None:
    count = 100_000
    trace = write_trace(tmp_path, [f" answer {n} of many" for n in range(count)])
    with live(trace, rows={"train": str(tmp_path / "rows.jsonl")}) as one:
        started = time.perf_counter()
        first = one.page.get("/api/answers/trace/view")
        cards = time.perf_counter() - started
        assert first.json()["total"] == count and len(first.json()["answer"]["best"]) == 25
        assert len(first.content) < 60_000
        taken = []
        for n in range(8):
            started = time.perf_counter()
            found = one.view("trace", weights=f"{-n / 10},1")
            taken.append(time.perf_counter() - started)
        values = one.viewer.answers.scores("trace")[0].terms
        assert found["answer"]["best"][0][0] == int(np.argmax(values["checkpoint-1"][0] - 0.7 * values["base"][0]))
        assert cards < 20 and min(taken) < 1  # generous: benchmarks/viewer_speed.py measures
        for n in range(60):
            one.view("trace", weights=f"{n / 7},1")
        assert len(one.viewer.views._rankings) <= 24


# ---- parts ---------------------------------------------------------------------------------------------------------


def test_shared_runs_are_the_longest_from_each_place() -> None:
    query = ["the", "capital", "of", "france", "is", "paris", "said", "the", "capital"]
    assert shared_runs(["we", "say", "the", "capital", "of", "france", "is", "big"], [query]) == [(2, 7)]
    assert shared_runs(["the", "capital", "of", "peru"], [query]) == [(0, 3)]
    assert shared_runs(["said", "the", "capital", "of", "france"], [query]) == [(0, 3)]  # no longer run begins there
    assert shared_runs(["capital", "the", "of"], [query]) == [] == shared_runs([], [query])


def test_facets_are_columns_of_few_values() -> None:
    rows = [
        {"text": f"row {n}", "id": f"i{n}", "source": "web" if n % 3 else "book", "number": n, "same": 1,
         **({"rare": True} if n == 5 else {})}
        for n in range(80)
    ]  # fmt: skip
    found = {one.name: one for one in facets(hw.Examples.from_rows(rows))}
    assert set(found) == {"rare", "source"}
    assert found["source"].values == ("web", "book") and found["source"].counts == (53, 27)
    assert found["rare"].of(5) == "True" and found["rare"].of(6) == "(none)"
