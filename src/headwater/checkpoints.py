"""Training runs as they lie around: the base model and the checkpoints of one fine-tuning.

Nothing here loads a model before `TrainingRun.load`; what can be known from the files (a missing folder, a missing
base, a pickle) is refused before that.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headwater.errors import HeadwaterError, ModelError, NumericalError, UsageError
from headwater.model_files import check_model_files, read_object
from headwater.model_files import reason as reason_of
from headwater.run import digest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASE = "base"

_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "vocab.json")
_IDENTIFYING = (
    "config.json",
    "adapter_config.json",
    *_TOKENIZER,
    "merges.txt",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One model of a training run.

    Attributes:
        name: unique within the run; `base` for the base model.
        location: folder or hub id.
        kind: `full` for a whole model, `adapter` for a PEFT adapter on `base`.
        base: for an adapter, folder or hub id of the model it sits on.
        step, epoch: where in training it was taken, where known.
        learning_rate: mean learning rate of the steps since the checkpoint before it, where logged.
        revision: commit of a model on the hub.
    """

    name: str
    location: str
    kind: Literal["full", "adapter"] = "full"
    base: str | None = None
    step: int | None = None
    epoch: float | None = None
    learning_rate: float | None = None
    revision: str | None = None

    def fingerprint(self) -> str:
        """Identifies weights and tokenizer: sizes and samples of the files of a folder, the commit of a hub id."""
        folder = Path(self.location)
        if not folder.is_dir():
            return f"hub:{self.location}@{self.revision}"
        parts: list[bytes] = []
        for file in sorted(folder.iterdir()):
            if file.name.endswith((".safetensors", ".bin")) or file.name in _IDENTIFYING:
                try:
                    parts += [file.name.encode(), _sample(file)]
                except OSError as error:
                    raise ModelError(
                        f"{file} cannot be read ({reason_of(error)})",
                        expected="a file",
                        fix="check the folder and its permissions",
                    ) from None
        return digest(*parts)


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """The base model (where known) and the fine-tuned checkpoints, oldest first.

    Attributes:
        quantization: load base models in "4bit" or "8bit" (needs bitsandbytes).
        trust_remote_code: allow models that bring their own code. Off unless the user says so.
        allow_pickle: allow weights in pickle files (`.bin`), which can run code when loaded.
    """

    checkpoints: tuple[Checkpoint, ...]
    base: Checkpoint | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False

    @classmethod
    def from_pretrained(
        cls,
        checkpoints: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        base: str | os.PathLike[str] | None = None,
        every: Literal["epoch", "checkpoint"] = "epoch",
        quantization: Literal["4bit", "8bit"] | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
    ) -> TrainingRun:
        """Finds the checkpoints of a run.

        Args:
            checkpoints: a Trainer or TRL output folder with `checkpoint-*` in it; or one or several model folders,
                adapter folders or hub ids, oldest first.
            base: the model before fine-tuning; for adapters taken from their own config if not given.
            every: of an output folder, the last checkpoint of every epoch, or every checkpoint.

        Raises:
            ModelError: nothing there, no model in it, adapters of different bases, weights only as pickle.
            UsageError: quantization without bitsandbytes.
        """
        if every not in ("epoch", "checkpoint"):
            raise UsageError(f"every={every!r}", expected="'epoch' or 'checkpoint'", fix="choose one of them")
        if quantization is not None:
            _require_bitsandbytes(quantization)
        given = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else list(checkpoints)
        places = [os.fspath(place) for place in given]
        if not places:
            raise ModelError("no checkpoint", expected="at least one", fix="give --checkpoints")
        found: list[Checkpoint] = []
        for place in places:
            found += _discover(place, every, allow_pickle)
        base_place = os.fspath(base) if base is not None else None
        bases = {c.base for c in found if c.kind == "adapter"}
        if base_place is None and len(bases) > 1:
            raise ModelError(
                f"adapters of different base models: {', '.join(sorted(map(str, bases)))}",
                expected="the checkpoints of one training run",
                fix="trace them apart, or give --base",
            )
        if base_place is None and bases:
            base_place = next(iter(bases))
        found = _with_learning_rates(_named(found))
        found = [replace(c, base=base_place) if c.kind == "adapter" else c for c in found]
        if any(c.kind == "adapter" and c.base is None for c in found):
            raise ModelError(
                "an adapter whose config names no base model", expected="its base model", fix="give --base"
            )
        base_checkpoint = None
        if base_place is not None:
            _check_model_place(base_place, allow_pickle)
            if (Path(base_place) / "adapter_config.json").exists():
                raise ModelError(
                    f"the base {base_place} is an adapter", expected="a whole model", fix="give the model it sits on"
                )
            revision = None if _exists(Path(base_place)) else _hub_config(base_place).parent.name
            base_checkpoint = Checkpoint(name=BASE, location=base_place, step=0, epoch=0.0, revision=revision)
        return cls(
            checkpoints=tuple(found),
            base=base_checkpoint,
            quantization=quantization,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )

    @property
    def last(self) -> Checkpoint:
        return self.checkpoints[-1]

    def named(self, name: str) -> Checkpoint:
        """The checkpoint of that name, `base` included."""
        if name == BASE:
            return self.require_base()
        for checkpoint in self.checkpoints:
            if checkpoint.name == name:
                return checkpoint
        known = ", ".join(c.name for c in self.checkpoints)
        raise ModelError(f"no checkpoint {name}", expected=f"one of {known}", fix="choose one of them")

    def require_base(self, why: str = "this method compares with the base model") -> Checkpoint:
        if self.base is None:
            raise UsageError(
                "no base model", expected="the model before fine-tuning", cause=why, fix="give --base, folder or hub id"
            )
        return self.base

    def check_configs(self) -> None:
        """Reads the configs of all local models as transformers reads them: a broken one is known before the first
        model is loaded.

        Raises:
            ModelError: an architecture that is not known, remote code that is not allowed, values that do not fit.
        """
        from transformers import AutoConfig

        models = (*self.checkpoints, *([self.base] if self.base else []))
        for place in dict.fromkeys(c.location if c.kind == "full" else str(c.base) for c in models):
            if not Path(place).is_dir():
                continue
            try:
                config = AutoConfig.from_pretrained(place, trust_remote_code=self.trust_remote_code)
                self._check_architecture(place, config)
            except HeadwaterError:
                raise
            except Exception as error:  # each architecture checks its config in its own way
                raise ModelError(
                    f"{place}/config.json is not the config of a model ({reason_of(error)})",
                    expected="an architecture that transformers knows, without code of its own",
                    fix="check the file; --trust-remote-code runs code that a model brings along",
                ) from None

    def _check_architecture(self, place: str, config: Any) -> None:
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not self.trust_remote_code:
            raise ModelError(
                f"{place} is a {config.model_type}", expected="a causal language model", fix="check the folder"
            )

    def vocabulary_size(self, checkpoint: Checkpoint) -> int | None:
        """Number of token embeddings by a local model's config; None where only loading can tell."""
        place = Path(checkpoint.location if checkpoint.kind == "full" else str(checkpoint.base)) / "config.json"
        try:
            size = json.loads(place.read_text("utf-8")).get("vocab_size")
        except (OSError, ValueError, AttributeError, RecursionError):
            return None
        return size if isinstance(size, int) else None

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the last checkpoint, or else of the base.

        Raises:
            ModelError: no tokenizer, or one that differs between base and checkpoint.
        """
        last = self.last
        places = [last.location, *([last.base] if last.base else []), *([self.base.location] if self.base else [])]
        with_tokenizer = [p for p in dict.fromkeys(places) if not Path(p).is_dir() or _has_tokenizer(Path(p))]
        if not with_tokenizer:
            raise ModelError(
                f"no tokenizer in {', '.join(dict.fromkeys(places))}",
                expected="tokenizer files beside the last checkpoint or the base model",
                fix="save the tokenizer there (tokenizer.save_pretrained)",
            )
        if last.kind == "adapter" and not Path(last.location).is_dir() and len(with_tokenizer) > 1:
            with_tokenizer.append(with_tokenizer.pop(0))  # an adapter on the hub often comes without one
        tokenizer = self._load_tokenizer(with_tokenizer[0])
        if last.kind == "adapter" and not Path(last.location).is_dir():
            return tokenizer
        for place in with_tokenizer[1:]:
            other = self._load_tokenizer(place)
            if other.get_vocab() != tokenizer.get_vocab() and not _extends(tokenizer, other):
                raise ModelError(
                    f"the tokenizers of {with_tokenizer[0]} and {place} differ",
                    expected="one vocabulary for base and checkpoints",
                    cause="the base is not the model this run started from",
                    fix="give the right --base",
                )
        return tokenizer

    def _load_tokenizer(self, place: str) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                place, trust_remote_code=self.trust_remote_code
            )
        except Exception as error:  # the tokenizers package raises nothing narrower for a file that it cannot read
            raise ModelError(
                f"the tokenizer of {place} cannot be loaded ({reason_of(error)})",
                expected="a folder or hub id with a tokenizer",
                fix="check the name, or that the hub can be reached",
            ) from None
        return tokenizer

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        device_map: str | Mapping[str, int | str] | None = None,
    ) -> PreTrainedModel:
        """Loads a model in evaluation mode; an adapter is attached to its base, not merged.

        Args:
            device_map: spreads the layers over devices as accelerate does, instead of putting all on `device`.

        Raises:
            ModelError: it cannot be loaded, weights are missing from its files, or the devices do not hold all of it.
            UsageError: accelerate is not installed.
            NumericalError: a weight is NaN or infinite.
        """
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        place = checkpoint.location if checkpoint.kind == "full" else str(checkpoint.base)
        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if checkpoint.kind == "full" and checkpoint.revision is not None:
            options["revision"] = checkpoint.revision
        if not self.allow_pickle:
            options["use_safetensors"] = True
        if device_map is not None:
            _require_accelerate()
            options["device_map"] = device_map if isinstance(device_map, str) else dict(device_map)
        if self.quantization is not None:
            options["quantization_config"] = _quantization(self.quantization, dtype)
            options.setdefault("device_map", {"": device})
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                place, torch_dtype=dtype, output_loading_info=True, **options
            )
            missing = sorted(report["missing_keys"])
            if missing:
                raise ModelError(
                    f"{place} lacks {len(missing)} weights, {missing[0]} for one",
                    expected="a complete causal language model",
                    cause="another kind of model, or an interrupted save",
                    fix="check the folder",
                )
            if checkpoint.kind == "adapter":
                model = _attach(model, checkpoint)
        except HeadwaterError:
            raise
        except Exception as error:  # configs and adapters are checked by many packages, each with errors of its own
            raise ModelError(
                f"{checkpoint.name} ({checkpoint.location}) cannot be loaded ({reason_of(error)})",
                expected="a causal language model that transformers can load",
                fix="check the folder or hub id, and that the hub can be reached",
            ) from None
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
        model.eval()
        if self.quantization is None and device_map is None:
            model.to(device=device, dtype=dtype)
        for name, parameter in model.named_parameters():
            if parameter.is_meta:
                raise ModelError(
                    f"{name} of {checkpoint.name} is not on a device, but offloaded to memory or disk",
                    expected="devices that hold the whole model",
                    cause="a model that is larger than the accelerators of this machine together",
                    fix="use more of them, --dtype bfloat16, or --shard over several machines",
                )
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and not math.isfinite(float(parameter.detach().double().abs().sum())):
                raise NumericalError(
                    f"the weight {name} of {checkpoint.name} is NaN or infinite",
                    expected="finite weights",
                    cause="training diverged",
                    fix="leave this checkpoint out",
                )
        return model


def _discover(place: str, every: str, allow_pickle: bool) -> list[Checkpoint]:
    folder = Path(place)
    if not _exists(folder):
        return [_hub_checkpoint(place)]
    if not folder.is_dir():
        _check_model_place(place, allow_pickle)
    steps = sorted((int(m[1]), f) for f in folder.iterdir() if (m := re.fullmatch(r"checkpoint-(\d+)", f.name)))
    steps = [(step, f) for step, f in steps if f.is_dir() and _kind(f) is not None]
    if not steps:
        _check_model_place(place, allow_pickle)
        return [_read_checkpoint(folder)]
    found = []
    for _, checkpoint_folder in steps:
        _check_model_place(str(checkpoint_folder), allow_pickle)
        found.append(_read_checkpoint(checkpoint_folder))
    if every == "epoch" and all(c.epoch is not None for c in found):
        last_of_epoch = {math.ceil(round(c.epoch or 0.0, 3)): c for c in found}
        found = list(last_of_epoch.values())
    return found


def _trainer_state(folder: Path) -> tuple[int, float, list[tuple[int, float]]] | None:
    """Step, epoch, and the learning rates logged until then as (step, rate); None where Trainer left no state."""
    state = folder / "trainer_state.json"
    if not (_exists(state) or state.is_symlink()):
        return None
    record = read_object(state)
    try:
        history = record.get("log_history", [])
        rates = [(int(e["step"]), float(e["learning_rate"])) for e in history if "learning_rate" in e and "step" in e]
        step, epoch = int(record["global_step"]), float(record["epoch"])
        if not all(map(math.isfinite, (epoch, *(rate for _, rate in rates)))):
            raise ValueError("a number that is NaN or infinite")
        return step, epoch, rates
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(
            f"{state} cannot be read ({reason_of(error)})",
            expected="the trainer_state.json that Trainer writes",
            cause="an interrupted save",
            fix="leave this checkpoint out",
        ) from None


def _with_learning_rates(found: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Gives each checkpoint the mean learning rate logged since the one before it in this run."""
    out = []
    previous = 0
    for checkpoint in found:
        state = _trainer_state(Path(checkpoint.location))
        if state is not None:
            step, _, rates = state
            after = previous if previous < step else 0  # a checkpoint of another run, or out of order
            since = [r for s, r in rates if after < s <= step] or [r for s, r in rates if s <= step][-1:]
            checkpoint = replace(checkpoint, learning_rate=sum(since) / len(since) if since else None)
            previous = step
        out.append(checkpoint)
    return out


