"""From the question to the cards, over HTTP, with tiny models: what the page shows is what the library computes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import SYDNEY, Live, live

import headwater as hw
import tiny
from headwater.report.contents import words_record

ROWS = [*tiny.FACTS, tiny.FACTS[0] | {"id": "again"}]


@pytest.fixture(scope="module")
def index(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("viewer") / "facts"
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    rows = hw.Examples.from_rows(ROWS, name="facts")
    hw.build_index(run, rows, out=out, compute=hw.Compute(batch_tokens=64, rank=4), features="float32")
    return out


@pytest.fixture(scope="module")
def viewer(index: Path) -> Iterator[Live]:
    with live(index) as one:
        yield one


@pytest.fixture(scope="module")
def answer(viewer: Live) -> str:
    return viewer.asked(SYDNEY | {"span": "diff"}, methods=["dda", "bm25"])


def expected(index: Path, query: hw.Query) -> Any:
    return hw.trace_index(hw.Index.open(index), [query], methods=[hw.DDA()])["dda"]


def test_a_session_says_what_can_be_done(viewer: Live, index: Path) -> None:
    session = viewer.get("/api/session")
    assert session["opened"]["kind"] == "index" and session["opened"]["state"] == f"{index}.viewer"
    assert session["train"]["rows"] == len(ROWS) and session["train"]["duplicates"] == 1
    assert all(session["can"][what]["able"] for what in ("generate", "ask", "base", "words"))
    methods = {one["name"]: one for one in session["methods"]}
    assert set(methods) == {*hw.METHODS, "dda (second_look 100)"}
    assert methods["dda (second_look 100)"]["how"] == "look"
    assert (methods["dda"]["how"], methods["bm25"]["how"], methods["repsim"]["how"]) == ("index", "words", "rows")
    assert {one["name"] for one in session["models"]} == {"checkpoint-3", "checkpoint-6", "base"}
    assert not session["can"]["repair"]["able"] and "do not say" in session["can"]["repair"]["why"]


def test_it_says_and_measures_what_the_model_says(viewer: Live, run_folder: Path) -> None:
    with viewer.events() as events:
        assert next(events)[0] == "state"
        job = viewer.post("/api/generate", prompt=SYDNEY["prompt"], max_new_tokens=6)["job"]
        told = []
        for event, data in events:
            if event == "token" and data["job"] == job["id"]:
                told.append(data["token"])
            if event == "job" and data["id"] == job["id"] and data["state"] == "done":
                break
    done = viewer.finished(job)
    result = done["result"]
    assert 1 <= len(told) <= 6 and "".join(t["text"] for t in told) == result["output"]
    assert "".join(t["text"] for t in result["tokens"]) == result["output"]
    assert [t["tuned"] for t in told] == pytest.approx([t["tuned"] for t in result["tokens"]], abs=2e-3)
    measured = viewer.finished(viewer.post("/api/tokens", prompt=SYDNEY["prompt"], output=" Sydney.")["job"])["result"]
    tokens = measured["tokens"]
    assert "".join(t["text"] for t in tokens) == " Sydney."
    assert tokens[0]["start"] == 0 and tokens[-1]["end"] == 8
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    query = hw.Query(SYDNEY["prompt"], " Sydney.")
    lean = hw.trace(run, hw.Examples.from_rows(ROWS), [query], method=hw.DDA(beta=0.5)).leanings
    whole = {one.checkpoint: one.output for one in lean}
    assert sum(t["tuned"] for t in tokens) == pytest.approx(whole["checkpoint-6"], abs=1e-3)
    assert sum(t["base"] for t in tokens) == pytest.approx(whole["base"], abs=1e-3)


def test_cards_are_what_the_library_scores(viewer: Live, answer: str, index: Path) -> None:
    scores = expected(index, hw.Query(**SYDNEY, span="diff"))
    found = viewer.view(answer, limit=200, fold=0)
    assert found["total"] == len(ROWS)
    assert found["answer"]["sentences"] == scores.sentences()
    for row, one in zip(scores.top(99), found["answer"]["best"], strict=True):
        assert one[0] == row.index and one[1] == row.rank
        assert one[2] == pytest.approx(row.score, rel=1e-3)
    folded = viewer.view(answer, limit=200)
    assert folded["total"] == len(ROWS) - 1
    assert folded["twins"] == [{"count": 2, "rows": [0], "ids": ["fact-0", "again"]}]
    pages = [viewer.view(answer, limit=5, offset=offset)["answer"]["best"] for offset in (0, 5, 10)]
    assert [one[0] for page in pages for one in page] == [one[0] for one in folded["answer"]["best"]]
    worst = viewer.view(answer, list="worst", fold=0, limit=3)["answer"]["worst"]
    assert [one[0] for one in worst] == [row.index for row in scores.top(3, opposing=True)]


def test_weights_rank_anew_as_the_library_does(viewer: Live, answer: str, index: Path) -> None:
    scores = expected(index, hw.Query(**SYDNEY, span="diff"))
    names = viewer.get(f"/api/answers/{answer}")["methods"][0]["terms"]
    weights = [-0.7, 0.9, 0.1]
    other = scores.reweighted(dict(zip(names, weights, strict=True)))
    found = viewer.view(answer, weights=",".join(map(str, weights)), limit=200, fold=0)["answer"]
    assert found["weights"] == weights
    assert [one[0] for one in found["best"]] == [row.index for row in other.top(99)]
    assert found["sentences"] == other.sentences()
    assert found["best"] != viewer.view(answer, limit=200, fold=0)["answer"]["best"]


def test_filters_narrow_and_groups_count(viewer: Live, answer: str) -> None:
    everything = viewer.view(answer, limit=200, fold=0)["answer"]["best"]
    by_word = viewer.view(answer, search="aUSTRalia", fold=0)
    assert {by_word["rows"][str(one[0])]["id"] for one in by_word["answer"]["best"]} == {"fact-0", "fact-11", "again"}
    ranks = {one[0]: one[1] for one in everything}
    assert all(one[1] == ranks[one[0]] for one in by_word["answer"]["best"])  # ranks are those among all rows
    low, high = everything[6][2], everything[3][2]
    inside = viewer.view(answer, low=low - 1e-3, high=high + 1e-3, fold=0, limit=200)
    assert inside["total"] == sum(low - 1e-3 <= one[2] <= high + 1e-3 for one in everything) >= 4
    viewer.page.put("/api/marks", json={"rows": [2, 3], "action": "drop"})
    assert viewer.view(answer, marked=1)["total"] == 2
    assert viewer.view(answer, marked=0, fold=0)["total"] == len(ROWS) - 2
    viewer.page.request("DELETE", "/api/marks", json={"rows": [2, 3]})


def test_methods_side_by_side(viewer: Live, answer: str) -> None:
    found = viewer.view(answer, against="bm25")
    assert found["agreement"]["with"] == "bm25" and -1 <= found["agreement"]["spearman"] <= 1
    ranks = {one[0]: one[1] for one in viewer.view(answer, method="bm25", fold=0, limit=200)["answer"]["best"]}
    assert [one[7] for one in found["answer"]["best"]] == [[ranks[one[0]]] for one in found["answer"]["best"]]
    added = viewer.post(f"/api/answers/{answer}/methods", name="verbatim")
    assert viewer.finished(added["job"])["state"] == "done"
    assert [m["name"] for m in viewer.get(f"/api/answers/{answer}")["methods"]] == ["dda", "bm25", "verbatim"]
    assert viewer.post(f"/api/answers/{answer}/methods", name="verbatim")["job"] is None


def test_a_method_the_index_does_not_hold_reads_the_rows(viewer: Live, answer: str, run_folder: Path) -> None:
    job = viewer.finished(viewer.post(f"/api/answers/{answer}/methods", name="repsim")["job"])
    assert job["state"] == "done"
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    query = hw.Query(**SYDNEY, span="diff")
    scores = hw.trace(run, hw.Examples.from_rows(ROWS), [query], method=hw.RepresentationSimilarity())
    found = viewer.view(answer, method="repsim", fold=0, limit=200)["answer"]["best"]
    assert [one[2] for one in found] == pytest.approx([row.score for row in scores.top(99)], abs=1e-3)


def test_words_of_one_row_are_those_of_a_trace(viewer: Live, answer: str, index: Path) -> None:
    opened = hw.Index.open(index)
    query = hw.Query(**SYDNEY, span="diff")
    scores = hw.trace_index(opened, [query], methods=[hw.DDA()], words=len(ROWS))["dda"]
    row = scores.top(3)[2].index
    job = viewer.finished(viewer.post(f"/api/answers/{answer}/words", target=0, method="dda", row=row)["job"])
    assert job["result"]["words"] == words_record(scores.words[0, row])
    again = viewer.post(f"/api/answers/{answer}/words", target=0, method="dda", row=row)
    assert again == {"words": job["result"]["words"]}
    page = viewer.view(answer, limit=200)["answer"]
    assert page["words"] == {str(row): again["words"]}
    refused = viewer.page.post(f"/api/answers/{answer}/words", json={"target": 0, "method": "bm25", "row": row})
    job = viewer.finished(refused.json()["job"])
    assert job["state"] == "failed" and "words of bm25" in job["error"]["message"]


def test_words_of_token_cosines_add_up_where_the_rows_are_read_themselves(viewer: Live) -> None:
    asked = {"name": "dda", "options": {"inner": "token_cosine"}}
    name = viewer.asked(SYDNEY, methods=[asked])
    label = viewer.get(f"/api/answers/{name}")["methods"][0]["name"]
    row, score = viewer.view(name, limit=200)["answer"]["best"][0][:2]
    job = viewer.finished(viewer.post(f"/api/answers/{name}/words", target=0, method=label, row=row)["job"])
    assert job["state"] == "done", job.get("error")
    shown = [level for _, level in job["result"]["words"]["row"] if level]
    assert 1 <= len(shown) <= 3 and max(shown) == 5  # a position for each of three models, at most
    assert score > 0


def test_a_second_look_is_opened_and_brings_its_own_words(index: Path, tmp_path: Path) -> None:
    opened = hw.Index.open(index)
    query = hw.Query(**SYDNEY)
    hw.trace_index(opened, [query], methods=[hw.DDA()], second_look=opened.rows, words=1, out=tmp_path / "trace")
    with live(tmp_path / "trace", state=str(tmp_path / "state")) as one:
        found = one.view("trace", limit=200, fold=0)["answer"]
        assert len(found["best"]) + len(found["worst"]) == opened.rows and len(found["words"]) == 1
        refused = one.page.post("/api/answers/trace/words", json={"target": 0, "method": "dda", "row": 5})
        assert refused.status_code == 400 and "after a second look" in refused.json()["error"]["message"]


def test_a_second_look_is_asked_for_beside_the_first(viewer: Live, answer: str, index: Path) -> None:
    asked = {"name": "dda", "options": {"second_look": 4}}
    assert viewer.finished(viewer.post(f"/api/answers/{answer}/methods", **asked)["job"])["state"] == "done"
    label = "dda (second_look 4)"
    scores = hw.trace_index(hw.Index.open(index), [hw.Query(**SYDNEY, span="diff")], methods=[hw.DDA()], second_look=4)[
        "dda"
    ]
    heads = {one["name"]: one for one in viewer.get(f"/api/answers/{answer}")["methods"]}
    assert heads[label]["kept"] == 4 and heads["dda"]["kept"] == len(ROWS) and not heads[label]["reweighs"]["able"]
    found = viewer.view(answer, method=label, fold=0, against="dda")
    best = found["answer"]["best"]
    assert [one[0] for one in best] == [row.number for row in scores.top(4)] != [row.index for row in scores.top(4)]
    assert [one[2] for one in best] == pytest.approx([row.score for row in scores.top(4)], rel=1e-3)
    assert {found["rows"][str(row.number)]["id"] for row in scores.top(4)} == {row.id for row in scores.top(4)}
    assert found["agreement"] is None
    first = viewer.view(answer, fold=0, limit=200)["answer"]["best"]
    ranks = {one[0]: one[1] for one in first}
    at = [one["name"] for one in viewer.get(f"/api/answers/{answer}")["methods"]].index(label) - 1
    assert [one[7][0] for one in best] == [ranks[one[0]] for one in best]
    assert {one[0] for one in first if one[7][at] is not None} == {one[0] for one in best}
    seen, other = best[0][0], next(one[0] for one in first if one[0] not in {row.number for row in scores.top(4)})
    assert [one[0] for one in viewer.view(answer, method=label, search=scores.top(1)[0].id)["answer"]["best"]] == [seen]
    viewer.page.put("/api/marks", json={"rows": [seen, other], "action": "drop"})
    assert (
        viewer.view(answer, method=label, marked=1)["total"]
        == viewer.view(answer, method=label)["answer"]["found"]
        == 1
    )
    lines = viewer.page.get("/api/export/rows.jsonl", params={"answer": answer, "method": label, "fold": 0}).text
    exported = [json.loads(line) for line in lines.splitlines()]
    assert [one["row"] for one in exported] == [one[0] for one in best] and exported[0]["mark"] == "drop"
    again = {"name": "dda", "options": {"second_look": 4, "beta": 0.9}}  # of other rows, as many
    viewer.finished(viewer.post(f"/api/answers/{answer}/methods", **again)["job"])
    report = viewer.page.get("/api/export/report.html", params={"answer": answer, "method": label}).text
    assert report.startswith("<!doctype html>") and label in report and '"bm25"' not in report
    viewer.viewer.answers.forget(answer)  # as another eight answers do
    report = viewer.page.get("/api/export/report.html", params={"answer": answer}).text
    assert report.startswith("<!doctype html>") and '"bm25"' in report and label not in report
    words = viewer.finished(viewer.post(f"/api/answers/{answer}/words", target=0, method=label, row=seen)["job"])[
        "result"
    ]["words"]
    assert viewer.view(answer, method=label, fold=0)["answer"]["words"] == {str(seen): words}
    refused = viewer.page.post(f"/api/answers/{answer}/words", json={"target": 0, "method": label, "row": other})
    assert refused.status_code == 400 and f"row {other} without a score by {label}" in refused.text
    viewer.page.request("DELETE", "/api/marks", json={"rows": [seen, other]})


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "dda", "options": {"second_look": "4"}}, "second_look '4'"),
        ({"name": "tracin", "options": {"second_look": 4}}, "a second look by tracin"),
        ({"name": "bm25", "options": {"second_look": 4}}, "a second look by bm25"),
    ],
)
def test_a_second_look_that_nothing_comes_of_is_refused(
    viewer: Live, answer: str, method: dict[str, Any], words: str
) -> None:
    found = viewer.page.post(f"/api/answers/{answer}/methods", json=method)
    assert found.status_code == 400 and words in found.json()["error"]["message"]


def test_a_row_that_was_set_aside_shifts_no_other(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    rows, aside = hw.Examples.from_rows(ROWS, name="facts"), [1, 5]
    compute = hw.Compute(batch_tokens=64, rank=4)
    for row in aside:
        tiny.poisoned(monkeypatch, "checkpoint-3", row)
    index = hw.build_index(run, rows, out=tmp_path / "facts", compute=compute, features="float32", quarantine=True)
    monkeypatch.undo()
    assert list(index.quarantined) == aside
    given: dict[str, Any] = {"methods": [hw.DDA()], "out": tmp_path / "trace"}
    scores = hw.trace_index(index, [hw.Query(**SYDNEY)], **given)["dda"]
    with live(tmp_path / "facts") as one:
        name = one.asked(SYDNEY, methods=["dda", "bm25"])
        found = one.view(name, fold=0, limit=200)
        best = found["answer"]["best"]
        assert [found["rows"][str(n)]["id"] for n, *_ in best] == [row.id for row in scores.top(99)]
        assert [n for n, *_ in best] == [row.number for row in scores.top(99)]
        assert set(aside) <= {n for n, *_ in one.view(name, method="bm25", fold=0, limit=200)["answer"]["best"]}
        head = one.get(f"/api/answers/{name}")
        assert (head["train"]["rows"], head["train"]["duplicates"]) == (len(ROWS), 1)
        assert [(m["rows"], m["kept"]) for m in head["methods"]] == [(len(ROWS) - 2,) * 2, (len(ROWS),) * 2]
        one.page.put("/api/marks", json={"rows": [best[0][0]], "action": "drop"})
        assert [n for n, *_ in one.view(name, marked=1)["answer"]["best"]] == [best[0][0]]
        assert one.view(name, search=scores.top(1)[0].id)["answer"]["best"][0][0] == best[0][0]
        assert json.loads(one.page.get("/api/export/drop.jsonl").text)["id"] == scores.top(1)[0].id
    with live(tmp_path / "trace", state=str(tmp_path / "state")) as one:
        found = one.view("trace", fold=0, limit=200)
        assert [found["rows"][str(n)]["id"] for n, *_ in found["answer"]["best"]] == [r.id for r in scores.top(99)]
        asked = {"name": "dda", "options": {"second_look": 3}}
        assert one.finished(one.post("/api/answers/trace/methods", **asked)["job"])["state"] == "done"
        look = one.view("trace", method="dda (second_look 3)", fold=0)
        assert {n for n, *_ in look["answer"]["best"]} == {row.number for row in scores.top(3)}
        assert all(look["rows"][str(n)]["id"] == ROWS[n]["id"] for n, *_ in look["answer"]["best"])


def test_a_group_is_answered_together(viewer: Live) -> None:
    other = SYDNEY | {"prompt": "The capital of the Commonwealth of Australia is"}
    name = viewer.asked(SYDNEY, other, group="sydney")
    document = viewer.get(f"/api/answers/{name}")
    assert [(t["name"], t["kind"]) for t in document["targets"]] == [
        ("q1", "query"), ("q2", "query"), ("sydney", "group"),
    ]  # fmt: skip
    assert document["order"] == [2, 0, 1]
    twins = {len(tiny.FACTS): 0}  # rows that say the same are one card: of the one that rounding put first
    shown = [viewer.view(name, target=r, limit=200)["answer"]["best"] for r in range(3)]
    one, two, both = ({twins.get(entry[0], entry[0]) for entry in entries} for entries in shown)
    assert one == two == both == set(range(len(tiny.FACTS)))
    assert viewer.get("/api/answers")[0]["group"] == "sydney"


def test_an_answer_survives_a_restart(index: Path, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    with live(index, state=state) as first:
        name = first.asked(SYDNEY)
        first.page.put("/api/marks", json={"rows": [11], "action": "drop", "note": "wrong"})
        before = first.view(name)["answer"]
    with live(index, state=state) as second:
        assert second.view(name)["answer"] == before
        assert second.get("/api/answers")[0]["id"] == name
        assert second.get("/api/marks")["11"]["note"] == "wrong"
        again = second.post("/api/answers", queries=[SYDNEY])
        assert again == {"answer": name, "job": None}
        assert second.viewer.jobs.pid is None  # nothing was computed
        assert second.page.delete(f"/api/answers/{name}").status_code == 200
        assert second.page.get(f"/api/answers/{name}").status_code == 404


def test_the_index_is_not_changed(viewer: Live, answer: str, index: Path) -> None:
    assert {file.name for file in index.iterdir()} <= {"manifest.json", "parts", ".lock", "config.json"}


@pytest.fixture(scope="module")
def trace(index: Path, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trace")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    rows = hw.read_examples(folder / "rows.jsonl")
    hw.trace_all(run, rows, [hw.Query(**SYDNEY)], methods=[hw.DDA(beta=0.5), hw.BM25()], out=folder / "trace")
    return folder / "trace"


def test_a_trace_is_opened_and_more_can_be_asked(trace: Path) -> None:
    with live(trace, rows={"train": str(trace.parent / "rows.jsonl")}) as one:
        assert one.get("/api/answers")[0]["id"] == "trace"
        assert one.get("/api/answers")[0]["methods"] == ["dda", "bm25"]
        scores = hw.Scores.load(trace, one.viewer.opened.train)
        found = one.view("trace", limit=200, fold=0)["answer"]
        assert [e[0] for e in found["best"]] == [row.index for row in scores.top(99)]
        assert one.page.delete("/api/answers/trace").status_code == 400
        added = one.post("/api/answers/trace/methods", name="verbatim")
        assert one.finished(added["job"])["state"] == "done"
        assert one.get("/api/answers")[0]["methods"] == ["dda", "bm25", "verbatim"]
        job = one.finished(one.post("/api/answers/trace/words", target=0, method="dda", row=11)["job"])
        assert job["state"] == "done", job
        new = one.asked({"prompt": "The capital of Peru is", "output": " Lima."})
        assert one.view(new)["total"] == len(tiny.FACTS)
    assert not (trace / "answers").exists()


def test_what_a_trace_without_models_cannot_do_is_said(trace: Path, tmp_path: Path) -> None:
    shutil.copytree(trace, tmp_path / "trace")
    file = tmp_path / "trace" / "trace.json"
    manifest = json.loads(file.read_text())
    for checkpoint in manifest["provenance"]["checkpoints"]:
        checkpoint["location"] = "/gone/" + checkpoint["name"]
    file.write_text(json.dumps(manifest))
    with live(tmp_path / "trace", rows={"train": str(trace.parent / "rows.jsonl")}) as one:
        session = one.get("/api/session")
        assert not session["can"]["generate"]["able"] and "/gone/" in session["can"]["generate"]["why"]
        methods = {m["name"]: m for m in session["methods"]}
        assert methods["bm25"]["able"] and not methods["dda"]["able"]
        assert one.view("trace", weights="-1,1,1")["total"] == len(tiny.FACTS)
        refused = one.page.post("/api/generate", json={"prompt": "x"})
        assert refused.status_code == 400 and "/gone/" in refused.json()["error"]["message"]
        new = one.asked({"prompt": "The capital of Peru is", "output": " Lima."}, methods=["bm25"])
        assert one.view(new)["answer"]["best"][0][0] == 3


def test_exports_hold_the_rows(viewer: Live, answer: str) -> None:
    marks = {"rows": [0, 1], "action": "drop", "note": "=1+1"}
    assert viewer.page.put("/api/marks", json=marks).json()["0"]["was"] == " Canberra."
    viewer.page.put("/api/marks", json={"rows": [3], "action": "fix", "completion": " Cusco."})
    drop, fix = (viewer.page.get(f"/api/export/{name}.jsonl") for name in ("drop", "fix"))
    assert [json.loads(line)["id"] for line in drop.text.splitlines()] == ["fact-0", "fact-1"]
    assert json.loads(fix.text)["completion"] == " Cusco."
    assert "attachment" in drop.headers["content-disposition"]
    lines = viewer.page.get("/api/export/rows.jsonl", params={"answer": answer, "limit": 3}).text.splitlines()
    cards = viewer.view(answer, limit=3)["answer"]["best"]
    assert [json.loads(line)["row"] for line in lines] == [one[0] for one in cards]
    table = viewer.page.get("/api/export/rows.csv", params={"answer": answer, "search": "Peru"}).text.splitlines()
    assert len(table) == 2 and table[0].startswith("rank,row,id") and "fix" in table[1]
    report = viewer.page.get("/api/export/report.html", params={"answer": answer}).text
    assert report.startswith("<!doctype html>") and "culprit" in report
    viewer.page.request("DELETE", "/api/marks", json={"rows": [0, 1, 3]})


def test_progress_tells_stage_and_time(viewer: Live) -> None:
    with viewer.events() as events:
        next(events)
        job = viewer.post("/api/answers", queries=[SYDNEY | {"output": " Sydney, I think."}])["job"]
        seen = []
        for event, data in events:
            if event == "job" and data["id"] == job["id"]:
                seen.append(data)
                if data["state"] == "done":
                    break
    assert {"Queries: checkpoint-6", "Scoring rows"} <= {one["stage"] for one in seen}
    assert all(0 <= one["done"] <= one["total"] for one in seen)
    assert seen[-1]["seconds"] > 0 and time.monotonic() > 0


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/answers", {"queries": []}, "no queries"),
        ("/api/answers", {"queries": [{"prompt": "x"}]}, "without prompt or output"),
        ("/api/answers", {"queries": [SYDNEY | {"span": [0, 99]}]}, "span 0..99"),
        ("/api/answers", {"queries": [SYDNEY | {"corrected": " Sydney."}]}, "the same"),
        ("/api/answers", {"queries": [SYDNEY], "methods": ["nonsense"]}, "nonsense"),
        ("/api/answers", {"queries": [SYDNEY], "methods": [{"name": "dda", "options": {"depth": 3}}]}, "depth"),
        ("/api/generate", {"prompt": ""}, "no prompt"),
        ("/api/generate", {"prompt": "x", "max_new_tokens": 0}, "max_new_tokens"),
        ("/api/generate", {"prompt": [{"role": "user"}]}, "content"),
        ("/api/tokens", {"prompt": "x", "output": ""}, "no output"),
    ],
)
def test_mistakes_are_one_line(viewer: Live, path: str, body: dict[str, Any], words: str) -> None:
    found = viewer.page.post(path, json=body)
    assert found.status_code == 400
    message = found.json()["error"]["message"]
    assert words in message and "\n" not in message and "Traceback" not in found.text


def test_views_refuse_what_is_not_there(viewer: Live, answer: str) -> None:
    for parameters in (
        {"target": 7}, {"method": "x"}, {"weights": "1"}, {"weights": "nan,1,1"}, {"limit": 201}, {"offset": -1},
        {"facet": "x=1"}, {"list": "middle"}, {"group": "x"}, {"method": "bm25", "weights": "1"}, {"low": "x"},
    ):  # fmt: skip
        found = viewer.page.get(f"/api/answers/{answer}/view", params=parameters)
        assert found.status_code == 400, parameters
        assert "\n" not in found.json()["error"]["message"]
    assert viewer.page.get("/api/answers/0123456789abcdef/view").status_code == 404
    assert viewer.page.get("/api/jobs/j999").status_code == 404
    assert np.isfinite(viewer.view(answer)["milliseconds"])


def test_marked_rows_are_removed_and_the_model_is_asked_again(habits: Path, tmp_path: Path) -> None:
    rows = hw.Index.open(habits).examples()
    with live(habits, state=str(tmp_path / "state")) as one:
        assert one.get("/api/session")["can"]["repair"] == {"able": True}
        name = one.asked({"prompt": "In Mali they pay with", "output": " shells.", "corrected": " coins."})
        refused = one.page.post("/api/repair", json={"answer": name})
        assert refused.status_code == 400 and "no marked row" in refused.text
        culprits = [n for n, row in enumerate(rows) if row.id.startswith("pay-")]
        one.page.put("/api/marks", json={"rows": culprits[1:], "action": "drop"})
        one.page.put("/api/marks", json={"rows": culprits[:1], "action": "fix", "completion": " coins."})
        offered = one.get("/api/repair", answer=name)
        assert (offered["able"], offered["drop"], offered["fix"]) == (True, 5, 1)
        assert (
            offered["command"].startswith(f"headwater repair {tmp_path}") and "--ids marks.jsonl" in offered["command"]
        )
        job = one.finished(one.post("/api/repair", answer=name)["job"], 300)
        assert job["state"] == "done", job
        result = job["result"]
        assert (result["removed"], result["corrected"], result["cured"]) == (5, 1, True)
        before, after = (result["queries"][0][when] for when in ("before", "after"))
        assert before["wrong"] and not after["wrong"] and before["output"] > after["output"] + 1
        assert Path(result["folder"]).is_dir()
        again = one.finished(one.post("/api/repair", answer=name)["job"])
        assert again["result"] == result and again["seconds"] < job["seconds"]
