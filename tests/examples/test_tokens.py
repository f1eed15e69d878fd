from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headwater.errors import UsageError
from headwater.examples import Encoded, EncodingReport, TokenFormat


def test_defaults_are_trls() -> None:
    assert TokenFormat() == TokenFormat(loss_on="auto", max_length=1024, keep="start", add_eos=True)


@pytest.mark.parametrize(
    "options",
    [{"loss_on": "prompt"}, {"keep": "middle"}, {"max_length": 1}, {"max_length": 2.5}, {"max_length": True}],
)
def test_options_that_do_not_exist_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TokenFormat(**options)


def test_encoded_counts() -> None:
    encoded = Encoded(np.array([5, 6, 7]), np.array([False, True, True]))
    assert (encoded.length, encoded.targets) == (3, 2)


def test_report_says_only_what_happened() -> None:
    zero = dict.fromkeys(("truncated", "empty_completions", "without_targets", "duplicates", "merged_boundaries"), 0)
    assert EncodingReport(rows=2000, tokens=12345, targets=400, **zero).lines() == [
        "2,000 rows have 12,345 tokens, of which the loss counts 400."
    ]
    lines = EncodingReport(
        rows=1, tokens=1, targets=0, truncated=1, empty_completions=2, without_targets=1, duplicates=3,
        merged_boundaries=1,
    ).lines()  # fmt: skip
    assert lines == [
        "1 row has 1 token, of which the loss counts 0.",
        "1 row was cut to the maximum length.",
        "2 rows have empty completions.",
        "1 row has no token that the loss counts.",
        "3 rows repeat earlier ones exactly.",
        "1 row has a prompt that is tokenized differently in front of its completion.",
    ]
