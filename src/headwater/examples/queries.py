"""What is asked about: a prompt with the output to be explained, and perhaps the output that would have been right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from headwater.errors import DataError
from headwater.examples.example import shown
from headwater.examples.files import json_records
from headwater.examples.messages import Message, checked_messages, checked_text

Span = tuple[int, int]
"""Characters, end exclusive."""

SpanName = Literal["auto", "diff", "all"]

_WORD = re.compile(r"\d+(?:[.,:/]\d+)+|\w+(?:['’-]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Query:
    """A prompt and the output whose origin is sought.

    Args:
        prompt: a string, or chat messages.
        output: what the model said; None to let the last checkpoint say it.
        corrected: what it should have said; makes the measurement a contrast.
        span: what of the outputs matters. "diff": the stretch of words in which output and corrected differ; "all":
            all of both; two numbers: these characters of `output` (start, end exclusive), and all of corrected.
            "auto": "diff" where there is a corrected output and each side has letters or digits in that stretch, else
            "all".
        group: queries of one group show the same fault and are answered together.
        id: a name for the query.
        metadata: anything else worth keeping.

    Raises:
        DataError: for empty or equal outputs, and for a span outside the output.
    """

    prompt: str | tuple[Message, ...]
    output: str | None = None
    _: KW_ONLY
    corrected: str | None = None
    span: Span | SpanName = "auto"
    group: str | None = None
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if isinstance(self.prompt, str):
            checked_text(self.prompt, "query", "prompt")
        elif self.prompt is None:
            raise DataError("query: prompt is null", expected="a string or messages", fix="give the query a prompt")
        else:
            object.__setattr__(self, "prompt", checked_messages(self.prompt, "query", "prompt"))
        for name in ("output", "corrected"):
            value = getattr(self, name)
            if value is not None and not checked_text(value, "query", name):
                raise DataError(
                    f"query: {name} is empty",
                    expected="at least one character",
                    fix=f"write the {name} out, leading space included, or leave it away",
                )
        for name in ("group", "id"):
            value = getattr(self, name)
            if isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, name, str(value))
            elif value is not None:
                checked_text(value, "query", name)
        if not isinstance(self.metadata, Mapping):
            raise DataError(
                f"query: metadata of type {type(self.metadata).__name__}", expected="an object", fix="write an object"
            )
        if self.output is not None and self.output == self.corrected:
            raise DataError(
                "query: output and corrected are the same",
                expected="a corrected output that differs",
                fix="correct the corrected output, or leave it away to measure the loss of the output",
            )
        object.__setattr__(self, "span", self._checked_span(self.span))

    @property
    def prompt_text(self) -> str:
        """The prompt for display and lexical methods; of messages, each role on a line of its own."""
        return shown(self.prompt)

    def with_output(self, output: str) -> Query:
        """The same query with an output, such as one that a checkpoint generated."""
        return replace(self, output=output)

    def spans(self) -> tuple[Span | None, Span | None]:
        """The characters that matter in the output and in the corrected output; None for all of them.

        Raises:
            DataError: for words that differ before there is an output, and for span "diff" where one side has no word
                that the other lacks.
        """
        if isinstance(self.span, tuple):
            return self.span, None
        if self.span == "all" or self.corrected is None:
            return None, None
        if self.output is None:
            raise DataError(
                "query: the words that differ before there is an output",
                expected="an output",
                fix="generate or give the output",
            )
        in_output, in_corrected = differing_span(self.output, self.corrected)
        if self.span == "auto" and not (
            any(map(str.isalnum, self.output[slice(*in_output)]))
            and any(map(str.isalnum, self.corrected[slice(*in_corrected)]))
        ):
            return None, None
        for name, (start, end) in (("output", in_output), ("corrected output", in_corrected)):
            if start == end:
                raise DataError(
                    f"query: no words of the {name} differ ({self.output!r} against {self.corrected!r})",
                    expected="differing words on both sides",
                    fix='say "all" to compare the whole outputs, or give the span in characters',
                )
        return in_output, in_corrected

    def _checked_span(self, span: object) -> Span | SpanName:
        if span == "auto" or span == "all":
            return span
        if span == "diff":
            if self.corrected is None:
                raise DataError(
                    'query: span "diff" without a corrected output',
                    expected="an output and a corrected output to compare",
                    fix="give the corrected output, or the span in characters",
                )
            return "diff"
        if (
            not isinstance(span, list | tuple)
            or len(span) != 2
            or any(isinstance(edge, bool) or not isinstance(edge, int) for edge in span)
        ):
            raise DataError(
                f"query: span {span!r}",
                expected='"auto", "diff", "all", or two character positions [start, end], end exclusive',
                fix="leave the span away, or write it as two integers",
            )
        if self.output is None:
            raise DataError(
                "query: a span in characters without an output",
                expected="the output that the span lies in",
                fix="give the output, or leave the span away",
            )
        start, end = span
        if not 0 <= start < end <= len(self.output):
            raise DataError(
                f"query: span {start}..{end} in an output of {len(self.output)} characters",
                expected=f"0 <= start < end <= {len(self.output)}",
                fix="count characters (not tokens) from 0, end exclusive",
            )
        return start, end


_KEYS = tuple(entry.name for entry in fields(Query))


def read_queries(path: str | Path) -> list[Query]:
    """Reads queries from JSON lines or a JSON list (.jsonl, .json, also .gz) with the keys of Query.

    Raises:
        DataError: for a file that cannot be read, unknown keys, bad values and ids that occur twice, with the line.
    """
    file = Path(path)
    queries: list[Query] = []
    lines: dict[str, int] = {}
    for line, row in json_records(file):
        where = f"{file.name}:{line}"
        unknown = [key for key in row if key not in _KEYS]
        if unknown:
            raise DataError(
                f"{where}: unknown key {', '.join(unknown)}",
                expected=f"the keys {', '.join(_KEYS)}",
                fix='correct the key, or put what is your own under "metadata"',
            )
        if "prompt" not in row:
            raise DataError(f"{where}: no prompt", expected="a prompt in every query", fix='add the key "prompt"')
        given = {key: value for key, value in row.items() if value is not None or key == "prompt"}
        try:
            query = Query(**given)
        except DataError as error:
            raise DataError(
                f"{where}: {error.got}", expected=error.expected, fix=error.fix, cause=error.cause
            ) from error
        if query.id is not None:
            if query.id in lines:
                raise DataError(
                    f'id "{query.id}" twice: {file.name}:{lines[query.id]} and {where}',
                    expected="an id of its own for every query",
                    fix="rename one of the two",
                )
            lines[query.id] = line
        queries.append(query)
    if not queries:
        raise DataError(f"{file}: no queries", expected="at least one query", fix="check the file")
    return queries


def differing_span(output: str, corrected: str) -> tuple[Span, Span]:
    """The stretch of words in which two outputs differ, as characters of each.

    Words that both begin with and words that both end with are left away; what remains between them is the stretch.
    Punctuation marks count as words of their own, white space does not count. A stretch is empty (start == end) where
    the other output only adds words.

    Returns:
        (start, end) in `output` and (start, end) in `corrected`, end exclusive.
    """
    words = [match.span() for match in _WORD.finditer(output)]
    others = [match.span() for match in _WORD.finditer(corrected)]
    texts = [output[start:end] for start, end in words]
    other_texts = [corrected[start:end] for start, end in others]
    shorter = min(len(texts), len(other_texts))
    before = 0
    while before < shorter and texts[before] == other_texts[before]:
        before += 1
    after = 0
    while after < shorter - before and texts[-1 - after] == other_texts[-1 - after]:
        after += 1
    return _stretch(words, before, after, len(output)), _stretch(others, before, after, len(corrected))


def _stretch(words: list[Span], before: int, after: int, length: int) -> Span:
    chosen = words[before : len(words) - after]
    if chosen:
        return chosen[0][0], chosen[-1][1]
    edge = words[before - 1][1] if before else (words[0][0] if words else length)
    return edge, edge
