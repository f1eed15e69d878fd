"""The viewer over HTTP: whatever is sent, the answer is one that API.md knows, and what is refused changes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from any_values import changed, values
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import headwater as hw
import tiny
from headwater.training import Recipe, fine_tune
from headwater.viewer.app import Viewer, make_app
from headwater.viewer.jobs import Jobs
from headwater.viewer.opened import Opened, Place
from headwater.viewer.serving import prepare_state
from headwater.viewer.tasks import Tasks

MANY = settings(max_examples=2 * settings.default.max_examples)  # type: ignore[union-attr]
TOKEN = "the-token"
KNOWN = {200, 202, 400, 403, 404, 405, 409, 413}
QUERY = {"prompt": "The capital of Australia is", "output": " Sydney.", "corrected": " Canberra.", "id": "a"}
CHAT = [{"role": "user", "content": "The capital of Peru is"}]
NAME = "NAME"
"""In a path: the id of an answer that is there."""

WRITES: list[tuple[str, str, Any]] = [
    ("POST", "/api/generate", {"prompt": "The capital of Peru is", "max_new_tokens": 3}),
    ("POST", "/api/generate", {"prompt": CHAT}),
    ("POST", "/api/tokens", {"prompt": "The capital of Peru is", "output": " Lima."}),
    ("POST", "/api/answers", {"queries": [QUERY | {"span": [1, 4]}], "methods": ["dda", "bm25"]}),
    (
        "POST",
        "/api/answers",
        {
            "queries": [QUERY, QUERY | {"id": "b", "span": "diff"}],
            "group": "sydney",
            "methods": [{"name": "dda", "options": {"beta": 0.3, "inner": "dot"}}],
        },
    ),
    ("POST", f"/api/answers/{NAME}/methods", {"name": "tracin", "options": {"learning_rates": [0.1, 0.2]}}),
    ("POST", f"/api/answers/{NAME}/methods", {"name": "dda", "options": {"checkpoint_weights": [1.0, 2.0]}}),
    ("POST", f"/api/answers/{NAME}/words", {"target": 0, "method": "dda", "row": 3, "weights": [0.1, 0.2, 0.3]}),
    ("PUT", "/api/marks", {"rows": [1, 2], "action": "drop", "note": "wrong"}),
    ("PUT", "/api/marks", {"rows": [4], "action": "fix", "completion": " Nairobi!", "note": ""}),
    ("DELETE", "/api/marks", {"rows": [1]}),
    ("POST", "/api/repair", {"answer": NAME}),
    ("POST", "/api/jobs/j1/cancel", {}),
    ("DELETE", "/api/answers/0123456789abcdef", {}),
]
READS = [
    "/", "/assets/app.js", "/api/session", "/api/jobs/j1", "/api/answers", f"/api/answers/{NAME}",
    f"/api/answers/{NAME}/view", "/api/marks", "/api/export/drop.jsonl", "/api/export/marks.jsonl",
    f"/api/export/rows.csv?answer={NAME}", f"/api/export/rows.jsonl?answer={NAME}",
    f"/api/export/report.html?answer={NAME}&top=3", f"/api/repair?answer={NAME}", "/api/export/fix.jsonl",
]  # fmt: skip
VIEW = {
    "target": "0", "method": "dda", "weights": "0.1,0.2,0.3", "list": "worst", "offset": "1", "limit": "3",
    "search": "Peru", "facet": "source=atlas", "low": "-1", "high": "1e3", "marked": "1", "fold": "0",
    "against": "bm25", "group": "source", "top": "3", "answer": NAME,
}  # fmt: skip


class Fuzzed:
    """A viewer in this process, whose worker is only told what to do."""

    def __init__(self, viewer: Viewer, client: TestClient, answer: str) -> None:
        self.viewer, self.client, self.answer = viewer, client, answer

    def kept(self) -> Any:
        """What a refused request may not change."""
        state = self.viewer.opened.state
        files = {path: hashlib.blake2b(path.read_bytes()).digest() for path in state.rglob("*") if path.is_file()}
        return files, self.viewer.marks.rows, [job["id"] for job in self.viewer.jobs.records()]

    def send(self, method: str, path: str, **more: Any) -> Any:
        """Sends it, and checks what every answer must be."""
        jobs = self.viewer.jobs
        jobs._jobs.clear(), jobs._waiting.clear()
        jobs._running = None
        before = self.kept()
        url = path.replace(NAME, self.answer)
        found = self.client.request(method, url, **more)
        assert found.status_code in KNOWN, (found.status_code, found.text)
        assert "Traceback" not in found.text
        if found.status_code >= 400:
            assert self.kept() == before
            if method != "HEAD":
                error = strict(found.text)["error"]
                assert {"message", "got", "expected", "cause", "fix"} == set(error), error
                assert all(isinstance(error[key], str) and error[key] for key in error if key != "cause"), error
                assert "\n" not in error["message"] and "a mistake of headwater" not in found.text
        elif "json" in found.headers.get("content-type", "") and method != "HEAD":
            for text in found.text.splitlines() if "jsonl" in found.headers["content-type"] else [found.text]:
                strict(text)
        for job in jobs.records():
            json.dumps(job, allow_nan=False).encode()
        return found


def strict(text: str) -> Any:
    """JSON as a browser reads it."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    folder = tmp_path_factory.mktemp("fuzzed")
    rows = hw.Examples.from_rows([*tiny.FACTS, tiny.FACTS[0] | {"id": "again", "source": "web"}], name="facts")
    tiny.untrained(folder / "base", [row.text for row in rows], hidden=16)
    fine_tune(folder / "base", rows, folder / "run", Recipe(epochs=2, batch_size=8, learning_rate=1e-3))
    run = hw.TrainingRun.from_pretrained(folder / "run", base=folder / "base")
    hw.build_index(run, rows, out=folder / "index", compute=hw.Compute(batch_tokens=64, rank=2))
    opened = Opened.open(Place(folder=str(folder / "index")))
    prepare_state(opened)
    viewer = Viewer(opened, TOKEN)
    name, missing = viewer.answers.ask({"queries": [QUERY], "methods": ["dda", "bm25"]})
    for method in missing:
        Tasks(opened).answer(
            viewer.answers.queries(name), method.name, method.options, viewer.answers.folder_of(name, method)
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Jobs, "_start", lambda self: None)
        patch.setattr(Jobs, "_send", lambda self, message: json.dumps(message).encode())
        headers = {"X-Headwater-Token": TOKEN, "Content-Type": "application/json"}
        with TestClient(make_app(viewer), base_url="http://localhost", headers=headers) as client:
            yield Fuzzed(viewer, client, name)


