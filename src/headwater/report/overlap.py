"""Which words of a row also occur in the query.

A word is a run of letters, digits and their combining marks; a Chinese character is a word of its own; numbers keep
their separators. Words are compared case-folded and in compatibility form (NFKC). A short list of English stop words
does not count, nor does punctuation.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from headwater.examples import Query
from headwater.examples.messages import message_text

Span = tuple[int, int]
"""Characters, end exclusive."""

_STOPPED = """
a about an and are as at be been but by can could did do does for from had has have he her his how i if in
into is it its my no not of on or our s she so t that the their them then there these they this those to was
we were what when where which who will with you your
"""
STOP_WORDS = frozenset(_STOPPED.split())

ROLES = frozenset(("system", "user", "assistant"))

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# \w lacks the combining marks, and with them most vowels of the Indic scripts.
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0963"
    "\u0966-\u0df3\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1-\u0ecd\u0f18-\u0fbc\u102b-\u109d\u17b4-\u17d3\u1ab0-\u1aff"
    "\u1dc0-\u1dff\u20d0-\u20f0\u3099\u309a\ufe00-\ufe2f\u200c\u200d"
)
_WORD = re.compile(rf"\d+(?:[.,:]\d+)+|[{_HAN}]|(?:(?![{_HAN}])\w)(?:(?![{_HAN}])[\w{_MARKS}])*")


def words(text: str) -> list[Span]:
    """Where the words of a text stand, in order, stop words included."""
    return [match.span() for match in _WORD.finditer(text)]


def pieces(text: str) -> list[str]:
    """The text cut at its words: not a word, word, not a word, ...; joined it is the text again.

    The pieces with odd numbers are words; the first and the last piece may be empty.
    """
    out, end = [], 0
    for start, stop in words(text):
        out += [text[end:start], text[start:stop]]
        end = stop
    return [*out, text[end:]]


def fold(word: str) -> str:
    """The form in which words are compared."""
    return unicodedata.normalize("NFKC", word).casefold()


def vocabulary(texts: Iterable[str]) -> frozenset[str]:
    """The folded words of some texts, without stop words."""
    return frozenset(fold(text[start:end]) for text in texts for start, end in words(text)) - STOP_WORDS


def query_words(queries: Sequence[Query]) -> frozenset[str]:
    """The folded words of the queries' prompts and outputs.

    The roles of chats are no words of them, nor of a system prompt ("a helpful assistant"): they stand in every row.
    """
    texts: list[str] = []
    for query in queries:
        texts += [query.prompt] if isinstance(query.prompt, str) else [message_text(m) for m in query.prompt]
        texts.append(query.output or "")
    known = vocabulary(texts)
    return known if all(isinstance(query.prompt, str) for query in queries) else known - ROLES


def query_texts(queries: Sequence[Query]) -> list[list[str]]:
    """The folded words of each query's prompt and output, in order."""
    texts = [f"{query.prompt_text} {query.output or ''}" for query in queries]
    return [[fold(text[start:end]) for start, end in words(text)] for text in texts]


def overlap(text: str, query: str | frozenset[str]) -> list[Span]:
    """The words of a text that also occur in the query.

    Args:
        text: a row's text.
        query: the query's text, or its words as `query_words` gives them.

    Returns:
        [(start, end)] in characters of `text`, end exclusive, in order.
    """
    known = vocabulary([query]) if isinstance(query, str) else query
    return [(start, end) for start, end in words(text) if fold(text[start:end]) in known]


def shared_runs(row: Sequence[str], queries: Sequence[Sequence[str]], least: int = 3) -> list[Span]:
    """Stretches of a row's words that also stand in a query, word for word: the longest from each place on, from left
    to right, without overlaps.

    Args:
        row: the row's words, folded. queries: the words of each query, folded.
        least: words of the shortest stretch that counts.

    Returns:
        [(start, end)] in words of the row, end exclusive.
    """
    grams: dict[tuple[str, ...], set[tuple[int, int]]] = {}
    for q, words_ in enumerate(queries):
        for at in range(len(words_) - least + 1):
            grams.setdefault(tuple(words_[at : at + least]), set()).add((q, at))
    found: list[Span] = []
    start = 0
    while start <= len(row) - least:
        places = grams.get(tuple(row[start : start + least]))
        if not places:
            start += 1
            continue
        end = start + least
        while end < len(row):
            following = {
                (q, at + 1) for q, at in places if at + least < len(queries[q]) and queries[q][at + least] == row[end]
            }
            if not following:
                break
            places, end = following, end + 1
        found.append((start, end))
        start = end
    return found
