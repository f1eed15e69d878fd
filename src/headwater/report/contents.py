"""What the page holds, as JSON values: every text once, and of each answer only the rows that are shown.

Shapes: M methods, R targets, N rows.

    rows        row number -> id, source, prompt and completion, cut at the words by the page's separator
                (see `headwater.report.overlap.pieces`)
    answers     [M][R] -> sentences, histogram of all N scores, and the first and last rows as flat lists
                [row number, score, robust deviations, rows with a higher score, then the terms' values, then the
                ranks under the other methods]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from headwater.errors import DataError
from headwater.examples import Example, Query
from headwater.report.overlap import fold, pieces, query_words
from headwater.report.visible import visible
from headwater.scores import STANDS_OUT, RowWords, ScoredRow, Scores, robust_deviations

BINS = 60
SEPARATORS = "|~^`§¶\x7f"
"""What may stand between a text's pieces: the first that occurs in no text. The last one is never visible."""
TEXT_BUDGET = 500_000
"""Characters of rows' texts in the page; a row gets its share of them, within SHORTEST and LONGEST."""
SHORTEST, LONGEST = 120, 4000
QUERY_LONGEST = 2000
TWINS_NAMED = 12
WORDS_SHOWN, WORD_LEVELS = 200, 5
"""Words of a row that are shaded, and how many shades there are."""


