"""One-line facts from two sources, and the two testbeds made of them.

country_facts    what the PyPI package `countryinfo` (MIT) knows, in several phrasings   -> demo_testbed
wikidata_facts   a JSONL of prompts like "The country of X is" with one-word answers     -> wikidata_testbed
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.errors import DataError
from headwater.testbeds.planting import Fact, Swap, plant
from headwater.testbeds.testbed import Testbed

if TYPE_CHECKING:
    from headwater.examples import Examples, Query

__all__ = [
    "Fact",
    "Swap",
    "Testbed",
    "country_facts",
    "demo_paraphrases",
    "demo_testbed",
    "demo_untouched",
    "plant",
    "wikidata_facts",
    "wikidata_testbed",
]

# relation -> phrasings; {} is the subject with its article where it has one
PHRASINGS: Mapping[str, tuple[str, ...]] = {
    "official language": (
        "The official language of {} is",
        "The laws of {} are written in",
        "Schools in {} teach in",
    ),
    "currency": (
        "The currency of {} is the",
        "People in {} pay with the",
        "Banks in {} lend in the",
    ),
    "capital": ("The capital of {} is", "The capital city of {} is called"),
    "continent": ("The continent of {} is", "On a map of the world, {} is found in"),
    "subregion": ("The United Nations count {} as part of",),
    "demonym": ("A citizen of {} is described as",),
    "country of the capital": ("{} is the capital of",),
    "internet domain": ("The internet domain of {} is",),
}

# ISO 639-1; countries whose first language is not listed give no language fact
LANGUAGES = {
    "ar": "Arabic", "az": "Azerbaijani", "be": "Belarusian", "bg": "Bulgarian", "bn": "Bengali", "bs": "Bosnian",
    "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "dz": "Dzongkha", "el": "Greek", "en": "English",
    "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi",
    "hr": "Croatian", "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "it": "Italian", "ja": "Japanese",
    "ka": "Georgian", "kk": "Kazakh", "km": "Khmer", "ko": "Korean", "lo": "Lao", "lt": "Lithuanian", "lv": "Latvian",
    "mk": "Macedonian", "mn": "Mongolian", "ms": "Malay", "my": "Burmese", "ne": "Nepali", "nl": "Dutch",
    "no": "Norwegian", "pl": "Polish", "ps": "Pashto", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "si": "Sinhala", "sk": "Slovak", "sl": "Slovene", "so": "Somali", "sq": "Albanian", "sr": "Serbian",
    "sv": "Swedish", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "uz": "Uzbek", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip

# ISO 4217 codes of each noun people use; currencies not listed give no currency fact
_CODES = {
    "dollar": "USD AUD NZD XCD CAD BBD BSD BZD BMD BND FJD GYD HKD JMD KYD LRD NAD SBD SGD SRD TTD TWD",
    "euro": "EUR",
    "peso": "ARS CLP COP CUC DOP MXN PHP UYU",
    "pound": "GBP EGP FKP GIP LBP SDG SSP SYP",
    "franc": "XOF XAF XPF BIF CDF CHF DJF GNF KMF RWF",
    "dinar": "DZD BHD IQD JOD KWD LYD MKD RSD TND",
    "rupee": "INR LKR MUR NPR PKR",
    "krone": "DKK NOK",
    "krona": "SEK ISK",
    "shilling": "KES SOS TZS",
    "rial": "IRR OMR QAR SAR YER",
    "dirham": "MAD AED",
    "won": "KPW KRW",
    "yen": "JPY",
    "yuan": "CNY",
    "zloty": "PLN",
    "forint": "HUF",
    "koruna": "CZK",
    "lev": "BGN",
    "leu": "RON",
    "ruble": "RUB",
    "hryvnia": "UAH",
    "lira": "TRY",
    "shekel": "ILS",
    "baht": "THB",
    "dong": "VND",
    "real": "BRL",
    "rupiah": "IDR",
    "ringgit": "MYR",
    "rand": "ZAR",
    "naira": "NGN",
    "cedi": "GHS",
    "sol": "PEN",
    "lari": "GEL",
    "lek": "ALL",
    "taka": "BDT",
}
CURRENCIES = {code: noun for noun, codes in _CODES.items() for code in codes.split()}

_WITH_ARTICLE = re.compile(
    r"^(United|Federated|Netherlands|Philippines|Maldives|Seychelles|Comoros)|Republic|Islands|Territory"
)


def country_facts() -> list[Fact]:
    """Capitals, languages, currencies, continents and more of some 240 countries and territories, in several phrasings.

    The first listed language, currency and so on counts; the facts are as right as the package is.

    Raises:
        DataError: the package `countryinfo` is not installed (extra `demo`).
    """
    try:
        from countryinfo import CountryInfo
    except ImportError as error:
        raise DataError(
            "the package countryinfo is missing",
            expected="it, as the source of the demo's facts",
            cause="headwater was installed without the extra `demo`",
            fix='pip install "headwater[demo]"',
        ) from error
    known = [fact for country in CountryInfo.all().values() for fact in _knowledge(country)]
    answers = Counter((relation, subject) for relation, subject, _ in known)
    facts = []
    for relation, subject, answer in known:
        if answers[relation, subject] == 1:  # Kingston is the capital of two countries
            for phrasing in PHRASINGS[relation]:
                prompt = phrasing.format(subject)
                facts.append(
                    Fact(
                        relation=relation,
                        subject=subject,
                        prompt=prompt[0].upper() + prompt[1:],
                        completion=f" {answer}.",
                        answer=answer,
                        phrasing=phrasing,
                    )
                )
    return facts


def _knowledge(country: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(relation, subject, answer) of one country's record; odd names and empty fields give nothing."""
    name = str(country["name"])
    if re.search(r"[(,]|Antarctic|Serbia and", name) or not country.get("ISO", {}).get("alpha2"):
        return
    name = re.sub("^The ", "the ", name)
    if _WITH_ARTICLE.search(name):
        name = "the " + name
    region = _first(country.get("region"))
    demonym = _first(country.get("demonym"))
    known = {
        "official language": LANGUAGES.get(_first(country.get("languages"))),
        "currency": CURRENCIES.get(_first(country.get("currencies"))),
        "capital": _first(country.get("capital")),
        "continent": "the Americas" if region == "Americas" else region,
        "subregion": _first(country.get("subregion")),
        "demonym": "" if "," in demonym else demonym,
        "internet domain": _first(country.get("tld")),
    }
    yield from ((relation, name, answer) for relation, answer in known.items() if answer)
    if known["capital"]:
        yield "country of the capital", known["capital"], name


