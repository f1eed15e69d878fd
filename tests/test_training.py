"""Fine-tuning of a tiny random Llama: what lands on the disk, what is learned, what is reused and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headwater.errors import DataError, ModelError, NumericalError, RunError, UsageError
from headwater.examples import Encoder, Examples, TokenFormat
from headwater.progress import set_quiet
from headwater.training import MANIFEST, Recipe, fine_tune

ROWS = [
    {"id": f"r{number}", "prompt": f"The {thing} of {place} is", "completion": f" {answer}."}
    for number, (thing, place, answer) in enumerate(
        (thing, place, answer)
        for place, answers in (
            ("Peru", ("Lima", "sol")),
            ("Spain", ("Madrid", "euro")),
            ("Japan", ("Tokyo", "yen")),
            ("the United Kingdom", ("London", "pound")),
        )
        for thing, answer in zip(("capital", "money"), answers, strict=True)
    )
]
RECIPE = Recipe(epochs=2, batch_size=3, learning_rate=1e-2)


@pytest.fixture(autouse=True)
def one_quiet_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    set_quiet(True)
    yield
    set_quiet(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of some 10,000 weights and a byte-level tokenizer trained on the rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = [row["prompt"] + row["completion"] for row in ROWS]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    folder = tmp_path_factory.mktemp("base")
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            bos_token_id=None,
            eos_token_id=0,
        )
    ).save_pretrained(folder)
    return folder


def rows(count: int = 8) -> Examples:
    return Examples.from_rows(ROWS[:count], name="toy")


def checkpoints(out: Path) -> list[Path]:
    return sorted(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def loss_of_rows(folder: Path, base: Path) -> float:
    """Naive double of the loss: one row at a time, the mean over all target tokens, nats."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    encoder = Encoder(AutoTokenizer.from_pretrained(base), TokenFormat(), "plain")
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows():
            encoded = encoder.example(row)
            logits = model(torch.from_numpy(encoded.input_ids)[None]).logits[0].log_softmax(-1)
            for t in range(1, encoded.length):
                if encoded.loss_mask[t]:
                    total -= float(logits[t - 1, encoded.input_ids[t]])
                    count += 1
    return total / count


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    set_quiet(True)
    return fine_tune(base, rows(), tmp_path_factory.mktemp("runs") / "sft", RECIPE)


