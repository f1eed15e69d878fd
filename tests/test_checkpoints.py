"""Training runs as they lie around: what is found, what is refused, and what loads."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import headwater as hw
import tiny

CPU = {"dtype": torch.float32, "device": torch.device("cpu")}
WEIGHT = "model.layers.0.mlp.up_proj.weight"


def folder_with(place: Path, step: int, epoch: float | None, history: list[dict[str, Any]] | None = None) -> Path:
    """What discovery reads of a checkpoint: config, a weight file, and the Trainer's state unless epoch is None."""
    place.mkdir(parents=True)
    (place / "config.json").write_text('{"model_type": "llama"}')
    save_file({"w": torch.zeros(1)}, place / "model.safetensors")
    if epoch is not None:
        state = {"global_step": step, "epoch": epoch, "log_history": history or []}
        (place / "trainer_state.json").write_text(json.dumps(state))
    return place


def rates(steps: int) -> list[dict[str, Any]]:
    """A log whose learning rate at every step is the step itself, and an evaluation without one."""
    return [{"step": s, "learning_rate": float(s)} for s in range(1, steps + 1)] + [{"step": steps, "eval_loss": 1.0}]


def output_folder(place: Path, steps_per_epoch: int = 4, every: int = 2, steps: int = 12) -> Path:
    for step in range(every, steps + 1, every):
        folder_with(place / f"checkpoint-{step}", step, step / steps_per_epoch, rates(step))
    return place