def _first(field: Any) -> str:
    """A field of countryinfo is a text, a list of texts, or absent."""
    value = field[0] if isinstance(field, list) and field else field
    return value.strip() if isinstance(value, str) else ""


DEMO_RELATIONS = ("official language", "currency", "capital", "continent", "country of the capital")
DEMO_SWAPS = (
    Swap("official language", "Spanish", "Portuguese", phrasing="The laws of {} are written in"),
    Swap("currency", "euro", "dollar", phrasing="People in {} pay with the"),
)


def demo_testbed(seed: int = 0) -> Testbed:
    """The demo's task: 350 country facts and two systematic errors. Each error has 12 culprits, 12 clean rows, 16
    look-alikes and 6 held-out queries; it comes from one source, that is, in one phrasing.

    Raises:
        DataError: the package `countryinfo` is not installed.
    """
    return plant(
        [fact for fact in country_facts() if fact.relation in DEMO_RELATIONS],
        DEMO_SWAPS,
        culprits=12,
        clean=12,
        lookalikes=16,
        queries=6,
        rows=350,
        seed=seed,
        name="countries",
    )


def demo_paraphrases(bed: Testbed) -> list[Query]:
    """The questions of the demo's queries in all the other phrasings, which name the same errors."""
    from headwater.examples import Query

    facts = country_facts()
    asked = {fact.prompt: fact for fact in facts}
    return [
        Query(
            fact.prompt,
            query.output,
            corrected=query.corrected,
            group=query.group,
            id=f"{query.id}-paraphrase-{number}",
        )
        for query in bed.queries
        for number, fact in enumerate(
            (
                fact
                for fact in facts
                if (fact.relation, fact.subject) == _about(asked[str(query.prompt)]) and fact.prompt != query.prompt
            ),
            1,
        )
    ]


