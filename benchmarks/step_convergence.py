"""How the finite-difference pair tends to the first-order contrast as its step shrinks.

    python benchmarks/step_convergence.py

Tiny random models (2 blocks, width 16), 60 random rows, one wrong and one corrected output. For each step size: the
largest relative error and the rank correlation of (l(z; ground) - l(z; error)) / step against the exact contrast dot
product < grad (l(wrong) - l(corrected)), grad l(z) >, with one plain gradient step: a GPT-2 in float64 and float32, and
a Llama in float64, whose norms transformers computes in float32 all the same. The last rows show the authors' own
pair, three AdamW steps of 5e-6, whose limit is another one (the sign of the gradient). Writes
benchmarks/results/step_convergence.json and step_convergence.md; takes seconds on one core.
"""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from headwater.examples import Encoded
from headwater.gradients.batches import collate, length_buckets
from headwater.gradients.contraction import side_gradients
from headwater.gradients.directional import Step, nudged
from headwater.gradients.factors import FactorHooks
from headwater.gradients.inner import Contractor, Product
from headwater.gradients.layers import select_layers
from headwater.gradients.loss import losses

RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")
VOCABULARY = 97
STEPS = [10.0**-k for k in range(1, 9)]


def tiny_model(architecture: str) -> Any:
    """Random weights, larger than at a usual start, so that the loss has curvature to show."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    config: Any
    if architecture == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=0
        )
    else:
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=False,
        )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return model


def random_rows(count: int, seed: int) -> list[Encoded]:
    chance = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        tokens = int(chance.integers(6, 20))
        mask = np.zeros(tokens, bool)
        mask[tokens - int(chance.integers(1, 5)) :] = True
        rows.append(Encoded(chance.integers(2, VOCABULARY, tokens), mask))
    return rows


def first_order(model: Any, sides: list[Encoded], rows: list[Encoded]) -> np.ndarray:
    """The exact contrast dot product of every row, by the gradient engine."""
    hooks = FactorHooks(model, select_layers(model).layers, precision=torch.float64)
    stored = side_gradients(hooks, sides, batch_tokens=256, lengths=(12.0,))
    product = Product("contrast", "dot", "here")
    contractor = Contractor({"here": stored}, {"contrast": np.array([[1.0, -1.0]])}, (product,))
    out = np.zeros(len(rows))
    with hooks.attached():
        for batch in length_buckets([row.length for row in rows], 256):
            sums, _ = contractor(hooks, collate([rows[i] for i in batch], CPU, torch.float64))
            out[batch] = sums[product].numpy()[0]
    return out


def difference(model: Any, sides: list[Encoded], rows: list[Encoded], step: Step, dtype: torch.dtype) -> np.ndarray:
    """l(z; ground) - l(z; error)."""
    layers, out = select_layers(model).layers, []
    for side in sides:
        with nudged(model, layers, [side], step, dtype), torch.no_grad():
            out.append(losses(model, collate(rows, CPU, dtype)).double().numpy())
    error, ground = out
    return ground - error


def main() -> None:
    torch.set_num_threads(1)
    rows, sides = random_rows(60, seed=1), random_rows(2, seed=2)
    table = []
    for architecture, optimizer, steps, dtype in (
        ("gpt2", "sgd", 1, torch.float64),
        ("gpt2", "sgd", 1, torch.float32),
        ("llama", "sgd", 1, torch.float64),
        ("gpt2", "adamw", 3, torch.float64),
        ("gpt2", "adamw", 3, torch.float32),
        ("llama", "adamw", 3, torch.float64),
    ):
        model = tiny_model(architecture)
        wanted = first_order(model, sides, rows)
        model.to(dtype)
        for size in STEPS if optimizer == "sgd" else [5e-6]:
            step = Step(optimizer=optimizer, learning_rate=size, steps=steps)  # type: ignore[arg-type]
            found = difference(model, sides, rows, step, dtype) / size
            error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
            table.append(
                {
                    "model": architecture,
                    "optimizer": optimizer,
                    "steps": steps,
                    "dtype": str(dtype).removeprefix("torch."),
                    "step": size,
                    "relative_error": error if optimizer == "sgd" else None,
                    "rank_correlation": float(spearmanr(found, wanted).statistic),
                }
            )
    result = {
        "command": "python benchmarks/step_convergence.py",
        "date": time.strftime("%Y-%m-%d"),
        "environment": {"python": platform.python_version(), "processor": "one core, no accelerator"}
        | {name: version(name) for name in ("torch", "transformers", "headwater")},
        "rows": len(rows),
        "table": table,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "step_convergence.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "step_convergence.md").write_text(render(result))
    print(render(result))


def render(result: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [
        "Finite-difference pair against the first-order contrast dot product; tiny random models, "
        f"{result['rows']} rows; {result['date']}.",
        "Relative error: largest absolute error over the largest absolute value.",
        "",
        "| model | optimizer | steps | dtype | step size | relative error | rank correlation |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["table"]:
        error = "" if row["relative_error"] is None else f"{row['relative_error']:.1e}"
        lines.append(
            f"| {row['model']} | {row['optimizer']} | {row['steps']} | {row['dtype']} | {row['step']:.0e} | {error} "
            f"| {row['rank_correlation']:.6f} |"
        )
    lines += [
        "",
        "The error falls in proportion to the step until the rounding of the losses, divided by the step, takes over: "
        "early in float32, and nearly as early for the Llama in float64, because transformers computes its norms in "
        "float32. AdamW steps follow the sign of the gradient: their pair has another limit, and no error is given.",
    ]
    return "\n".join([*lines, "", f"Command: `{result['command']}`", ""])


if __name__ == "__main__":
    main()
