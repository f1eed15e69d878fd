"""The page: whole, safe, and saying what was found."""

from __future__ import annotations

import base64
import hashlib
import io
import re

import pytest
from rich.console import Console

import headwater as hw
from conftest import Made
from headwater.diagnosis.terminal import summary

EVIL = "</style><script>alert(1)</script>\x1b[31m"


@pytest.fixture(scope="module")
def page(runs: dict[str, Made], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, hw.Diagnosis]:
    made = runs["LoRA"]
    out = tmp_path_factory.mktemp("page") / "out"
    queries = [*made.queries, hw.Query(f"The flag of {EVIL} is", " gold.", corrected=" red.", id=EVIL)]
    found = hw.diagnose(made.run, made.rows, queries=queries, held_out=made.held_out, probes=["Flags are old"], out=out)
    return (out / "diagnosis.html").read_text("utf-8"), found


def test_it_loads_nothing_and_runs_nothing(page: tuple[str, hw.Diagnosis]) -> None:
    text, _ = page
    assert "<script" not in text and "\x1b" not in text and "&lt;script&gt;" in text
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?://""", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert policy is not None and style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src &#39;sha256-{digest}&#39;" in policy[1] and "default-src &#39;none&#39;" in policy[1]
    assert "style=" not in text  # the policy would refuse it


def test_it_says_what_was_found(page: tuple[str, hw.Diagnosis]) -> None:
    text, found = page
    plain = text.replace("&#39;", "'").replace("&gt;", ">")
    for one in found.verdicts:
        assert one.words in plain
        assert one.holds is not True or one.so in plain
    for number in found.numbers:
        assert number.means in plain, number.key
    assert text.count("<svg") == 7  # loss, training, lean, distance, choices, influence, adapter


def test_the_terminal_says_it_too(page: tuple[str, hw.Diagnosis]) -> None:
    _, found = page
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary(found))
    text = " ".join(console.export_text().split())
    assert found.sentence.split(",")[0] in text
    assert "fitting error" in text and "\x1b" not in text