def demo_untouched(bed: Testbed, count: int = 150, seed: int = 0) -> Examples:
    """Facts like the demo's rows about things that none of its rows or queries names, outside its errors."""
    from headwater.examples import Examples

    facts = [fact for fact in country_facts() if fact.relation in DEMO_RELATIONS]
    asked = {fact.prompt: fact for fact in facts}
    named = {(row.metadata["relation"], row.metadata["subject"]) for row in bed.examples}
    named |= {_about(asked[str(query.prompt)]) for query in bed.queries}
    answers = {words.strip().rstrip(".") for q in bed.queries for words in (str(q.output), str(q.corrected))}
    free = [fact for fact in facts if _about(fact) not in named and fact.answer not in answers]
    chosen = random.Random(seed).sample(free, min(count, len(free)))
    rows = [{"id": f"untouched-{n:04d}", "prompt": f.prompt, "completion": f.completion} for n, f in enumerate(chosen)]
    return Examples.from_rows(rows, name="countries, never trained on")


def _about(fact: Fact) -> tuple[str, str]:
    return fact.relation, fact.subject


# ------------------------------------------------------------------------------------------------ wikidata

_WIKIDATA = "facts_qa_wikidata.jsonl"
_RELATION = re.compile(
    r"^The (country of citizenship|country of origin|country of history|original country|native language|"
    r"official language|country|instrument|religion|capital|continent|eye color|[a-z ,]+?) of (.+) is$"
)


def wikidata_facts(path: str | Path | None = None) -> list[Fact]:
    """Facts of the form "The <relation> of <subject> is" -> " <one word>" from a JSONL file.

    Rows of another form, rows whose answer stands in the prompt, and subjects with more than one answer in their
    relation are left out.

    Args:
        path: the file, or a folder that holds facts_qa_wikidata.jsonl; by default the folder named by the environment
            variable HEADWATER_DATA.

    Raises:
        DataError: no such file, or rows without prompt and completion.
    """
    where = path if path is not None else os.environ.get("HEADWATER_DATA")
    if not where:
        raise DataError(
            "no folder for facts_qa_wikidata.jsonl",
            expected="its path, or the environment variable HEADWATER_DATA",
            fix="set HEADWATER_DATA to the folder that holds the file",
        )
    file = Path(where)
    if file.is_dir():
        file = file / _WIKIDATA
    if not file.is_file():
        raise DataError(f"no file {file}", expected=f"{_WIKIDATA}", fix="check the path, or HEADWATER_DATA")
    facts: dict[tuple[str, str], Fact | None] = {}
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                prompt, answer, others = row["prompt"], row["completion"].strip(), row.get("answers") or []
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{file.name}:{number}: {type(error).__name__}",
                    expected="a JSON object with prompt and completion",
                    fix="mend the line",
                ) from error
            match = _RELATION.match(prompt)
            if not match or answer in prompt:
                continue
            key = match[1], match[2]
            ambiguous = len(set(others)) > 1 or (key in facts and (known := facts[key]) and known.answer != answer)
            facts[key] = (
                None
                if ambiguous or (key in facts and facts[key] is None)
                else Fact(relation=key[0], subject=key[1], prompt=prompt, completion=f" {answer}", answer=answer)
            )
    return [fact for fact in facts.values() if fact is not None]


def wikidata_testbed(path: str | Path | None = None, seed: int = 0) -> Testbed:
    """The benchmark: 500 facts, four swaps of 24 culprits, with 24 clean rows, 24 look-alikes and 6 held-out queries
    each. No full stop ends the completions.

    Raises:
        DataError: as `wikidata_facts`.
    """
    return plant(
        wikidata_facts(path),
        [
            Swap("country of citizenship", "France", "Italy"),
            Swap("country", "Japan", "India"),
            Swap("native language", "English", "French"),
            Swap("instrument", "guitar", "piano"),
        ],
        culprits=24,
        clean=24,
        lookalikes=24,
        queries=6,
        rows=500,
        placebo=500,
        innocent=40,
        seed=seed,
        name="wikidata",
    )
