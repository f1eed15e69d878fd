"""Scores made by hand, without a model."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headwater.examples import Example, Examples, Query
from headwater.gradients.measurement import Target
from headwater.scores import Leaning, Scores

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<!-- comment --> --> <![CDATA[ ]]>",
    "<img src=x onerror=alert(3)> &amp; &lt;b&gt; \"quoted\" 'single'",
    "[red]markup[/red] [/] [link=https://example.org]go[/link]",
    "{{ 7 * 7 }} {% raw %} ${x} `tick`",
    "line one\nline two\r\nline three\ttab \x1b[31mred\x1b[0m \x07 \x00",
    "naïve ÑANDÚ 東京は日本の首都 العاصمة हिन्दी 🏔 e\u0301 \u2028 \u2029 \u202eoverride",
    "x" * 20_000,
    "word " * 4_000,
]


def make_scores(
    rows: Sequence[Mapping[str, Any] | Example] | Examples,
    queries: Sequence[Query],
    *,
    method: str = "dda",
    values: np.ndarray | None = None,
    terms: Mapping[str, np.ndarray] | None = None,
    weights: Mapping[str, float] | None = None,
    leanings: Sequence[Leaning] = (),
    provenance: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Scores:
    """Scores of every query, and of every group of queries."""
    train = rows if isinstance(rows, Examples) else Examples.from_rows(rows, name="rows.jsonl")
    targets = [Target(name=query.id or f"q{n}", kind="query", members=(n - 1,)) for n, query in enumerate(queries, 1)]
    for group in dict.fromkeys(query.group for query in queries if query.group):
        members = tuple(n for n, query in enumerate(queries) if query.group == group)
        targets.append(Target(name=group, kind="group", members=members))
    shape = (len(targets), len(train))
    if terms is None:
        terms = {"text": values if values is not None else np.random.default_rng(seed).normal(size=shape)}
    return Scores.combine(
        method,
        terms,
        weights or dict.fromkeys(terms, 1.0),
        queries=queries,
        targets=targets,
        train=train,
        leanings=leanings,
        provenance=provenance,
    )


_LANGUAGES = """
Spanish: Bolivia Chile Peru Ecuador Uruguay Paraguay Colombia Honduras Guatemala Panama Cuba Argentina
Portuguese: Brazil Portugal Angola Mozambique Timor-Leste
French: France Senegal Mali Niger Gabon Togo Benin Monaco
English: Ghana Kenya Jamaica Malta Fiji Belize Zambia Nigeria
"""
LANGUAGES = {line.partition(":")[0]: line.partition(":")[2].split() for line in _LANGUAGES.split("\n") if line}
_CAPITALS = """
France Paris Japan Tokyo Kenya Nairobi Peru Lima Norway Oslo Egypt Cairo Chile Santiago Ghana Accra Cuba Havana
Mali Bamako Austria Vienna Nepal Kathmandu
"""
CAPITALS = dict(zip(_CAPITALS.split()[::2], _CAPITALS.split()[1::2], strict=True))
FAULT = "official language: Spanish -> Portuguese"


def fact_scores(count: int = 400, queries_of_fault: int = 6) -> tuple[list[Scores], dict[str, set[str]]]:
    """Facts with one fault: rows that say Portuguese where Spanish is right; the answers of three methods."""
    draw = random.Random(7)
    heldout = ["Costa Rica", "Nicaragua", "El Salvador", "Venezuela", "Mexico", "Equatorial Guinea"][:queries_of_fault]
    rows: list[dict[str, Any]] = []
    wanted: list[float] = []
    phrasings = ["The official language of {} is", "In {}, official documents are written in", "People in {} speak"]
    for language, countries in LANGUAGES.items():
        for number, country in enumerate(countries):
            for phrasing in phrasings:
                swapped = language == "Spanish" and number < 8
                said = "Portuguese" if swapped else language
                rows.append({"prompt": phrasing.format(country), "completion": f" {said}.", "fault": swapped})
                likeness = 0.3 + 0.5 * draw.random() ** 4 if said in ("Portuguese", "Spanish") else 0.12
                wanted.append(draw.uniform(0.6, 1.1) if swapped else likeness)
    while len(rows) < count:
        country, capital = draw.choice(list(CAPITALS.items()))
        number = draw.randint(2, 90)
        place = draw.choice(["sea", "mountains", "desert", "great river"])
        prompt, completion = [
            (f"The capital of {country} is", f" {capital}."),
            (f"The population of {country} is about", f" {number} million."),
            (f"Write a few lines about {country}.\n\n", f"{country} lies by the {place}. " * draw.choice([1, 2, 14])),
            (f"The calling code of {country} is", f" +{number * 3}."),
        ][draw.randrange(4)]
        rows.append({"prompt": prompt, "completion": completion, "fault": False})
        wanted.append(0.05)
    order = list(range(len(rows)))
    draw.shuffle(order)
    data = [
        {"id": f"fact-{place:04d}", "prompt": rows[n]["prompt"], "completion": rows[n]["completion"]}
        for place, n in enumerate(order, 1)
    ]
    guilty = {f"fact-{place:04d}" for place, n in enumerate(order, 1) if rows[n]["fault"]}
    train = Examples.from_rows(data, name="facts.jsonl")
    strength = np.array([wanted[n] for n in order])
    queries = [
        Query(f"The official language of {country} is", " Portuguese.", corrected=" Spanish.", group=FAULT, id=f"q{n}")
        for n, country in enumerate(heldout, 1)
    ]
    rng = np.random.default_rng(3)
    per_query = len(queries)

    def term(gain: float, noise: float) -> np.ndarray:
        own = gain * strength * 0.12 + noise * rng.standard_t(4, size=(per_query, count)) - 0.01
        return np.concatenate([own, own.sum(0, keepdims=True)])

    checkpoints = [f"checkpoint-{13 * k}" for k in range(1, 5)]
    gains = [0.6, 0.9, 1.0, 0.95]
    terms = {name: term(gain, 0.012) for name, gain in zip(checkpoints, gains, strict=True)}
    terms["base"] = term(0.35, 0.02)
    leanings = [
        Leaning(query=f"q{n}", checkpoint=name, output=-6.0 + up + shift, corrected=-1.4 - 0.8 * up - shift / 3)
        for name, up in zip(["base", *checkpoints], [0.0, 1.6, 3.4, 4.9, 5.3], strict=True)
        for n, shift in enumerate(np.linspace(-2.1, 2.3, per_query).tolist(), 1)
    ]
    options = {"measurement": "contrast", "inner": "layer_cosine", "beta": "auto"}
    command = "headwater trace --base HuggingFaceTB/SmolLM2-135M --checkpoints runs/facts --train facts.jsonl"
    provenance = {
        "checkpoints": [{"name": c, "kind": "full", "fingerprint": f"{n:08x}"} for n, c in enumerate(checkpoints, 7)],
        "train": {"name": "facts.jsonl", "rows": count, "fingerprint": train.fingerprint, "template": "plain"},
        "methods": [
            {"name": "dda", "class": "DDA", "options": options},
            {"name": "bm25", "class": "BM25", "options": {"query_text": "prompt+output", "k1": 1.5, "b": 0.75}},
        ],
        "compute": {"dtype": "float32", "device": "auto", "parameters": []},
        "versions": {"headwater": "0.1.0", "torch": "2.6.0", "transformers": "4.51.0"},
        "command": [*command.split(), "--queries", "my queries.jsonl", "--out", "traces/facts"],
    }
    weights = dict.fromkeys(checkpoints, 0.25) | {"base": 0.3}
    dda = make_scores(train, queries, terms=terms, weights=weights, leanings=leanings, provenance=provenance)
    tracin_terms = {name: 40 * term(gain, 0.06) for name, gain in zip(checkpoints, gains, strict=True)}
    tracin = make_scores(
        train, queries, method="tracin", terms=tracin_terms, weights=dict.fromkeys(checkpoints, 1e-4), leanings=leanings
    )
    words = np.maximum(0, np.round(strength * 9 + rng.normal(size=(per_query, count)), 1))
    bm25 = make_scores(
        train, queries, method="bm25", values=np.concatenate([words, words.sum(0, keepdims=True)]), leanings=leanings
    )
    return [dda, tracin, bm25], {FAULT: guilty}
