"""The training run that a trace was made of."""

from __future__ import annotations

from dataclasses import fields

from headwater.checkpoints import BASE, Checkpoint, TrainingRun
from headwater.errors import ModelError
from headwater.examples import TokenFormat
from headwater.scores import Scores


def run_of(scores: Scores, *, trust_remote_code: bool = False, allow_pickle: bool = False) -> TrainingRun:
    """The run as the trace remembers it.

    Raises:
        ModelError: a checkpoint is not there any more, or is another one now.
    """
    known = {field.name for field in fields(Checkpoint)}
    found: list[Checkpoint] = []
    for record in scores.provenance["checkpoints"]:
        checkpoint = Checkpoint(**{key: value for key, value in record.items() if key in known})
        if checkpoint.fingerprint() != record["fingerprint"]:
            raise ModelError(
                f"{checkpoint.location} is not the model that was traced",
                expected="the checkpoints of the trace where they were, unchanged",
                cause="a moved or overwritten folder, or another working directory",
                fix="give --checkpoints and --base",
            )
        found.append(checkpoint)
    return TrainingRun(
        checkpoints=tuple(c for c in found if c.name != BASE),
        base=next((c for c in found if c.name == BASE), None),
        quantization=scores.provenance.get("quantization"),
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )


def format_of(scores: Scores) -> TokenFormat:
    """How rows became tokens in the trace."""
    return TokenFormat(**scores.provenance["format"])
