"""Options that do not exist, do not fit together, or have values that they cannot have."""

from __future__ import annotations

from collections.abc import Iterator

from spoiling import QUESTION, Case, numbered, trace

METHODS = (
    "dda-paper", "dda-difference", "tracin", "cea", "cea-difference", "dot", "cosine", "layer-cosine", "influence",
    "influence-kfac", "logra", "datainf", "trak", "trackstar", "less", "rapidin", "source", "bm25", "verbatim",
    "embedding", "repsim",
)  # fmt: skip

VALUES: dict[str, tuple[str, ...]] = {
    "--every": ("never", "", "Epoch", "1"),
    "--quantization": ("2bit", "4", ""),
    "--template": ("magic", "", "Chat"),
    "--loss-on": ("magic", "everything", ""),
    "--keep": ("middle", ""),
    "--max-length": ("0", "1", "-5", "many", "1.5", "", "nan"),
    "--dtype": ("float16", "int8", "fp32", ""),
    "--device": ("abacus", "cuda:99", "cpu:x", "", "meta"),
    "--batch-tokens": ("0", "-1", "many", "1e3"),
    "--rank": ("0", "-1", "two", "2.5"),
    "--contraction": ("magic", ""),
    "--engine": ("magic", "steam"),
    "--max-new-tokens": ("0", "-1", "many"),
    "--top": ("0", "-1", "many", "2.5"),
    "--words": ("-1", "many"),
    "--second-look": ("-1", "many", "2.5"),
    "--beta": ("much", "nan", "inf", "-inf", "", "0,5", "1e999"),
    "--measurement": ("magic", "margin", ""),
    "--inner": ("magic", "dots", ""),
    "--level": ("magic", "scores", ""),
    "--curvature": ("magic", "hessian", ""),
    "--damping": ("-1", "much", "nan", "-inf"),
    "--span": ("first", "3", "3:", ":3", "3:1", "-1:3", "0:0", "0:99", "a:b", "1:2:3", "", "1.0:2.0", "²:³"),
    "--method": ("magic", "", "DDA", "dda,cea", "tracin "),
    "--checkpoint-weight": ("x", "1", "nan", "inf"),
    "--parameters": ("no_such_layer", "(", "[", "*"),
    "--output": ("",),
    "--corrected": ("", " Sydney."),
}

TOGETHER: dict[str, tuple[str, ...]] = {
    "method twice": ("--method", "dda", "--method", "dda"),
    "a limit without an index": ("--limit", "3"),
    "quantization without bitsandbytes": ("--quantization", "4bit"),
    "a learning rate for dda": ("--learning-rate", "0.1"),
    "learning rates of other checkpoints": ("--method", "tracin", "--learning-rate", "0.1"),
    "a learning rate of text": ("--method", "tracin", "--learning-rate", "x"),
    "a learning rate NaN": ("--method", "tracin", "--learning-rate", "nan", "--learning-rate", "nan"),
    "three checkpoint weights": sum((("--checkpoint-weight", "1") for _ in range(3)), ()),
    "checkpoint weights NaN": ("--checkpoint-weight", "nan", "--checkpoint-weight", "1"),
    "damping without curvature": ("--damping", "0.1", "--method", "cea"),
    "an embedding model without embedding": ("--embedding-model", "x"),
    "an embedding model that is not there": ("--method", "embedding", "--embedding-model", "nobody/nothing"),
    "an embedding model of another kind": ("--method", "embedding", "--embedding-model", "{train}"),
    "gradient level, directional": ("--method", "dda-difference", "--level", "gradient"),
    "an inner product, directional": ("--method", "dda-difference", "--inner", "dot"),
    "curvature, directional": ("--method", "dda-difference", "--curvature", "ekfac"),
    "a directional engine with a rank": ("--engine", "directional", "--rank", "2", "--method", "dot"),
    "a directional engine in bfloat16": ("--engine", "directional", "--dtype", "bfloat16", "--method", "dot"),
    "directional cosines": ("--engine", "directional", "--method", "cosine"),
    "difference in bfloat16": ("--method", "cea-difference", "--dtype", "bfloat16"),
    "curvature in bfloat16": ("--method", "influence", "--dtype", "bfloat16"),
    "words under curvature": ("--method", "influence", "--words", "3"),
    "words of bm25": ("--method", "bm25", "--words", "3"),
    "token cosines under curvature": ("--inner", "token_cosine", "--curvature", "fisher", "--rank", "2"),
    "token cosines at gradient level": ("--inner", "token_cosine", "--level", "gradient"),
    "a second look without an index": ("--second-look", "3"),
    "words of repsim": ("--method", "repsim", "--words", "3"),
    "words of difference": ("--method", "cea-difference", "--words", "3"),
    "an unknown option": ("--magic", "1"),
    "an option in part": ("--check", "{run}"),
    "an option twice": ("--base", "{base}", "--base", "{here}/none"),
    "a word too many": ("magic",),
    "an option without a value": ("--words",),
    "a flag with a value": ("--recompute=yes",),
    "chat template without one in the tokenizer": ("--template", "chat"),
    "assistant loss of completions": ("--loss-on", "assistant"),
    "a very long prompt": ("--prompt", "a b c " * 3000),
    "a prompt of half a pair": ("--prompt", "\udcff"),
    "an output of half a pair": ("--output", "\udcff"),
    "a split of a file": ("--split", "train"),
}

