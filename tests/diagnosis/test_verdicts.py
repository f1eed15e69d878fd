"""The rules one by one, on facts written by hand; and the small parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headwater.diagnosis.chart import Line, line_chart, shade_table
from headwater.diagnosis.facts import CheckpointFacts, Facts, InfluenceFacts, QueryFacts
from headwater.diagnosis.influence import effective_number
from headwater.diagnosis.numbers import numbers
from headwater.diagnosis.posterior import limited
from headwater.diagnosis.probes import read_probes
from headwater.diagnosis.verdicts import RULES, Verdict, held_out_rise, trust_in, verdicts
from headwater.errors import DataError
from headwater.examples import Encoded


def checkpoint(name: str, loss: float = 1.0, **options: Any) -> CheckpointFacts:
    given: dict[str, Any] = {
        "role": "base" if name == "base" else "checkpoint",
        "step": None,
        "epoch": None,
        "rank": None,
        "losses": np.array([loss, loss]),
        "gradient_norm": 1.0,
        "mean_gradient_norm": 0.5,
        "fitting_error": 0.5,
    }
    return CheckpointFacts(name=name, **given | options)


def query(base: float, last: float, name: str = "q") -> QueryFacts:
    return QueryFacts(
        name=name, prompt="p", output="o", corrected="c", tokens=1,
        output_at={"base": base, "last": last}, corrected_at={"base": 0.0, "last": 0.0},
    )  # fmt: skip


def facts(*queries: QueryFacts, base: Any = None, last: Any = None, influence: InfluenceFacts | None = None) -> Facts:
    both = [base or checkpoint("base", 2.0), last or checkpoint("last", 1.0)]
    return Facts(checkpoints=both, queries=queries, influence=influence, rows=2, sampled=2)


def verdict(found: Facts, name: str) -> Verdict:
    return next(one for one in verdicts(found) if one.name == name)


@pytest.mark.parametrize(
    ("leans", "holds"),
    [
        ([(2.0, 3.0)], {"Base already wrong", "The lean is the base model's own"}),
        ([(1.0, 9.0)], {"Base already wrong"}),  # the base leaned, training did most of it
        ([(-2.0, 3.0)], {"Fine-tuning taught it"}),
        ([(-2.0, -1.0)], {"The fine-tuned model does not say it"}),
        ([(2.0, -1.0)], {"The fine-tuned model does not say it"}),
        ([(-2.0, 3.0), (-1.0, 4.0), (1.0, 1.5)], {"Fine-tuning taught it"}),
        ([(-2.0, 3.0), (-1.0, -1.0), (1.0, 1.5)], set()),
    ],
)
def test_queries_decide_who_taught_it(leans: list[tuple[float, float]], holds: set[str]) -> None:
    found = facts(*(query(*lean, name=str(n)) for n, lean in enumerate(leans)))
    assert {one.name for one in verdicts(found) if one.holds} == holds


def test_trust_follows_the_worst_verdict() -> None:
    cases = [
        (facts(query(-2, 3)), "yes"),
        (facts(query(1, 9)), "with care"),
        (facts(query(2, 3)), "no"),
        (facts(query(-2, 3), last=checkpoint("last", 1.9)), "no"),  # hardly trained
        (facts(), "with care"),  # nothing asked
        (facts(query(-2, 3, "a"), query(-1, -1, "b"), query(1, 1.5, "c")), "with care"),  # of several kinds
    ]
    for found, wanted in cases:
        trust, reasons = trust_in(verdicts(found), found)
        assert trust == wanted and reasons


def test_a_rule_states_its_number_and_threshold() -> None:
    one = verdict(facts(query(-2, 3), last=checkpoint("last", 1.9)), "Not trained enough")
    assert one.holds and one.value == pytest.approx(0.05)
    assert "below 0.10; here 0.05" in one.rule and "Train longer" in one.so
    assert all(rule.so and rule.otherwise and rule.number for rule in RULES)


def test_overfitting_needs_a_rise_beyond_its_error() -> None:
    best, worse = np.array([1.0, 1.2, 0.9, 1.1]), np.array([1.5, 1.8, 1.3, 1.7])
    rising = facts(base=checkpoint("base", held_out=best), last=checkpoint("last", held_out=worse))
    difference = worse - best
    wanted = difference.mean() - 1.96 * difference.std(ddof=1) / 2
    assert held_out_rise(rising) == pytest.approx(wanted)
    assert verdict(rising, "Overfitted").holds
    noisy = facts(
        base=checkpoint("base", held_out=best), last=checkpoint("last", held_out=best + np.array([3, -2, 2, -2]))
    )
    assert held_out_rise(noisy) == 0.0 and not verdict(noisy, "Overfitted").holds
    falling = facts(base=checkpoint("base", held_out=worse), last=checkpoint("last", held_out=best))
    assert held_out_rise(falling) == 0.0
    one_row = facts(base=checkpoint("base", held_out=best[:1]), last=checkpoint("last", held_out=worse[:1]))
    assert held_out_rise(one_row) == 0.0  # no spread is known of one row


def test_the_effective_number_is_a_participation_ratio() -> None:
    assert effective_number(np.eye(4)) == pytest.approx(4)
    assert effective_number(np.ones((4, 4))) == pytest.approx(1)
    pairs = np.kron(np.eye(2), np.ones((2, 2)))
    assert effective_number(pairs) == pytest.approx(2)
    values = np.linalg.eigvalsh(0.3 * np.ones((3, 3)) + 0.7 * np.eye(3))
    assert effective_number(0.3 * np.ones((3, 3)) + 0.7 * np.eye(3)) == pytest.approx(
        values.sum() ** 2 / np.square(values).sum()
    )


def test_influence_and_adapters_are_judged() -> None:
    influence = InfluenceFacts(
        rows=9, method="dda", source="s", checkpoints=["base", "a", "b"], correlation=[[1.0] * 3] * 3,
        with_base=0.95, effective=1.1,
    )  # fmt: skip
    last = checkpoint("last", rank=2, expressed={"queries": 0.04, "mean loss": 0.3}, expressed_random=0.02)
    found = facts(query(-2, 3), last=last, influence=influence)
    holds = {one.name for one in verdicts(found) if one.holds}
    assert {"The scores repeat the base model's", "The checkpoints say the same"} <= holds
    assert "The adapter cannot follow the queries" in holds
    assert trust_in(verdicts(found), found)[0] == "with care"
    keys = [one.key for one in numbers(found)]
    assert len(keys) == len(set(keys)) and {"effective_checkpoints", "expressed/queries", "rank"} <= set(keys)
    assert all(one.means.endswith(".") or one.means.endswith(":") for one in numbers(found))


def test_few_positions_are_kept_evenly() -> None:
    texts = [Encoded(np.arange(10), np.arange(10) > 0) for _ in range(5)]
    few = limited(texts, 9)
    assert sum(one.targets for one in few) == 9
    assert sum(one.targets for one in limited(texts, 99)) == 45
    assert all(np.all(one.loss_mask <= (np.arange(10) > 0)) for one in few)


def test_probes_are_lines_or_rows(tmp_path: Path) -> None:
    (tmp_path / "probes.txt").write_text("One sentence.\n\n  Another one. \n", encoding="utf-8")
    assert read_probes(tmp_path / "probes.txt") == ["One sentence.", "Another one."]
    (tmp_path / "probes.jsonl").write_text('{"prompt": "A", "completion": " b"}\n')
    assert read_probes(tmp_path / "probes.jsonl") == ["A b"]
    (tmp_path / "empty.txt").write_text("\n")
    for name in ("empty.txt", "none.txt", "none.jsonl"):
        with pytest.raises(DataError):
            read_probes(tmp_path / name)


def test_charts_escape_what_they_are_given() -> None:
    evil = "<script>alert(1)</script>"
    chart = line_chart([Line(name=evil, values=[1.0, None, 2.0])], [evil, "b", "c"], axis=evil, title=f'"{evil}"')
    table = shade_table([evil, "b"], [[1.0, -0.5], [-0.5, 1.0]], title=evil)
    for made in (chart, table):
        assert "<script" not in made and "&lt;script" in made
    assert line_chart([Line(name="flat", values=[0.0])], ["a"], axis="x", title="t").count("<circle") == 1
