"""The routes: `API.md` says what each takes and gives. Nothing slow happens here; that is for `Jobs`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from headwater import __version__
from headwater.attribution.second_look import DTYPE
from headwater.errors import DataError, HeadwaterError, UsageError
from headwater.examples import Query
from headwater.methods.table import METHODS
from headwater.report.contents import SIGN, same_rows, words_record
from headwater.report.html import flattened, render_report
from headwater.report.visible import visible
from headwater.scores import row_words
from headwater.viewer import repairing
from headwater.viewer.answers import TRACE, Answers, Asked, NotYet, UnknownAnswer
from headwater.viewer.events import Events
from headwater.viewer.exports import MOST_ROWS as MOST_EXPORTED
from headwater.viewer.exports import csv_lines, json_lines, marked_lines, records
from headwater.viewer.guard import Guard
from headwater.viewer.jobs import Job, Jobs, UnknownJob
from headwater.viewer.marks import ACTIONS, Marks
from headwater.viewer.opened import Opened
from headwater.viewer.views import MOST_ROWS, Filters, Views, Wanted
from headwater.viewer.worker import error_record

MOST_TOKENS = 4096
JSON_LINES = "application/jsonl"
TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
    ".json": "application/json",
}
"""Of the page's files; others are not served."""


class Viewer:
    """One server's state: what was opened, its answers, marks, jobs and streams.

    Args:
        opened: an index or a trace. token: of this start.
    """

    def __init__(self, opened: Opened, token: str) -> None:
        self.opened, self.token = opened, token
        self.answers = Answers(opened)
        self.marks = Marks(opened.state, opened.train)
        self.views = Views(self.answers, self.marks)
        self.events = Events(self.state)
        self.jobs = Jobs(opened.place, opened.state / "worker.log", self.events.publish)

    def state(self) -> dict[str, Any]:
        """What changes while the page is open."""
        return {
            "jobs": self.jobs.records(),
            "answers": self.answers.summaries(),
            "marks": self.marks.record(),
            "worker": self.jobs.worker(),
        }

    def session(self) -> dict[str, Any]:
        """What was opened and what can be done with it."""
        return self._session | self.state() | {"can": self._can}

    @cached_property
    def _session(self) -> dict[str, Any]:
        opened = self.opened
        train = opened.train
        models = (
            [] if opened.run is None else [*opened.run.checkpoints, *([opened.run.base] if opened.run.base else [])]
        )
        prints = {one["name"]: one.get("fingerprint") for one in opened.config.get("checkpoints", [])}
        known = {key: value for key, value in opened.config.items() if key not in ("queries", "command")}
        return {
            "version": __version__,
            "opened": {
                "kind": opened.kind,
                "name": visible(opened.name),
                "place": visible(opened.place.folder),
                "state": visible(str(opened.state)),
            },
            "train": {
                "name": visible(train.name),
                "kind": train.kind,
                "rows": len(train),
                "duplicates": train.duplicates,
                "fingerprint": train.fingerprint,
            },
            "models": [
                {
                    "name": visible(one.name),
                    "place": visible(one.location),
                    "kind": one.kind,
                    "step": one.step,
                    "epoch": one.epoch,
                    "fingerprint": prints.get(one.name),
                }
                for one in models
            ],
            "methods": opened.able_methods(),
            "defaults": {"method": "dda", "max_new_tokens": 64, "page": 25},
            "facets": [
                {
                    "name": visible(facet.name),
                    "values": [[visible(v), n] for v, n in zip(facet.values, facet.counts, strict=True)],
                }
                for facet in opened.facets
            ],
            "sign": SIGN,
            "provenance": [[visible(key), visible(value)] for key, value in flattened(known)],
        }

    @cached_property
    def _can(self) -> dict[str, Any]:
        able = self.opened.able()
        base = self.opened.able(base=True)
        return {"generate": able, "ask": able, "words": able, "base": base, "repair": repairing.able(self.opened)}

    def changed(self, name: str) -> None:
        """A method of an answer is done, or the answer is gone."""
        self.views.forget(name)
        self.events.publish("answers", self.answers.summaries())

    def compute(self, name: str, methods: list[Asked]) -> Job:
        """Queues the methods of an answer that are missing."""
        task = {
            "queries": self.answers.question(name)["queries"],
            "methods": [
                {"name": m.name, "options": dict(m.options), "out": str(self.answers.folder_of(name, m))}
                for m in methods
            ],
        }

        async def finish(job: Job, result: Any) -> None:
            await run_in_threadpool(self.answers.scores, name)  # so that the first view finds it loaded

        return self.jobs.submit("answer", task, answer=name, finish=finish, step=partial(self.changed, name))