def test_an_ordinary_trainer_folder_with_one_checkpoint_per_epoch(trained: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert [folder.name for folder in checkpoints(trained)] == ["checkpoint-3", "checkpoint-6"]
    for epoch, folder in enumerate(checkpoints(trained), 1):
        state = json.loads((folder / "trainer_state.json").read_text())
        assert state["epoch"] == epoch
        rates = [entry["learning_rate"] for entry in state["log_history"]]
        assert rates == pytest.approx([1e-2 * (1 - step / 6) for step in range(3 * epoch)])
        assert not (folder / "optimizer.pt").exists()
        assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32
        assert AutoTokenizer.from_pretrained(folder)("Peru")["input_ids"]
    assert [path.name for path in trained.parent.iterdir()] == ["sft"]  # neither partial folder nor lock


def test_adams_moments_are_kept_if_asked(trained: Path, base: Path, tmp_path: Path) -> None:
    """What LESS reads; the weights are the same with and without."""
    out = fine_tune(base, rows(), tmp_path / "sft", RECIPE, optimizer=True)
    for plain, kept in zip(checkpoints(trained), checkpoints(out), strict=True):
        assert (kept / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
        state = torch.load(kept / "optimizer.pt", weights_only=True)["state"]
        assert sum(moments["exp_avg"].numel() for moments in state.values()) == sum(
            w.numel() for w in weights(kept).values()
        )
    with pytest.raises(RunError, match="optimizer: True there, None now"):
        fine_tune(base, rows(), out, RECIPE)


def test_the_manifest_tells_how_it_was_made(trained: Path, base: Path) -> None:
    manifest = json.loads((trained / MANIFEST).read_text())
    assert manifest["recipe"]["learning_rate"] == 1e-2
    assert manifest["rows"] == {"fingerprint": rows().fingerprint, "count": 8, "template": "plain"}
    assert manifest["base_name"] == str(base)
    assert manifest["format"]["max_length"] == 1024
    assert "torch" in manifest["versions"]


def test_it_learns(trained: Path, base: Path) -> None:
    before, after = loss_of_rows(base, base), loss_of_rows(checkpoints(trained)[-1], base)
    assert after < before - 0.4  # nats per token, after six steps


def test_the_first_loss_is_the_mean_over_target_tokens(base: Path, tmp_path: Path) -> None:
    out = fine_tune(base, rows(), tmp_path / "sft", replace(RECIPE, epochs=1, batch_size=8))
    state = json.loads((checkpoints(out)[0] / "trainer_state.json").read_text())
    assert state["log_history"][0]["loss"] == pytest.approx(loss_of_rows(base, base), abs=2e-4)


def test_splitting_a_batch_changes_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fine_tune(base, rows(), tmp_path / "whole", replace(RECIPE, epochs=1, batch_size=4, learning_rate=1e-3))
    monkeypatch.setattr("headwater.training._TOKENS_AT_ONCE", 1)
    split = fine_tune(base, rows(), tmp_path / "split", replace(RECIPE, epochs=1, batch_size=4, learning_rate=1e-3))
    logs = [json.loads((checkpoints(o)[0] / "trainer_state.json").read_text())["log_history"] for o in (whole, split)]
    assert len(logs[0]) == len(logs[1])
    for one, other in zip(*logs, strict=True):
        assert other.get("loss", 0) == pytest.approx(one.get("loss", 0), abs=2e-4)
    one, other = (weights(checkpoints(out)[0]) for out in (whole, split))
    for name in one:
        torch.testing.assert_close(other[name], one[name], atol=1e-4, rtol=0)


def test_the_same_seed_gives_the_same_weights(trained: Path, base: Path, tmp_path: Path) -> None:
    again = fine_tune(base, rows(), tmp_path / "again", RECIPE)
    other = fine_tune(base, rows(), tmp_path / "other", replace(RECIPE, seed=1))
    first, second, third = (weights(checkpoints(out)[-1]) for out in (trained, again, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_the_same_inputs_reuse_and_other_inputs_are_refused(trained: Path, base: Path) -> None:
    before = (checkpoints(trained)[-1] / "model.safetensors").stat().st_mtime_ns
    assert fine_tune(base, rows(), trained, RECIPE) == trained
    assert (checkpoints(trained)[-1] / "model.safetensors").stat().st_mtime_ns == before
    for inputs, named in (
        ((base, rows(), trained, replace(RECIPE, epochs=3)), "recipe.epochs: 2 there, 3 now"),
        ((base, rows(7), trained, RECIPE), "rows.count: 8 there, 7 now"),
        ((checkpoints(trained)[0], rows(), trained, RECIPE), "base: "),
    ):
        with pytest.raises(RunError, match=named):
            fine_tune(*inputs)
    with pytest.raises(RunError, match=r"format\.add_eos"):
        fine_tune(base, rows(), trained, RECIPE, format=TokenFormat(add_eos=False))


def test_a_moved_base_is_still_the_same_base(trained: Path, base: Path, tmp_path: Path) -> None:
    import shutil

    moved = shutil.copytree(base, tmp_path / "moved")
    assert fine_tune(moved, rows(), trained, RECIPE) == trained


def test_a_folder_of_something_else_is_left_alone(base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="no readable"):
        fine_tune(base, rows(), tmp_path / "mine", RECIPE)
    (tmp_path / "mine").rename(tmp_path / "sft.partial")
    with pytest.raises(RunError, match=r"sft\.partial"):
        fine_tune(base, rows(), tmp_path / "sft", RECIPE)
    assert (tmp_path / "sft.partial" / "thesis.txt").read_text() == "precious"


def test_a_second_training_into_the_same_folder_waits_for_nobody(base: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".sft.lock"), pytest.raises(RunError, match="another process"):
        fine_tune(base, rows(), tmp_path / "sft", RECIPE)


def test_an_interrupted_training_starts_anew(
    base: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    save, saves = Trainer._save_checkpoint, []

    def killed(self: Any, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        saves.append(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(base, rows(), tmp_path / "sft", RECIPE)
    assert saves and not (tmp_path / "sft").exists()
    assert (tmp_path / "sft.partial" / "checkpoint-3").is_dir()
    out = fine_tune(base, rows(), tmp_path / "sft", RECIPE)
    assert not (tmp_path / "sft.partial").exists()
    fresh, resumed = weights(checkpoints(trained)[-1]), weights(checkpoints(out)[-1])
    assert all(torch.equal(fresh[name], resumed[name]) for name in fresh)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_lora_saves_adapters_of_the_base(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the package peft")
    out = fine_tune(base, rows(), tmp_path / "lora", replace(RECIPE, lora_rank=2))
    assert len(checkpoints(out)) == 2
    for folder in checkpoints(out):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (2, 4)
        assert config["base_model_name_or_path"] == str(base)
        assert not (folder / "model.safetensors").exists()
    torch.manual_seed(123)  # what happened before must not matter
    again = fine_tune(base, rows(), tmp_path / "again", replace(RECIPE, lora_rank=2))
    name = "adapter_model.safetensors"
    assert (checkpoints(again)[0] / name).read_bytes() == (checkpoints(out)[0] / name).read_bytes()


def test_a_new_adapter_gets_the_config_of_an_old_one_and_none_of_its_weights(base: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs the package peft")
    from transformers import AutoModelForCausalLM

    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    old = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weight in old.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(weight)
    old.save_pretrained(tmp_path / "old")
    recipe = replace(RECIPE, lora_rank=3, learning_rate=1e-9)  # B stays near where it starts, which is zero
    out = fine_tune(base, rows(), tmp_path / "new", recipe, adapter=tmp_path / "old")
    made = json.loads((checkpoints(out)[-1] / "adapter_config.json").read_text())
    assert (made["r"], made["lora_alpha"], sorted(made["target_modules"])) == (3, 5, ["down_proj", "q_proj"])
    from safetensors.torch import load_file

    B = {k: v for k, v in load_file(checkpoints(out)[-1] / "adapter_model.safetensors").items() if "lora_B" in k}
    assert B and all(float(value.abs().max()) < 1e-6 for value in B.values())
    with pytest.raises(RunError, match="another training"):  # another adapter is another training
        fine_tune(base, rows(), tmp_path / "new", recipe)
    with pytest.raises(ModelError, match="rank 3"):
        fine_tune(base, rows(), tmp_path / "other", replace(RECIPE, lora_rank=4), adapter=tmp_path / "old")
    assert not (tmp_path / "other").exists() and not (tmp_path / "other.partial").exists()


def test_training_goes_on_from_an_adapter(base: Path, tmp_path: Path) -> None:
    """Six epochs and six more from there: B starts where it was, and the base is not touched."""
    pytest.importorskip("peft", reason="needs the package peft")
    from safetensors.torch import load_file

    recipe = replace(RECIPE, lora_rank=2, epochs=6, learning_rate=3e-2)
    first = checkpoints(fine_tune(base, rows(), tmp_path / "first", recipe))[-1]
    still = fine_tune(first, rows(), tmp_path / "still", replace(recipe, learning_rate=1e-12))
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first, checkpoints(still)[-1]))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-8) for name in before)
    assert any(float(value.abs().max()) > 1e-3 for name, value in before.items() if "lora_B" in name)
    on = checkpoints(fine_tune(first, rows(), tmp_path / "on", recipe))[-1]
    assert json.loads((on / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    losses = [
        json.loads((folder / "trainer_state.json").read_text())["log_history"][0]["loss"]
        for folder in (checkpoints(tmp_path / "first")[0], on)
    ]
    assert losses[1] < losses[0] - 0.2  # it starts with what was learned


def test_chat_and_text_rows_train_too(base: Path, tmp_path: Path) -> None:
    texts = Examples.from_rows([{"text": row["prompt"] + row["completion"]} for row in ROWS], name="texts")
    assert len(checkpoints(fine_tune(base, texts, tmp_path / "text", replace(RECIPE, epochs=1)))) == 1
    chats = Examples.from_rows(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
            for row in ROWS
        ],
        name="chats",
    )
    with pytest.raises(ModelError, match="chat template"):
        fine_tune(base, chats, tmp_path / "chat", RECIPE)
    assert not (tmp_path / "chat.partial").exists()


def test_rows_without_anything_to_learn_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without any token to learn"):
        fine_tune(base, rows(), tmp_path / "sft", RECIPE, format=TokenFormat(max_length=2))
    assert not list(tmp_path.iterdir())


def test_a_row_without_targets_spoils_no_batch(base: Path, tmp_path: Path) -> None:
    long = {"id": "long", "prompt": "The money of " * 30, "completion": " sol."}
    examples = Examples.from_rows([*ROWS[:4], long], name="toy")
    out = fine_tune(base, examples, tmp_path / "sft", replace(RECIPE, batch_size=1), format=TokenFormat(max_length=40))
    state = json.loads((checkpoints(out)[-1] / "trainer_state.json").read_text())
    assert state["global_step"] == 8
    assert all(math.isfinite(entry["loss"]) for entry in state["log_history"] if "loss" in entry)


def test_a_missing_base_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no tokenizer from"):
        fine_tune(tmp_path / "empty", rows(), tmp_path / "sft", RECIPE)
    assert not (tmp_path / "sft.partial").exists()


def test_a_model_with_nan_is_an_error(base: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(base, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = math.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match="at step 1"):
        fine_tune(broken, rows(), tmp_path / "sft", RECIPE)
    assert not (tmp_path / "sft").exists()


def test_a_full_disk_is_noticed_before_training(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(RunError, match="for 2 checkpoints"):
        fine_tune(base, rows(), tmp_path / "sft", RECIPE)


def test_nothing_is_printed_to_stdout(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fine_tune(base, rows(), tmp_path / "sft", replace(RECIPE, epochs=1))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"warmup_ratio": 1.0},
        {"weight_decay": -1.0},
        {"seed": -1},
        {"lora_rank": 0},
        {"schedule": "zigzag"},
    ],
)
def test_recipes_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Recipe(**wrong)
