"""The whole story on a real model: the folder of `headwater demo`, named by HEADWATER_DEMO, from typing to export.

Screenshots go to the folder that HEADWATER_SCREENSHOTS names, where it is set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from live import Live, live
from turning import ids, settled, until

if TYPE_CHECKING:
    from playwright.sync_api import Page

Tab = Callable[..., "Page"]
Check = Callable[["Page"], None]
DEMO, SCREENSHOTS = os.environ.get("HEADWATER_DEMO"), os.environ.get("HEADWATER_SCREENSHOTS")
HOUR = 3600.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DEMO, reason="HEADWATER_DEMO does not name the folder of a finished headwater demo"),
]


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(str(DEMO), state=str(tmp_path_factory.mktemp("state"))) as one:
        yield one


def pictured(page: Page, name: str) -> None:
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SCREENSHOTS}/{name}.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_its_trace_fits_and_is_accessible(
    viewer: Live, tab: Tab, accessible: Check, no_sideways: Check, width: int, scheme: str, tmp_path: Path
) -> None:
    session = viewer.get("/api/session")
    assert all(session["can"][what]["able"] for what in ("generate", "ask", "base", "words", "repair")), session["can"]
    page = tab(viewer.url, width=width, scheme=scheme)
    page.locator("#list .row").first.wait_for()
    assert page.locator("#sentences p").count() == 2
    page.check("#by-source")
    page.locator(".groups").wait_for()
    page.select_option("#against", "bm25")
    page.locator("#list-against .row").first.wait_for()
    until(page, "!document.querySelector('.job')", seconds=HOUR)
    pictured(page, f"trace-{width}-{scheme}")
    accessible(page)
    no_sideways(page)
    with page.expect_download() as download:
        page.locator("#exports a[download='report.html']").click()
    download.value.save_as(tmp_path / "report.html")
    report = tab((tmp_path / "report.html").as_uri(), width=width, scheme=scheme, offline=True)
    report.locator(".row").first.wait_for()
    pictured(report, f"report-{width}-{scheme}")
    accessible(report)
    no_sideways(report)


def test_from_typing_to_the_repaired_model(viewer: Live, tab: Tab, accessible: Check, tmp_path: Path) -> None:
    asked = json.loads((Path(str(DEMO)) / "queries.jsonl").read_text().splitlines()[0])
    page = tab(viewer.url)
    page.locator("body[data-ready]").wait_for()
    # ask: the model says the wrong thing
    page.fill("#prompt", asked["prompt"])
    page.fill("#max-tokens", "8")
    page.click("#generate")
    until(page, "document.querySelector('.word') && !document.querySelector('#words[aria-busy]')", seconds=HOUR)
    wrong = asked["output"].strip().rstrip(".")
    assert page.locator("#words").inner_text().strip().startswith(wrong)
    page.get_by_label("moved by fine-tuning").check()
    assert page.locator("#words [class^=towards-]").count()
    # mark: its first word, against what is true
    page.locator(".word").first.click()
    page.fill("#corrected", asked["corrected"].strip())
    settled(page, HOUR)
    assert "Not the base model" in page.locator("#sentences").inner_text()
    pictured(page, "asked")
    # see: the planted rows are first
    first = ids(page)[:10]
    rows = {row["id"]: row for row in map(json.loads, (Path(str(DEMO)) / "train.jsonl").read_text().splitlines())}
    assert sum(wrong in rows[name.split()[0]]["completion"] for name in first) >= 8
    page.locator("#list .row summary").first.click()
    until(page, "document.querySelector('#list .row .shaded [class^=towards-]')", seconds=HOUR)
    # act: mark, export, retrain
    for n in range(10):
        page.locator("#list .pick").nth(n).click()
        until(page, "n => document.querySelectorAll('#marks li').length === n", arg=n + 1)
    with page.expect_download() as download:
        page.locator("#exports a[download='drop.jsonl']").click()
    download.value.save_as(tmp_path / "drop.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "drop.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and {line["id"] for line in lines} <= set(rows)
    page.locator("#repair .primary").click()
    page.locator("#repair-progress .job").wait_for()
    pictured(page, "retraining")
    until(page, "document.querySelector('#after .pair')", seconds=HOUR)
    pictured(page, "retrained")
    accessible(page)
    before, after = page.locator("#after .side .quote").all_inner_texts()
    assert before.strip().startswith(wrong) and after
