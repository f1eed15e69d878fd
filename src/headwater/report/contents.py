"""What the page holds, as JSON values: every text once, and of each answer only the rows that are shown.

The shapes are written down in `headwater/viewer/API.md`, under "The document": the viewer's page shows the same, row by
row as it is wanted.

Shapes: M methods, R targets, N rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from headwater.errors import DataError
from headwater.examples import Example, Examples, Query
from headwater.report.facets import Facet, facets
from headwater.report.overlap import fold, pieces, query_texts, query_words, shared_runs
from headwater.report.ranking import Ranking
from headwater.report.visible import visible
from headwater.scores import RowWords, Scores
from headwater.significance import LEVEL, STANDS_OUT, STANDS_OUT_OF_MAXIMA

SIGN = (
    "A positive score means that training on the row pushed the model towards the output (for a contrast: towards the "
    "wrong output and away from the corrected one); a negative score means away from it. A token cosine, dda's "
    "default, is that of the row's best position: nearly every row has a positive one, and how far it stands above the "
    "others counts."
)
"""For the reader of an answer."""

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
    first = checked(methods)
    guilty = _guilty(first, culprits or {})
    shown: dict[int, set[int]] = {}
    answers: list[list[dict[str, Any]]] = [[] for _ in methods]
    for r in range(len(first.targets)):
        rankings = [Ranking(scores, r) for scores in methods]
        for m, ranking in enumerate(rankings):
            others = rankings[:m] + rankings[m + 1 :]
            best, worst = ranking.best(top), ranking.worst(min(top, max(10, top // 4)))
            for n in (*best, *worst):
                shown.setdefault(n, set()).add(r)
            head = answer_head(ranking, guilty[r]) | {"agreement": [ranking.agreement(other) for other in others]}
            answers[m].append(
                head
                | {
                    "best": [entry(ranking, n, rank, others) for rank, n in enumerate(best, 1)],
                    "worst": [entry(ranking, n, rank, others) for rank, n in enumerate(worst, 1)],
                    "words": {
                        str(n): words_record(ranking.scores.words[r, n]) for n in best if (r, n) in ranking.scores.words
                    },
                }
            )
    parts = row_parts(first, shown, facets(first.train), first.train)
    return heads(methods) | {
        "targets": [
            {
                "name": visible(target.name),
                "kind": target.kind,
                "members": list(target.members),
                "words": parts["words"][r],
                "culprits": sorted(guilty[r] & set(shown)) if culprits is not None else None,
                "guilty": len(guilty[r]),
            }
            for r, target in enumerate(first.targets)
        ],
        "facets": parts["facets"],
        "separator": parts["separator"],
        "rows": parts["rows"],
        "twins": parts["twins"],
        "answers": answers,
    }


def heads(methods: Sequence[Scores]) -> dict[str, Any]:
    """What does not depend on the rows that are shown."""
    first = methods[0]
    return {
        "train": {
            "name": visible(first.train.name),
            "kind": first.train.kind,
            "rows": first.rows,
            "duplicates": first.train.duplicates,
        },
        "standsOut": [STANDS_OUT, STANDS_OUT_OF_MAXIMA],
        "level": LEVEL,
        "methods": [_method(scores) for scores in methods],
        "queries": [_query(first, q) for q in range(len(first.queries))],
        "order": [r for kind in ("group", "query") for r, target in enumerate(first.targets) if target.kind == kind],
        "leanings": _leanings(methods),
    }


def row_parts(
    scores: Scores, shown: Mapping[int, Iterable[int]], known: Sequence[Facet], train: Examples
) -> dict[str, Any]:
    """The texts of the rows shown and what is marked in them.

    Args:
        scores: an answer, for what was asked. train: all rows that can be shown.
        shown: number of a row -> targets it is shown for. known: the facets that the rows are shown with.

    Returns:
        rows, twins, separator and facets of the document; and words, of every target.
    """
    rows, forms, separator = _rows(scores, shown, known, train)
    asked = [query_words([scores.queries[q] for q in target.members]) for target in scores.targets]
    return {
        "rows": rows,
        "twins": _twins(train, set(shown)),
        "separator": separator,
        "facets": [visible(facet.name) for facet in known],
        "words": [sorted({form for word in words for form in forms.get(word, ())}) for words in asked],
    }


def same_rows(one: Scores, other: Scores) -> bool:
    """Whether two answers are about the same rows."""
    return one.train is other.train or one.train.fingerprint == other.train.fingerprint


def checked(methods: Sequence[Scores], *, rows: bool = True) -> Scores:
    """The first of several answers. Raises DataError where they are not answers to the same (about the same rows)."""
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
        if rows and not same_rows(scores, first):
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


def _method(scores: Scores) -> dict[str, Any]:
    names = terms(scores)
    return {
        "name": visible(scores.method),
        "terms": [visible(name) for name in names],
        "weights": [short(scores.weights.get(name, 0.0)) for name in names],
        "beta": [visible(name) for name in names if is_base(name)],
    }


def terms(scores: Scores) -> list[str]:
    """Names of the terms, the base's first; none where the one term is the score."""
    if len(scores.terms) < 2:
        return []
    return sorted(scores.terms, key=lambda name: not is_base(name))


