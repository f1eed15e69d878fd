from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import FAULT, HOSTILE, fact_scores, make_scores

from headwater.errors import DataError, UsageError
from headwater.examples import Examples, Query
from headwater.report import write_report
from headwater.report.html import embedded, flattened
from headwater.scores import Leaning, Scores

ROWS = [{"prompt": f"The capital of land {n} is", "completion": f" City {n}."} for n in range(30)]
QUERY = Query("The capital of land 3 is", " City 4.", corrected=" City 3.")
VOID = {"meta", "input", "br", "link", "img"}


class Page(HTMLParser):
    """What a browser would see: elements with their attributes and texts, and whether all of them are closed."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text("utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.comments: list[str] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def contents(self) -> Any:
        return json.loads(self.texts["script"][0])

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(tmp_path: Path, scores: Scores, **options: Any) -> Page:
    path = write_report(scores, tmp_path / "out", **options)
    assert path == tmp_path / "out" / "report.html"
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    page = Page(path)
    assert page.open == []
    check_closed_off(page)
    return page


def check_closed_off(page: Page) -> None:
    """Two scripts, one style sheet, both allowed by hash; nothing that loads, nothing inline."""
    scripts = page.of("script")
    assert scripts == [{"type": "application/json", "id": "contents"}, {}]
    assert len(page.of("style")) == 1
    assert not {"link", "img", "iframe", "object", "embed", "base", "form", "a"} & {tag for tag, _ in page.elements}
    assert page.comments == []
    for _, attributes in page.elements:
        assert not {"src", "href", "style", "srcset", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    policy = next(m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for text in (page.texts["script"][1], page.texts["style"][0]):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
        assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttp|innerHTML|eval\(|document\.write", text)


def texts_of(page: Page, n: int) -> tuple[str, str]:
    row, separator = page.contents["rows"][str(n)], page.contents["separator"]
    return row["p"].replace(separator, ""), row["c"].replace(separator, "")


def test_hostile_rows_stay_text(tmp_path: Path) -> None:
    rows = [
        {"prompt": a, "completion": b, "id": f"{n} {c[:60]}"}
        for n, (a, b, c) in enumerate(zip(HOSTILE, reversed(HOSTILE), HOSTILE[3:] + HOSTILE[:3], strict=True))
    ]
    queries = [
        Query(a, b, corrected="x</title>" + a, id=f"{n}</script>{a[:20]}") for n, (a, b) in enumerate(pairwise(HOSTILE))
    ]
    leanings = [Leaning(query="0</script>", checkpoint="</script><b>", output=-1.0, corrected=None)]
    page = report(
        tmp_path,
        make_scores(rows, queries, method="<i>dda", leanings=leanings, provenance={"<b>": ["</td>", {"x": "-->"}]}),
    )
    assert page.texts["title"] == ["<script>alert(1)</script> → </script><script>alert(2)</script> · headwater"]
    assert texts_of(page, 1)[0] == HOSTILE[1]
    assert texts_of(page, 2)[0] == HOSTILE[2]
    assert texts_of(page, 3)[0] == HOSTILE[3]
    assert texts_of(page, 6)[0] == "line one\nline two\nline three\ttab ␛[31mred␛[0m ␇ ␀"
    assert "\u202e" not in page.source and "\x1b" not in page.source
    assert len(page.source) < 400_000


def test_embedded_json_holds_no_markup() -> None:
    value = {"text": "</script><!-- & \u2028 \u2029 -->", "number": [1, 0.5, None, True]}
    assert not set("<>&\u2028\u2029") & set(embedded(value))
    assert json.loads(embedded(value)) == value
    with pytest.raises(ValueError):
        embedded({"x": float("nan")})


def test_half_surrogates_do_not_break_the_file(tmp_path: Path) -> None:
    page = report(tmp_path, make_scores(ROWS, [QUERY], provenance={"note": "\ud800"}))
    assert "\ufffd" in "".join(page.texts["td"])


def test_contents_say_what_scores_say(tmp_path: Path) -> None:
    methods, culprits = fact_scores()
    page = report(tmp_path, methods[0], others=methods[1:], culprits=culprits, top=40)
    contents = page.contents
    assert [m["name"] for m in contents["methods"]] == ["dda", "tracin", "bm25"]
    assert contents["methods"][0]["terms"][0] == "base"
    assert contents["methods"][2]["terms"] == []
    assert contents["order"] == [6, 0, 1, 2, 3, 4, 5]  # the group first
    for m, scores in enumerate(methods):
        orders = [np.argsort(-other.values, axis=1, kind="stable") for other in methods if other is not scores]
        for r in range(len(scores.targets)):
            answer = contents["answers"][m][r]
            assert answer["sentences"] == scores.sentences(r)
            assert sum(answer["bins"]) == len(scores.train)
            assert answer["out"] == len(scores.standing_out(r))
            top = scores.top(40, target=r)
            assert len(answer["best"]) == 40
            assert len(answer["worst"]) <= 10 and all(entry[2] < 0 for entry in answer["worst"])
            names = contents["methods"][m]["terms"]
            for row, entry in zip(top, answer["best"], strict=True):
                assert entry[0] == row.index
                assert entry[1] == row.rank
                assert entry[2] == pytest.approx(row.score, rel=1e-3)
                assert entry[3] == pytest.approx(row.deviations, rel=1e-2, abs=1e-2)
                assert 100 * (400 - entry[4]) / 400 == pytest.approx(row.percentile)
                assert entry[5] is row.q_value is None
                assert entry[6] == pytest.approx([row.per_checkpoint[n] for n in names], rel=1e-2)
                places = [int(np.flatnonzero(order[r] == row.index)[0]) + 1 for order in orders]
                assert entry[7] == places
                assert contents["rows"][str(row.index)]["id"] == row.id
    target = contents["targets"][6]
    first = {row.id for row in methods[0].top(24, target=FAULT)}
    assert target["guilty"] == 24
    assert contents["answers"][0][6]["found"] == len(first & culprits[FAULT])
    assert {contents["rows"][str(n)]["id"] for n in target["culprits"]} <= culprits[FAULT]
    assert contents["targets"][0]["guilty"] == 24  # a query has its group's
    assert {"Portuguese", "official", "language"} <= set(target["words"])
    assert "headwater trace --base" in page.texts["pre"][0]


def test_the_first_answer_can_be_read_without_scripts(tmp_path: Path) -> None:
    methods, culprits = fact_scores()
    page = report(tmp_path, methods[0], others=methods[1:], culprits=culprits)
    assert FAULT in page.texts["h1"][0]
    assert [text for text in page.texts["p"] if text in methods[0].sentences(FAULT)] == methods[0].sentences(FAULT)
    assert "Portuguese" in page.texts["mark"]
    ids = {text for text in page.texts["span"] if text.startswith("fact-")}
    assert ids == {row.id for row in methods[0].top(25, target=FAULT)}
    assert "checkpoint-52" in page.texts["th"]
    assert "culprit" in page.texts["span"]


@pytest.mark.parametrize("corrected", [None, " City 3."])
def test_one_query_with_and_without_a_corrected_output(tmp_path: Path, corrected: str | None) -> None:
    leanings = [
        Leaning(query="q1", checkpoint=name, output=-2.0, corrected=None if corrected is None else -3.0)
        for name in ("base", "checkpoint-1")
    ]
    page = report(tmp_path, make_scores(ROWS, [Query("p", " City 4.", corrected=corrected)], leanings=leanings))
    pair = [-2.0, None if corrected is None else -3.0]
    assert page.contents["leanings"] == {"checkpoints": ["base", "checkpoint-1"], "values": {"q1": [pair, pair]}}
    assert ("City 3." in "".join(page.texts["span"][:6])) == (corrected is not None)


def test_no_leanings_no_culprits_one_method(tmp_path: Path) -> None:
    contents = report(tmp_path, make_scores(ROWS, [QUERY])).contents
    assert contents["leanings"] is None
    assert contents["targets"][0]["culprits"] is None
    assert contents["twins"] == []


def test_one_row(tmp_path: Path) -> None:
    contents = report(tmp_path, make_scores(ROWS[:1], [QUERY], values=np.array([[-0.5]]))).contents
    answer = contents["answers"][0][0]
    assert answer["bins"] == [1]
    assert answer["best"] == [[0, 1, -0.5, 0, 0, None, [], []]] == answer["worst"]


@pytest.mark.parametrize("value", [0.0, 1e6, -1e-300])
def test_no_spread(tmp_path: Path, value: float) -> None:
    answer = report(tmp_path, make_scores(ROWS, [QUERY], values=np.full((1, 30), value))).contents["answers"][0][0]
    assert answer["bins"] == [30]
    assert answer["threshold"] is None
    assert [entry[4] for entry in answer["best"]] == [0] * 30  # ties: every row has percentile 100


def test_spread_near_the_limits_of_float(tmp_path: Path) -> None:
    values = np.array([[1.0, 1.0 + 2e-16, *[1.0] * 28]])
    assert report(tmp_path, make_scores(ROWS, [QUERY], values=values)).contents["answers"][0][0]["bins"] == [30]


def test_duplicates_are_named_and_stay_rows(tmp_path: Path) -> None:
    rows = [*ROWS, ROWS[4], ROWS[4], ROWS[7]]
    values = np.array([[*np.linspace(-1, 1, 30), 0.9, 0.9, 0.8]])
    contents = report(tmp_path, make_scores(rows, [QUERY], values=values)).contents
    assert contents["train"]["duplicates"] == 3
    assert [(group["count"], group["rows"]) for group in contents["twins"]] == [(3, [4, 30, 31]), (2, [7, 32])]
    assert contents["twins"][0]["ids"] == ["rows:5", "rows:31", "rows:32"] or len(contents["twins"][0]["ids"]) == 3


def test_chats(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Capital {n}?"}],
            "completion": [{"role": "assistant", "content": "<b>City"}],
        }
        for n in range(3)
    ]
    page = report(tmp_path, make_scores(rows, [Query([{"role": "user", "content": "Capital 1?"}], "City")]))
    assert texts_of(page, 0) == ("user: Capital 0?\n", "assistant: <b>City")


def test_long_texts_are_cut_around_the_completion(tmp_path: Path) -> None:
    rows = [{"prompt": "a " * 9000 + "END", "completion": " BEGIN" + " b" * 9000}]
    page = report(tmp_path, make_scores(rows, [QUERY]))
    prompt, completion = texts_of(page, 0)
    assert prompt.endswith("END") and completion.startswith(" BEGIN")
    assert len(prompt) + len(completion) == 4000
    assert page.contents["rows"]["0"]["cut"] == [18003 - len(prompt), 18006 - len(completion)]


def test_the_separator_is_in_no_text(tmp_path: Path) -> None:
    rows = [{"prompt": "a | b ~ c ^ ` § ¶ \x7f", "completion": "d"}, {"prompt": "e", "completion": "f"}]
    page = report(tmp_path, make_scores(rows, [QUERY]))
    assert page.contents["separator"] == "\x7f"
    assert texts_of(page, 0)[0] == "a | b ~ c ^ ` § ¶ ␡"


def test_thirty_questions_of_three_methods_stay_small(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Row {n} says that the capital of land {n * 7} is", "completion": f" City {n * 13}, so it is told."}
        for n in range(1000)
    ]
    train = Examples.from_rows(rows, name="rows.jsonl")
    queries = [Query(f"The capital of land {n} is", " City 7.", corrected=" City 8.", id=f"q{n}") for n in range(30)]
    rng = np.random.default_rng(0)
    names = ["base", *(f"checkpoint-{n}" for n in range(1, 5))]
    methods = [
        make_scores(train, queries, method=method, terms={name: rng.normal(size=(30, 1000)) for name in names})
        for method in ("dda", "tracin", "cosine")
    ]
    path = write_report(methods[0], tmp_path, others=methods[1:])
    assert path.stat().st_size < 1_500_000
    assert len(Page(path).contents["answers"][2][29]["best"]) == 100


def test_answers_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    first = make_scores(ROWS, [QUERY])
    for other in (
        make_scores(ROWS, [QUERY]),
        make_scores(ROWS, [QUERY, Query("p", "o")], method="bm25"),
        make_scores(ROWS[:9], [QUERY], method="bm25"),
    ):
        with pytest.raises(DataError):
            write_report(first, tmp_path, others=[other])
    with pytest.raises(DataError):
        write_report(make_scores(ROWS, []), tmp_path)
    with pytest.raises(UsageError):
        write_report(first, tmp_path, top=0)
    assert not list(tmp_path.iterdir())


def test_nested_values_become_lines() -> None:
    value = {"a": {"b": [1, 2]}, "c": [{"name": "x", "d": 1}, {"e": None}], "f": {}, "g": []}
    assert list(flattened(value)) == [("a.b", "1, 2"), ("c.x.d", "1"), ("c.2.e", "none"), ("f", "none"), ("g", "none")]


def test_words_are_shaded_by_their_part_and_stay_text(tmp_path: Path) -> None:
    from dataclasses import replace

    from headwater.scores import Asked, RowWords

    scores = make_scores(ROWS, [QUERY])
    best = scores.top(1)[0].index
    many = [(f" w{n}", 0.0) for n in range(600)]
    row = RowWords(
        words=(*many, (" <b>City</b>", -2.0), (" 4", 1.0), *many),
        asked=(
            Asked(query="q1", side="output", words=((" City", 1.0), (" 4", 0.5))),
            Asked(query="q1", side="corrected", words=((" City", 0.2),)),
        ),
    )
    page = Page(write_report(replace(scores, words={(0, best): row}), tmp_path))
    words = page.contents["answers"][0][0]["words"]
    assert list(words) == [str(best)]
    shown = words[str(best)]["row"]
    assert len(shown) == 202 and shown[0][0] == "… " and shown[-1][0] == " …"
    assert [" <b>City</b>", -5] in shown and [" 4", 2] in shown
    assert words[str(best)]["asked"] == [["output", [[" City", 5], [" 4", 2]]], ["corrected", [[" City", 1]]]]
    assert "Shaded words carry the score" in page.source and "<b>City" not in page.source
    assert "Shaded words" not in Page(write_report(scores, tmp_path)).source
