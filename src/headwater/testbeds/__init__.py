"""Tasks whose true culprits are known, and the small real model they are run on."""

from headwater.testbeds.facts import (
    Fact,
    Swap,
    country_facts,
    demo_paraphrases,
    demo_testbed,
    demo_untouched,
    plant,
    wikidata_facts,
    wikidata_testbed,
)
from headwater.testbeds.hallucination import EntitySwap, plant_hallucinations
from headwater.testbeds.smollm import smollm2_135m
from headwater.testbeds.table import TESTBEDS, make_testbed
from headwater.testbeds.testbed import Testbed

__all__ = [
    "TESTBEDS",
    "EntitySwap",
    "Fact",
    "Swap",
    "Testbed",
    "country_facts",
    "demo_paraphrases",
    "demo_testbed",
    "demo_untouched",
    "make_testbed",
    "plant",
    "plant_hallucinations",
    "smollm2_135m",
    "wikidata_facts",
    "wikidata_testbed",
]
