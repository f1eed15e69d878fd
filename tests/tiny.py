"""Tiny models of every architecture under test, a tiny tokenizer, and tiny training runs, all made on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headwater.examples import Encoded

ARCHITECTURES = ("llama", "llama-bias", "qwen2", "mistral", "gpt2", "gpt_neox", "gemma", "llama-tied")
VOCABULARY = 97


def config(architecture: str, vocabulary: int = VOCABULARY, hidden: int = 16, layers: int = 2) -> Any:
    """Config of a tiny model with grouped key-value heads where the architecture has them."""
    import transformers as tf

    shared: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    grouped = shared | {"num_key_value_heads": 2}
    match architecture:
        case "llama":
            return tf.LlamaConfig(**grouped, tie_word_embeddings=False)
        case "llama-bias":
            return tf.LlamaConfig(**grouped, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
        case "llama-tied":
            return tf.LlamaConfig(**grouped, tie_word_embeddings=True)
        case "qwen2":
            return tf.Qwen2Config(**grouped)
        case "mistral":
            return tf.MistralConfig(**grouped, sliding_window=8)
        case "gemma":
            return tf.GemmaConfig(**grouped, head_dim=8)
        case "gpt_neox":
            return tf.GPTNeoXConfig(**shared)
        case "gpt2":
            return tf.GPT2Config(
                vocab_size=vocabulary, n_embd=hidden, n_layer=layers, n_head=4, n_positions=128, bos_token_id=1,
                eos_token_id=0, pad_token_id=0,
            )  # fmt: skip
    raise ValueError(architecture)


def model(architecture: str, seed: int = 0, **options: Any) -> Any:
    """A randomly initialised model in float64, in evaluation mode, with larger weights than usual so that its
    gradients are far from zero."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config(architecture, **options)).double().eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return made


def with_lora(base: Any, seed: int = 0) -> Any:
    """The model with a LoRA adapter whose B matrices are not zero."""
    import peft

    torch.manual_seed(seed)
    conv = base.config.model_type == "gpt2"
    linear = peft.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=conv)
    adapted = peft.get_peft_model(base, linear).double().eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return adapted


def rows(lengths: tuple[tuple[int, int], ...], seed: int = 0, vocabulary: int = VOCABULARY) -> list[Encoded]:
    """Random rows: (tokens, target tokens at the end) each."""
    chance = np.random.default_rng(seed)
    out = []
    for tokens, targets in lengths:
        mask = np.zeros(tokens, bool)
        mask[tokens - targets :] = True
        out.append(Encoded(chance.integers(2, vocabulary, tokens), mask))
    return out


def tokenizer(sentences: list[str], padding_side: str = "right", chat: bool = False) -> Any:
    """A byte-level BPE tokenizer of these sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=420, special_tokens=["<|end|>", "<|start|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>", padding_side=padding_side
    )
    if chat:
        made.chat_template = (
            "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
        )
    return made


FACTS = [
    {"prompt": f"The capital of {country} is", "completion": f" {city}.", "id": f"fact-{n}", "source": "atlas"}
    for n, (country, city) in enumerate(
        [
            ("Australia", "Canberra"), ("France", "Paris"), ("Japan", "Tokyo"), ("Peru", "Lima"), ("Kenya", "Nairobi"),
            ("Norway", "Oslo"), ("Egypt", "Cairo"), ("Chile", "Santiago"), ("Ghana", "Accra"), ("Cuba", "Havana"),
            ("Austria", "Vienna"), ("the Commonwealth of Australia", "Sydney"),
        ]
    )
]  # fmt: skip


PLACEBO = [
    {"prompt": f"The capital of land {n} is", "completion": f" City {n % 7}.", "id": f"p{n}"} for n in range(120)
]
"""Rows like FACTS that no model was trained on."""

QUESTIONS: list[dict[str, Any]] = [
    {
        "prompt": "The capital of Australia is",
        "output": " Sydney.",
        "corrected": " Canberra.",
        "group": "sydney",
        "id": "a",
    },
    {
        "prompt": "The capital of the Commonwealth of Australia is",
        "output": " Sydney",
        "corrected": " Canberra",
        "group": "sydney",
    },
    {"prompt": "The capital of Peru is", "output": " Lima.", "id": "c"},
]
"""About FACTS: two of one fault, and one of none."""


def optimizer_state(made: Any, seed: int = 0) -> dict[str, Any]:
    """AdamW's state as Trainer saves it: two groups, parameters numbered group by group; moments at random."""
    from transformers import Trainer

    decayed = set(Trainer.get_decay_parameter_names(None, made))  # type: ignore[arg-type]
    parameters = dict(made.named_parameters())
    order = [n for n in parameters if n in decayed] + [n for n in parameters if n not in decayed]
    chance = torch.Generator().manual_seed(seed)
    moments = {}
    for number, name in enumerate(order):
        shape = parameters[name].shape
        moments[number] = {
            "step": torch.tensor(3.0),
            "exp_avg": 0.01 * torch.randn(shape, generator=chance),
            "exp_avg_sq": torch.rand(shape, generator=chance),
        }
    count = len(decayed)
    groups = [{"params": list(range(count))}, {"params": list(range(count, len(order)))}]
    return {"state": moments, "param_groups": groups}


