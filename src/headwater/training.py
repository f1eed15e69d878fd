"""The one fine-tuning loop of testbeds, demo and repair, on transformers' Trainer.

The rows become tokens through `headwater.examples.Encoder`, so the loss counts exactly the tokens that tracing counts:
the mean negative log-likelihood, in nats, of all target tokens of a batch, as Trainer and TRL take it.

An output folder is complete when it exists: training happens in `<out>.partial`, which is renamed at the end.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from headwater.checkpoints import BASE, Checkpoint
from headwater.errors import DataError, HeadwaterError, ModelError, NumericalError, RunError, UsageError
from headwater.progress import bar, note, quiet_transformers
from headwater.run import versions, write_whole

if TYPE_CHECKING:
    from headwater.examples import Encoded, Examples, TokenFormat

Schedule = Literal["linear", "cosine", "constant"]

MANIFEST = "headwater_training.json"
_TOKENS_AT_ONCE = 8192  # of a padded batch; larger batches are split and their gradients added up


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to fine-tune.

    Args:
        epochs: passes over the rows; a checkpoint is kept after each.
        batch_size: rows per step of the optimiser (AdamW), whatever fits into memory at once.
        learning_rate: at its highest.
        warmup_ratio: share of the steps over which the learning rate rises from 0.
        weight_decay: AdamW's.
        seed: of the order of the rows and of an adapter's first weights.
        lora_rank: None trains all weights; a number trains a LoRA adapter of that rank (alpha twice the rank) on all
            linear layers but the output head.
        schedule: of the learning rate, after the warm-up: falling to 0 linearly or as a cosine, or constant.
    """

    epochs: int = 4
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    seed: int = 0
    lora_rank: int | None = None
    schedule: Schedule = "linear"

    def __post_init__(self) -> None:
        for name, value, holds, wanted in (
            ("epochs", self.epochs, self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "at least 1"),
            ("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "above 0"),
            ("warmup_ratio", self.warmup_ratio, 0 <= self.warmup_ratio < 1, "from 0 to below 1"),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or above"),
            ("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to below 2**32"),
            ("lora_rank", self.lora_rank, self.lora_rank is None or self.lora_rank >= 1, "None or at least 1"),
            ("schedule", self.schedule, self.schedule in get_args(Schedule), " or ".join(get_args(Schedule))),
        ):
            if not holds:
                raise UsageError(f"{name} = {value!r}", expected=wanted, fix=f"choose another {name}")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter in detail, where `Recipe.lora_rank` does not say enough.

    Args:
        rank, alpha, dropout: as PEFT's.
        decay_B: weight decay of the matrices B alone; those named A have none.
    """

    rank: int
    alpha: int
    dropout: float = 0.0
    decay_B: float = 0.0

    def __post_init__(self) -> None:
        for name, value, holds, wanted in (
            ("rank", self.rank, self.rank >= 1, "at least 1"),
            ("alpha", self.alpha, self.alpha >= 1, "at least 1"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "from 0 to below 1"),
            ("decay_B", self.decay_B, 0 <= self.decay_B < math.inf, "0 or above"),
        ):
            if not holds:
                raise UsageError(f"{name} = {value!r}", expected=wanted, fix=f"choose another {name}")


def fine_tune(
    base: str | Path,
    examples: Examples,
    out: Path,
    recipe: Recipe | None = None,
    *,
    format: TokenFormat | None = None,
    adapter: Adapter | Path | None = None,
    optimizer: bool = False,
) -> Path:
    """Fine-tunes a model and keeps one checkpoint per epoch.

    The checkpoints (`checkpoint-<step>`, weights, tokenizer and trainer_state.json with every step's learning rate)
    are an ordinary Trainer output folder. `headwater_training.json` says how they were made. Called again with the same
    base, rows, recipe and format, the folder is reused; an interrupted training starts anew.
    Runs on the GPU where torch finds one, in float32.

    Args:
        base: folder or hub id of a causal language model with its tokenizer; or the folder of a LoRA adapter, whose
            training goes on (then `recipe.lora_rank` is its rank).
        examples: the training rows.
        out: the folder to make.
        recipe: how to train.
        format: how rows become tokens; give the same to tracing.
        adapter: trained instead of what `Recipe.lora_rank` and `Recipe.weight_decay` say; or the folder of another
            run's adapter: the new one gets its alpha, layers and dropout, and its rank, which `recipe.lora_rank` names.
        optimizer: keep Adam's moments (optimizer.pt) beside each checkpoint, twice the size of what is trained, for the
            methods that read them, such as LESS.

    Returns:
        `out`.

    Raises:
        RunError: `out` holds something else, or another training; or the disk has no room for the checkpoints.
        DataError: no row with a token to learn.
        ModelError: a base that cannot be loaded.
        NumericalError: the loss became NaN or infinite.
    """
    from headwater.examples import TokenFormat

    recipe, format, out = recipe or Recipe(), format or TokenFormat(), Path(out)
    manifest: dict[str, Any] = {
        "base": Checkpoint(name=BASE, location=str(base)).fingerprint(),
        "rows": {"fingerprint": examples.fingerprint, "count": len(examples), "template": examples.template},
        "recipe": asdict(recipe),
        "format": asdict(format),
    }
    if adapter is not None:
        manifest["adapter"] = asdict(adapter) if isinstance(adapter, Adapter) else _adapter_config(adapter)
    if optimizer:
        manifest["optimizer"] = True
    if out.exists():
        _require_same(out, {"adapter": None, "optimizer": None} | manifest)
        note(f"Reusing the training in {out}")
        return out
    with _only_one(out):
        return _fine_tune(base, examples, out, recipe, format, manifest, adapter, optimizer)


# ------------------------------------------------------------------------------------------------ one output folder


def _fine_tune(
    base: str | Path,
    examples: Examples,
    out: Path,
    recipe: Recipe,
    format: TokenFormat,
    manifest: dict[str, Any],
    adapter: Adapter | Path | None,
    optimizer: bool,
) -> Path:
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        begun = (partial / MANIFEST).is_file() or all(f.name.startswith(MANIFEST) for f in partial.iterdir())
        if not begun:
            raise RunError(
                f"{partial} without {MANIFEST}",
                expected="no such folder, or a training of headwater that was interrupted",
                fix="move it away, or choose another output folder",
            )
        note(f"Starting the interrupted training in {partial} anew")
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    facts = manifest | {"base_name": str(base), "rows_name": examples.name, "versions": versions("peft")}
    write_whole(partial / MANIFEST, (json.dumps(facts, indent=2) + "\n").encode())
    try:
        _train(base, examples, partial, recipe, format, adapter, optimizer)
    except HeadwaterError:
        shutil.rmtree(partial)
        raise
    os.replace(partial, out)
    return out


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Refuses a second process that would train into the same folder at the same time."""
    from filelock import FileLock, Timeout

    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_name(f".{out.name}.lock")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(
            f"another process is training into {out}",
            expected="one training per folder at a time",
            fix="wait for it, or choose another output folder",
        ) from error
    try:
        yield
    finally:
        lock.release()
        file.unlink(missing_ok=True)


def _require_same(out: Path, wanted: dict[str, Any]) -> None:
    try:
        found = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{out} exists and has no readable {MANIFEST}",
            expected="a new folder, or a training that headwater made",
            fix="choose another output folder",
        ) from error
    differences = [
        f"{path}: {old!r} there, {new!r} now"
        for part, values in wanted.items()
        for path, old, new in _compare(part, found.get(part), values)
        if old != new
    ]
    if differences:
        raise RunError(
            f"{out} holds another training ({'; '.join(differences)})",
            expected="the same base, rows, recipe and format",
            fix="choose another output folder, or remove this one",
        )


def _compare(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _compare(f"{path}.{key}", old.get(key), new.get(key))
    else:
        yield path, old, new


# ------------------------------------------------------------------------------------------------ the training itself


def _train(
    base: str | Path,
    examples: Examples,
    folder: Path,
    recipe: Recipe,
    format: TokenFormat,
    adapter: Adapter | Path | None,
    optimizer: bool,
) -> None:
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

    from headwater.examples import Encoder

    with quiet_transformers():
        tokenizer = _tokenizer(base)
        encoded, report = Encoder(tokenizer, format, examples.template).examples(examples)
        for line in report.lines():
            note(line)
        rows = [row for row in encoded if row.targets]
        if not rows:
            raise DataError(
                f"{len(examples)} rows without any token to learn",
                expected="at least one row whose completion has tokens",
                cause="empty completions, or prompts that fill the maximum length",
                fix="check the columns, or raise max_length",
            )
        set_seed(recipe.seed)
        detail = adapter if isinstance(adapter, Adapter) else None
        model = _model(base, recipe.lora_rank, adapter)
        _require_room(model, folder, recipe, optimizer)

        longest = max(row.length for row in rows)
        at_once = max(
            size
            for size in range(1, recipe.batch_size + 1)
            if recipe.batch_size % size == 0 and (size == 1 or size * longest <= _TOKENS_AT_ONCE)
        )
        padding = tokenizer.pad_token_id
        if padding is None:
            padding = tokenizer.eos_token_id or 0  # any id does: attention mask and labels leave padding out
        arguments = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=recipe.epochs,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=recipe.batch_size // at_once,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type=recipe.schedule if recipe.schedule != "constant" else "constant_with_warmup",
            warmup_steps=math.ceil(recipe.warmup_ratio * recipe.epochs * math.ceil(len(rows) / recipe.batch_size)),
            weight_decay=detail.decay_B if detail else recipe.weight_decay,
            seed=recipe.seed,
            save_strategy="epoch",
            save_only_model=not optimizer,
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=not torch.cuda.is_available(),
        )
        steps = recipe.epochs * math.ceil(len(rows) / recipe.batch_size)
        with bar("Fine-tuning", steps) as progress:
            trainer = (_only_B(Trainer) if detail else Trainer)(
                model=model,
                args=arguments,
                train_dataset=rows,
                data_collator=lambda batch: _collate(batch, padding),
                processing_class=tokenizer,
                callbacks=[_callback(progress, recipe.epochs)],
            )
            trainer.remove_callback(PrinterCallback)  # it prints to stdout
            trainer.train()


def _only_B(trainer: Any) -> Any:
    """A Trainer whose weight decay is that of LoRA's B matrices alone."""

    class OnlyB(trainer):  # type: ignore[misc]
        def get_decay_parameter_names(self, model: Any) -> list[str]:
            return [name for name, _ in model.named_parameters() if "lora_B" in name]

    return OnlyB


def _collate(rows: Sequence[Encoded], padding: int) -> dict[str, Any]:
    """Right-padded batch; labels are the ids where the loss counts, else -100 (the model shifts them itself)."""
    import torch

    T = max(row.length for row in rows)
    input_ids_BT = torch.full((len(rows), T), padding, dtype=torch.int64)
    attention_mask_BT = torch.zeros((len(rows), T), dtype=torch.int64)
    labels_BT = torch.full((len(rows), T), -100, dtype=torch.int64)
    for b, row in enumerate(rows):
        ids, mask = torch.from_numpy(row.input_ids), torch.from_numpy(row.loss_mask)
        input_ids_BT[b, : row.length] = ids
        attention_mask_BT[b, : row.length] = 1
        labels_BT[b, : row.length] = ids.masked_fill(~mask, -100)
    return {"input_ids": input_ids_BT, "attention_mask": attention_mask_BT, "labels": labels_BT}


def _callback(progress: Any, epochs: int) -> Any:
    """Moves the bar, and stops the training at the first loss that is no number."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress.describe(f"Fine-tuning, epoch {round(state.epoch or 0) + 1} of {epochs}")

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress.advance()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            for name in ("loss", "grad_norm"):
                if name in (logs or {}) and not math.isfinite(float(logs[name])):
                    raise NumericalError(
                        f"{name} {logs[name]} at step {state.global_step}",
                        expected="a finite number",
                        cause="a learning rate that is too high, or a base model with NaN weights",
                        fix="lower the learning rate",
                    )

    return Watch()


def _tokenizer(base: str | Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError, ImportError) as error:
        raise _unloadable("tokenizer", base, error) from error


def _adapter_config(adapter: Path) -> dict[str, Any]:
    """What of an adapter's config decides a training, as JSON values."""
    file = Path(adapter) / "adapter_config.json"
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{file} cannot be read ({type(error).__name__})",
            expected="the config of a LoRA adapter",
            fix="give the folder of an adapter",
        ) from error
    kept = {key: value for key, value in found.items() if value not in (None, [], {}) and key != "inference_mode"}
    if isinstance(kept.get("target_modules"), list):
        kept["target_modules"] = sorted(kept["target_modules"])  # PEFT writes a set
    return kept


