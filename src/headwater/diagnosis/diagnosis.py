"""A finished diagnosis: facts, verdicts, numbers with their meaning; to and from disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headwater.diagnosis.facts import Facts
from headwater.diagnosis.numbers import Number, numbers
from headwater.diagnosis.verdicts import Trust, Verdict, trust_in, trust_sentence, verdicts
from headwater.run import write_whole

MANIFEST = "diagnosis.json"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `headwater diagnose` found.

    Attributes:
        facts: what was measured. verdicts: of every rule of `headwater.diagnosis.verdicts.RULES`.
        trust: whether attribution can be trusted. reasons: why.
        numbers: each with what it means and what to do.
        provenance: all that is needed to do it again.
    """

    facts: Facts
    verdicts: Sequence[Verdict]
    trust: Trust
    reasons: Sequence[str]
    numbers: Sequence[Number]
    provenance: Mapping[str, Any]

    @classmethod
    def of(cls, facts: Facts, provenance: Mapping[str, Any]) -> Diagnosis:
        """Judges the facts."""
        found = verdicts(facts)
        trust, reasons = trust_in(found, facts)
        return cls(
            facts=facts,
            verdicts=found,
            trust=trust,
            reasons=reasons,
            numbers=numbers(facts),
            provenance=provenance,
        )

    def holds(self, name: str) -> bool | None:
        """Whether the verdict of that name holds; None where it could not be judged."""
        return next(one.holds for one in self.verdicts if one.name == name)

    @property
    def sentence(self) -> str:
        """The verdict on attribution in words."""
        return trust_sentence(self.trust, self.reasons)

    def record(self) -> dict[str, Any]:
        """The whole diagnosis as JSON values."""
        facts = self.facts
        return {
            "format": 1,
            "trust": {"answer": self.trust, "reasons": list(self.reasons), "sentence": self.sentence},
            "verdicts": [asdict(one) for one in self.verdicts],
            "numbers": [asdict(one) for one in self.numbers],
            "checkpoints": [one.record() for one in facts.checkpoints],
            "queries": [one.record() for one in facts.queries],
            "influence": None if facts.influence is None else asdict(facts.influence),
            "rows": {"all": facts.rows, "measured": facts.sampled},
            "provenance": dict(self.provenance),
        }

    def save(self, folder: Path) -> Path:
        """Writes folder/diagnosis.html, and folder/diagnosis.json, the manifest, last. Returns the page's path."""
        from headwater.diagnosis.page import write_page

        page = write_page(self, folder)
        write_whole(folder / MANIFEST, json.dumps(self.record(), indent=1, ensure_ascii=False).encode())
        return page
