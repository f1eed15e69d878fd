"""Small training runs made on the spot: random models, two or more checkpoints, random rows. For speed and accidents,
where what the model says does not matter."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
WORDS = 2000


def make_run(folder: Path, *, checkpoints: int = 2, hidden: int = 64, layers: int = 2, seed: int = 0) -> Path:
    """A base and checkpoints near it, under folder/base and folder/run."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    if (folder / "done").exists():
        return folder
    words = {"<|end|>": 0, "<|unknown|>": 1} | {f"w{number}": number + 2 for number in range(WORDS)}
    core = Tokenizer(models.WordLevel(words, unk_token="<|unknown|>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=0, pad_token_id=0, dtype="float32",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for number in range(checkpoints + 1):
        place = folder / "base" if number == 0 else folder / "run" / f"checkpoint-{number}"
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        if number:
            state = {"epoch": float(number), "global_step": number, "log_history": [{"learning_rate": 1e-4, "step": 1}]}
            (place / "trainer_state.json").write_text(json.dumps(state))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(
                    torch.randn_like(parameter), alpha=0.1 * float(parameter.std()) if parameter.ndim > 1 else 0
                )
    (folder / "done").touch()
    return folder


def make_rows(path: Path, count: int, *, words: tuple[int, int] = (6, 12), seed: int = 0) -> Path:
    """JSONL of prompt and completion; so many words each, at least and at most."""
    chance = np.random.default_rng(seed)
    with open(path, "w") as file:
        for number in range(count):
            lengths = chance.integers(*words, size=2, endpoint=True)
            prompt, completion = (
                " ".join(f"w{word}" for word in chance.zipf(1.3, size=length) % WORDS) for length in lengths
            )
            file.write(json.dumps({"id": f"row-{number}", "prompt": prompt, "completion": " " + completion}) + "\n")
    return path


def tokenizer_of(sentences: Sequence[str], vocabulary: int = 512) -> Any:
    """A byte-level BPE tokenizer of these sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")


def small_model(folder: Path, sentences: Sequence[str]) -> Path:
    """A Llama of random weights that learns what rows teach in seconds, with a tokenizer of these sentences."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer_of(sentences)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def environment(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "threads": threads,
        **{name: version(name) for name in ("headwater", "torch", "transformers", "numpy", "zarr")},
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