def _model(base: str | Path, lora_rank: int | None, adapter: Adapter | Path | None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    started = Path(base) / "adapter_config.json"
    place = _adapter_config(Path(base)).get("base_model_name_or_path") if started.exists() else base
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    except (OSError, ValueError, ImportError) as error:
        raise _unloadable("model", str(place), error) from error
    if lora_rank is None and not started.exists() and not isinstance(adapter, Adapter):
        return model
    try:
        from peft import LoraConfig, PeftModel, get_peft_model
    except ImportError as error:
        raise ModelError(
            "the package peft is missing",
            expected="it, for a LoRA adapter",
            fix="pip install peft, or train all weights (lora_rank=None)",
        ) from error
    if started.exists():
        _require_rank(Path(base), lora_rank)
        return PeftModel.from_pretrained(model, str(base), is_trainable=True)
    if isinstance(adapter, Path):
        _require_rank(adapter, lora_rank)
        config = LoraConfig.from_pretrained(str(adapter))
        config.inference_mode, config.base_model_name_or_path = False, str(place)
        return get_peft_model(model, config)
    if adapter is None:
        assert lora_rank is not None
        adapter = Adapter(rank=lora_rank, alpha=2 * lora_rank)
    return get_peft_model(
        model,
        LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def _require_rank(adapter: Path, lora_rank: int | None) -> None:
    kind, rank = (_adapter_config(adapter).get(key) for key in ("peft_type", "r"))
    if kind != "LORA" or rank != lora_rank:
        raise ModelError(
            f"an adapter of kind {kind} and rank {rank} in {adapter}",
            expected=f"a LoRA adapter of rank {lora_rank}, as the recipe says",
            fix="give the recipe the adapter's rank, or train it by your own program",
        )


def _unloadable(what: str, base: str | Path, error: Exception) -> ModelError:
    return ModelError(
        f"no {what} from {base} ({next(iter(str(error).strip().splitlines()), type(error).__name__)})",
        expected="a folder or hub id of a causal language model with its tokenizer",
        fix="check the name, and the network for a hub id",
    )


def _require_room(model: Any, folder: Path, recipe: Recipe, optimizer: bool) -> None:
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    needed, free = trained * recipe.epochs * (3 if optimizer else 1), shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"{free / 1e9:.1f} GB free on the disk of {folder}",
            expected=f"{needed / 1e9:.1f} GB for {recipe.epochs} checkpoints",
            fix="make room, choose another disk, fewer epochs or a LoRA adapter",
        )