COMMANDS: dict[str, tuple[str, ...]] = {
    "no such command": ("magic",),
    "a command in part": ("tra",),
    "an option before the command": ("--quiet", "trace"),
    "trace without anything": ("trace",),
    "trace of a prompt alone": ("trace", "--prompt", "a"),
    "trace without rows": ("trace", "--base", "{base}", "--checkpoints", "{run}", *QUESTION),
    "trace without checkpoints": ("trace", "--base", "{base}", "--train", "{train}", *QUESTION),
    "trace without a question": ("trace", "--base", "{base}", "--checkpoints", "{run}", "--train", "{train}"),
    "trace of an output alone": (
        "trace", "--base", "{base}", "--checkpoints", "{run}", "--train", "{train}", "--output", " a",
    ),
    "methods with a word": ("methods", "dda"),
    "methods with an option": ("methods", "--magic"),
    "index without anything": ("index",),
    "index without rows": ("index", "--checkpoints", "{run}", "--out", "{here}/i"),
    "index without checkpoints": ("index", "--train", "{train}", "--out", "{here}/i"),
    "index check of nothing": ("index", "check"),
    "index check of two": ("index", "check", "{index}", "{index}"),
    "index of an unknown command": ("index", "magic"),
    "index of no rank": ("index", "--checkpoints", "{run}", "--train", "{train}", "--rank", "0", "--out", "{here}/i"),
    "index of an unknown type": ("index", "--features", "float8", "--out", "{here}/i"),
    "index of no chunk": ("index", "--chunk-rows", "0", "--out", "{here}/i"),
    "index of no layer": (
        "index", "--base", "{base}", "--checkpoints", "{run}", "--train", "{train}", "--parameters", "(",
        "--out", "{here}/i", "--quiet",
    ),
    "bench without anything": ("bench",),
    "bench without a folder": ("bench", "facts"),
    "bench of an unknown task": ("bench", "magic", "--out", "{here}/b"),
    "bench of an unknown method": ("bench", "identity", "--out", "{here}/b", "--base", "{base}", "--methods", "magic"),
    "bench of no seed": ("bench", "identity", "--out", "{here}/b", "--seeds", "0"),
    "bench of no epoch": ("bench", "identity", "--out", "{here}/b", "--epochs", "0"),
    "bench without data": ("bench", "facts", "--out", "{here}/b", "--data", "{here}/none.jsonl"),
    "bench of a negative removal": ("bench", "identity", "--out", "{here}/b", "--remove", "-1"),
    "bench of methods to remove by alone": (
        "bench", "identity", "--out", "{here}/b", "--base", "{base}", "--remove-by", "dda",
    ),
    "demo of a seed of text": ("demo", "--seed", "x"),
    "demo with a word": ("demo", "magic"),
}  # fmt: skip

INDEXED: dict[str, tuple[str, ...]] = {
    **{
        f"{name}": (name, value)
        for name, value in {
            "--train": "{train}", "--split": "train", "--prompt-column": "a", "--completion-column": "a",
            "--messages-column": "a", "--text-column": "a", "--id-column": "a", "--template": "plain",
            "--loss-on": "all", "--max-length": "9", "--keep": "end", "--parameters": "q", "--dtype": "float64",
            "--batch-tokens": "9", "--rank": "2", "--contraction": "factored", "--engine": "auto",
            "--placebo": "{held}", "--base": "{base}", "--every": "checkpoint", "--quantization": "4bit",
        }.items()
    },
    "--no-eos": ("--no-eos",),
    "--recompute": ("--recompute",),
    "no limit": ("--limit", "0"),
    "a limit of bm25": ("--limit", "3", "--method", "bm25"),
    "another run": ("--checkpoints", "{lora}", "--base", "{base}"),
    "fewer checkpoints": ("--checkpoints", "{run}/checkpoint-6", "--base", "{base}"),
    "no base": ("--checkpoints", "{run}"),
    "a base that was replaced": ("--checkpoints", "{run}", "--base", "{run}/checkpoint-3"),
    "curvature of Adam": ("--method", "influence-adam"),
    "ekfac": ("--curvature", "ekfac", "--inner", "dot"),
    "hidden states": ("--method", "repsim"),
    "differences": ("--method", "cea-difference"),
    "margins": ("--method", "trak"),
    "trackstar": ("--method", "trackstar"),
    "influence": ("--method", "influence"),
    "less": ("--method", "less"),
    "token cosines": ("--inner", "token_cosine"),
    "a second look and a limit": ("--second-look", "3", "--limit", "3"),
    "a second look at whole rows": ("--second-look", "3", "--inner", "layer_cosine"),
    "a second look by words alone": ("--second-look", "3", "--method", "bm25"),
}  # fmt: skip


LOADED = r"--parameters '|together: (directional|curvature with|a rank beside|checkpoint weights of|diff without)|with an index: (ekfac|influence|trackstar)"
"""Mistakes that only the loaded model, or the work itself, shows."""


def cases() -> list[Case]:
    return numbered(all_of(), LOADED)


def all_of() -> Iterator[Case]:
    for option, values in VALUES.items():
        for value in values:
            yield trace(f"options/{option} {value!r}", option, value)
    for name, more in TOGETHER.items():
        yield trace(f"options/together: {name}", *more)
    for name, arguments in COMMANDS.items():
        yield Case(name=f"options/command: {name}", arguments=arguments)
    for name, more in INDEXED.items():
        spare = ("--base", "--checkpoints", "--train")
        yield trace(f"options/with an index: {name}", "--index", "{index}", *more, without=spare)
    for method in METHODS:
        if method != "dda-paper" and "difference" not in method:
            yield trace(f"options/{method}: level", "--method", method, "--level", "score")
        if method not in ("tracin", "less", "rapidin", "source"):
            yield trace(f"options/{method}: learning rate", "--method", method, "--learning-rate", "0.1")
