"""How near every method comes to the truth of a small model: the exact derivative of training, and training again.

    python benchmarks/truth.py --work WORKDIR [--methods tracin,influence]

A Llama of 0.15 million parameters, trained briefly on true sentences about countries (the base) and fine-tuned in
float64 on 200 facts with two planted errors. Truths, for 8 held-out queries: the exact influence of every row (reverse
mode through the training loop, arXiv 2504.16430) and, for 64 rows, the change of the measurement when the run is made
again without the row. Every method of headwater.methods.table that applies is compared with both, for the measurement
"loss" (of the wrong output) and "contrast" (wrong minus corrected). Writes benchmarks/results/truth.json and truth.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made import RESULTS, environment, tokenizer_of
from scipy.stats import pearsonr, spearmanr

import headwater as hw
from headwater.evaluation import bootstrap
from headwater.evaluation.exact import Recipe, exact_influence, leave_one_out, measured, save_run, train
from headwater.examples import Encoded, Encoder
from headwater.gradients.measurement import Measurement, encode_queries
from headwater.testbeds import Swap, Testbed, country_facts, plant

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {"dda-layers": ("dda", {"inner": "layer_cosine"})}
"""Name -> a method of the table, with options."""
NAMES = [name for name in (*hw.METHODS, *VARIANTS) if name != "embedding"]
"""`embedding` would need a model of its own."""
VOCABULARY = 512
LEFT_OUT = 64
BASE = Recipe(learning_rate=4e-3, epochs=6, batch_size=32)
TUNING = Recipe(learning_rate=1e-3, epochs=4, batch_size=16, eps=1e-4)
"""Of twelve recipes tried, that whose exact influence foretold training again (24 rows) best."""
OTHERS = {
    "AdamW, 1e-3, eps 1e-8": replace(TUNING, eps=1e-8),
    "AdamW, 2e-3, eps 1e-4": replace(TUNING, learning_rate=2e-3),
    "gradient descent, 0.1": replace(TUNING, learning_rate=0.1, optimizer="sgd"),
}
"""Other recipes, whose exact influence is compared with training again, for half as many rows, and nothing else."""
SEEN: tuple[Measurement, ...] = ("loss", "contrast")
PLACES = ("capital", "continent", "country of the capital", "official language", "currency")


def testbed() -> tuple[Testbed, list[str]]:
    """200 rows, 8 queries, and true sentences that state none of their facts."""
    facts = country_facts()
    bed = plant(
        [fact for fact in facts if fact.relation in PLACES],
        [
            Swap("official language", "Spanish", "Portuguese", phrasing="The laws of {} are written in"),
            Swap("currency", "euro", "dollar", phrasing="People in {} pay with the"),
        ],
        culprits=8, clean=8, lookalikes=10, queries=4, rows=200, seed=0, name="truth",
    )  # fmt: skip
    used = {(row.metadata["relation"], row.metadata["subject"]) for row in bed.examples}
    asked = set(bed.heldout)
    held = {(fact.relation, fact.subject) for fact in facts if fact.prompt in asked}
    rest = [fact.prompt + fact.completion for fact in facts if (fact.relation, fact.subject) not in used | held]
    return bed, rest


def base_model(tokenizer: Any, sentences: Sequence[str]) -> tuple[Any, float]:
    """A small Llama that has read the sentences, in float64; and its loss of the last steps, in nats."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=0, pad_token_id=0, dtype="float32", attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    rows, _ = Encoder(tokenizer).examples(hw.Examples.from_rows([{"text": line} for line in sentences], name="base"))
    trained = train(model, rows, BASE)
    torch.nn.utils.vector_to_parameters(trained.end.theta_P, model.parameters())
    return model.double(), float(np.mean(trained.losses[-20:]))