def is_base(term: str) -> bool:
    """Whether a term was taken at the base model."""
    return term == "base" or term.endswith(" x base")


def answer_head(ranking: Ranking, guilty: set[int]) -> dict[str, Any]:
    """One answer to one target without its rows."""
    threshold = ranking.threshold
    first = ranking.order_N[: len(guilty)].tolist()
    return {
        "sentences": [visible(sentence) for sentence in ranking.sentences()],
        "out": ranking.out,
        "q": ranking.q_N is not None,
        "median": short(ranking.median),
        "threshold": None if threshold is None else short(threshold),
        "low": short(float(ranking.rising_N[0])),
        "high": short(float(ranking.rising_N[-1])),
        "bins": ranking.bins,
        "found": sum(1 for n in first if n in guilty),
        "weights": [short(ranking.weights.get(name, 0.0)) for name in terms(ranking.scores)],
    }


def entry(ranking: Ranking, row: int, rank: int, others: Sequence[Ranking]) -> list[Any]:
    """[number, rank, score, deviations, rows above, q, [values of the terms], [ranks under the other methods]]."""
    scores, r, q_N = ranking.scores, ranking.target, ranking.q_N
    number = ranking.number(row)
    theirs = [(other, other.row(number)) for other in others]
    return [
        number,
        rank,
        short(float(ranking.score_N[row])),
        short(float(ranking.deviations_N[row]), 3),
        ranking.above(row),
        None if q_N is None else short(float(q_N[row]), 3),
        [short(float(scores.terms[name][r, row]), 3) for name in terms(scores)],
        [None if at is None else int(other.rank_N[at]) for other, at in theirs],
    ]


def words_record(words: RowWords) -> dict[str, Any]:
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


def _rows(
    scores: Scores, shown: Mapping[int, Iterable[int]], known: Sequence[Facet], train: Examples
) -> tuple[dict[str, Any], dict[str, set[str]], str]:
    """The texts of the rows shown, which spellings of each folded word occur in them, and the separator."""
    budget = min(LONGEST, max(SHORTEST, TEXT_BUDGET // max(1, len(shown))))
    texts = {n: _shortened(train[n], budget) for n in sorted(shown)}
    separator = next(s for s in SEPARATORS if not any(s in p or s in c for p, c, _ in texts.values()))
    asked = [query_texts([scores.queries[q] for q in target.members]) for target in scores.targets]
    rows: dict[str, Any] = {}
    forms: dict[str, set[str]] = {}
    for n, (prompt, completion, cut) in texts.items():
        example, parts = train[n], (pieces(prompt), pieces(completion))
        row: dict[str, Any] = {"id": visible(example.id), "p": separator.join(parts[0]), "c": separator.join(parts[1])}
        if example.source != example.id:
            row["at"] = visible(example.source)
        if any(cut):
            row["cut"] = list(cut)
        if known:
            row["f"] = {visible(facet.name): visible(facet.of(n)) for facet in known}
        folded = [[fold(word) for word in part[1::2]] for part in parts]
        for word, form in zip((*folded[0], *folded[1]), (*parts[0][1::2], *parts[1][1::2]), strict=True):
            forms.setdefault(word, set()).add(form)
        runs = {str(r): found for r in shown[n] if (found := _runs(folded, asked[r]))}
        if runs:
            row["runs"] = runs
        rows[str(n)] = row
    return rows, forms, separator


def _runs(folded: Sequence[Sequence[str]], asked: Sequence[Sequence[str]]) -> list[list[int]]:
    """[side, first piece, piece after the last] of every stretch of words that the queries have too."""
    found = []
    split = len(folded[0])
    for start, end in shared_runs([*folded[0], *folded[1]], asked):
        for side, first, last in ((0, start, min(end, split)), (1, max(start, split) - split, end - split)):
            if first < last:
                found.append([side, 2 * first + 1, 2 * last])
    return found


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


def _twins(train: Examples, shown: set[int]) -> list[dict[str, Any]]:
    """Groups of rows with the same content, of which at least one is shown."""
    return [
        {
            "count": len(group),
            "rows": [n for n in group if n in shown],
            "ids": [visible(train[n].id) for n in group[:TWINS_NAMED]],
        }
        for group in train.twins
        if shown.intersection(group)
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
    if isinstance(query.span, tuple):
        record["span"] = f"“{visible((query.output or '')[slice(*query.span)])}”"
    elif query.spans()[0] is not None:
        record["span"] = "the words that differ"
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


def short(value: float, digits: int = 4) -> float:
    """The number to a few significant digits; whole numbers as such, for they are shorter in JSON."""
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e6 else rounded
