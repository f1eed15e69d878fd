"""The recipe of a finished run, as far as its files say it without pickle; what they do not say has to be given.

    headwater_training.json     headwater's own trainings: everything
    README.md                   Trainer's model card: the hyperparameters it lists
    trainer_state.json          epochs, batch size, and the learning rate where it was logged often enough
    adapter_config.json         the adapter's rank, alpha, layers and dropout

`training_args.bin` is a pickle and is not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headwater import progress
from headwater.checkpoints import Checkpoint, TrainingRun
from headwater.errors import RunError, UsageError
from headwater.examples import Examples, TokenFormat
from headwater.records import among, fault, maybe, number, parsed, record, whole
from headwater.training import MANIFEST, Recipe

STATE, CARD = "trainer_state.json", "README.md"
ASSUMED = {"warmup_ratio": 0.0, "weight_decay": 0.0, "seed": 42}
"""Trainer's defaults, for what its files do not say."""

_ASKED = {
    "epochs": "--epochs", "batch_size": "--batch-size", "learning_rate": "--learning-rate", "schedule": "--schedule",
}  # fmt: skip
_CARD_KEYS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "learning_rate": ("learning_rate", float),
    "train_batch_size": ("batch_size", int),
    "total_train_batch_size": ("batch_size", int),
    "seed": ("seed", int),
    "num_epochs": ("epochs", lambda text: int(float(text))),
    "lr_scheduler_type": ("schedule", str),
    "lr_scheduler_warmup_ratio": ("warmup_ratio", float),
}

_RECIPE = {
    "epochs": whole(1),
    "batch_size": whole(1),
    "learning_rate": number,
    "warmup_ratio": number,
    "weight_decay": number,
    "seed": whole(0),
    "lora_rank": maybe(whole(1)),
    "schedule": among("linear", "cosine", "constant"),
}
_FORMAT = {
    "loss_on": among("auto", "completion", "assistant", "all"),
    "max_length": whole(2),
    "keep": among("start", "end"),
    "add_eos": among(True, False),
}
_MOST_STEPS = 1 << 40


@dataclass(frozen=True, kw_only=True)
class FoundRecipe:
    """What the files say.

    Attributes:
        values: some of the fields of `headwater.training.Recipe`. sources: the files that say them.
        adapter: folder of the run's adapter, whose config a new one gets.
        format: how rows became tokens, where headwater trained.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    sources: Sequence[str] = ()
    adapter: str | None = None
    format: TokenFormat | None = None

    def completed(self, given: Mapping[str, Any], place: str) -> Recipe:
        """The recipe, with what is given in place of what was found.

        Raises:
            UsageError: something is neither found nor given, or a value that cannot be.
        """
        values = {**self.values, **{key: value for key, value in given.items() if value is not None}}
        missing = [name for name in _ASKED if name not in values]
        if missing:
            raise UsageError(
                f"the files of {place} do not say {', '.join(name.replace('_', ' ') for name in missing)}",
                expected="the recipe of the run",
                cause="Trainer keeps it in training_args.bin, a pickle, which is not read",
                fix=f"give {', '.join(_ASKED[name] for name in missing)}, or your own program with --command",
            )
        assumed = {name: value for name, value in ASSUMED.items() if name not in values}
        if assumed:
            said = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in assumed.items())
            progress.note(f"The files of the run do not say everything; as Trainer's defaults: {said}.")
        return Recipe(**{**assumed, **values})


def find_recipe(run: TrainingRun, train: Examples) -> FoundRecipe:
    """Reads the recipe of a run from the files of its last checkpoint and of the folder above it.

    Raises:
        RunError: a file that cannot be read.
    """
    last = Path(run.last.location)
    adapter = str(last) if run.last.kind == "adapter" else None
    for folder in (last.parent, last):
        if (folder / MANIFEST).is_file():
            return _own(folder / MANIFEST, train, adapter)
    values: dict[str, Any] = {}
    sources = []
    if (last / STATE).is_file():
        found = _of_state(_read(last / STATE), len(train))
        values |= found
        sources += [STATE] if found else []
    for folder in (last.parent, last):
        if (folder / CARD).is_file():
            found = _of_card((folder / CARD).read_text("utf-8", "replace"))
            values |= found
            sources += [CARD] if found else []
    if adapter is not None:
        rank = _read(last / "adapter_config.json").get("r")
        values["lora_rank"] = rank if whole(1).holds(rank) else None
        sources.append("adapter_config.json")
    return FoundRecipe(values=values, sources=sources, adapter=adapter)


def _own(file: Path, train: Examples, adapter: str | None) -> FoundRecipe:
    found = _read(file, {"rows": record, "recipe": record})
    if found["rows"].get("fingerprint") != train.fingerprint:
        progress.note(f"{train.name} is not the data that {file.parent} was trained on, as {file.name} says.")
    values = {key: value for key, value in found["recipe"].items() if key in _RECIPE}
    _read(file, {"recipe": {key: _RECIPE[key] for key in values}})
    if "format" in found:
        _read(file, {"format": _FORMAT})
    format = {key: found["format"][key] for key in _FORMAT} if "format" in found else None
    return FoundRecipe(
        values=values,
        sources=[file.name],
        adapter=adapter,
        format=None if format is None else TokenFormat(**format),
    )


def _read(file: Path, wanted: Any = record) -> dict[str, Any]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RunError(f"{file} cannot be read ({error})", expected="a JSON object", fix="check the file") from None
    found: dict[str, Any] = parsed(data, file, wanted, what="the files of the run", fix="mend it, or say the recipe")
    return found


def _of_state(state: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Epochs, batch size and learning rate, as far as a trainer_state.json gives them away."""
    out: dict[str, Any] = {}
    epochs, steps, at_once = (state.get(key) for key in ("num_train_epochs", "max_steps", "train_batch_size"))
    if type(epochs) is int and epochs >= 1:
        out["epochs"] = epochs
        size = _batch_size(rows, at_once, steps, epochs)
        if size is not None:
            out["batch_size"] = size
    logged = {"step": whole(0), "learning_rate": number}
    history = state.get("log_history")
    history = [entry for entry in history if fault(entry, logged) is None] if isinstance(history, list) else []
    points = [(int(entry["step"]), float(entry["learning_rate"])) for entry in history if entry["step"] <= _MOST_STEPS]
    if type(steps) is int and 0 < steps <= _MOST_STEPS:
        out |= _schedule(points, steps)
    return out