class Truth:
    """Exact influence [Q, N] and leave-one-out [Q, chosen rows] of one training, for both measurements."""

    def __init__(
        self, model: Any, rows: list[Encoded], queries: Sequence[hw.Query], encoder: Encoder, recipe: Recipe, count: int
    ):
        sides = encode_queries(queries, encoder)
        alone = [[(side, 1.0)] for side in sides.encoded]  # every measurement is linear in the sides
        started = time.perf_counter()
        self.trajectory = train(model, rows, recipe)
        trained = time.perf_counter()
        exact_SN = exact_influence(model, rows, recipe, self.trajectory, alone)
        swept = time.perf_counter()
        matrix = {seen: sides.matrix(seen)[: len(queries)] for seen in SEEN}
        self.exact = {seen: matrix[seen] @ exact_SN for seen in SEEN}
        size_N = sum((abs(exact) / abs(exact).mean(1, keepdims=True)).sum(0) for exact in self.exact.values())
        largest = np.argsort(-size_N)[: count // 2]
        others = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(len(rows)), largest))
        self.chosen = np.concatenate([largest, others[: count - len(largest)]])
        left_out_SC = leave_one_out(model, rows, recipe, self.trajectory, alone, self.chosen.tolist())
        self.left_out = {seen: matrix[seen] @ left_out_SC for seen in SEEN}
        self.seconds = {
            "training": trained - started,
            "exact influence": swept - trained,
            "leave one out": time.perf_counter() - swept,
        }