def _read_checkpoint(folder: Path) -> Checkpoint:
    state = _trainer_state(folder)
    step, epoch = state[:2] if state else (None, None)
    adapter = folder / "adapter_config.json"
    if _kind(folder) == "adapter":
        base = read_object(adapter).get("base_model_name_or_path")
        return Checkpoint(name=folder.name, location=str(folder), kind="adapter", base=base, step=step, epoch=epoch)
    return Checkpoint(name=folder.name, location=str(folder), step=step, epoch=epoch)


def _hub_checkpoint(place: str) -> Checkpoint:
    config = _hub_config(place)
    name, revision = place.rsplit("/", 1)[-1], config.parent.name
    if config.name == "config.json":
        return Checkpoint(name=name, location=place, revision=revision)
    base = read_object(config).get("base_model_name_or_path")
    return Checkpoint(name=name, location=place, kind="adapter", base=base, revision=revision)


def _hub_config(place: str) -> Path:
    """The config of a model on the hub (its folder is named by the commit), or one clear error."""
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    reason = "no model of that name"
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", place):
        online = not constants.HF_HUB_OFFLINE
        if online:
            try:  # one question without retries, which would take a minute to notice a mistyped path
                HfApi().model_info(place, timeout=10)
            except Exception as error:  # the hub's client changed its network library twice
                online, reason = False, reason_of(error)
        for file in ("adapter_config.json", "config.json"):
            try:
                return Path(hf_hub_download(place, file, local_files_only=not online))
            except LocalEntryNotFoundError:
                reason = reason if reason != "no model of that name" else "not in the local cache, and working offline"
            except EntryNotFoundError:
                reason = "it has no config.json"
            except Exception as error:
                reason = reason_of(error)
    raise ModelError(
        f"{place} is neither a folder nor a hub id that can be loaded ({reason})",
        expected="a Trainer output folder, a model or adapter folder, or a hub id",
        cause="a mistyped path, seen from another folder",
        fix="check the path or the name",
    )


