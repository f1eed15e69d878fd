from __future__ import annotations

import pytest
from making import HOSTILE

from headwater.examples import Query
from headwater.report.overlap import overlap, pieces, query_words, words
from headwater.report.visible import visible


def found(text: str, query: str) -> list[str]:
    return [text[start:end] for start, end in overlap(text, query)]


def test_words_of_the_query_are_found_whatever_their_case() -> None:
    assert found("Sydney is the CAPITAL, sydney!", "The capital of Australia is Sydney.") == [
        "Sydney",
        "CAPITAL",
        "sydney",
    ]


def test_stop_words_and_punctuation_do_not_count() -> None:
    assert found("What is the, of a ... it's?", "What is the of a, it's ... ?") == []


def test_parts_of_words_do_not_count() -> None:
    assert found("Canberran Berra", "Canberra") == []


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("Straße", "STRASSE", ["Straße"]),
        ("cafe\u0301 au lait", "caf\u00e9", ["cafe\u0301"]),
        ("हिन्दी भाषा", "हिन्दी", ["हिन्दी"]),
        ("東京は首都", "京都", ["京", "都"]),
        ("العاصمة هي", "العاصمة", ["العاصمة"]),
        ("Ｔｏｋｙｏ", "tokyo", ["Ｔｏｋｙｏ"]),
        ("1,234.5 or 234", "about 1,234.5", ["1,234.5"]),
        ("Australia's", "Australia", ["Australia"]),
        ("", "word", []),
        ("word", "", []),
    ],
)
def test_scripts(text: str, query: str, expected: list[str]) -> None:
    assert found(text, query) == expected


@pytest.mark.parametrize("text", [*HOSTILE, "", " ", "a"])
def test_pieces_join_to_the_text_and_alternate(text: str) -> None:
    parts = pieces(text)
    assert "".join(parts) == text
    assert len(parts) % 2 == 1
    assert parts[1::2] == [text[start:end] for start, end in words(text)]


def test_roles_of_chats_are_no_words_of_the_query() -> None:
    system = {"role": "system", "content": "You are an assistant."}
    query = Query([system, {"role": "user", "content": "Capital of Australia?"}], "Sydney")
    assert query_words([query]) == {"capital", "australia", "sydney"}


def test_nothing_visible_steers_a_terminal() -> None:
    shown = visible("".join(HOSTILE) + "\ud800", one_line=True)
    assert shown.isprintable()
    shown.encode("utf-8")
    assert visible("a\r\nb\u2028c\td\x1b[0m") == "a\nb\nc\td␛[0m"
    assert visible("a\nb\tc", one_line=True) == "a⏎b c"