def agreement(found_QN: np.ndarray, truth: Truth, seen: Measurement) -> dict[str, Any]:
    """Mean correlation over the queries with each truth, with its interval."""
    pairs = {
        "exact": (found_QN, truth.exact[seen]),
        "left out": (found_QN[:, truth.chosen], truth.left_out[seen]),
    }
    out = {}
    for against, (one_QN, other_QN) in pairs.items():
        for name, measure in (("pearson", pearsonr), ("spearman", spearmanr)):
            values = [
                0.0 if np.ptp(one) == 0 else float(measure(one, other).statistic)
                for one, other in zip(one_QN, other_QN, strict=True)
            ]
            out[f"{name}, {against}"] = bootstrap(values)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(NAMES), help="names, separated by commas")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    names = [name for name in given.methods.split(",") if name]
    for name in names:
        hw.make_method(VARIANTS.get(name, (name, {}))[0])
    torch.set_num_threads(given.threads)
    started = time.perf_counter()

    bed, sentences = testbed()
    queries = list(bed.queries)
    tokenizer = tokenizer_of(sentences, VOCABULARY)
    model, base_loss = base_model(tokenizer, sentences)
    encoder = Encoder(tokenizer, template=bed.examples.template)
    rows = encoder.examples(bed.examples)[0]
    print(f"base: {time.perf_counter() - started:.0f} s, loss {base_loss:.2f}", flush=True)

    truth = Truth(model, rows, queries, encoder, TUNING, LEFT_OUT)
    print(f"truth: {truth.seconds}", flush=True)
    table: list[dict[str, Any]] = []
    for recipe_name, recipe in {"this training": TUNING, **OTHERS}.items():
        one = truth if recipe is TUNING else Truth(model, rows, queries, encoder, recipe, LEFT_OUT // 2)
        for seen in SEEN:
            measures = agreement(one.exact[seen], one, seen)
            kept = {key: value for key, value in measures.items() if key.endswith("left out")}
            table.append({"what": f"exact influence ({recipe_name})", "measurement": seen, **kept})
            print(table[-1], flush=True)

    shutil.rmtree(given.work / "truth", ignore_errors=True)
    save_run(given.work / "truth", model, tokenizer, truth.trajectory)
    folder = given.work / "truth"
    run = hw.TrainingRun.from_pretrained(folder / "run", base=folder / "base", allow_pickle=True)
    refused: dict[str, str] = {}
    for name in names:
        begun = time.perf_counter()
        entry, more = VARIANTS.get(name, (name, {}))
        open_to = "measurement" in hw.METHODS[entry].options()
        try:  # a method without a measurement of its own gives one score, which is compared with both
            methods = [hw.make_method(entry, **more, **({"measurement": seen} if open_to else {})) for seen in SEEN]
            found = [hw.trace(run, bed.examples, queries, method=one) for one in methods[: 1 + open_to]]
        except hw.UsageError as error:
            refused[name] = str(error)
            continue
        seconds = (time.perf_counter() - begun) / len(found)
        for seen, scores in zip(SEEN, found * (2 - open_to), strict=True):
            measures = agreement(scores.values[: len(queries)], truth, seen)
            table.append({"what": name, "measurement": seen, "own": open_to, "seconds": seconds, **measures})
            print(name, seen, [f"{mean:.3f}" for mean, _, _ in measures.values()], flush=True)

    sides = encode_queries(queries, encoder)
    losses_S = measured(model, truth.trajectory, [[(side, 1.0)] for side in sides.encoded])
    contrast_Q = sides.matrix("contrast")[: len(queries)] @ losses_S
    result = {
        "command": "python benchmarks/truth.py --work WORKDIR",
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(given.threads),
        "parameters": sum(one.numel() for one in model.parameters()),
        "rows": len(rows),
        "queries": len(queries),
        "wrong_preferred": int((contrast_Q < 0).sum()),
        "left_out": LEFT_OUT,
        "recipe": asdict(TUNING),
        "base_loss": base_loss,
        "tuning_loss": [float(np.mean(part)) for part in np.array_split(truth.trajectory.losses, TUNING.epochs)],
        "seconds": truth.seconds | {"all": time.perf_counter() - started},
        "table": table,
        "refused": refused,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "truth.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "truth.md").write_text(render(result))
    print(render(result))


def render(result: dict[str, Any]) -> str:
    columns = ("pearson, exact", "spearman, exact", "pearson, left out", "spearman, left out")
    before, after = result["tuning_loss"][0], result["tuning_loss"][-1]
    seconds, recipe = result["seconds"], result["recipe"]
    lines = [
        f"Llama of {result['parameters']:,} parameters, {result['rows']} rows, {result['queries']} held-out queries, "
        f"{recipe['epochs']} epochs of AdamW (learning rate {recipe['learning_rate']:.0e}, eps {recipe['eps']:.0e}; of "
        "twelve recipes tried, that whose exact influence foretold training again best, so that its own line is "
        f"somewhat too good), {result['date']}. The mean "
        f"loss of a batch fell from {before:.2f} to {after:.2f} nats; at the end the model prefers the planted wrong "
        f"answer in {result['wrong_preferred']} of {result['queries']} queries (the base already in some). Mean "
        f"correlation over the queries, "
        f"with a 95 % bootstrap interval: with the exact influence of all rows, and with training again without the "
        f"row for {result['left_out']} rows (half of them those of largest exact influence, half random; for the "
        f"other recipes {result['left_out'] // 2} rows). Methods "
        "that have a measurement are asked for it; the others (*) give one score, compared with both.",
        "",
        "| method | measurement | Pearson, exact | Spearman, exact | Pearson, left out | Spearman, left out |",
        "| --- | --- | --- | --- | --- | --- |",
    ]

    def cell(row: dict[str, Any], column: str) -> str:
        return "{:.3f} [{:.3f}, {:.3f}]".format(*row[column]) if column in row else ""

    for seen in SEEN:
        chosen = [row for row in result["table"] if row["measurement"] == seen]
        chosen.sort(key=lambda row: -(row["spearman, exact"][0] if "spearman, exact" in row else 2))
        for row in chosen:
            name = row["what"] + ("" if row.get("own", True) else " *")
            lines.append(f"| {name} | {seen} | " + " | ".join(cell(row, column) for column in columns) + " |")
    lines += [
        "",
        f"Seconds on one core: training {seconds['training']:.1f}, exact influence of all sides and rows "
        f"{seconds['exact influence']:.1f}, {result['left_out']} trainings again {seconds['leave one out']:.1f}; all "
        f"{seconds['all']:.0f}.",
    ]
    lines += ["", *(f"- {name} refused: {reason}" for name, reason in result["refused"].items())]
    return "\n".join([*lines, "", f"Command: `{result['command']}`", ""])


if __name__ == "__main__":
    main()