def make_app(viewer: Viewer, *, names: set[str] | None = None, addresses: bool = False) -> Guard:
    """The application, behind its guard.

    Args:
        names: host names that are ours. addresses: whether numerical addresses are.
    """
    app = FastAPI(title="headwater", openapi_url=None, docs_url=None, redoc_url=None)
    _pages(app, viewer)
    _asking(app, viewer)
    _answering(app, viewer)
    _acting(app, viewer)
    _repairing(app, viewer)
    for kind, status in ((UnknownAnswer, 404), (UnknownJob, 404), (NotYet, 409), (HeadwaterError, 400)):
        app.add_exception_handler(kind, partial(_failed, status=status))
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _broken)
    return Guard(app, token=viewer.token, names=names or (), addresses=addresses)


def _failed(request: Request, error: Exception, *, status: int) -> JSONResponse:
    record = error_record(error)
    return JSONResponse({"error": {k: v if v is None else visible(v) for k, v in record.items()}}, status)


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path = visible(request.url.path, one_line=True)[:80]
    text = f"{request.method} {path}: {error.detail}"
    record = {
        "message": text,
        "got": text,
        "expected": "a path of the viewer",
        "cause": None,
        "fix": "open the address that the server printed",
    }
    return JSONResponse({"error": record}, error.status_code)