def written(body: Any, ascii: bool) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b"{}"


deep = st.builds(lambda n, inner: json.loads("[" * n + inner + "]" * n), st.integers(1, 900), st.sampled_from("01"))
extreme = st.one_of(
    st.sampled_from([10**30, -1, 2**63, 1e308, float("nan"), float("inf"), "\ud800", "\u202e\x00", "", [], {}, True]),
    deep,
    st.text(max_size=5),
    values,
)


@st.composite
def mutated(draw: st.DrawFn, body: Any) -> Any:
    """The body with a few of its places replaced or taken out."""
    for _ in range(draw(st.integers(1, 2))):
        body = draw(changed(body))
        if isinstance(body, dict) and body and draw(st.booleans()):
            body = body | {draw(st.sampled_from(sorted(body))): draw(extreme)}
    return body


def test_the_requests_that_are_changed_here_are_sound(fuzzed: Fuzzed) -> None:
    for method, path, body in WRITES[:-2]:
        given = json.loads(json.dumps(body).replace(NAME, fuzzed.answer))
        assert fuzzed.send(method, path, json=given).status_code in (200, 202), (path, body)
    for path in READS:
        assert fuzzed.send("GET", path).status_code == (404 if "/jobs/" in path else 200), path
    found = fuzzed.send("GET", f"/api/answers/{NAME}/view", params=VIEW)
    assert found.status_code == 200, found.text


@MANY
@given(data=st.data(), ascii=st.booleans())
def test_any_change_of_a_body_is_taken_or_refused(data: st.DataObject, ascii: bool, fuzzed: Fuzzed) -> None:
    method, path, body = data.draw(st.sampled_from(WRITES))
    body = json.loads(json.dumps(body).replace(NAME, fuzzed.answer))
    fuzzed.send(method, path, content=written(data.draw(mutated(body)), ascii))


