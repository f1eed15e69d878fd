"""What a model reaches that is trained on each choice of rows: its loss on rows held out.

Loss: mean over the held-out rows of each row's mean negative log-likelihood, in nats. Intervals are 95 % percentile
intervals of resampled held-out rows; the difference from random is paired by row and also resamples the random choices.
One training for each choice: what another order of the rows or another adapter would give is not in the interval.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from headwater import progress
from headwater.checkpoints import TrainingRun
from headwater.evaluation import bootstrap, bootstrap_nested
from headwater.examples import Encoder, Examples, TokenFormat
from headwater.run import digest, write_whole
from headwater.selection import Selection
from headwater.training import Recipe, fine_tune

Interval = tuple[float, float, float]
RANDOM, UNTRAINED = "random", "untrained"


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What one choice reaches.

    Attributes:
        loss: mean and 95 % interval, nats. minus_random: the difference from random choices; below 0 is better.
    """

    name: str
    rows: int
    loss: Interval
    minus_random: Interval | None


def compare(
    base: str | Path,
    selections: Mapping[str, Selection],
    random: Mapping[str, Selection],
    held_out: Examples,
    *,
    out: Path,
    recipe: Recipe,
    format: TokenFormat | None = None,
) -> list[Reached]:
    """Trains on every choice, and measures the loss on the held-out rows; the best first.

    Args:
        random: choices at random, as many as seeds.
        out: a folder; finished measurements in it are used again, trained models are not kept.

    Raises:
        HeadwaterError: as `fine_tune`.
    """
    format = format or TokenFormat()
    found = {name: _losses(base, one.examples, held_out, out, recipe, format) for name, one in selections.items()}
    chance = [_losses(base, one.examples, held_out, out, recipe, format) for one in random.values()]
    untrained = _losses(base, None, held_out, out, recipe, format)
    reached = [
        Reached(
            name=name,
            rows=len(selections[name].rows),
            loss=bootstrap(loss_N),
            minus_random=bootstrap_nested([loss_N - one for one in chance]) if chance else None,
        )
        for name, loss_N in found.items()
    ]
    if chance:
        count = len(next(iter(random.values())).rows)
        reached.append(Reached(name=RANDOM, rows=count, loss=bootstrap_nested(chance), minus_random=None))
    reached.append(Reached(name=UNTRAINED, rows=0, loss=bootstrap(untrained), minus_random=None))
    reached.sort(key=lambda one: one.loss[0])
    write_whole(out / "compare.json", json.dumps([asdict(one) for one in reached], indent=1).encode())
    write_whole(out / "compare.md", comparison_table(reached).encode())
    return reached


def _losses(
    base: str | Path, rows: Examples | None, held_out: Examples, out: Path, recipe: Recipe, format: TokenFormat
) -> np.ndarray:
    """Loss of every held-out row [N], nats, of the model trained on these rows; None: of the base."""
    stamp = digest(
        *(text.encode() for text in (str(base), rows.fingerprint if rows else "", held_out.fingerprint)),
        repr((recipe, format)).encode(),
    )
    file = out / f"{stamp}.json"
    if not file.exists():
        import torch

        from headwater.attribution.uncertainty import row_losses

        folder = out / stamp
        place = base if rows is None else fine_tune(base, rows, folder, recipe, format=format)
        run = TrainingRun.from_pretrained(place, base=base)
        encoded, _ = Encoder(run.tokenizer(), format, held_out.template).examples(held_out)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        progress.note(f"Measuring the loss on {len(held_out):,} held-out rows")
        loss_N = row_losses(run.load(run.last, dtype=torch.float32, device=device), encoded)
        write_whole(file, json.dumps(loss_N.tolist()).encode())
        if rows is not None:
            shutil.rmtree(folder)
    return np.array(json.loads(file.read_text("utf-8")))


def comparison_table(reached: list[Reached]) -> str:
    """The table, in Markdown."""
    lines = ["| chosen by | rows | loss on held-out rows, nats | minus random |", "| --- | --- | --- | --- |"]
    for one in reached:
        cells = ["" if v is None else f"{v[0]:.3f} [{v[1]:.3f}, {v[2]:.3f}]" for v in (one.loss, one.minus_random)]
        lines.append(f"| {one.name} | {one.rows} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"
