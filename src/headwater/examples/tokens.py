"""Tokens of one sequence, how training made them, and what is worth knowing about a whole set of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from headwater.errors import UsageError

LossOn = Literal["auto", "completion", "assistant", "all"]


@dataclass(frozen=True, kw_only=True)
class TokenFormat:
    """How training turned rows into tokens; the defaults are those of TRL's SFTTrainer.

    Args:
        loss_on: the tokens that the loss counts. "auto": the completion for prompt + completion rows, the assistant's
            turns for conversations, everything for texts. (SFTTrainer itself counts every token of conversations
            unless it was given assistant_only_loss=True: say "all" for a model trained so.)
        max_length: tokens; longer rows are cut.
        keep: the end of a long row that is kept (TRL's truncation_mode).
        add_eos: whether string completions and texts get the end-of-sequence token where they lack it.
    """

    loss_on: LossOn = "auto"
    max_length: int = 1024
    keep: Literal["start", "end"] = "start"
    add_eos: bool = True

    def __post_init__(self) -> None:
        if self.loss_on not in get_args(LossOn):
            raise UsageError(
                f'loss on "{self.loss_on}"', expected=", ".join(get_args(LossOn)), fix="choose one of these"
            )
        if self.keep not in ("start", "end"):
            raise UsageError(f'keep "{self.keep}"', expected="start or end", fix="choose one of the two")
        if isinstance(self.max_length, bool) or not isinstance(self.max_length, int) or self.max_length < 2:
            raise UsageError(
                f"a maximum length of {self.max_length!r} tokens",
                expected="an integer of 2 or more",
                fix="give the length that training used (1024 is TRL's default)",
            )


@dataclass(frozen=True)
class Encoded:
    """One sequence of T tokens.

    Args:
        input_ids: int64 [T].
        loss_mask: bool [T]; True where the token is a target of the loss, never at position 0.
    """

    input_ids: npt.NDArray[np.int64]
    loss_mask: npt.NDArray[np.bool_]

    @property
    def length(self) -> int:
        """T, in tokens."""
        return len(self.input_ids)

    @property
    def targets(self) -> int:
        """The number of tokens that the loss counts."""
        return int(self.loss_mask.sum())


@dataclass(frozen=True, kw_only=True)
class EncodingReport:
    """What became of the rows: counts of rows, except for `tokens` and `targets`.

    Args:
        rows: all rows.
        tokens: all tokens, after truncation.
        targets: the tokens that the loss counts.
        truncated: rows longer than the maximum length.
        empty_completions: rows that teach nothing but white space (and the end-of-sequence token).
        without_targets: rows in which the loss counts no token; training learns nothing from them (TRL drops those
            that truncation emptied), and their scores are 0.
        duplicates: rows whose content occurred in an earlier row; they stay rows of their own.
        merged_boundaries: rows whose prompt alone is tokenized differently than in front of its completion; the loss
            then starts where the two part, as in TRL.
    """

    rows: int
    tokens: int
    targets: int
    truncated: int
    empty_completions: int
    without_targets: int
    duplicates: int
    merged_boundaries: int

    def lines(self) -> list[str]:
        """One sentence for each count that is not zero."""
        rows = _counted(self.rows, "row has", "rows have")
        tokens = _counted(self.tokens, "token", "tokens")
        sentences = [f"{rows} {tokens}, of which the loss counts {self.targets:,}."]
        for count, one, many in (
            (self.truncated, "row was cut to the maximum length", "rows were cut to the maximum length"),
            (self.empty_completions, "row has an empty completion", "rows have empty completions"),
            (self.without_targets, "row has no token that the loss counts", "rows have no token that the loss counts"),
            (self.duplicates, "row repeats an earlier one exactly", "rows repeat earlier ones exactly"),
            (
                self.merged_boundaries,
                "row has a prompt that is tokenized differently in front of its completion",
                "rows have prompts that are tokenized differently in front of their completions",
            ),
        ):
            if count:
                sentences.append(f"{_counted(count, one, many)}.")
        return sentences


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
