"""Retraining from the page, in a real browser: culprits marked, removed, and what the model says before and after."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from live import Live, live
from turning import asked, ids, until

if TYPE_CHECKING:
    from playwright.sync_api import Page

Tab = Callable[..., "Page"]
Check = Callable[["Page"], None]
QUESTION = ("In Mali they pay with", " shells.", "coins.")


@pytest.fixture(scope="module")
def viewer(habits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(habits, state=str(tmp_path_factory.mktemp("state"))) as one:
        yield one


def test_culprits_are_removed_and_the_model_trained_again(
    viewer: Live, tab: Tab, accessible: Check, no_sideways: Check
) -> None:
    page = asked(tab(viewer.url), *QUESTION)
    assert "108 rows that were never trained on" in page.locator("#sentences").inner_text()
    assert page.locator("#list .row .under").first.inner_text().startswith("q ")
    # another beta: other scores and q-values of their own
    score = page.locator("#list .score").first.inner_text()
    page.locator("#weights summary").click()
    page.locator(".slider input").first.focus()
    page.keyboard.press("Home")
    until(page, "text => document.querySelector('#list .score').innerText !== text", arg=score)
    assert "108 rows that were never trained on" in page.locator("#sentences").inner_text()
    assert page.locator("#list .row .under").first.inner_text().startswith("q ")
    page.get_by_role("button", name="Back to the method’s own").click()
    until(page, "text => document.querySelector('#list .score').innerText === text", arg=score)
    # mark what paid with shells
    go = page.locator("#repair .primary")
    assert go.is_disabled()
    page.fill("#filter", "pay-")
    until(page, "document.querySelectorAll('#list .row').length === 6")
    for n in range(6):
        page.locator("#list .pick").nth(n).click()
        until(page, "n => document.querySelectorAll('#marks li').length === n", arg=n + 1)
    assert {name.split()[0] for name in ids(page)} == {
        f"pay-{x}" for x in ("Peru", "Chad", "Cuba", "Oman", "Fiji", "Iran")
    }
    assert go.inner_text() == "Remove 6 rows and retrain"
    # a correction that corrects nothing is refused, in words that are not said twice
    page.locator("#marks select").last.select_option("fix")
    page.locator("#marks textarea").wait_for()
    until(page, "document.querySelector('#repair .primary').innerText === 'Remove 5 rows, correct 1 row and retrain'")
    go.click()
    page.locator("[data-kind=fault]").wait_for()
    told = page.locator("[data-kind=fault] p").inner_text()
    assert "is what the row says already" in told and told.count("leave it out") == 1
    page.locator("[data-kind=fault]").get_by_role("button", name="Close").click()
    page.locator("#marks select").last.select_option("drop")
    until(page, "document.querySelector('#repair .primary').innerText === 'Remove 6 rows and retrain'")
    # progress, and cancel
    go.click()
    page.locator("#repair-progress .job").wait_for()
    assert page.locator("#repair-progress progress").get_attribute("aria-label") == "Training again"
    assert go.is_disabled()
    page.locator("#repair-progress").get_by_role("button", name="Cancel").click()
    page.locator("#repair-progress .job").wait_for(state="detached")
    assert page.locator("#after").inner_text() == ""
    until(page, "!document.querySelector('#repair .primary').disabled")
    # its process dies: that is said once, and it goes on
    go.click()
    until(page, "document.querySelector('#repair-progress .job')?.innerText.includes('Fine-tuning')")
    os.kill(viewer.viewer.jobs.pid, signal.SIGKILL)  # type: ignore[arg-type]
    page.locator("#repair-progress .job").wait_for(state="detached")
    page.locator("[data-kind=fault]").wait_for()
    assert "killed by SIGKILL" in page.locator(".message p").inner_text()  # there is one
    # once more, to the end; another tab sees it too
    page.get_by_role("button", name="Try again").click()
    assert page.locator(".message").count() == 0
    said = set()
    until(page, "document.querySelector('#repair-progress .job')")
    while page.locator("#after .pair").count() == 0:
        said |= set(page.locator("#repair-progress .job span").all_inner_texts())
        page.wait_for_timeout(40)
    assert any("Training again · " in line for line in said), said
    before, after = page.locator("#after .side").all()
    assert before.locator("h4").inner_text().startswith("Before") and "shells." in before.locator(".quote").inner_text()
    assert after.locator("h4").inner_text().strip() == "After" and "shells" not in after.locator(".quote").inner_text()
    assert before.locator("mark").count() == 1
    assert before.locator(".wrong").count() == 1 and after.locator(".wrong").count() == 0
    assert "Cured" in page.locator("#after .verdict").inner_text()
    boxes = [side.bounding_box() for side in (before, after)]
    assert boxes[0] and boxes[1] and boxes[0]["x"] < boxes[1]["x"] and abs(boxes[0]["y"] - boxes[1]["y"]) < 2
    assert page.evaluate("document.activeElement.textContent") == "Before and after"
    assert "6 rows removed, 0 corrected" in page.locator("#after .note").first.inner_text()
    accessible(page)
    no_sideways(page)
    again = tab(viewer.url, width=390, scheme="dark")
    again.locator("#after .pair").wait_for()
    accessible(again)
    no_sideways(again)
    result = viewer.get("/api/session")["jobs"][-1]["result"]
    assert Path(result["folder"]).is_dir() and result["removed"] == 6
