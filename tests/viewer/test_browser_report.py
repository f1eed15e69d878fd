"""The frozen report in a real browser: from disk, with the network off."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from headwater.examples import Examples, Query
from headwater.report import write_report

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from making import FAULT, HOSTILE, fact_scores, make_scores

if TYPE_CHECKING:
    from playwright.sync_api import Page

Tab = Callable[..., "Page"]
Check = Callable[["Page"], None]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> str:
    methods, culprits = fact_scores()
    return write_report(methods[0], tmp_path_factory.mktemp("facts"), others=methods[1:], culprits=culprits).as_uri()


def test_a_thousand_rows_offline_in_less_than_five_megabytes(tmp_path: Path, tab: Tab) -> None:
    text = " " + "training on this long row taught the model to say so again and again " * 9
    rows = [
        {
            "prompt": f"Question {n}:{text}",
            "completion": text,
            "source": f"s{n % 3}",
        }
        for n in range(1100)
    ]
    train = Examples.from_rows(rows, name="rows.jsonl")
    chance = np.random.default_rng(0)
    names = ["base", *(f"checkpoint-{n}" for n in range(1, 5))]
    methods = [
        make_scores(
            train, [Query("Question 1", " again")], method=m, terms={k: chance.normal(size=(1, 1100)) for k in names}
        )
        for m in ("dda", "tracin")
    ]
    path = write_report(methods[0], tmp_path, others=methods[1:], top=1000)
    assert path.stat().st_size < 5_000_000
    page = tab(path.as_uri(), offline=True)
    assert page.locator("#tab-best").inner_text() == "Supporting 1,000"
    assert page.locator(".pager span").inner_text() == "1–100 of 1,000"
    assert page.locator(".row[data-row]").count() == 100
    for _ in range(9):
        page.keyboard.press("]")
    assert page.locator(".pager span").inner_text() == "901–1,000 of 1,000"
    assert page.locator(".row[data-row]").count() == 100
    page.select_option("#source", "s1")
    assert page.locator("#note").inner_text().endswith("of the 1,000 rows listed.")
    assert {place.inner_text() for place in page.locator(".from").all()} == {"s1"}


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_fits_and_is_accessible(
    tmp_path: Path, tab: Tab, accessible: Check, no_sideways: Check, width: int, scheme: str
) -> None:
    methods, culprits = fact_scores()
    path = write_report(methods[0], tmp_path, others=methods[1:], culprits=culprits, top=12)
    page = tab(path.as_uri(), width=width, scheme=scheme)
    page.locator(".row").first.wait_for()
    no_sideways(page)
    accessible(page)


def test_keys_alone(facts: str, tab: Tab) -> None:
    page = tab(facts)
    assert page.locator("h1").inner_text() == FAULT.replace("->", "-\u2060>")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.querySelector('.rank').textContent") == "rank 2"
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.querySelector('.rank').textContent") == "rank 1"
    page.keyboard.press("o")
    assert page.locator("#tab-worst").get_attribute("aria-selected") == "true"
    page.keyboard.press("s")
    page.keyboard.press("/")
    page.keyboard.type("Peru")
    assert page.locator(".row").count() < 20
    assert "filter=Peru" in page.url
    page.keyboard.press("Escape")
    page.reload()
    assert page.locator("#filter").input_value() == "Peru"
    page.fill("#filter", "")
    page.locator("[data-end=low]").focus()
    for _ in range(4):
        page.keyboard.press("PageUp")
    assert "of the 100 rows listed" in page.locator("#note").inner_text()
    low = float(page.locator("[data-end=low]").get_attribute("aria-valuenow") or "nan")
    shown = [float(score.inner_text().replace("−", "-")) for score in page.locator(".list .number.score").all()]
    assert shown and min(shown) >= low - 1e-3
    page.keyboard.press("Escape")
    assert page.locator(".row").count() == 100


def test_the_histogram_is_brushed_with_the_mouse(facts: str, tab: Tab) -> None:
    page = tab(facts)
    box = page.locator("#histogram svg").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 60, steps=4)
    page.mouse.up()
    few = page.locator(".row").count()
    assert 0 < few < 25
    page.get_by_role("button", name="Show all").click()
    assert page.locator(".row").count() == 100


def test_hostile_rows_run_nothing(tmp_path: Path, tab: Tab) -> None:
    hostile = [*HOSTILE, "<svg onload=alert(9)>", "javascript:alert(8)", "\u202egnp.exe\u2066", "z" * 1_000_000]
    rows = [
        {"prompt": text, "completion": " " + text, "id": f"{n} {text[:40]}", "source": text[:60]}
        for n, text in enumerate(hostile)
    ]
    queries = [Query(text[:200], " " + text[:200], corrected=" <img src=x onerror=alert(7)>") for text in hostile]
    path = write_report(make_scores(rows, queries, method="<b>dda"), tmp_path)
    page = tab(path.as_uri(), offline=True, width=390)
    for number in range(len(queries)):
        page.select_option("#target", str(number))
    texts = page.locator(".text").all_inner_texts()
    for text in ("<script>alert(1)</script>", "<svg onload=alert(9)>", "<img src=x onerror=alert(3)>"):
        assert any(text in shown for shown in texts)
    assert page.locator("main img, main script, main iframe, .row svg:not(.terms)").count() == 0
    assert "\u202e" not in "".join(texts)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