@MANY
@given(data=st.data())
def test_any_value_of_any_field_is_taken_or_refused(data: st.DataObject, fuzzed: Fuzzed) -> None:
    method, path, body = data.draw(st.sampled_from([one for one in WRITES if one[2]]))
    body = json.loads(json.dumps(body).replace(NAME, fuzzed.answer))
    body[data.draw(st.sampled_from(sorted(body)))] = data.draw(extreme)
    fuzzed.send(method, path, content=written(body, True))


@given(data=st.data())
def test_broken_bodies_are_refused(data: st.DataObject, fuzzed: Fuzzed) -> None:
    method, path, body = data.draw(st.sampled_from(WRITES))
    whole = json.dumps(body).encode()
    broken = st.one_of(
        st.integers(1, len(whole)).map(lambda n: whole[:-n]),
        st.binary(max_size=40),
        st.integers(1, 100_000).map(lambda n: b"[" * n),
        st.integers(4000, 9000).map(lambda n: b'{"rows": [' + b"1" * n + b"]}"),
        st.sampled_from([b'{"rows": [1e999], "action": "drop"}', b'{"prompt": "a", "output": -Infinity}', b"null"]),
    )
    fuzzed.send(method, path, content=data.draw(broken))


@MANY
@given(data=st.data())
@example(data=None)
def test_any_parameters_are_taken_or_refused(data: st.DataObject | None, fuzzed: Fuzzed) -> None:
    if data is None:
        for digits in ("0" * 5000, "0" * 12 + "9" * 20, "9" * 30, "\u0663", "\u00b2"):
            for name in ("limit", "offset", "target", "top"):
                for path in (f"/api/answers/{NAME}/view", "/api/export/report.html"):
                    fuzzed.send("GET", path, params={name: digits, "answer": fuzzed.answer})
        return
    path = data.draw(st.sampled_from([f"/api/answers/{NAME}/view", "/api/export/rows.csv", "/api/export/rows.jsonl"]))
    given = dict(VIEW) | {"answer": fuzzed.answer}
    for name in data.draw(st.lists(st.sampled_from(sorted(VIEW)), max_size=5)):
        given.pop(name, None)
    for name in data.draw(st.lists(st.sampled_from(sorted(VIEW)), max_size=3)):
        texts = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.integers().map(str))
        given[name] = data.draw(st.one_of(texts, st.floats().map(str), st.sampled_from(["1,2", "nan", "=", "a=b"])))
    fuzzed.send("GET", path, params=given)


paths = st.one_of(
    st.sampled_from([path for _, path, _ in WRITES] + READS),
    st.lists(
        st.sampled_from(["", "api", "answers", "view", "jobs", "marks", "export", "..", "%2e%2e", "%00", "assets", "{"])
        | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="?#"), max_size=5),
        max_size=5,
    ).map(lambda parts: "/" + "/".join(parts).lstrip("/")),
)
HEADERS = {
    "Host": [b"localhost", b"evil.example", b"", b"[::1", b"[", b"]:1", b"127.0.0.1:1:1", b"\xff", b"localhost:x"],
    "Origin": [b"http://localhost", b"null", b"\xff\xfe", b"http://evil.example", b""],
    "X-Headwater-Token": [TOKEN.encode(), b"", b"\xb2\xff", b"the-tokem", b"the-token "],
    "Content-Type": [b"application/json", b"text/plain", b"application/json; charset=\xff", b"", b";"],
    "Content-Length": [b"0", b"-1", b"\xb2", b"99999999999", b"9" * 5000, b"x", b"1e3"],
}


@MANY
@given(data=st.data(), path=paths)
def test_any_request_is_answered(data: st.DataObject, path: str, fuzzed: Fuzzed) -> None:
    method = data.draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "X-Y"]))
    chosen = data.draw(st.lists(st.sampled_from(sorted(HEADERS)), unique=True, max_size=3))
    headers = {name: data.draw(st.sampled_from(HEADERS[name]) | st.binary(max_size=6)) for name in chosen}
    if path == "/api/events":
        return  # it never ends
    body = data.draw(st.sampled_from([b"", b"{}", b"[", b'{"rows": [1]}']))
    fuzzed.send(method, path, content=body, headers=headers)
