"""Tasks whose true culprits are known, and the small real model they are run on."""

from headwater.testbeds.facts import (
    Fact,
    Swap,
    Testbed,
    country_facts,
    demo_testbed,
    plant,
    wikidata_facts,
    wikidata_testbed,
)
from headwater.testbeds.smollm import smollm2_135m

__all__ = [
    "Fact",
    "Swap",
    "Testbed",
    "country_facts",
    "demo_testbed",
    "plant",
    "smollm2_135m",
    "wikidata_facts",
    "wikidata_testbed",
]