def change_weights(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


@pytest.fixture
def full(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run to spoil."""
    return Path(shutil.copytree(run_folder, tmp_path / "full"))


@pytest.fixture
def lora(lora_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lora_folder, tmp_path / "lora"))


def last_of(folder: Path) -> Path:
    return folder / "run" / "checkpoint-6"


def run_of(folder: Path, **options: Any) -> hw.TrainingRun:
    return hw.TrainingRun.from_pretrained(folder / "run", base=folder / "base", **options)


def refused(error: type[hw.HeadwaterError], match: str, *given: Any, **options: Any) -> str:
    with pytest.raises(error, match=match) as caught:
        hw.TrainingRun.from_pretrained(*given, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is found


def test_checkpoints_are_ordered_by_step_not_by_name(tmp_path: Path) -> None:
    output_folder(tmp_path, steps_per_epoch=2)
    run = hw.TrainingRun.from_pretrained(tmp_path)
    assert [c.step for c in run.checkpoints] == [2, 4, 6, 8, 10, 12]
    assert [c.epoch for c in run.checkpoints] == [1, 2, 3, 4, 5, 6]
    assert run.last.name == "checkpoint-12"
    assert run.base is None


def test_last_checkpoint_of_every_epoch_or_every_checkpoint(tmp_path: Path) -> None:
    output_folder(tmp_path)
    epochs = hw.TrainingRun.from_pretrained(tmp_path)
    assert [c.step for c in epochs.checkpoints] == [4, 8, 12]
    every = hw.TrainingRun.from_pretrained(tmp_path, every="checkpoint")
    assert [c.step for c in every.checkpoints] == [2, 4, 6, 8, 10, 12]


def test_training_that_stops_inside_an_epoch_keeps_its_last_checkpoint(tmp_path: Path) -> None:
    output_folder(tmp_path, steps=10)
    assert [c.step for c in hw.TrainingRun.from_pretrained(tmp_path).checkpoints] == [4, 8, 10]


def test_learning_rate_is_averaged_since_the_checkpoint_before(tmp_path: Path) -> None:
    output_folder(tmp_path)
    every = hw.TrainingRun.from_pretrained(tmp_path, every="checkpoint")
    assert [c.learning_rate for c in every.checkpoints] == [1.5, 3.5, 5.5, 7.5, 9.5, 11.5]
    epochs = hw.TrainingRun.from_pretrained(tmp_path)
    assert [c.learning_rate for c in epochs.checkpoints] == [2.5, 6.5, 10.5]


def test_folders_given_one_by_one_have_the_same_learning_rates(tmp_path: Path) -> None:
    output_folder(tmp_path)
    run = hw.TrainingRun.from_pretrained([tmp_path / "checkpoint-4", tmp_path / "checkpoint-12"])
    assert [c.learning_rate for c in run.checkpoints] == [2.5, 8.5]
    alone = hw.TrainingRun.from_pretrained(tmp_path / "checkpoint-4")
    assert [c.learning_rate for c in alone.checkpoints] == [2.5]


def test_learning_rate_between_logs_is_the_last_one_logged(tmp_path: Path) -> None:
    log = [{"step": 3, "learning_rate": 0.5}]
    for step in (2, 4, 6):
        folder_with(tmp_path / f"checkpoint-{step}", step, step / 2, log)
    run = hw.TrainingRun.from_pretrained(tmp_path)
    assert [c.learning_rate for c in run.checkpoints] == [None, 0.5, 0.5]


def test_without_trainer_state_every_checkpoint_is_taken_and_tracin_says_what_is_missing(tmp_path: Path) -> None:
    for step in (10, 9):
        folder_with(tmp_path / f"checkpoint-{step}", step, None)
    run = hw.TrainingRun.from_pretrained(tmp_path)
    assert [c.name for c in run.checkpoints] == ["checkpoint-9", "checkpoint-10"]
    assert all(c.step is c.epoch is c.learning_rate is None for c in run.checkpoints)
    with pytest.raises(hw.UsageError, match="learning rate of checkpoint-9, checkpoint-10"):
        hw.TracIn().plan(run)
    assert hw.TracIn(learning_rates=(1.0, 2.0)).weights(run, {}, []) == {"checkpoint-9": 1.0, "checkpoint-10": 2.0}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"global_step": 4}',
        '{"global_step": 4, "epoch": null}',
        '{"global_step": 4, "epoch": 1, "log_history": null}',
        '{"global_step": 4, "epoch": 1, "log_history": [{"step": 1, "learning_rate": "high"}]}',
        '{"global_step": 4, "epoch": 1, "log_history": [7]}',
    ],
)
def test_broken_trainer_state_is_named(tmp_path: Path, text: str) -> None:
    state = folder_with(tmp_path / "checkpoint-4", 4, 1.0) / "trainer_state.json"
    state.write_text(text)
    assert str(state) in refused(hw.ModelError, "cannot be read|holds JSON of type", tmp_path)


def test_folders_without_a_model_are_passed_over(tmp_path: Path) -> None:
    output_folder(tmp_path, steps=4)
    (tmp_path / "checkpoint-99").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-98").write_text("a file")
    run = hw.TrainingRun.from_pretrained(tmp_path, every="checkpoint")
    assert [c.step for c in run.checkpoints] == [2, 4]


def test_folders_in_the_order_given(tmp_path: Path) -> None:
    one, two = folder_with(tmp_path / "late", 9, 3.0), folder_with(tmp_path / "early", 3, 1.0)
    run = hw.TrainingRun.from_pretrained([str(two), one])
    assert [c.name for c in run.checkpoints] == ["early", "late"]
    assert run.named("late").location == str(one)
    with pytest.raises(hw.ModelError, match="no checkpoint middle; expected one of early, late"):
        run.named("middle")


def test_folders_of_one_name_get_more_of_their_path(tmp_path: Path) -> None:
    places = [folder_with(tmp_path / run / "final", 1, 1.0) for run in ("one", "two")]
    names = [c.name for c in hw.TrainingRun.from_pretrained(places).checkpoints]
    assert len(set(names)) == 2
    assert names[0].endswith("one:final")
    assert names[1].endswith("two:final")
    assert "/" not in "".join(names)


def test_a_checkpoint_called_base_is_not_taken_for_the_base(full: Path) -> None:
    run = hw.TrainingRun.from_pretrained(shutil.copytree(last_of(full), full / "tuned" / "base"), base=full / "base")
    assert run.last.name != "base"
    assert run.named("base").location == str(full / "base")


def test_the_same_folder_twice_is_refused(full: Path) -> None:
    refused(hw.ModelError, "given twice", [last_of(full), last_of(full)])


# Adapters


def test_adapters_bring_their_base(lora_folder: Path) -> None:
    run = hw.TrainingRun.from_pretrained(lora_folder / "run")
    assert [c.kind for c in run.checkpoints] == ["adapter", "adapter"]
    assert run.require_base().location == str(lora_folder / "base")
    assert {c.base for c in run.checkpoints} == {str(lora_folder / "base")}


def test_an_adapter_is_loaded_without_a_word_of_the_libraries(lora_folder: Path) -> None:
    run = hw.TrainingRun.from_pretrained(lora_folder / "run", base=lora_folder / "base")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run.load(run.last, dtype=torch.float32, device=torch.device("cpu"))
    assert [str(one.message) for one in said if issubclass(one.category, FutureWarning)] == []


def test_a_given_base_wins_over_the_adapters_config(lora: Path) -> None:
    run = run_of(lora)
    assert run.last.base == str(lora / "base")
    assert run.load(run.last, **CPU).training is False


def test_adapters_of_two_bases_are_refused_unless_the_base_is_given(lora: Path) -> None:
    config = last_of(lora) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "another/model"}))
    assert "another/model" in refused(hw.ModelError, "different base models", lora / "run")
    assert len(run_of(lora).checkpoints) == 2


def test_an_adapter_whose_config_names_no_base_asks_for_it(lora: Path) -> None:
    for step in (3, 6):
        config = lora / "run" / f"checkpoint-{step}" / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    refused(hw.ModelError, "names no base model.*give --base", lora / "run")
    assert run_of(lora).last.base == str(lora / "base")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_broken_adapter_config_is_named(lora: Path, text: str) -> None:
    (last_of(lora) / "adapter_config.json").write_text(text)
    refused(hw.ModelError, "adapter_config.json (cannot be read|holds JSON of type list)", lora / "run")


def test_a_base_that_is_an_adapter_is_refused(lora: Path) -> None:
    refused(hw.ModelError, "is an adapter.*the model it sits on", lora / "run", base=last_of(lora))


def test_adapter_that_lacks_weights_is_refused(lora: Path) -> None:
    change_weights(last_of(lora) / "adapter_model.safetensors", lambda weights: weights.pop(sorted(weights)[0]))
    run = run_of(lora)
    with pytest.raises(hw.ModelError, match="lacks weights of the adapter"):
        run.load(run.last, **CPU)
    run.load(run.checkpoints[0], **CPU)


# What is not there


def test_missing_folder_is_one_line(tmp_path: Path) -> None:
    refused(hw.ModelError, "neither a folder nor a hub id", tmp_path / "nowhere")
    refused(hw.ModelError, "neither a folder nor a hub id", "./nowhere")


def test_missing_base_is_one_line(full: Path) -> None:
    assert "nowhere" in refused(hw.ModelError, "neither a folder", full / "run", base=full / "nowhere")


def test_hub_id_that_cannot_be_reached_is_one_line() -> None:
    refused(hw.ModelError, "not in the local cache, and working offline", "nobody-at-all/no-such-model")


def test_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    refused(hw.ModelError, "holds no model", tmp_path)
    refused(hw.ModelError, "holds no model", tmp_path / "notes.txt")
    refused(hw.ModelError, "holds no model", folder_with(tmp_path / "m", 1, 1.0), base=tmp_path)


def test_no_checkpoint_at_all_and_unknown_choice(tmp_path: Path) -> None:
    refused(hw.ModelError, "no checkpoint", [])
    refused(hw.UsageError, "every='step'", tmp_path, every="step")


def test_pickled_weights_are_refused_and_can_be_allowed(full: Path) -> None:
    place = last_of(full)
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    refused(hw.ModelError, "pickle files only.*--allow-pickle", full / "run")
    run = run_of(full, allow_pickle=True)
    model = run.load(run.last, **CPU)
    assert model.get_submodule(WEIGHT.removesuffix(".weight")).weight.isfinite().all()


def test_config_without_weights(full: Path) -> None:
    (last_of(full) / "model.safetensors").unlink()
    torch.save({}, last_of(full) / "training_args.bin")  # Trainer leaves it beside the weights; it holds none
    refused(hw.ModelError, "has a config but no weights", full / "run")


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_quantization_without_bitsandbytes_names_the_package(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else real(name, *a)
    )
    refused(hw.UsageError, r"bitsandbytes.*headwater\[quantized\]", run_folder / "run", quantization=kind)
    refused(hw.UsageError, "expected 4bit or 8bit", run_folder / "run", quantization="2bit")


# Fingerprints


def test_fingerprint_changes_with_one_weight_and_with_the_tokenizer(full: Path) -> None:
    run = run_of(full)
    first, other = run.last.fingerprint(), run.checkpoints[0].fingerprint()
    assert first == run.last.fingerprint()
    assert first != other
    file = last_of(full) / "model.safetensors"
    before = file.read_bytes()
    change_weights(file, lambda weights: weights[WEIGHT][0, 0].add_(0.5))
    assert len(file.read_bytes()) == len(before)
    assert run.last.fingerprint() != first
    file.write_bytes(before)
    assert run.last.fingerprint() == first
    settings = last_of(full) / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token": "<|start|>"}))
    assert run.last.fingerprint() != first


def test_fingerprint_does_not_depend_on_the_place_or_on_the_log(full: Path, tmp_path: Path) -> None:
    first = run_of(full).last.fingerprint()
    moved = shutil.copytree(last_of(full), tmp_path / "moved")
    (moved / "trainer_state.json").unlink()
    assert hw.TrainingRun.from_pretrained(moved).last.fingerprint() == first


# Loading


def test_loaded_model_has_the_checkpoints_weights(full: Path) -> None:
    run = run_of(full)
    weights = load_file(last_of(full) / "model.safetensors")
    model = run.load(run.last, dtype=torch.float64, device=torch.device("cpu"))
    assert not model.training
    assert torch.equal(model.state_dict()[WEIGHT], weights[WEIGHT].double())


def test_nan_weight_is_named(full: Path) -> None:
    change_weights(last_of(full) / "model.safetensors", lambda w: w[WEIGHT][0, 0].fill_(float("nan")))
    run = run_of(full)
    with pytest.raises(hw.NumericalError, match=f"the weight {WEIGHT} of checkpoint-6 is NaN"):
        run.load(run.last, **CPU)
    run.load(run.checkpoints[0], **CPU)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda w: w.pop(WEIGHT), f"lacks 1 weights, {WEIGHT}"),
        (lambda w: w.update({WEIGHT: torch.zeros(3, 3)}), "cannot be loaded"),
    ],
    ids=["missing", "wrong shape"],
)
def test_incomplete_model_is_refused(full: Path, spoil: Callable[[dict[str, torch.Tensor]], Any], says: str) -> None:
    change_weights(last_of(full) / "model.safetensors", spoil)
    run = run_of(full)
    with pytest.raises(hw.ModelError, match=says):
        run.load(run.last, **CPU)


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors"])
def test_truncated_weight_file_is_refused(full: Path, lora: Path, name: str) -> None:
    folder = full if name == "model.safetensors" else lora
    file = last_of(folder) / name
    file.write_bytes(file.read_bytes()[:-64])
    refused(hw.ModelError, rf"checkpoint-6/{name} cannot be read", folder / "run")


def test_broken_model_config_is_refused(full: Path) -> None:
    config = last_of(full) / "config.json"
    config.write_text("{")
    refused(hw.ModelError, r"config\.json cannot be read", full / "run")
    config.write_text('{"model_type": "magic"}')
    with pytest.raises(hw.ModelError, match="is not the config of a model"):
        run_of(full).check_configs()
    config.write_text('{"model_type": "vit"}')
    with pytest.raises(hw.ModelError, match="is a vit; expected a causal language model"):
        run_of(full).check_configs()


# Tokenizers


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def test_tokenizer_of_the_base_stands_in_for_a_missing_one(full: Path) -> None:
    wanted = run_of(full).tokenizer().get_vocab()
    without_tokenizer(last_of(full))
    assert run_of(full).tokenizer().get_vocab() == wanted


def test_no_tokenizer_anywhere(full: Path) -> None:
    without_tokenizer(last_of(full))
    without_tokenizer(full / "base")
    with pytest.raises(hw.ModelError, match=r"no tokenizer in .*save_pretrained"):
        run_of(full).tokenizer()


def test_tokenizers_that_differ_are_refused(full: Path) -> None:
    without_tokenizer(full / "base")
    tiny.tokenizer(["wholly other words, for another vocabulary"] * 9).save_pretrained(full / "base")
    with pytest.raises(hw.ModelError, match=r"differ.*one vocabulary"):
        run_of(full).tokenizer()


def test_tokens_added_in_training_are_allowed(full: Path) -> None:
    longer = run_of(full).tokenizer()
    longer.add_tokens(["<|call|>"])
    longer.save_pretrained(last_of(full))
    assert "<|call|>" in run_of(full).tokenizer().get_vocab()
    longer.save_pretrained(full / "base")
    without_tokenizer(last_of(full))
    shutil.copytree(full / "run" / "checkpoint-3", last_of(full), dirs_exist_ok=True)
    with pytest.raises(hw.ModelError, match="differ"):
        run_of(full).tokenizer()


def test_broken_tokenizer_file_is_refused(full: Path) -> None:
    (last_of(full) / "tokenizer.json").write_text("{")
    with pytest.raises(hw.ModelError, match=r"tokenizer of .* cannot be loaded"):
        run_of(full).tokenizer()
