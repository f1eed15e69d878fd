"""Models, adapters and tokenizers that cannot be used, or that would run code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from spoiling import TOUCHED, Case, Change, Folder, Link, cut, flipped, numbered, pickled, trace, with_value, without

STEP3, STEP6 = "run/checkpoint-3", "run/checkpoint-6"
CODE = f"open('{{here}}/{TOUCHED}', 'w').close()\n"

JSONS: dict[str, Change] = {
    "empty": b"",
    "cut": cut(0.5),
    "text": "not JSON",
    "a list": "[]",
    "a string": '"config"',
    "null": "null",
    "a number": "3",
    "utf-16": lambda old: old.decode().encode("utf-16"),
    "NULs": b"\0" * 64,
    "a huge number": '{"vocab_size": ' + "9" * 5000 + "}",
    "deep": "[" * 100_000,
    "a folder": Folder(),
    "a link to itself": Link("{name}"),
    "not to be read": Link("/proc/self/mem"),
}


def header(record: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file: the header's length, the header, the numbers."""
    text = record if isinstance(record, bytes) else json.dumps(record).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(kind: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"model.norm.weight": {"dtype": kind, "shape": list(shape), "data_offsets": list(offsets)}}


WEIGHTS: dict[str, Change] = {
    "missing": None,
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "a length alone": (100).to_bytes(8, "little"),
    "a huge length": header(b"{}", length=2**63),
    "a length behind the end": header(b"{}", length=1000),
    "a length of nothing": header(b"", length=0),
    "not JSON": header(b"not JSON at all!"),
    "a list": header([]),
    "no UTF-8": header(b'{"\xff": 1}'),
    "deep": header(b"[" * 100_000),
    "an unknown type": header(tensor("Q4"), b"\0" * 4),
    "a shape of another size": header(tensor(shape=(3,)), b"\0" * 4),
    "a huge shape": header(tensor(shape=(2**40, 2**40)), b"\0" * 4),
    "a negative shape": header(tensor(shape=(-1,)), b"\0" * 4),
    "a shape of text": header(tensor(shape=("1",)), b"\0" * 4),
    "offsets behind the end": header(tensor(offsets=(0, 400)), b"\0" * 4),
    "offsets reversed": header(tensor(offsets=(4, 0)), b"\0" * 4),
    "offsets negative": header(tensor(offsets=(-4, 0)), b"\0" * 4),
    "overlapping": header(tensor() | {"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "a hole": header(tensor(offsets=(8, 12)), b"\0" * 12),
    "more data than named": header(tensor(), b"\0" * 400),
    "no offsets": header({"a": {"dtype": "F32", "shape": [1]}}),
    "metadata of numbers": header({"__metadata__": {"format": 3}}),
    "cut": cut(0.5),
    "cut by a byte": lambda old: old[:-1],
    "a byte more": lambda old: old + b"\0",
    "flipped in the header": flipped(0.001),
    "text": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "an archive": b"PK\x03\x04" + b"\0" * 64,
    "a pickle": pickled(),
    "a folder": Folder(),
    "a link to nothing": Link("none.safetensors"),
    "a link to itself": Link("model.safetensors"),
    "not to be read": Link("/proc/self/mem"),
}

CONFIGS: dict[str, Change] = {
    "no model_type": without("model_type"),
    "an unknown model_type": with_value("model_type", "magic"),
    "model_type a number": with_value("model_type", 3),
    "model_type a list": with_value("model_type", ["llama"]),
    "model_type null": with_value("model_type", None),
    "model_type of pictures": with_value("model_type", "vit"),
    "remote code": lambda old: json.dumps(
        json.loads(old) | {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    ).encode(),
    "hidden_size text": with_value("hidden_size", "sixteen"),
    "hidden_size null": with_value("hidden_size", None),
    "hidden_size negative": with_value("hidden_size", -16),
    "hidden_size 0": with_value("hidden_size", 0),
    "hidden_size other": with_value("hidden_size", 32),
    "layers text": with_value("num_hidden_layers", "two"),
    "layers more": with_value("num_hidden_layers", 3),
    "layers negative": with_value("num_hidden_layers", -1),
    "heads 0": with_value("num_attention_heads", 0),
    "heads 3": with_value("num_attention_heads", 3),
    "key heads 3": with_value("num_key_value_heads", 3),
    "vocab_size text": with_value("vocab_size", "many"),
    "vocab_size other": with_value("vocab_size", 7),
    "vocab_size negative": with_value("vocab_size", -1),
    "activation unknown": with_value("hidden_act", "magic"),
    "activation a number": with_value("hidden_act", 3),
    "rope unknown": with_value("rope_parameters", {"rope_type": "magic", "rope_theta": 1e4}),
    "quantization text": with_value("quantization_config", "4bit"),
}  # fmt: skip


def spoilt(name: str, changes: Mapping[str, Change], *more: str, lora: bool = False, loads: bool = False) -> Case:
    """A trace of copies of base and run, with changes."""
    copies = ("base", "lora") if lora else ("base", "run")
    places = ("--base", "{here}/base", "--checkpoints", "{here}/lora" if lora else "{here}/run")
    return trace(f"checkpoints/{name}", *places, *more, copies=copies, changes=changes, loads=loads)


def linked(change: Change, name: str) -> Change:
    return Link(change.target.format(name=name)) if isinstance(change, Link) else change


def configs() -> Iterator[Case]:
    for place in ("base", STEP3):
        for name, change in {**JSONS, **CONFIGS}.items():
            file = f"{place}/config.json"
            more = {f"{place}/evil.py": CODE} if name == "remote code" else {}
            yield spoilt(
                f"{place} config.json: {name}", {file: linked(change, "config.json")} | more, loads=name in LOADS
            )
    yield spoilt("base config.json: missing", {"base/config.json": None})
    yield spoilt("every config.json missing", {f"{STEP3}/config.json": None, f"{STEP6}/config.json": None})


def weights() -> Iterator[Case]:
    for place in ("base", STEP3):
        for name, change in WEIGHTS.items():
            yield spoilt(f"{place} weights: {name}", {f"{place}/model.safetensors": change})
    name, index = f"{STEP3}/model.safetensors", f"{STEP3}/model.safetensors.index.json"

    def shards(**of: str) -> str:
        return json.dumps({"metadata": {}, "weight_map": of})

    for title, text in {
        "missing": shards(a="model-00001-of-00001.safetensors"),
        "outside": shards(a="../checkpoint-6/model.safetensors"),
        "of the system": shards(a="/etc/passwd"),
        "a number": '{"weight_map": {"a": 3}}',
        "no map": '{"metadata": {}}',
        "a map of a list": '{"weight_map": ["a"]}',
        "an empty map": shards(),
        "not JSON": "{",
        "a list": "[]",
        "a pickle": shards(a="pytorch_model.bin"),
    }.items():
        yield spoilt(f"shards: {title}", {name: None, index: text, f"{STEP3}/pytorch_model.bin": pickled()})
    for place, file in (("base", "model"), (STEP3, "model")):
        for title, change in {
            "a pickle beside nothing": {f"{place}/pytorch_model.bin": pickled()},
            "shards of pickles": {
                f"{place}/pytorch_model.bin.index.json": shards(a="pytorch_model-00001-of-00001.bin"),
                f"{place}/pytorch_model-00001-of-00001.bin": pickled(),
            },
            "a pickle beside other weights": {
                f"{place}/pytorch_model.bin": pickled(),
                f"{place}/other.safetensors": header({}),
            },
            "another name": {f"{place}/weights.safetensors": header({})},
            "TensorFlow": {f"{place}/tf_model.h5": b"\x89HDF"},
            "Flax": {f"{place}/flax_model.msgpack": b"\x80"},
            "GGUF": {f"{place}/model.gguf": b"GGUF"},
            "a checkpoint of Lightning": {f"{place}/last.ckpt": pickled()},
            "training arguments alone": {f"{place}/training_args.bin": pickled()},
        }.items():
            yield spoilt(f"{place} files: {title}", {f"{place}/{file}.safetensors": None, **change})


def pickles() -> Iterator[Case]:
    """With --allow-pickle: torch's restricted reader refuses what would run."""
    for name, content in {
        "a payload": pickled(),
        "text": b"not a pickle",
        "empty": b"",
        "an archive cut": b"PK\x03\x04" + b"\0" * 60,
    }.items():
        changes = {f"{STEP6}/model.safetensors": None, f"{STEP6}/pytorch_model.bin": content}
        yield spoilt(f"allowed pickle: {name}", changes, "--allow-pickle", loads=True)
        changes = {"lora/checkpoint-6/adapter_model.safetensors": None, "lora/checkpoint-6/adapter_model.bin": content}
        yield spoilt(f"allowed pickle of an adapter: {name}", changes, "--allow-pickle", lora=True, loads=True)
        changes = {f"{STEP6}/optimizer.pt": content, f"{STEP3}/optimizer.pt": content}
        for method in ("less", "influence-adam"):
            more = ("--method", method, "--allow-pickle")
            yield spoilt(f"optimizer.pt, {method}: {name}", changes, *more, loads=True)
    for method in ("less", "influence-adam"):
        yield spoilt(f"optimizer.pt, {method}: not allowed", {}, "--method", method, loads=True)
        changes = {f"{STEP6}/optimizer.pt": None, f"{STEP3}/optimizer.pt": None}
        yield spoilt(f"optimizer.pt, {method}: missing", changes, "--method", method, "--allow-pickle", loads=True)


def states() -> Iterator[Case]:
    file = f"{STEP3}/trainer_state.json"
    for name, change in JSONS.items():
        yield spoilt(f"trainer_state.json: {name}", {file: linked(change, "trainer_state.json")})
    for name, change in {
        "no step": without("global_step"),
        "no epoch": without("epoch"),
        "step text": with_value("global_step", "three"),
        "step null": with_value("global_step", None),
        "step a list": with_value("global_step", [3]),
        "step infinite": with_value("global_step", float("inf")),
        "epoch text": with_value("epoch", "one"),
        "epoch null": with_value("epoch", None),
        "epoch NaN": with_value("epoch", float("nan")),
        "epoch infinite": with_value("epoch", float("inf")),
        "history text": with_value("log_history", "none"),
        "history a number": with_value("log_history", 3),
        "history null": with_value("log_history", None),
        "history of numbers": with_value("log_history", [1, 2]),
        "history of nulls": with_value("log_history", [None]),
        "rate text": with_value("log_history.0.learning_rate", "small"),
        "rate null": with_value("log_history.0.learning_rate", None),
        "rate a list": with_value("log_history.0.learning_rate", [1]),
        "rate NaN": with_value("log_history.0.learning_rate", float("nan")),
        "rate infinite": with_value("log_history.0.learning_rate", float("inf")),
        "logged step text": with_value("log_history.0.step", "one"),
        "logged step null": with_value("log_history.0.step", None),
    }.items():
        yield spoilt(f"trainer_state.json: {name}", {file: change}, "--method", "tracin")
    yield spoilt(
        "trainer_state.json: no rates for TracIn",
        {f"run/checkpoint-{n}/trainer_state.json": with_value("log_history", []) for n in (3, 6)},
        "--method",
        "tracin",
    )


def adapters() -> Iterator[Case]:
    place = "lora/checkpoint-6"
    for name, change in JSONS.items():
        file = f"{place}/adapter_config.json"
        yield spoilt(f"adapter_config.json: {name}", {file: linked(change, "adapter_config.json")}, lora=True)
    for name, change in WEIGHTS.items():
        if isinstance(change, Link) and change.target == "model.safetensors":
            change = Link("adapter_model.safetensors")
        if name not in ("a link to nothing",):
            yield spoilt(f"adapter weights: {name}", {f"{place}/adapter_model.safetensors": change}, lora=True)
    config = f"{place}/adapter_config.json"
    for name, change, loads in (
        ("no kind", without("peft_type"), False),
        ("an unknown kind", with_value("peft_type", "MAGIC"), False),
        ("a kind of a number", with_value("peft_type", 3), False),
        ("rank text", with_value("r", "three"), True),
        ("rank 0", with_value("r", 0), True),
        ("rank negative", with_value("r", -1), True),
        ("rank other", with_value("r", 2), True),
        ("modules that are not there", with_value("target_modules", ["magic"]), True),
        ("modules a number", with_value("target_modules", 3), True),
    ):
        yield spoilt(f"adapter_config.json: {name}", {config: change}, lora=True, loads=loads)
    for name, change, more in (
        ("base a number", with_value("base_model_name_or_path", 3), ()),
        ("base a list", with_value("base_model_name_or_path", ["a"]), ()),
        ("base null", with_value("base_model_name_or_path", None), ()),
        ("base empty", with_value("base_model_name_or_path", ""), ()),
        ("base that is not there", with_value("base_model_name_or_path", "/nowhere/base"), ()),
        ("base of the hub that is not there", with_value("base_model_name_or_path", "nobody/nothing"), ()),
        ("base an adapter", with_value("base_model_name_or_path", "{here}/lora/checkpoint-3"), ()),
        ("no base", without("base_model_name_or_path"), ()),
    ):
        alone = ("--checkpoints", "{here}/lora/checkpoint-6", *more)
        yield trace(
            f"checkpoints/adapter: {name}",
            *alone,
            without=("--base",),
            copies=("lora",),
            changes={config: _here(change)},
        )
    yield spoilt("adapter: pickle beside other weights", {
        f"{place}/adapter_model.safetensors": None, f"{place}/adapter_model.bin": pickled(),
        f"{place}/model.safetensors": header({})}, lora=True)  # fmt: skip
    yield spoilt("adapter: pickle alone", {
        f"{place}/adapter_model.safetensors": None, f"{place}/adapter_model.bin": pickled()}, lora=True)  # fmt: skip
    yield trace("checkpoints/adapter: as base", "--base", "{lora}/checkpoint-3")
    yield trace(
        "checkpoints/adapter: two bases",
        "--checkpoints", "{here}/lora/checkpoint-3", "--checkpoints", "{here}/lora/checkpoint-6",
        without=("--base",), copies=("lora",), changes={config: with_value("base_model_name_or_path", "elsewhere/base")},
    )  # fmt: skip
    yield trace(
        "checkpoints/adapter: Adam's moments",
        "--checkpoints",
        "{lora}",
        "--method",
        "influence-adam",
        "--allow-pickle",
        loads=True,
    )


def _here(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return change


def tokenizers() -> Iterator[Case]:
    for name, change in JSONS.items():
        changes = {f"{place}/tokenizer.json": linked(change, "tokenizer.json") for place in ("base", STEP3, STEP6)}
        yield spoilt(f"tokenizer.json: {name}", changes)
        if name not in ("a folder", "a link to itself"):
            config = {
                f"{place}/tokenizer_config.json": linked(change, "tokenizer_config.json")
                for place in ("base", STEP3, STEP6)
            }
            yield spoilt(f"tokenizer_config.json: {name}", config)
    for name, file, change in (
        ("no model", "tokenizer.json", without("model")),
        ("an unknown model", "tokenizer.json", with_value("model.type", "Magic")),
        ("a vocabulary of text", "tokenizer.json", with_value("model.vocab", "abc")),
        ("a vocabulary of text numbers", "tokenizer.json", with_value("model.vocab", {"a": "0"})),
        ("negative numbers", "tokenizer.json", with_value("model.vocab", {"a": -1})),
        ("merges that are not there", "tokenizer.json", with_value("model.merges", [["zzzz", "yyyy"]])),
        ("an unknown decoder", "tokenizer.json", with_value("decoder", {"type": "Magic"})),
        ("remote code", "tokenizer_config.json", lambda old: json.dumps(json.loads(old) | {
            "tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
        }).encode()),
    ):  # fmt: skip
        changes: dict[str, Change] = {f"{place}/{file}": change for place in ("base", STEP3, STEP6)}
        if name == "remote code":
            changes |= {f"{place}/evil.py": CODE for place in ("base", STEP3, STEP6)}
        yield spoilt(f"tokenizer: {name}", changes)
    files = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    yield spoilt("tokenizer: missing everywhere", {f"{p}/{f}": None for p in ("base", STEP3, STEP6) for f in files})
    chat = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    for name, template in {
        "none": None,
        "broken": "{% for m in messages %}",
        "of an unknown filter": "{{ messages | magic }}",
        "of a name that is not there": "{{ magic.more }}",
        "that raises": "{{ raise_exception('not so') }}",
        "that reads classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "that opens a file": "{{ cycler.__init__.__globals__.os.system('touch {here}/touched') }}",
        "that imports": "{% import 'os' as os %}",
        "that includes": "{% include '/etc/passwd' %}",
        "that never ends": "{% for a in range(10**9) %}{% endfor %}",
    }.items():
        given = {} if template is None else {
            f"{place}/chat_template.jinja": template for place in ("base", STEP3, STEP6)}  # fmt: skip
        yield spoilt(f"chat template: {name}", given | {"rows.jsonl": chat}, "--train", "{here}/rows.jsonl")


def places() -> Iterator[Case]:
    for option in ("--base", "--checkpoints"):
        for name, where in {
            "nothing there": "{here}/none",
            "a hub id that is not there": "nobody/nothing",
            "a name that no hub has": "no body/no thing/none",
            "empty": "",
            "a blank": " ",
            "a dot and a slash": "./.",
            "a name too long": "{here}/" + "a" * 300,
            "a home of nobody": "~nobody-of-that-name/model",
            "a URL": "https://example.org/model",
            "a file": "{train}",
            "the weights": "{base}/model.safetensors",
            "the config": "{base}/config.json",
            "rows": "{saved}",
            "an index": "{index}",
            "a trace": "{traced}",
            "outside a hub id": "../../etc",
        }.items():
            yield trace(f"checkpoints/place, {option}: {name}", option, where)
        for name, changes in {
            "an empty folder": {"m": Folder()},
            "a link to itself": {"m": Link("m")},
            "a link to nothing": {"m": Link("none")},
            "an empty checkpoint": {"m/checkpoint-3": Folder()},
            "a config without weights": {"m/config.json": '{"model_type": "llama"}'},
            "checkpoints of another name": {"m/step-3/config.json": "{}"},
        }.items():
            yield trace(f"checkpoints/place, {option}: {name}", option, "{here}/m", changes=changes)
    twice = ("--checkpoints", "{run}/checkpoint-3", "--checkpoints", "{run}/checkpoint-3")
    yield trace("checkpoints/place: a checkpoint twice", *twice)
    yield trace(
        "checkpoints/place: a run and its checkpoint", "--checkpoints", "{run}", "--checkpoints", "{run}/checkpoint-6"
    )
    yield trace("checkpoints/place: no base", without=("--base",))


LOADS = {
    "hidden_size other", "layers more", "hidden_size 0", "vocab_size other",
}  # fmt: skip
"""Mistakes in a config that only the weights show."""


LOADED = r"config.json: (hidden_size|layers|heads|key heads|vocab_size|activation|rope|quantization)|adapter_config.json: an unknown kind"
"""Mistakes that only the loaded model, or the work itself, shows."""


def cases() -> list[Case]:
    def all_of() -> Iterator[Case]:
        for some in (configs, weights, pickles, states, adapters, tokenizers, places):
            yield from some()

    return numbered(all_of(), LOADED)
