"""What the tests of the page in a browser do over and over: ask, wait until the rows are there, read them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page


def asked(page: Page, prompt: str, said: str, corrected: str) -> Page:
    """The page with a question answered whose output was pasted."""
    page.locator("body[data-ready]").wait_for()
    page.fill("#prompt", prompt)
    page.click("#paste")
    page.fill("#output", said)
    page.click("#use")
    page.fill("#corrected", corrected)
    settled(page)
    return page


def until(page: Page, true: str, arg: Any = None, seconds: float = 180) -> None:
    """Waits until an expression holds. (Playwright's own way evaluates text in the page, which its policy refuses.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(true, arg):
        assert time.monotonic() < end, f"never true: {true}, {arg}; {page.locator('body').inner_text()[:2000]}"
        page.wait_for_timeout(30)


def settled(page: Page, seconds: float = 180) -> None:
    """The rows of what stands in the fields are there."""
    until(
        page,
        """!document.querySelector('body[data-waiting], .job, #lists[aria-busy], #result[aria-busy], #words[aria-busy]')
        && document.querySelector('#list .row')""",
        seconds=seconds,
    )


def ids(page: Page, where: str = "#list") -> list[str]:
    """Ids of the rows shown."""
    return page.locator(f"{where} .row .id").all_inner_texts()
