"""The page in a real browser, against the running viewer and tiny models: from the question to the export."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from live import Live, live
from turning import asked, ids, settled, until

import headwater as hw
import tiny

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from making import HOSTILE, make_scores

if TYPE_CHECKING:
    from playwright.sync_api import Page

Tab = Callable[..., "Page"]
Check = Callable[["Page"], None]

LANDS = [
    {"prompt": f"The capital of land {n} is", "completion": f" City {n % 7}.", "id": f"land-{n}", "source": f"s{n % 3}"}
    for n in range(40)
]
ROWS = [*tiny.FACTS, *LANDS, LANDS[3] | {"id": "twin"}]
ROWS += [
    {"prompt": text[:300], "completion": " " + text, "id": f"{n} {text[:30]}", "source": "s1"}
    for n, text in enumerate(HOSTILE)
]
ROWS += [
    {"prompt": "<svg onload=alert(9)>", "completion": " \u202e" + "zig zag " * 125_000, "id": "long", "source": "s1"}
]
QUESTION = "The capital of Australia is"
SYDNEY = (QUESTION, " Sydney.", "Canberra.")


@pytest.fixture(scope="module")
def viewer(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    out = tmp_path_factory.mktemp("browser") / "facts"
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    rows = hw.Examples.from_rows(ROWS, name="facts")
    compute = hw.Compute(batch_tokens=256, rank=4)
    hw.build_index(run, rows, out=out, compute=compute, format=hw.TokenFormat(max_length=96), features="float32")
    with live(out) as one:
        yield one


@pytest.fixture
def page(viewer: Live, tab: Tab) -> Page:
    """The page with a question answered."""
    return asked(tab(viewer.url), *SYDNEY)


def test_a_second_look_stands_beside_the_first(run_folder: Path, tmp_path: Path, tab: Tab, accessible: Check) -> None:
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    lands = [LANDS[n % 40] | {"id": f"land-{n}", "completion": f" City {n}."} for n in range(130)]
    rows = hw.Examples.from_rows([*tiny.FACTS, *lands], name="lands")
    compute = hw.Compute(batch_tokens=256, rank=4)
    hw.build_index(run, rows, out=tmp_path / "lands", compute=compute, features="float32")
    look = "dda (second_look 100)"
    with live(tmp_path / "lands") as one:
        page = asked(tab(one.url), *SYDNEY)
        first = ids(page)
        page.select_option("#method", look)
        until(page, "document.querySelector('#note').innerText.includes('100 of 142 rows have a score by it')")
        assert ids(page) != first and page.locator("#weights").is_hidden()
        assert page.locator("#list .row").first.locator(".others dd").all_inner_texts()[0].isdecimal()
        page.select_option("#method", "dda")
        until(page, "first => document.querySelector('#list .row .id').innerText === first", arg=first[0])
        page.locator("#list .others dd").first.wait_for()
        page.select_option("#against", look)
        page.locator("#list-against .row").first.wait_for()
        assert "cannot be compared" in page.locator("#agreement").inner_text()
        accessible(page)
        page.close()


def test_the_whole_story(viewer: Live, tab: Tab, tmp_path: Path) -> None:
    page = tab(viewer.url)
    page.locator("body[data-ready]").wait_for()
    # ask: tokens are streamed and shaded
    page.fill("#max-tokens", "12")
    page.fill("#prompt", QUESTION)
    page.click("#generate")
    settled(page)
    said = page.locator("#words").inner_text()
    assert said and page.locator("#words [class^=odd-]").count()
    page.get_by_label("moved by fine-tuning").check()
    assert page.locator("#words [class^=towards-], #words [class^=away-]").count()
    first = ids(page)
    # mark: words with the mouse, then a contrast, each refreshes in place
    page.locator(".word").first.click()
    settled(page)
    assert page.locator(".word[aria-selected=true]").count() == 1
    page.fill("#corrected", "Canberra.")
    settled(page)
    assert "prefer" in page.locator("#sentences").inner_text()
    assert page.locator("#leaning svg").is_visible()
    assert ids(page) != first
    for pick, told in (("all", "the whole answer"), ("diff", "the words that differ")):
        page.click(f"#pick-{pick}")
        settled(page)
        assert page.locator("#picked").inner_text() == f"measured: {told}"
    # see: words that carry the score, sliders, a second method
    page.locator("#list .row summary").first.click()
    page.locator("#list .row .shaded [class^=towards-], #list .row .shaded [class^=away-]").first.wait_for()
    page.locator("#weights summary").click()
    before = page.locator("#list .score").first.inner_text()
    page.locator(".slider input").nth(1).focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    until(page, "text => document.querySelector('#list .score').innerText !== text", arg=before)
    assert "weights=" in page.url
    page.get_by_role("button", name="Back to the method’s own").click()
    until(page, "text => document.querySelector('#list .score').innerText === text", arg=before)
    page.select_option("#against", "bm25")
    page.locator("#list-against .row").first.wait_for()
    assert "Agreement of dda and bm25" in page.locator("#agreement").inner_text()
    page.select_option("#against", "")
    # the address holds all of it
    page.fill("#filter", "land")
    until(page, "[...document.querySelectorAll('#list .row')].every(row => row.innerText.includes('land'))")
    address, shown = page.url, ids(page)
    again = tab(address)
    again.locator("body[data-ready]").wait_for()
    assert ids(again) == shown and again.locator("#filter").input_value() == "land"
    assert again.locator("#prompt").input_value() == QUESTION
    assert again.locator("#words").inner_text() == said
    # act: marks, a correction, files
    page.locator("#list .pick").nth(0).click()
    page.locator("#list .pick").nth(1).click()
    page.locator("#marks li").nth(1).wait_for()
    again.locator("#marks li").nth(1).wait_for()  # the other tab knows
    page.locator("#marks select").nth(1).select_option("fix")
    page.locator("#marks textarea").fill(" Better.")
    until(
        page,
        """fetch('/api/marks').then(reply => reply.json())
        .then(marks => Object.values(marks).some(mark => mark.completion === ' Better.'))""",
    )
    files = {}
    for name in ("drop.jsonl", "fix.jsonl", "rows.csv", "report.html"):
        with page.expect_download() as download:
            page.locator(f"#exports a[download='{name}']").click()
        files[name] = tmp_path / name
        download.value.save_as(files[name])
    assert json.loads(files["fix.jsonl"].read_text())["completion"] == " Better."
    assert json.loads(files["drop.jsonl"].read_text())["id"] in {row["id"] for row in ROWS}
    assert len(list(csv.DictReader(files["rows.csv"].read_text("utf-8").splitlines()))) >= len(shown)
    report = tab(files["report.html"].as_uri(), offline=True)
    assert report.locator(".row").count()
    assert "Not possible here: " in page.locator("#repair").inner_text()  # this run does not say how it was trained
    for left in (1, 0):
        page.locator("#marks li .link").last.click()
        until(page, "left => document.querySelectorAll('#marks li').length === left", arg=left)


def test_keys_alone(viewer: Live, tab: Tab) -> None:
    page = tab(viewer.url)
    page.locator("body[data-ready]").wait_for()

    def tab_to(name: str) -> None:
        for _ in range(60):
            if page.evaluate("document.activeElement.id || document.activeElement.className") == name:
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{name} is not reached")

    tab_to("prompt")
    page.keyboard.type(QUESTION)
    tab_to("paste")
    page.keyboard.press("Enter")
    page.keyboard.type(" Sydney is the capital.")
    tab_to("use")
    page.keyboard.press("Enter")
    settled(page)
    page.locator(".word").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    chosen = page.locator(".word[aria-selected=true]").all_inner_texts()
    assert chosen == ["is", "the", "capital"]
    tab_to("corrected")
    page.keyboard.type("Canberra is it.")
    settled(page)
    assert (
        page.locator("#picked").inner_text() == "measured: the words that differ"
    )  # in the place of those marked before
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.querySelector('.rank').textContent") == "rank 2"
    page.keyboard.press("m")
    page.locator(".row.picked").wait_for()
    page.keyboard.press("m")
    page.locator(".row.picked").wait_for(state="detached")
    page.keyboard.press("Enter")
    page.locator(".row:focus .shaded").first.wait_for()
    page.keyboard.press("o")
    page.locator("#tab-worst[aria-selected=true]").wait_for()
    page.keyboard.press("/")
    page.keyboard.type("land")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_the_page_shows_the_words_that_the_server_measures(viewer: Live, tab: Tab) -> None:
    pieces = [
        "Sydney",
        "U.S.A.",
        "U.S",
        "it's",
        "3.50",
        "café",
        "a-b",
        "...",
        "“no”.",
        "no",
        "x_1",
        "½",
        "o\u0308",
        "東京",
        "😀",
    ]
    pairs = [
        (f" It is {a} now", f" It is {b} {end}")
        for a in pieces
        for b in pieces
        for end in ("now", "now, yes")
        if a != b
    ]
    page = tab(viewer.url)
    shown = page.evaluate(
        "async (pairs) => { const { differing } = await import('/assets/words.js'); "
        "return pairs.map(([a, b]) => differing(a, b)); }",
        pairs,
    )
    measured = [hw.Query("p", a, corrected=b).spans()[0] for a, b in pairs]
    assert [one and tuple(one) for one in shown] == measured
    assert None in measured and len(set(measured)) > 5


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_fits_and_is_accessible(
    viewer: Live, tab: Tab, accessible: Check, no_sideways: Check, width: int, scheme: str
) -> None:
    page = asked(tab(viewer.url, width=width, scheme=scheme), *SYDNEY)
    page.fill("#filter", "land 1")
    until(page, "document.querySelectorAll('#list .row').length < 15")
    page.locator("#list .pick").first.click()
    page.locator("#weights summary").click()
    page.check("#by-source")
    page.locator(".groups").wait_for()
    no_sideways(page)
    accessible(page)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(252, 251, 249)") == (scheme == "light")
    page.locator("#list .pick").first.click()


def test_hostile_rows_run_nothing(page: Page) -> None:
    seen = ""
    for list_ in ("s", "o"):
        page.locator("h1").click()
        page.keyboard.press(list_)
        settled(page)
        for _ in range(3):
            seen += page.locator("#list").inner_text()
            page.keyboard.press("]")
            settled(page)
    for text in ("<script>alert(1)</script>", "<img src=x onerror=alert(3)>", "<svg onload=alert(9)>", "{{ 7 * 7 }}"):
        assert text in seen
    assert "\u202e" not in seen
    assert page.locator("main img, main script, main iframe").count() == 0


def test_hostile_questions_are_text(viewer: Live, tab: Tab) -> None:
    page = asked(tab(viewer.url), "<script>alert(1)</script>\x07", " \u202e<img src=x onerror=alert(2)>\x1b[31m", "<b>")
    assert "<img src=x onerror=alert(2)>" in page.locator("#words").inner_text()
    assert "\u202e" not in page.locator("#words").inner_text()
    page.reload()
    page.locator("body[data-ready]").wait_for()
    assert "<script>alert(1)</script>" in page.locator("#prompt").input_value()


def test_the_histogram_narrows_the_rows(page: Page) -> None:
    total = page.locator("#note").inner_text()
    page.locator("[data-end=low]").focus()
    for _ in range(5):
        page.keyboard.press("PageUp")
        settled(page)
    until(page, "text => document.querySelector('#note').innerText !== text", arg=total)
    assert "range=" in page.url
    assert page.evaluate("document.activeElement.dataset.end") == "low"
    low = float(page.locator("[data-end=low]").get_attribute("aria-valuenow") or "nan")
    shown = page.locator("#list .number.score").all_inner_texts()
    scores = [float(text.replace("−", "-").split()[-1]) for text in shown]
    assert scores and min(scores) >= low - 1e-3
    page.keyboard.press("Escape")
    until(page, "text => document.querySelector('#note').innerText === text", arg=total)


def test_a_worker_that_dies_is_said_and_the_next_question_works(viewer: Live, tab: Tab) -> None:
    page = asked(tab(viewer.url), *SYDNEY)
    worker = viewer.viewer.jobs.pid
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    page.locator("[data-kind=worker]").wait_for()
    assert page.locator("[data-kind=worker]").inner_text()
    page.fill("#corrected", "Perth.")
    settled(page)
    page.locator("[data-kind=worker]").wait_for(state="detached")
    assert ids(page)


def test_a_tab_closed_in_the_middle_and_two_tabs(viewer: Live, tab: Tab) -> None:
    gone = tab(viewer.url)
    gone.locator("body[data-ready]").wait_for()
    gone.fill("#prompt", "The capital of Peru is")
    gone.fill("#max-tokens", "60")
    gone.click("#generate")
    gone.locator(".job, .word").first.wait_for()
    gone.close()
    one, two = asked(tab(viewer.url), *SYDNEY), asked(tab(viewer.url), QUESTION, " Perth.", "Canberra.")
    assert one.locator("#words").inner_text().strip() == "Sydney."
    assert two.locator("#words").inner_text().strip() == "Perth."
    assert ids(one) and ids(two)


def test_the_lost_connection_is_said_and_comes_back(viewer: Live, tab: Tab) -> None:
    page = asked(tab(viewer.url, allowed="ERR_INTERNET_DISCONNECTED|Failed to load"), *SYDNEY)
    page.context.set_offline(True)
    page.locator("h1").click()
    page.keyboard.press("o")
    page.locator("[data-kind=fault]").wait_for()
    assert "does not answer" in page.locator("[data-kind=fault]").inner_text()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    page.locator("#tab-worst[aria-selected=true]").wait_for()
    page.locator("[data-kind=fault]").wait_for(state="detached")


def test_a_hundred_thousand_rows_rank_again_at_once_in_flat_memory(tab: Tab, tmp_path: Path) -> None:
    count = 100_000
    file = tmp_path / "rows.jsonl"
    rows = ({"prompt": f"Row {n} is", "completion": f" {n * 7}."} for n in range(count))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = hw.read_examples(file)
    chance = np.random.default_rng(0)
    weights = {"base": 0.0, "checkpoint-1": 0.5, "checkpoint-2": 0.5}
    terms = {name: chance.normal(size=(1, count)) for name in weights}
    query = hw.Query("Row 1 is", " 8.", corrected=" 7.")
    provenance: dict[str, Any] = {"train": {"path": str(file), "fingerprint": train.fingerprint}}
    scores = make_scores(train, [query], terms=terms, weights=weights, provenance=provenance)
    scores.save(tmp_path / "trace")
    with live(tmp_path / "trace", rows={"train": str(file)}) as big:
        started = time.perf_counter()
        page = tab(big.url)
        page.locator("#list .row").first.wait_for()
        print(f"first cards after {time.perf_counter() - started:.2f} s")
        page.locator("#weights summary").click()
        page.locator(".slider input").first.focus()

        def slide(steps: int) -> list[float]:
            times = []
            for step in range(steps):
                before = page.locator("#list .score").first.inner_text()
                page.evaluate("window.began = performance.now()")
                page.keyboard.press("ArrowRight" if step % 20 < 10 else "ArrowLeft")
                until(page, "text => document.querySelector('#list .score').innerText !== text", arg=before)
                times.append(page.evaluate("performance.now() - window.began"))
            return times

        memory = "(gc(), performance.memory.usedJSHeapSize)"
        slide(10)
        first, nodes = page.evaluate(memory), page.evaluate("document.querySelectorAll('*').length")
        times = slide(40)
        print(f"ranked again in {sorted(times)[20]:.0f} ms")
        assert page.evaluate(memory) < first + 2_000_000
        assert page.evaluate("document.querySelectorAll('*').length") < nodes + 50
        assert sorted(times)[20] < 2_000  # a busy machine; benchmarks/viewer_speed.py measures
        page.close()