def _broken(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": error_record(error)}, 500)


def _pages(app: FastAPI, viewer: Viewer) -> None:
    assets = _assets()
    index = files("headwater.viewer").joinpath("page", "index.html")

    @app.get("/")
    def page() -> Response:
        return HTMLResponse(index.read_text("utf-8").replace("__TOKEN__", viewer.token))

    @app.get("/assets/{name:path}")
    def asset(name: str) -> Response:
        if name not in assets:
            raise HTTPException(404, "there is no such file")
        content, kind = assets[name]()
        return Response(content, media_type=kind)

    @app.get("/api/session")
    def session() -> Any:
        return viewer.session()

    @app.get("/api/events")
    async def events() -> Response:
        return StreamingResponse(viewer.events.stream(), media_type="text/event-stream")


def _assets() -> dict[str, Callable[[], tuple[bytes, str]]]:
    """Name -> reads the file: of the page, and of what it shares with the report. Nothing else is served."""
    found: dict[str, Callable[[], tuple[bytes, str]]] = {}

    def add(folder: Any, before: str) -> None:
        for file in folder.iterdir():
            suffix = "." + file.name.rpartition(".")[2]
            if file.is_dir():
                add(file, f"{before}{file.name}/")
            elif suffix in TYPES:
                found[before + file.name] = partial(_read, file, TYPES[suffix])

    add(files("headwater.viewer").joinpath("page"), "")
    report = files("headwater.report")
    add(report.joinpath("views"), "views/")
    found["report.css"] = partial(_read, report.joinpath("report.css"), TYPES[".css"])
    return found


def _read(file: Any, kind: str) -> tuple[bytes, str]:
    return file.read_bytes(), kind


def _asking(app: FastAPI, viewer: Viewer) -> None:
    jobs = viewer.jobs

    @app.post("/api/generate", status_code=202)
    async def generate(request: Request) -> Any:
        body = await _body(request)
        viewer.opened.require_run()
        count = body.get("max_new_tokens", 64)
        if type(count) is not int or not 1 <= count <= MOST_TOKENS:
            raise UsageError(f"max_new_tokens {count!r}", expected=f"1 to {MOST_TOKENS}", fix="choose another number")
        return {"job": jobs.submit("generate", {"prompt": _prompt(body), "max_new_tokens": count}).record()}

    @app.post("/api/tokens", status_code=202)
    async def tokens(request: Request) -> Any:
        body = await _body(request)
        viewer.opened.require_run()
        output = body.get("output")
        if not isinstance(output, str) or not output:
            raise DataError("no output", expected="what the model said", fix="paste it")
        return {"job": jobs.submit("tokens", {"prompt": _prompt(body), "output": output}).record()}

    @app.get("/api/jobs/{name}")
    async def job(name: str) -> Any:
        return jobs.get(name).record()

    @app.post("/api/jobs/{name}/cancel")
    async def cancel(name: str) -> Any:
        return jobs.cancel(name).record()


def _answering(app: FastAPI, viewer: Viewer) -> None:
    answers, views = viewer.answers, viewer.views

    def started(name: str, missing: list[Asked]) -> JSONResponse:
        if not missing:
            return JSONResponse({"answer": name, "job": None})
        job = viewer.compute(name, missing)
        viewer.events.publish("answers", answers.summaries())
        return JSONResponse({"answer": name, "job": job.record()}, 202)

    @app.get("/api/answers")
    def every() -> Any:
        return answers.summaries()

    @app.post("/api/answers")
    async def ask(request: Request) -> Any:
        body = await _body(request)
        name, missing = await run_in_threadpool(answers.ask, body)
        return started(name, missing)

    @app.get("/api/answers/{name}")
    def one(name: str) -> Any:
        question = answers.question(name)
        kept = ("prompt", "output", "corrected", "span", "group", "id")
        queries = [{key: query[key] for key in kept if key in query} for query in question["queries"]]
        found = answers.scores(name)
        provenance = {key: v for key, v in found[0].provenance.items() if key not in ("queries", "command")}
        return views.head(name) | {
            "question": {"queries": queries, "group": queries[0].get("group")},
            "provenance": [[visible(key), visible(value)] for key, value in flattened(provenance)],
        }

    @app.delete("/api/answers/{name}")
    async def delete(name: str) -> Any:
        for job in list(viewer.jobs.records()):
            if job["answer"] == name and job["state"] in ("queued", "running"):
                raise UsageError("an answer that is still computed", expected="one that rests", fix="cancel it first")
        await run_in_threadpool(answers.delete, name)
        viewer.changed(name)
        return {}

    @app.post("/api/answers/{name}/methods")
    async def add(name: str, request: Request) -> Any:
        method = Asked.of(await _body(request))
        wanted = await run_in_threadpool(answers.also, name, method)
        return started(name, [method] if wanted else [])

    @app.get("/api/answers/{name}/view")
    def view(name: str, request: Request) -> Response:
        asked = request.query_params
        found = views.view(name, _wanted(asked, MOST_ROWS), against=asked.get("against"), group=asked.get("group"))
        return Response(json.dumps(found, separators=(",", ":"), allow_nan=False), media_type="application/json")

    @app.post("/api/answers/{name}/words")
    async def words(name: str, request: Request) -> Any:
        return await _words(viewer, name, await _body(request))


async def _words(viewer: Viewer, name: str, body: Mapping[str, Any]) -> JSONResponse:
    """The words of one row, where they are known; else a job that finds them."""
    viewer.opened.require_run()
    target, row, weights = body.get("target", 0), body.get("row"), body.get("weights")
    if type(target) is not int or type(row) is not int or not 0 <= row < len(viewer.opened.train):
        raise DataError("a row or target that is not there", expected="their numbers", fix="correct them")
    method = body.get("method")
    if not isinstance(method, str | None):
        raise UsageError("a method that is no name", expected="one that has answered", fix="correct it")
    if weights is not None and not (isinstance(weights, list) and all(type(w) in (int, float) for w in weights)):
        raise UsageError("weights of another form", expected="a list of numbers", fix="correct it")
    given = None if weights is None else tuple(float(w) for w in weights)
    wanted = Wanted(target=target, method=method, weights=given, filters=Filters())
    ranking, _ = await run_in_threadpool(viewer.views.rankings, name, wanted)
    scores, at = ranking.scores, ranking.row(row)
    if at is None:
        raise DataError(
            f"row {row} without a score by {scores.method}",
            expected="a row that the second look was at, and that the index has a gradient of",
            fix="choose another row, or another method",
        )
    own = ranking.weights == dict(scores.weights)
    if own and (target, at) in scores.words:
        return JSONResponse({"words": words_record(scores.words[target, at])})
    asked = _asked_method(viewer, name, scores.method)
    task = {
        "queries": viewer.answers.question(name)["queries"],
        "name": asked.name,
        "options": dict(asked.options),
        "target": target,
        "row": row,
        "weights": ranking.weights,
        "dtype": scores.provenance.get(DTYPE),
    }

    async def finish(job: Job, result: Any) -> Any:
        found = row_words(result)
        if own:
            viewer.views.with_words(name, method, target, {at: found})
        return {"words": words_record(found)}

    return JSONResponse({"job": viewer.jobs.submit("words", task, answer=name, finish=finish).record()}, 202)


def _asked_method(viewer: Viewer, name: str, label: str) -> Asked:
    """The method behind a label, with its options: of an opened trace, as it was traced.

    Raises:
        UsageError: it has a name of its own, so that it is not known how it was made.
    """
    for record in viewer.answers.question(name).get("methods", []):
        if Asked.of(record).label == label:
            return Asked.of(record)
    if name == TRACE and viewer.opened.manifest is not None:
        if viewer.opened.manifest["provenance"].get("second_look"):
            raise UsageError(
                f"words of {label} after a second look",
                expected="words that the trace brings",
                fix="trace again with --words",
            )
        for record in viewer.opened.manifest["provenance"].get("methods", []):
            if record["name"] == label:
                return Asked(name=label, options=traced_options(record))
    raise UsageError(
        f"words of {label}", expected="a method of the table", cause="a name of its own", fix="add a method by its name"
    )


def traced_options(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of a method in a trace, the options that its entry in the table leaves open."""
    if record["name"] not in METHODS:
        return {}
    known = METHODS[record["name"]].options()
    return {key: value for key, value in record.get("options", {}).items() if key in known and value is not None}


def _acting(app: FastAPI, viewer: Viewer) -> None:
    marks, views, answers = viewer.marks, viewer.views, viewer.answers

    def changed() -> dict[str, Any]:
        record = marks.record()
        viewer.events.publish("marks", record)
        return record

    @app.get("/api/marks")
    async def every() -> Any:
        return marks.record()

    @app.put("/api/marks")
    async def put(request: Request) -> Any:
        await run_in_threadpool(marks.put, await _body(request))
        return changed()

    @app.delete("/api/marks")
    async def delete(request: Request) -> Any:
        await run_in_threadpool(marks.delete, await _body(request))
        return changed()

    @app.get("/api/export/{action}.jsonl")
    def lines(action: str, request: Request) -> Response:
        if action == "rows":
            return _attachment(StreamingResponse(json_lines(rows(request)), media_type=JSON_LINES), "rows.jsonl")
        if action not in (*ACTIONS, "marks"):
            raise HTTPException(404, "there is no such file")
        return _attachment(Response(marked_lines(marks, action), media_type=JSON_LINES), f"{action}.jsonl")

    @app.get("/api/export/rows.csv")
    def table(request: Request) -> Response:
        return _attachment(StreamingResponse(csv_lines(rows(request)), media_type="text/csv"), "rows.csv")

    @app.get("/api/export/report.html")
    def report(request: Request) -> Response:
        top = _number(request.query_params, "top", 100, 1, 1000)
        methods = answers.scores(request.query_params.get("answer", ""))
        names = [one.method for one in methods]
        first = methods[views.number(names, request.query_params.get("method"))]
        others = [one for one in methods if one is not first and same_rows(one, first)]
        ids = {mark["id"] for mark in marks.rows.values()}
        culprits = {target.name: ids for target in first.targets} if ids else None
        page = render_report(first, others=others, top=top, culprits=culprits)
        return _attachment(Response(page.encode("utf-8", "replace"), media_type="text/html"), "report.html")

    def rows(request: Request) -> Any:
        name = request.query_params.get("answer", "")
        wanted = _wanted(request.query_params, MOST_EXPORTED)
        ranking, _ = views.rankings(name, wanted)
        numbers = views.rows(ranking, wanted)[wanted.offset : wanted.offset + wanted.limit].tolist()
        return records(ranking, numbers, viewer.opened.train, marks, viewer.opened.numbers)


def _repairing(app: FastAPI, viewer: Viewer) -> None:
    marks, answers, opened = viewer.marks, viewer.answers, viewer.opened

    @app.get("/api/repair")
    def able(request: Request) -> Any:
        name = request.query_params.get("answer")
        counts = {action: sum(mark["action"] == action for mark in marks.rows.values()) for action in ACTIONS}
        return (
            viewer.session()["can"]["repair"] | counts | {"command": None if name is None else _command(viewer, name)}
        )

    @app.post("/api/repair", status_code=202)
    async def start(request: Request) -> Any:
        body = await _body(request)
        name = str(body.get("answer", ""))
        await run_in_threadpool(repairing.training_of, opened)
        task = repairing.task_of(opened, marks, answers.question(name)["queries"])
        return {"job": viewer.jobs.submit("repair", task, answer=name).record()}


def _command(viewer: Viewer, name: str) -> str | None:
    """The command line that repairs outside of the page; None where no method of the answer names the models."""
    if name == TRACE:
        return visible(repairing.command(viewer.opened, Path(viewer.opened.place.folder)))
    for record in viewer.answers.question(name)["methods"]:
        folder = viewer.answers.folder_of(name, Asked.of(record))
        if viewer.opened.method(record["name"], record["options"])[2] != "words" and (folder / "trace.json").exists():
            return visible(repairing.command(viewer.opened, folder))
    return None


def _attachment(response: Response, name: str) -> Response:
    response.headers["content-disposition"] = f'attachment; filename="{name}"'
    return response


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        DataError: something else.
    """
    try:
        found = json.loads(await request.body() or b"{}", parse_constant=_no_number, parse_float=_finite)
        json.dumps(found)  # nested so deep that it can be read and not written
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError("a body that is no JSON object", expected="a JSON object", fix="correct it")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    return found if math.isfinite(found := float(text)) else _no_number(text)


def _prompt(body: Mapping[str, Any]) -> Any:
    prompt = body.get("prompt")
    if not isinstance(prompt, str | list) or not prompt:
        raise DataError("no prompt", expected="text, or a list of messages", fix="type a question")
    Query(tuple(prompt) if isinstance(prompt, list) else prompt)  # refuses what no model can read
    return prompt


def _wanted(asked: Any, most: int) -> Wanted:
    """The parameters of a view."""
    shown = asked.get("list", "best")
    if shown not in ("best", "worst"):
        raise UsageError(f"list {visible(shown)[:20]}", expected="best or worst", fix="choose one of them")
    facets: dict[str, list[str]] = {}
    for one in asked.getlist("facet"):
        name, equals, value = one.partition("=")
        if not equals:
            raise UsageError("a facet without value", expected="NAME=VALUE", fix="correct it")
        facets.setdefault(name, []).append(value)
    weights = asked.get("weights")
    return Wanted(
        target=_number(asked, "target", 0, 0, 1 << 30),
        method=asked.get("method"),
        weights=None if weights is None else tuple(_float(w, "weights") for w in weights.split(",") if w),
        list=shown,
        offset=_number(asked, "offset", 0, 0, 1 << 40),
        limit=_number(asked, "limit", 25, 1, most),
        fold=asked.get("fold", "1") != "0",
        filters=Filters(
            search=asked.get("search", "").strip(),
            facets=tuple((name, tuple(values)) for name, values in facets.items()),
            low=None if asked.get("low") in (None, "") else _float(asked["low"], "low"),
            high=None if asked.get("high") in (None, "") else _float(asked["high"], "high"),
            marked={"1": True, "0": False}.get(asked.get("marked", "")),
        ),
    )


def _number(asked: Any, name: str, default: int, least: int, most: int) -> int:
    text = asked.get(name, "")
    if text == "":
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 13 and least <= int(text) <= most):
        raise UsageError(f"{name} {visible(text)[:20]}", expected=f"{least} to {most}", fix="correct it")
    return int(text)


def _float(text: str, name: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UsageError(f"{name} {visible(text)[:20]}", expected="finite numbers", fix="correct it")
    return found