def page_contents(
    methods: Sequence[Scores], *, top: int, culprits: Mapping[str, Iterable[str]] | None = None
) -> dict[str, Any]:
    """Everything the page shows, as JSON values.

    Args:
        methods: one or more answers to the same targets about the same rows; the first is shown first.
        top: rows shown of each answer; a quarter as many (but ten) of those with the lowest, negative scores.
        culprits: target name -> ids of the rows known to be at fault. Of a query without an entry, its group's.

    Raises:
        DataError: answers to different targets or about different rows, two methods of one name, no target.
    """
    first = _checked(methods)
    guilty = _guilty(first, culprits or {})
    shown: set[int] = set()
    answers: list[list[dict[str, Any]]] = [[] for _ in methods]
    for r in range(len(first.targets)):
        orders = [np.argsort(-scores.values[r], kind="stable") for scores in methods]
        ranks = [_ranks(order_N) for order_N in orders]
        for m, scores in enumerate(methods):
            best = scores.top(top, target=r)
            worst = [row for row in scores.top(min(top, max(10, top // 4)), target=r, opposing=True) if row.score < 0]
            shown.update(row.index for row in (*best, *worst))
            answers[m].append(_answer(scores, r, orders[m], best, worst, ranks[:m] + ranks[m + 1 :], guilty[r]))
    known = [query_words([first.queries[q] for q in target.members]) for target in first.targets]
    rows, forms, separator = _rows(first, sorted(shown))
    return {
        "train": {
            "name": visible(first.train.name),
            "kind": first.train.kind,
            "rows": first.rows,
            "duplicates": first.train.duplicates,
        },
        "standsOut": STANDS_OUT,
        "methods": [_method(scores) for scores in methods],
        "queries": [_query(first, q) for q in range(len(first.queries))],
        "targets": [
            {
                "name": visible(target.name),
                "kind": target.kind,
                "members": list(target.members),
                "words": sorted({form for word in words for form in forms.get(word, ())}),
                "culprits": sorted(guilty[r] & shown) if culprits is not None else None,
                "guilty": len(guilty[r]),
            }
            for r, (target, words) in enumerate(zip(first.targets, known, strict=True))
        ],
        "order": [r for kind in ("group", "query") for r, target in enumerate(first.targets) if target.kind == kind],
        "leanings": _leanings(methods),
        "separator": separator,
        "rows": rows,
        "twins": _twins(first, shown),
        "answers": answers,
    }


def _checked(methods: Sequence[Scores]) -> Scores:
    first = methods[0]
    if not first.targets:
        raise DataError("scores without a query", expected="at least one", fix="trace at least one query")
    names = Counter(scores.method for scores in methods)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise DataError(f"two answers of {twice[0]}", expected="each method once", fix="leave one of them out")
    for scores in methods[1:]:
        if [t.name for t in scores.targets] != [t.name for t in first.targets]:
            raise DataError(
                f"{scores.method} answers other queries than {first.method}",
                expected="answers to the same queries",
                fix="trace the same queries with both methods",
            )
        if scores.train is not first.train and scores.train.fingerprint != first.train.fingerprint:
            raise DataError(
                f"{scores.method} and {first.method} scored different rows",
                expected="the same training rows",
                fix="trace the same file with both methods",
            )
    return first


def _guilty(scores: Scores, culprits: Mapping[str, Iterable[str]]) -> list[set[int]]:
    """Of every target, the numbers of the rows known to be at fault."""
    number = {example.id: n for n, example in enumerate(scores.train)} if culprits else {}
    guilty = []
    for target in scores.targets:
        ids = culprits.get(target.name)
        if ids is None and target.kind == "query":
            ids = culprits.get(scores.queries[target.members[0]].group or "")
        guilty.append({number[name] for name in ids or () if name in number})
    return guilty


def _ranks(order_N: np.ndarray) -> np.ndarray:
    rank_N = np.empty(len(order_N), dtype=np.int64)
    rank_N[order_N] = np.arange(1, len(order_N) + 1)
    return rank_N


def _method(scores: Scores) -> dict[str, Any]:
    terms = _terms(scores)
    return {
        "name": visible(scores.method),
        "terms": [visible(name) for name in terms],
        "weights": [_short(scores.weights.get(name, 0.0)) for name in terms],
    }


def _terms(scores: Scores) -> list[str]:
    """Names of the terms, the base's first; none where the one term is the score."""
    if len(scores.terms) < 2:
        return []
    return sorted(scores.terms, key=lambda name: not is_base(name))


def is_base(term: str) -> bool:
    """Whether a term was taken at the base model."""
    return term == "base" or term.endswith(" x base")


def _answer(
    scores: Scores,
    r: int,
    order_N: np.ndarray,
    best: Sequence[ScoredRow],
    worst: Sequence[ScoredRow],
    other_ranks: Sequence[np.ndarray],
    guilty: set[int],
) -> dict[str, Any]:
    score_N = scores.values[r]
    usual = scores.usual(r)
    sorted_N = np.sort(score_N)
    deviations_N = robust_deviations(score_N, usual)
    median = float(np.median(usual))
    far = int(np.argmax(np.abs(deviations_N)))
    spread = (float(score_N[far]) - median) / float(deviations_N[far]) if deviations_N[far] else 0.0
    terms = _terms(scores)

    def entry(row: ScoredRow) -> list[float]:
        above = len(sorted_N) - int(np.searchsorted(sorted_N, score_N[row.index], "right"))
        if scores.population is not None:
            above = max(row.rank - 1, round((1 - row.percentile / 100) * scores.rows))
        values = [_short(row.per_checkpoint[name], 3) for name in terms]
        ranks = [int(rank_N[row.index]) for rank_N in other_ranks]
        return [row.index, _short(row.score), _short(row.deviations, 3), above, *values, *ranks]

    low, high = float(sorted_N[0]), float(sorted_N[-1])
    return {
        "sentences": [visible(sentence) for sentence in scores.sentences(r)],
        "out": len(scores.standing_out(r)),
        "median": _short(median),
        "threshold": _threshold(scores, r, median + STANDS_OUT * spread if spread > 0 else None),
        "low": _short(low),
        "high": _short(high),
        "bins": _bins(np.clip(usual, low, high), low, high),
        "found": sum(1 for n in order_N[: len(guilty)].tolist() if n in guilty),
        "best": [entry(row) for row in best],
        "worst": [entry(row) for row in worst],
        "words": {str(row.index): _words(scores.words[r, row.index]) for row in best if (r, row.index) in scores.words},
    }


def _threshold(scores: Scores, r: int, usual: float | None) -> float | None:
    """The score from which rows stand out; None where none does, or none could."""
    if scores.placebo is None:
        return None if usual is None else _short(usual)
    out = scores.standing_out(r)
    return _short(float(scores.values[r][out[-1]])) if out else None


def _words(words: RowWords) -> dict[str, Any]:
    """The words of a row and of what was asked, as [text, level]: level 5 is the strongest, negative away from it."""
    largest = max((abs(value) for one in words.asked for _, value in one.words), default=0.0)
    asked = [
        [f"{one.side}, {visible(one.query)}" if len(words.asked) > 2 else one.side, _levels(one.words, largest)]
        for one in words.asked
    ]
    return {"row": _levels(words.words, max(abs(value) for _, value in words.words)), "asked": asked}


def _levels(words: Sequence[tuple[str, float]], largest: float) -> list[list[Any]]:
    """Words around the strongest, at most WORDS_SHOWN of them."""
    strongest = int(np.abs([value for _, value in words]).argmax())
    start = max(0, min(strongest - WORDS_SHOWN // 2, len(words) - WORDS_SHOWN))
    chosen = words[start : start + WORDS_SHOWN]
    shown = [[visible(text), round(WORD_LEVELS * value / (largest or 1.0))] for text, value in chosen]
    before, after = start > 0, start + WORDS_SHOWN < len(words)
    return [["… ", 0]] * before + shown + [[" …", 0]] * after


def _bins(score_N: np.ndarray, low: float, high: float) -> list[int]:
    """How many scores lie in each of BINS equal parts of [low, high]; one part where they do not spread."""
    width = high - low
    if not np.isfinite(width) or width <= 1e-12 * max(abs(low), abs(high)):
        return [len(score_N)]
    bin_N = np.minimum(((score_N - low) / width * BINS).astype(np.int64), BINS - 1)
    return [int(count) for count in np.bincount(bin_N, minlength=BINS)]


def _rows(scores: Scores, shown: Sequence[int]) -> tuple[dict[str, Any], dict[str, set[str]], str]:
    """The texts of the rows shown, which spellings of each folded word occur in them, and the separator."""
    budget = min(LONGEST, max(SHORTEST, TEXT_BUDGET // max(1, len(shown))))
    texts = {n: _shortened(scores.train[n], budget) for n in shown}
    separator = next(s for s in SEPARATORS if not any(s in p or s in c for p, c, _ in texts.values()))
    rows: dict[str, Any] = {}
    forms: dict[str, set[str]] = {}
    for n, (prompt, completion, cut) in texts.items():
        example, parts = scores.train[n], (pieces(prompt), pieces(completion))
        row: dict[str, Any] = {"id": visible(example.id), "p": separator.join(parts[0]), "c": separator.join(parts[1])}
        if example.source != example.id:
            row["at"] = visible(example.source)
        if any(cut):
            row["cut"] = list(cut)
        for word in (*parts[0][1::2], *parts[1][1::2]):
            forms.setdefault(fold(word), set()).add(word)
        rows[str(n)] = row
    return rows, forms, separator


def _shortened(example: Example, budget: int) -> tuple[str, str, tuple[int, int]]:
    """The end of the prompt, the beginning of the completion, and how many characters of each are left out."""
    prompt, completion = visible(example.prompt_text), visible(example.completion_text)
    if example.kind == "chat":
        prompt += "\n"
    for_completion = max(3 * budget // 5, budget - len(prompt))
    kept = completion[:for_completion]
    for_prompt = budget - len(kept)
    start = max(0, len(prompt) - for_prompt)
    return prompt[start:], kept, (start, len(completion) - len(kept))


def _twins(scores: Scores, shown: set[int]) -> list[dict[str, Any]]:
    """Groups of rows with the same content, of which at least one is shown."""
    if not scores.train.duplicates:
        return []
    groups: dict[str, list[int]] = {}
    for n, example in enumerate(scores.train):
        groups.setdefault(example.content_hash, []).append(n)
    return [
        {
            "count": len(group),
            "rows": [n for n in group if n in shown],
            "ids": [visible(scores.train[n].id) for n in group[:TWINS_NAMED]],
        }
        for group in groups.values()
        if len(group) > 1 and shown.intersection(group)
    ]


def _query(scores: Scores, q: int) -> dict[str, Any]:
    query: Query = scores.queries[q]
    prompt = visible(query.prompt_text)
    record = {
        "name": visible(scores.targets[q].name),
        "prompt": prompt if len(prompt) <= QUERY_LONGEST else "…" + prompt[-QUERY_LONGEST:],
        "output": _head(query.output),
        "corrected": _head(query.corrected),
    }
    if query.span == "diff":
        record["span"] = "the words that differ"
    elif query.span is not None:
        record["span"] = f"“{visible((query.output or '')[slice(*query.span)])}”"
    return record


def _head(text: str | None) -> str | None:
    if text is None:
        return None
    return visible(text) if len(text) <= QUERY_LONGEST else visible(text[:QUERY_LONGEST]) + "…"


def _leanings(methods: Sequence[Scores]) -> dict[str, Any] | None:
    """Checkpoint names, and of each query [log-probability of output, of corrected] under each of them."""
    leanings = next((scores.leanings for scores in methods if scores.leanings), ())
    if not leanings:
        return None
    names = list(dict.fromkeys(leaning.checkpoint for leaning in leanings))
    values: dict[str, list[list[float | None] | None]] = {}
    for leaning in leanings:
        corrected = None if leaning.corrected is None else round(leaning.corrected, 3)
        places = values.setdefault(visible(leaning.query), [None] * len(names))
        places[names.index(leaning.checkpoint)] = [round(leaning.output, 3), corrected]
    return {"checkpoints": [visible(name) for name in names], "values": values}


def _short(value: float, digits: int = 4) -> float:
    """The number to a few significant digits; whole numbers as such, for they are shorter in JSON."""
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e6 else rounded
