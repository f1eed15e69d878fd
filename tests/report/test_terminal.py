from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from making import FAULT, HOSTILE, fact_scores, make_scores
from rich.cells import cell_len
from rich.console import Console, RenderableType

from headwater.examples import Query
from headwater.report import answer, answer_table
from headwater.report.terminal import excerpt, number_format
from headwater.scores import Leaning


def printed(renderable: RenderableType, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False, color_system=None).print(renderable)
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    scores = fact_scores()[0][0]
    text = printed(answer(scores, FAULT, 12), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    if width >= 80:
        for row in scores.top(12, target=FAULT):
            assert row.id in text
            assert f"{row.score:.4f}" in text
            assert row.completion.strip() in text


def test_answer_says_the_sentences_and_the_leanings() -> None:
    scores = fact_scores()[0][0]
    text = " ".join(printed(answer(scores, FAULT, 3), 120).split())
    for sentence in scores.sentences(FAULT):
        assert sentence in text
    assert "checkpoint-13 -4.30" in text
    assert "mean over the queries" in text
    assert "3 of 400 rows" in text


def test_a_line_parts_what_stands_out() -> None:
    values = np.array([[20.0, 19.0, *np.linspace(-1, 1, 18)]])
    scores = make_scores(
        [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(20)], [Query("p", "c")], values=values
    )
    lines = printed(answer_table(scores, 0, 5), 80).splitlines()
    rules = [n for n, line in enumerate(lines) if set(line.strip()) == {"─"}]
    assert len(rules) == 2  # under the head, and under the second row
    assert rules[1] - rules[0] == 3


@pytest.mark.parametrize("width", [40, 80, 120])
def test_q_values_are_shown_where_there_are_any(width: int) -> None:
    values = np.array([[90.0, 80.0, *np.linspace(-1, 1, 18)]])
    scores = make_scores(
        [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(20)], [Query("p", "c")], values=values
    )
    tested = dataclasses.replace(scores, placebo=np.linspace(-1, 1, 200)[None])
    text = printed(answer_table(tested, 0, 5), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    shown = [line.split()[4] for line in text.splitlines() if line.strip()[:1].isdigit() and " c" in line]
    q = tested.q_values()
    assert q is not None and [row.stands_out for row in tested.top(3)] == [True, True, False]
    if width >= 80:
        assert shown[0] == "<.0001" and float(shown[2]) == pytest.approx(q[19], abs=1e-4)
    assert " q " not in printed(answer_table(scores, 0, 5), width)


@pytest.mark.parametrize("width", [20, 80, 120])
def test_hostile_rows(width: int) -> None:
    rows = [{"prompt": a, "completion": b} for a, b in zip(HOSTILE, reversed(HOSTILE), strict=True)]
    scores = make_scores(rows, [Query(HOSTILE[6], HOSTILE[7], corrected=HOSTILE[4], id="[bold]q")])
    text = printed(answer(scores), width)
    assert all(character.isprintable() or character == "\n" for character in text)
    if width >= 80:
        assert "[red]markup[/red]" in text


def test_marks_are_underlined_and_the_completion_is_bold() -> None:
    scores = make_scores(
        [{"prompt": "The capital is", "completion": " Sydney [red]"}], [Query("Which capital?", "Sydney")]
    )
    file = io.StringIO()
    Console(file=file, width=80, force_terminal=True, color_system="standard").print(answer_table(scores))
    assert "\x1b[1;4mSydney\x1b[0m" in file.getvalue()
    assert "\x1b[2;4mcapital\x1b[0m" in file.getvalue()


def test_one_row_no_spread_no_leanings_no_rows() -> None:
    one = make_scores([{"prompt": "p", "completion": "c"}], [Query("p", "c")], values=np.zeros((1, 1)))
    assert "100.0" in printed(answer(one), 80)
    assert "log-probability" not in printed(answer(one), 80)
    assert "no rows asked for" in printed(answer_table(one, 0, 0), 80)


def test_leanings_without_a_corrected_output_and_of_many_checkpoints() -> None:
    names = ["base", *(f"checkpoint-{n}" for n in range(30))]
    leanings = [Leaning(query="q1", checkpoint=name, output=-3.0, corrected=None) for name in names]
    scores = make_scores([{"prompt": "p", "completion": "c"}], [Query("p", "c")], leanings=leanings)
    text = printed(answer(scores), 80)
    assert "difference" not in text
    assert "… 23 more" in text
    assert "checkpoint-29" in text and "checkpoint-3 " not in text and "base" in text


def test_excerpt_keeps_the_end_of_the_prompt_and_the_beginning_of_the_completion() -> None:
    assert excerpt("short", " text", 80) == ("short", " text")
    prompt, completion = excerpt("a" * 500 + "END", "BEGIN" + "b" * 500, 100)
    assert len(prompt) + len(completion) <= 100
    assert prompt.endswith("END") and prompt.startswith("…")
    assert completion.startswith("BEGIN") and completion.endswith("…") and len(completion) == 60
    assert len(excerpt("p", "c" * 500, 100)[1]) == 99


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0], "0.000"),
        ([1234.5, 0.1], "1234"),
        ([0.01234], "0.01234"),
        ([1.5e-9], "1.500e-09"),
        ([2.5e9], "2.500e+09"),
    ],
)
def test_numbers(values: list[float], expected: str) -> None:
    assert number_format(values)(values[0]) == expected


def test_words_of_the_first_rows() -> None:
    from dataclasses import replace

    from headwater.scores import Asked, RowWords

    scores = fact_scores()[0][0]
    r = scores.target_number(FAULT)
    best = scores.top(1, target=FAULT)[0].index
    asked = Asked(query="q1", side="output", words=((" Sydney", 0.25), (" is", -0.001)))
    words = RowWords(words=((" at", 0.0), (" of", 0.01), (" Sydney\x1b[31m", 0.5), ("\n", 0.02)), asked=(asked,))
    text = printed(answer(replace(scores, words={(r, best): words}), FAULT, 3), 120)
    line = next(line for line in text.splitlines() if line.startswith("  1  row:  "))
    assert "Sydney" in line and "0.5000" in line and "\x1b" not in line and "⏎ 0.0200" in line
    assert "at 0.0" not in line  # it carries nothing
    assert "\n     output:    Sydney 0.2500  is -0.0010" in text
    assert "words that carry" not in printed(answer(scores, FAULT, 3), 120)