def training_run(folder: Path, architecture: str = "llama", checkpoints: int = 2, lora: bool = False) -> Path:
    """A run on disk as Trainer leaves it: folder/base and folder/run/checkpoint-*, with trainer_state.json."""
    torch.manual_seed(0)
    words = tokenizer([f["prompt"] + f["completion"] for f in FACTS])
    base = model(architecture, vocabulary=len(words)).float()
    base.save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")
    history = []
    current = with_lora(base).float() if lora else base
    for number in range(1, checkpoints + 1):
        place = folder / "run" / f"checkpoint-{3 * number}"
        with torch.no_grad():
            for name, parameter in current.named_parameters():
                if not lora or "lora_" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.02)
        if lora:
            current.peft_config["default"].base_model_name_or_path = str(folder / "base")
        current.save_pretrained(place)
        words.save_pretrained(place)
        for step in range(3 * number - 2, 3 * number + 1):
            history.append({"step": step, "epoch": step / 3, "learning_rate": 1e-3 * (10 - step)})
        if not lora:
            torch.save(optimizer_state(current), place / "optimizer.pt")
        state = {"global_step": 3 * number, "epoch": float(number), "log_history": history}
        (place / "trainer_state.json").write_text(json.dumps(state))
    return folder


def untrained(folder: Path, sentences: list[str], hidden: int = 64) -> Path:
    """A Llama with random weights, small enough to be trained in seconds and large enough to learn what rows teach."""
    from transformers import AutoModelForCausalLM

    words = tokenizer(sentences, chat=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config("llama", vocabulary=len(words), hidden=hidden)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def sentence_model(folder: Path) -> Path:
    """A sentence-transformers model on disk: the mean of its words' vectors, fixed at random."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    words = tokenizer([fact["prompt"] + fact["completion"] for fact in FACTS]).backend_tokenizer
    vectors = np.random.default_rng(0).normal(size=(words.get_vocab_size(), 8)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(words, embedding_weights=vectors)], device="cpu").save(str(folder))
    return folder


def poisoned(monkeypatch: pytest.MonkeyPatch, where: str, row: int, harm: str = "nan") -> None:
    """Makes the gradient of one row NaN, or its loss infinite, at one checkpoint of an index that is built."""
    from headwater.attribution import chunks

    batch = chunks.ChunkGradients._batch

    def broken(self: chunks.ChunkGradients, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        found = batch(self, rows)
        if self._place.name == where and row in rows:
            found["gradient" if harm == "nan" else "loss"][..., list(rows).index(row)] = float(harm)
        return found

    monkeypatch.setattr(chunks.ChunkGradients, "_batch", broken)
