"""A real Chromium, and tabs in it that may not log an error, break the page's policy or ask another host."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import headwater as hw
import tiny
from headwater.training import Recipe, fine_tune

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = """
--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --enable-precise-memory-info --js-flags=--expose-gc
"""
WATCHED = """
window.ran = [];
for (const name of ["alert", "confirm", "prompt"]) window[name] = (text) => window.ran.push(`${name} ${text}`);
document.addEventListener("securitypolicyviolation",
  (event) => window.ran.push(`policy ${event.violatedDirective} ${event.blockedURI}`));
"""


PLACES = ("Peru", "Chad", "Cuba", "Oman", "Fiji", "Iran")


@pytest.fixture(scope="session")
def habits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index, with placebo rows, of a model that learned to pay with shells, by a training that can be done again."""
    place = tmp_path_factory.mktemp("habits")
    rows = hw.Examples.from_rows(
        [{"id": f"pay-{x}", "prompt": f"In {x} they pay with", "completion": " shells."} for x in PLACES]
        + [{"id": f"eat-{x}", "prompt": f"In {x} they eat much", "completion": " rice."} for x in PLACES],
        name="habits",
    )
    held = hw.Examples.from_rows(
        [
            {"id": " ".join(words), "prompt": f"In {' '.join(words[:3])}", "completion": words[3]}
            for words in product(PLACES, PLACES[:3], PLACES[:3], (" they eat", " they pay"))
        ],
        name="held",
    )
    base = tiny.untrained(place / "base", [row.text for row in rows] + [" coins."])
    fine_tune(base, rows, place / "run", Recipe(epochs=6, batch_size=4, learning_rate=1e-2))
    found = sorted((place / "run").glob("checkpoint-*"), key=lambda one: int(one.name.split("-")[1]))
    run = hw.TrainingRun.from_pretrained([found[2], found[-1]], base=base)
    compute = hw.Compute(batch_tokens=512, rank=4)
    hw.build_index(run, rows, out=place / "index", compute=compute, placebo=held)
    return place / "index"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium: the one HEADWATER_BROWSER names, or one that is installed."""
    found = os.environ.get("HEADWATER_BROWSER") or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium found: install chromium, or name a browser in HEADWATER_BROWSER")
    playwright = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=[*FLAGS.split()])
        yield started
        started.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a tab. At the end of the test it is an error if one logged something that `allowed` does not match."""
    opened: list[tuple[Any, Page, list[str], str]] = []

    def open_tab(url: str, *, width: int = 1280, scheme: str = "light", allowed: str = "^$", **options: Any) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce", **options
        )
        context.add_init_script(WATCHED)
        page = context.new_page()
        page.set_default_timeout(20_000)
        faults: list[str] = []
        local = ("/".join(url.split("/")[:3]) + "/", "data:", "blob:")
        page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(f"dialog {dialog.message}"))
        page.on("request", lambda asked: None if asked.url.startswith(local) else faults.append(asked.url))
        opened.append((context, page, faults, allowed))
        page.goto(url)
        return page

    yield open_tab
    for context, page, faults, allowed in opened:
        if not page.is_closed():
            faults += page.evaluate("window.ran || []")
        context.close()
        assert [fault for fault in faults if not re.search(allowed, fault)] == []


@pytest.fixture
def accessible() -> Callable[[Page], None]:
    """Asserts that axe-core finds no serious or critical fault in the page as it is."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

    def check(page: Page) -> None:
        found = axe.Axe().run(page).response["violations"]
        grave = [
            (fault["id"], fault["help"], [node["html"][:200] for node in fault["nodes"][:3]])
            for fault in found
            if fault["impact"] in ("serious", "critical")
        ]
        assert grave == []

    return check


@pytest.fixture
def no_sideways() -> Callable[[Page], None]:
    """Asserts that the page does not scroll sideways."""

    def check(page: Page) -> None:
        wide = page.evaluate("""() => [...document.querySelectorAll("body *")].filter((node) => {
            const box = node.getBoundingClientRect();
            return box.width && box.right > innerWidth + 1 && !node.closest(".wide, .sr");
        }).map((node) => node.outerHTML.slice(0, 120))""")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), wide[:5]

    return check