def _batch_size(rows: int, at_once: Any, steps: Any, epochs: int) -> int | None:
    """Rows of an optimiser step: the smallest number of accumulated batches that makes the number of steps."""
    if not (type(at_once) is int and at_once >= 1 and type(steps) is int and steps > 0 and steps % epochs == 0):
        return None
    batches = math.ceil(rows / at_once)
    for accumulated in range(1, batches + 1):
        if math.ceil(batches / accumulated) == steps // epochs:
            return at_once * accumulated
    return None


def _schedule(points: Sequence[tuple[int, float]], steps: int) -> dict[str, Any]:
    """Highest learning rate and schedule, where logged rates fit one without warm-up: two of them at least.

    A rate logged at step s is that of step s or of the one after it: versions of transformers differ.
    """
    shapes: Mapping[str, Callable[[float], float]] = {
        "constant": lambda share: 1.0,
        "linear": lambda share: 1 - share,
        "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    }
    for name, shape in shapes.items():
        for offset in (1, 0):
            highest = [r / shape((s - offset) / steps) for s, r in points if shape((s - offset) / steps) > 0.02]
            if len(highest) >= 2 and max(highest) - min(highest) <= 1e-3 * max(highest):
                return {"learning_rate": float(f"{sum(highest) / len(highest):.4g}"), "schedule": name}
    return {}


def _of_card(text: str) -> dict[str, Any]:
    """The hyperparameters that Trainer lists in a model card."""
    out: dict[str, Any] = {}
    for key, value in re.findall(r"^- (\w+): (\S+)\s*$", text, re.MULTILINE):
        if key in _CARD_KEYS:
            name, read = _CARD_KEYS[key]
            try:
                out[name] = read(value)
            except (ValueError, OverflowError):
                continue
    if out.get("schedule", "linear") not in ("linear", "cosine", "constant"):
        out.pop("schedule")
    return out


def remaining(recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
    """The recipe from an early checkpoint on: the epochs that are left, and the learning rate that the schedule had
    reached, which then falls (or stays) as before. A cosine starts anew from there, somewhat steeper than the rest of
    the whole one. Moments of the optimiser start at zero.

    Raises:
        UsageError: a checkpoint without an epoch, inside of one, or at the end.
    """
    done = checkpoint.epoch
    if done is None or abs(done - round(done)) > 0.01 or not 0 < round(done) < recipe.epochs:
        raise UsageError(
            f"{checkpoint.name} (epoch {'unknown' if done is None else f'{done:g}'}) to go on from",
            expected=f"a checkpoint at the end of an epoch before the last of {recipe.epochs}",
            fix="choose an earlier checkpoint, or the base",
        )
    share = round(done) / recipe.epochs
    factor = {"linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share)), "constant": 1.0}[recipe.schedule]
    return replace(
        recipe, epochs=recipe.epochs - round(done), learning_rate=recipe.learning_rate * factor, warmup_ratio=0.0
    )
