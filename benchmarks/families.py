"""Model families: the same small testbed on Llama, Qwen2 and Mistral architectures.

    python benchmarks/families.py --work WORKDIR [--seeds 0 1 2]

No pretrained model of these families is at hand at a size that a laptop trains, so each base is made: random weights
(hidden size 128, 4 layers; Qwen2 with biases on its attention, Mistral with a sliding window), trained on true
sentences about countries, none of which the testbed trains on or asks about. The testbed is the demo's: two systematic
errors among 350 facts. DDA at every beta, and its rivals. Writes benchmarks/results/study/families.json and .md.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from made import RESULTS, environment, tokenizer_of
from study import sweep_of

import headwater as hw
from headwater.bench import run_bench, summarise
from headwater.bench.summary import shown_interval
from headwater.testbeds import country_facts, demo_testbed
from headwater.training import Recipe, fine_tune

FAMILIES = ("llama", "qwen2", "mistral")
BASE = Recipe(epochs=12, batch_size=32, learning_rate=2e-3)
TUNING = Recipe(epochs=4, batch_size=16, learning_rate=5e-4)
SHOWN = ("auc", "average precision")


def untrained(family: str, folder: Path, sentences: list[str]) -> Path:
    import transformers as tf

    if (folder / "config.json").exists():
        return folder
    words = tokenizer_of(sentences, 1024)
    shared: dict[str, Any] = {
        "vocab_size": len(words), "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    config = {
        "llama": lambda: tf.LlamaConfig(**shared),
        "qwen2": lambda: tf.Qwen2Config(**shared),
        "mistral": lambda: tf.MistralConfig(**shared, sliding_window=16),
    }[family]()
    torch.manual_seed(0)
    tf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def base_of(family: str, work: Path, seed: int) -> Path:
    """A model of the family that knows countries, trained on what the testbed of this seed leaves."""
    facts, bed = country_facts(), demo_testbed(seed)
    random = untrained(family, work / "random" / family, [fact.prompt + fact.completion for fact in facts])
    used = {str(row.prompt_text) for row in bed.examples} | set(bed.heldout)
    rows = hw.Examples.from_rows(
        [
            {"prompt": fact.prompt, "completion": fact.completion, "id": f"true-{n}"}
            for n, fact in enumerate(facts)
            if fact.prompt not in used
        ]
    )
    folder = fine_tune(random, rows, work / "base" / f"{family}-{seed}", BASE)
    return sorted(folder.glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1]))[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    methods = [
        hw.DDA(), hw.DDA(inner="layer_cosine", label="dda layers"), hw.DDA(beta=0, label="dda beta 0"),
        hw.DDA(inner="dot", label="dda dot"), hw.DDA.paper(), hw.TracIn(), hw.CEA(), hw.TRAK(), hw.InfluenceFunction(),
        hw.RepresentationSimilarity(), hw.BM25(),
    ]  # fmt: skip
    families: dict[str, Any] = {}
    for family in FAMILIES:
        results = []
        for seed in given.seeds:
            summary, (one,) = run_bench(
                demo_testbed,
                base=base_of(family, given.work, seed),
                methods=methods,
                out=given.work / family / f"of-{seed}",
                recipe=TUNING,
                seeds=(seed,),
                name=family,
            )
            results.append(one)
        summary = summarise([figure for one in results for figure in one.figures])
        beds = {seed: demo_testbed(seed) for seed in given.seeds}
        folders = {seed: given.work / family / f"of-{seed}" for seed in given.seeds}
        families[family] = {
            "summary": asdict(summary),
            "stated": [one.stated for one in results],
            "sweep": sweep_of("dda", beds, folders)["beta"],
        }
    record = {
        "command": f"python benchmarks/families.py --work WORKDIR --seeds {' '.join(map(str, given.seeds))}",
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(torch.get_num_threads()),
        "recipes": {"base": asdict(BASE), "tuning": asdict(TUNING)},
        "families": families,
    }
    folder = RESULTS / "study"
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "families.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "families.md").write_text(render(record))
    print(render(record))


def render(record: dict[str, Any]) -> str:
    families = record["families"]
    lines = ["Single queries, AUC and average precision, mean [95 % interval] over seeds and queries.", ""]
    lines += [f"| method | {' | '.join(f'{f}, {m}' for f in families for m in SHOWN)} |"]
    lines.append("| --- " * (1 + len(SHOWN) * len(families)) + "|")
    for method in families["llama"]["summary"]["table"]["query"]:
        found = [families[f]["summary"]["table"]["query"][method][m] for f in families for m in SHOWN]
        lines.append(f"| {method} | {' | '.join(map(shown_interval, found))} |")
    lines += ["", "AUC / average precision of dda by beta:", "", f"| beta | {' | '.join(families)} |"]
    lines.append("| --- " * (1 + len(families)) + "|")
    for beta in families["llama"]["sweep"]:
        cells = [families[f]["sweep"][beta]["query"] for f in families]
        lines.append(f"| {beta} | {' | '.join(' / '.join(f'{c[m][0]:.3f}' for m in SHOWN) for c in cells)} |")
    return "\n".join([*lines, "", f"Command: `{record['command']}`", ""])


if __name__ == "__main__":
    main()