def _named(found: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Gives each checkpoint a name of its own, with more of its path where folders share a name."""
    found = list(found)
    names = [c.name for c in found]
    if BASE not in names and len(set(names)) == len(names):
        return found
    longer = [Path(c.location).as_posix().strip("/").replace("/", ":") for c in found]
    if len(set(longer)) < len(longer):
        twice = next(c.location for c, name in zip(found, longer, strict=True) if longer.count(name) > 1)
        raise ModelError(f"the checkpoint {twice} is given twice", expected="each once", fix="leave one out")
    return [replace(c, name=name) for c, name in zip(found, longer, strict=True)]


def _exists(place: Path) -> bool:
    """Whether anything is there; a name that no file can have is not."""
    try:
        return place.exists()
    except (OSError, ValueError):
        return False


def _kind(folder: Path) -> str | None:
    for name, kind in (("adapter_config.json", "adapter"), ("config.json", "full")):
        if _exists(folder / name) or (folder / name).is_symlink():  # a broken link is said to be one
            return kind
    return None


def _check_model_place(place: str, allow_pickle: bool) -> None:
    folder = Path(place)
    if not _exists(folder):
        _hub_config(place)
        return
    if not folder.is_dir() or _kind(folder) is None:
        raise ModelError(
            f"{place} holds no model",
            expected="checkpoint-* folders, or a config.json or adapter_config.json",
            cause="the folder above or below the right one",
            fix="give the Trainer's output folder or a model folder",
        )
    check_model_files(folder, str(_kind(folder)), allow_pickle=allow_pickle)


def _attach(model: Any, checkpoint: Checkpoint) -> Any:
    try:
        from peft import PeftModel
    except ImportError:
        raise ModelError(
            f"{checkpoint.location} is a PEFT adapter and peft is not installed",
            expected="the package peft",
            fix="pip install 'headwater[peft]'",
        ) from None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        revision = {"revision": checkpoint.revision} if checkpoint.revision is not None else {}
        adapted = PeftModel.from_pretrained(model, checkpoint.location, is_trainable=False, **revision)
    for warning in caught:
        if "missing adapter keys" in str(warning.message):  # peft says it in no other way
            raise ModelError(
                f"{checkpoint.location} lacks weights of the adapter ({reason_of(warning.message)})",
                expected="a complete adapter",
                cause="an interrupted save, or an adapter of another model",
                fix="check the folder, or give the right --base",
            )
        if "is_gradient_checkpointing" not in str(warning.message):  # peft's own business with transformers 5
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return adapted


def _quantization(kind: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _require_bitsandbytes(kind: str) -> None:
    import importlib.util

    if kind not in ("4bit", "8bit"):
        raise UsageError(f"quantization {kind!r}", expected="4bit or 8bit", fix="choose one of them")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            f"a base model in {kind} and bitsandbytes is not installed",
            expected="the package bitsandbytes",
            fix="pip install 'headwater[quantized]', or leave --quantization out",
        )


def _require_accelerate() -> None:
    import importlib.util

    if importlib.util.find_spec("accelerate") is None:
        raise UsageError(
            "a device map and accelerate is not installed",
            expected="the package accelerate",
            fix="pip install accelerate, or leave --device-map out",
        )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in _TOKENIZER)


def _extends(tokenizer: Any, base: Any) -> bool:
    """Whether the fine-tuned tokenizer is the base's with tokens added."""
    vocabulary = tokenizer.get_vocab()
    return all(vocabulary.get(token) == number for token, number in base.get_vocab().items())


def _sample(file: Path, pieces: int = 16, size: int = 65536) -> bytes:
    total = file.stat().st_size
    parts = [str(total).encode()]
    with open(file, "rb") as stream:
        for piece in range(pieces):
            stream.seek(max(0, (total - size) * piece // (pieces - 1)))
            parts.append(stream.read(size))
    return b"".join(parts)
