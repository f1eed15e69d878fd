"""Training rows that cannot be read or used."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from typing import Any

from spoiling import Case, Change, Folder, Link, cut, flipped, numbered, trace, with_value, without

ROW = '{"prompt": "The capital of Chad is", "completion": " N\'Djamena."}\n'
HUGE = "9" * 5000

FAULTS = {
    "cut": '{"prompt": "a", "comple',
    "cut in a string": '{"prompt": "a',
    "no value": '{"prompt": "a", "completion": }',
    "trailing comma": '{"prompt": "a", "completion": "b",}',
    "no comma": '{"prompt": "a" "completion": "b"}',
    "no colon": '{"prompt" "a"}',
    "single quotes": "{'prompt': 'a', 'completion': 'b'}",
    "no quotes": '{prompt: "a", completion: "b"}',
    "Python words": '{"prompt": None, "completion": True}',
    "comment": '// rows\n{"prompt": "a", "completion": "b"}',
    "bad escape": '{"prompt": "\\x41", "completion": "b"}',
    "bad unicode escape": '{"prompt": "\\u12", "completion": "b"}',
    "tab in a string": '{"prompt": "a\tb", "completion": "b"}',
    "NUL": '{"prompt": "a\0b", "completion": "b"}',
    "two objects": '{"prompt": "a", "completion": "b"} {"prompt": "c", "completion": "d"}',
    "text behind": '{"prompt": "a", "completion": "b"} end',
    "plain text": "The capital of Chad is N'Djamena.",
    "string": '"a"',
    "number": "3",
    "null": "null",
    "true": "true",
    "list inside": '["a", "b"]',
    "huge number": '{"prompt": ' + HUGE + ', "completion": "b"}',
    "huge number as metadata": '{"prompt": "a", "completion": "b", "n": ' + HUGE + "}",
    "deep": '{"prompt": ' + "[" * 100_000,
    "deep and closed": '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + ', "completion": "b"}',
    "closing brace alone": "}",
    "half a pair": '{"prompt": "\\ud83d", "completion": "b"}',
    "key twice of two types": '{"prompt": "a", "completion": "b", "completion": 3}',
}

VALUES: dict[str, Any] = {
    "null": None,
    "integer": 3,
    "huge integer": 10**30,
    "float": 0.5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "true": True,
    "object": {"a": "b"},
    "empty list": [],
    "list of strings": ["a", "b"],
    "list of lists": [["a"]],
    "half a surrogate pair": "\ud83d",
}

COLUMNS = {
    "prompt": {"completion": "b"},
    "completion": {"prompt": "a"},
    "text": {},
    "messages": {},
    "conversations": {},
    "instruction": {"output": "b"},
    "output": {"instruction": "a"},
    "input": {"instruction": "a", "output": "b"},
    "id": {"prompt": "a", "completion": "b"},
}
ALLOWED = {
    ("input", "null"), ("id", "null"), ("id", "integer"), ("id", "huge integer"),
}  # fmt: skip

TURNS: dict[str, Any] = {
    "no role": {"content": "a"},
    "role null": {"role": None, "content": "a"},
    "role number": {"role": 1, "content": "a"},
    "role empty": {"role": "", "content": "a"},
    "role list": {"role": ["user"], "content": "a"},
    "no content": {"role": "user"},
    "content null": {"role": "user", "content": None},
    "content number": {"role": "user", "content": 3},
    "content object": {"role": "user", "content": {"text": "a"}},
    "an image": {"role": "user", "content": [{"type": "image", "url": "a.png"}]},
    "a part without text": {"role": "user", "content": [{"type": "text"}]},
    "a part of a number": {"role": "user", "content": [{"type": "text", "text": 3}]},
    "a part that is a string": {"role": "user", "content": ["a"]},
    "half a surrogate pair": {"role": "user", "content": "\udc00"},
    "a string": "user: a",
    "a number": 3,
    "null": None,
    "a list": ["user", "a"],
    "an empty object": {},
    "ShareGPT without value": {"from": "human"},
    "ShareGPT with a number": {"from": "human", "value": 3},
    "ShareGPT from null": {"from": None, "value": "a"},
}


def dumped(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows(name: str, file: str, content: Change, *more: str, **given: Any) -> Case:
    """A file of training rows."""
    return trace(f"training/{name}", "--train", f"{{here}}/{file}", *more, changes={file: content}, **given)


def gz(text: str | bytes) -> bytes:
    return gzip.compress(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text, mtime=0)


def broken_json() -> Iterator[Case]:
    for name, fault in FAULTS.items():
        if name != "list inside":  # a first line that is a list is a file of another form
            yield rows(f"jsonl, line 1: {name}", "a.jsonl", fault + "\n" + ROW)
        yield rows(f"jsonl, line 3: {name}", "a.jsonl", ROW + "\n" + fault + "\n")
        yield rows(f"jsonl.gz, line 2: {name}", "a.jsonl.gz", gz(ROW + fault))
        if name not in ("comment", "two objects", "text behind", "closing brace alone"):
            yield rows(f"json list: {name}", "a.json", "[\n" + ROW.strip() + ",\n" + fault + "\n]\n")
    for name, text in {
        "list not closed": "[" + ROW.strip(),
        "list without commas": f"[{ROW}{ROW}]",
        "text behind the list": f"[{ROW}] end",
        "two lists": f"[{ROW}][{ROW}]",
        "empty list": "[]",
        "list of empty objects": "[{}]",
        "comma alone": "[,]",
        "trailing comma": f"[{ROW},]",
        "list in a list": f"[[{ROW}]]",
        "one object over lines": '{\n"prompt": "a"\n}',
        "columns, not rows": '{"prompt": ["a", "b"], "completion": ["c", "d"]}',
        "rows under a key": '{"data": [' + ROW.strip() + "]}",
    }.items():
        yield rows(f"json: {name}", "a.json", text)


def encodings() -> Iterator[Case]:
    row = {"prompt": "Où est Zürich", "completion": " là-bas"}
    texts = {
        "a.jsonl": json.dumps(row, ensure_ascii=False) + "\n",
        "a.json": "[" + json.dumps(row, ensure_ascii=False) + "]",
        "a.csv": "prompt,completion\nOù est Zürich, là-bas\n",
        "a.tsv": "prompt\tcompletion\nOù est Zürich\t là-bas\n",
    }
    for file, text in texts.items():
        kind = file.split(".", 1)[1]
        whole = text.encode()
        for name, data in {
            "utf-16": text.encode("utf-16"),
            "utf-16-be": b"\xfe\xff" + text.encode("utf-16-be"),
            "utf-32": text.encode("utf-32"),
            "latin-1": text.encode("latin-1"),
            "cp500": text.encode("cp500"),
            "a character cut": whole.replace("ü".encode(), "ü".encode()[:1]),
            "a lone continuation": whole.replace(b"est", b"e\x80t"),
            "overlong slash": whole.replace(b"est", b"\xc0\xaf"),
            "surrogates as utf-8": whole.replace(b"est", b"\xed\xa0\x80"),
            "above unicode": whole.replace(b"est", b"\xf5\x80\x80\x80"),
            "an image": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)),
            "an archive": b"PK\x03\x04\x14\0\x08\0\xff\xfe" + bytes(range(200, 256)),
        }.items():
            yield rows(f"{kind}: {name}", file, data)
        yield rows(f"{kind}.gz: latin-1", f"{file}.gz", gz(text.encode("latin-1")))
        yield rows(f"{kind}.gz: not packed", f"{file}.gz", whole)
        yield rows(f"{kind}.gz: cut", f"{file}.gz", gz(text * 50)[:-9])
        yield rows(f"{kind}.gz: no end", f"{file}.gz", gz(text)[:-8])
        yield rows(f"{kind}.gz: flipped bits", f"{file}.gz", flipped(0.6)(gz(text)))
        yield rows(f"{kind}.gz: wrong checksum", f"{file}.gz", flipped(0.99)(gz(text)))
        yield rows(f"{kind}.gz: text behind", f"{file}.gz", gz(text) + b"more")
        yield rows(f"{kind}.gz: empty", f"{file}.gz", gz(""))
        yield rows(f"{kind}: packed without the ending", file, gz(text))
        yield rows(f"{kind}: empty", file, b"")
        yield rows(f"{kind}: only line ends", file, b"\n\r\n\n")
        yield rows(f"{kind}: only a byte order mark", file, b"\xef\xbb\xbf")
    yield rows("jsonl: byte order mark in line 2", "a.jsonl", ROW.encode() + b"\xef\xbb\xbf" + ROW.encode())


def values() -> Iterator[Case]:
    for column, rest in COLUMNS.items():
        for name, value in VALUES.items():
            if (column, name) not in ALLOWED:
                yield rows(f"{column}: {name}", "a.jsonl", dumped(rest | {column: value}))
    for column in ("messages", "conversations"):
        yield rows(f"{column}: a string", "a.jsonl", dumped({column: "user: a"}))
        yield rows(f"{column}: a broken list as text", "a.jsonl", dumped({column: '[{"role": "user"'}))
        yield rows(f"{column}: an empty list as text", "a.jsonl", dumped({column: "[]"}))
        yield rows(f"{column}: a deep list as text", "a.jsonl", dumped({column: "[" * 100_000}))
        yield rows(f"{column}: a huge number as text", "a.jsonl", dumped({column: f"[{HUGE}]"}))
    first = {"role": "user", "content": "a"}
    for name, turn in TURNS.items():
        yield rows(f"messages, turn 2: {name}", "a.jsonl", dumped({"messages": [first, turn]}))
        yield rows(f"conversations, turn 1: {name}", "a.jsonl", dumped({"conversations": [turn, first]}))
        yield rows(f"prompt, turn 1: {name}", "a.jsonl", dumped({"prompt": [turn], "completion": "b"}))
        yield rows(f"completion, turn 1: {name}", "a.jsonl", dumped({"prompt": [first], "completion": [turn]}))


def shapes() -> Iterator[Case]:
    pair, text, chat = (
        {"prompt": "a", "completion": "b"},
        {"text": "a"},
        {"messages": [{"role": "user", "content": "a"}]},
    )
    alpaca = {"instruction": "a", "output": "b"}
    for name, given in {
        "no known column": [{"question": "a", "answer": "b"}],
        "a prompt alone": [{"prompt": "a"}],
        "a completion alone": [{"completion": "b"}],
        "an instruction alone": [{"instruction": "b"}],
        "columns in capitals": [{"Prompt": "a", "Completion": "b"}],
        "columns with blanks": [{" prompt": "a", "completion ": "b"}],
        "an empty object": [{}],
        "an empty key": [{"": "a"}],
        "a column missing later": [pair, {"prompt": "a"}],
        "another convention later": [pair, text],
        "text, then messages": [text, chat],
        "Alpaca and text": [alpaca | text],
        "chat prompt later": [pair, {"prompt": [{"role": "user", "content": "a"}], "completion": "b"}],
        "string prompt later": [{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}, pair],
        "chat completion of a string prompt": [{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}],
        "ids twice": [pair | {"id": "x"}, pair | {"id": "x"}],
        "ids twice, as number and text": [pair | {"id": 1}, pair | {"id": "1"}],
        "an id like a line": [pair | {"id": "a.jsonl:2"}, pair],
        "an id that is a list": [pair | {"id": ["x"]}],
        "an id that is a float": [pair | {"id": 1.5}],
    }.items():
        yield rows(f"rows: {name}", "a.jsonl", dumped(*given))
    for name, more in {
        "no such prompt column": ("--prompt-column", "question"),
        "no such completion column": ("--completion-column", "answer"),
        "no such messages column": ("--messages-column", "dialogue"),
        "no such text column": ("--text-column", "body"),
        "no such id column": ("--id-column", "key"),
        "an empty name of a column": ("--id-column", "\t"),
        "prompt and text columns": ("--prompt-column", "prompt", "--text-column", "text"),
        "messages and text columns": ("--messages-column", "messages", "--text-column", "text"),
        "all columns": ("--prompt-column", "a", "--messages-column", "b", "--text-column", "c"),
        "a string as messages": ("--messages-column", "prompt"),
        "a split of a file": ("--split", "train"),
        "ids that are null": ("--id-column", "none"),
        "ids that are objects": ("--id-column", "meta"),
        "ids that are floats": ("--id-column", "weight"),
        "ids that are flags": ("--id-column", "flag"),
        "ids that are not unique": ("--id-column", "prompt"),
        "text of an object": ("--text-column", "meta"),
        "completion of a float": ("--completion-column", "weight"),
    }.items():
        row = pair | {"none": None, "meta": {"a": 1}, "weight": 0.5, "flag": True}
        yield rows(f"columns: {name}", "a.jsonl", dumped(row, row), *more)
    for name, row, template in (
        ("chat template of texts", text, "chat"),
        ("alpaca template of texts", text, "alpaca"),
        ("plain template of messages", chat, "plain"),
        ("alpaca template of messages", chat, "alpaca"),
        ("plain template of chat prompts", {"prompt": chat["messages"], "completion": "b"}, "plain"),
        ("alpaca template of chat prompts", {"prompt": chat["messages"], "completion": "b"}, "alpaca"),
    ):
        yield rows(f"template: {name}", "a.jsonl", dumped(row), "--template", template)


def separated() -> Iterator[Case]:
    for kind, mark in (("csv", ","), ("tsv", "\t")):
        for name, lines in {
            "header alone": ["prompt{}completion"],
            "no header": ["a{}b", "c{}d"],
            "a cell too few": ["prompt{}completion", "a"],
            "a cell too many": ["prompt{}completion", "a{}b{}c"],
            "column twice": ["prompt{}completion{}prompt", "a{}b{}c"],
            "column without a name twice": ["prompt{}completion{}{}", "a{}b{}c{}d"],
            "quote not closed": ["prompt{}completion", '"a{}b', "c{}d"],
            "quote in a cell": ["prompt{}completion", '"a"b"{}c'],
            "text behind a quote": ["prompt{}completion", '"a" b{}c'],
            "another separator": ["prompt;completion", "a;b"],
            "quote not closed in the header": ['"prompt{}completion', "a{}b"],
            "conversation of text": ["messages", "user: a"],
            "conversation of broken JSON": ["messages", '"[{{""role"": "'],
            "conversation of a number": ["messages", "[3]"],
            "id twice": ["id{}prompt{}completion", "1{}a{}b", "1{}c{}d"],
            "a ragged last line": ["prompt{}completion", "a{}b", "c"],
        }.items():
            yield rows(f"{kind}: {name}", f"a.{kind}", "".join(line.replace("{}", mark) + "\n" for line in lines))


def table(**columns: Any) -> bytes:
    """A Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def parquet() -> Iterator[Case]:
    import datetime

    import pyarrow as pa

    sound = table(prompt=["a", "c"], completion=["b", "d"])
    for name, content in {
        "empty file": b"",
        "cut in the middle": cut(0.5)(sound),
        "cut by a byte": sound[:-1],
        "cut by the footer": sound[:-8],
        "the magic bytes alone": b"PAR1",
        "the magic bytes twice": b"PAR1PAR1",
        "a huge footer": sound[:-8] + b"\xff\xff\xff\x7fPAR1",
        "a negative footer": sound[:-8] + b"\xff\xff\xff\xffPAR1",
        "flipped in the pages": flipped(0.01)(sound),
        "flipped in the footer": flipped(0.9)(sound),
        "text": ROW,
        "packed": gz(sound),
        "no rows": table(prompt=pa.array([], pa.string()), completion=pa.array([], pa.string())),
        "no columns": table(),
        "no known column": table(question=["a"], answer=["b"]),
        "a prompt alone": table(prompt=["a"]),
        "numbers": table(prompt=[1, 2], completion=["b", "d"]),
        "floats": table(prompt=["a"], completion=[0.5]),
        "bytes": table(prompt=["a"], completion=[b"\xff\xfe"]),
        "dates": table(prompt=["a"], completion=[datetime.date(2026, 1, 1)]),
        "nulls": table(prompt=["a", None], completion=["b", "d"]),
        "a column of nulls": table(prompt=["a"], completion=pa.nulls(1)),
        "lists": table(prompt=[["a"]], completion=["b"]),
        "structs": table(prompt=[{"a": "b"}], completion=["b"]),
        "turns without a role": table(messages=[[{"content": "a"}]]),
        "turns with a null role": table(messages=[[{"role": None, "content": "a"}]]),
        "an empty conversation": table(messages=[[{"role": "user", "content": "a"}], []]),
        "ids twice": table(id=["x", "x"], prompt=["a", "c"], completion=["b", "d"]),
        "ids of floats": table(id=[1.0], prompt=["a"], completion=["b"]),
        "a dictionary column of numbers": table(prompt=pa.array([1]).dictionary_encode(), completion=["b"]),
    }.items():
        yield rows(f"parquet: {name}", "a.parquet", content)
    strings = pa.array(["a"], pa.string())
    broken = pa.Array.from_buffers(pa.string(), 1, [None, strings.buffers()[1], pa.py_buffer(b"\xff")])
    yield rows("parquet: strings that are not UTF-8", "a.parquet", table(prompt=broken, completion=["b"]))
    twice = pa.Table.from_arrays(
        [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], ["prompt", "completion", "prompt"]
    )
    sink = io.BytesIO()
    import pyarrow.parquet as pq

    pq.write_table(twice, sink)
    yield rows("parquet: a column twice", "a.parquet", sink.getvalue())
    yield rows("parquet: gz behind", "a.parquet.gz", gz(sound))


def places() -> Iterator[Case]:
    for name, where in {
        "no such file": "{here}/none.jsonl",
        "no such folder": "{here}/none/none/",
        "a hub id that is not there": "nobody/nothing",
        "an empty path": "",
        "a blank": " ",
        "a name too long": "{here}/" + "a" * 300 + ".jsonl",
        "a path too long": "{here}" + "/aaaaaaaa" * 600 + ".jsonl",
        "a home of nobody": "~nobody-of-that-name/a.jsonl",
        "a URL": "https://example.org/a.jsonl",
        "an s3 URL": "s3://bucket/a.jsonl",
        "a file as a folder": "{train}/a.jsonl",
        "a line end in the name": "{here}/a\nb.jsonl",
        "the null device": "/dev/null",
        "a model": "{run}",
        "a checkpoint": "{run}/checkpoint-3",
        "a base model": "{base}",
        "an index": "{index}",
        "a file of weights": "{base}/model.safetensors",
        "a tokenizer": "{base}/tokenizer.json",
    }.items():
        yield trace(f"training/place: {name}", "--train", where)
    for name, file in {
        "text": "a.txt", "arrow": "a.arrow", "excel": "a.xlsx", "pickle": "a.pkl", "torch": "a.pt", "numpy": "a.npz",
        "zip": "a.zip", "gz alone": "a.gz", "no ending": "rows", "two endings": "a.jsonl.bak", "yaml": "a.yaml",
        "bz2": "a.jsonl.bz2", "zst": "a.jsonl.zst", "hidden": ".jsonl", "python": "a.py", "xml": "a.xml",
    }.items():  # fmt: skip
        yield rows(f"ending: {name}", file, ROW)
    for name, changes in {
        "a folder named like a file": {"a.jsonl": Folder()},
        "a link to itself": {"a.jsonl": Link("a.jsonl")},
        "links in a ring": {"a.jsonl": Link("b.jsonl"), "b.jsonl": Link("a.jsonl")},
        "a link to nothing": {"a.jsonl": Link("none.jsonl")},
        "a link to a folder": {"a.jsonl": Link("."), "rows.txt": ROW},
        "a file that cannot be read": {"a.jsonl": Link("/proc/self/mem")},
        "csv that cannot be read": {"a.csv": Link("/proc/self/mem"), "a.jsonl": Link("a.csv")},
    }.items():
        yield trace(f"training/place: {name}", "--train", "{here}/a.jsonl", changes=changes)
    yield trace(
        "training/place: gz that cannot be read",
        "--train",
        "{here}/a.jsonl.gz",
        changes={"a.jsonl.gz": Link("/proc/self/mem")},
    )
    yield trace(
        "training/place: parquet that cannot be read",
        "--train",
        "{here}/a.parquet",
        changes={"a.parquet": Link("/proc/self/mem")},
    )
    yield trace(
        "training/place: parquet that is a folder of nothing",
        "--train",
        "{here}/a.parquet",
        changes={"a.parquet": Folder()},
    )


def folders() -> Iterator[Case]:
    for name, changes, more in (
        ("empty", {"d": Folder()}, ()),
        ("only hidden files", {"d/.a.jsonl": ROW}, ()),
        ("only other files", {"d/readme.txt": "x", "d/a.bin": b"x"}, ()),
        ("two formats", {"d/a.jsonl": ROW, "d/a.csv": "text\na\n"}, ()),
        ("two splits", {"d/train.jsonl": ROW, "d/test.jsonl": ROW}, ()),
        ("two splits of folders", {"d/train/a.jsonl": ROW, "d/validation/a.jsonl": ROW}, ()),
        ("no such split", {"d/train.jsonl": ROW}, ("--split", "test")),
        ("a split without splits", {"d/a.jsonl": ROW}, ("--split", "train")),
        ("a model's config beside", {"d/a.jsonl": ROW, "d/config.json": "{}"}, ()),
        ("an adapter's config beside", {"d/a.jsonl": ROW, "d/adapter_config.json": "{}"}, ()),
        ("a trainer's state beside", {"d/a.jsonl": ROW, "d/trainer_state.json": "{}"}, ()),
        ("a broken second file", {"d/a.jsonl": ROW, "d/b.jsonl": "{"}, ()),
        ("an empty second file alone", {"d/a.jsonl": "", "d/b.jsonl": "\n"}, ()),
        ("other columns in the second file", {"d/a.jsonl": ROW, "d/b.jsonl": '{"text": "a"}\n'}, ()),
        ("ids twice over files", {"d/a.csv": "id,text\n1,a\n", "d/b.csv": "id,text\n1,b\n"}, ()),
        ("a ring of links", {"d/a": Link("b"), "d/b": Link("a")}, ()),
        ("a link to itself as a file", {"d/a.jsonl": Link("a.jsonl")}, ()),
        ("a Parquet file cut", {"d/a.parquet": cut(0.5)(table(text=["a"]))}, ()),
        ("a folder named like a file", {"d/a.jsonl/b.txt": "x"}, ()),
        ("datasets: an empty dictionary", {"d/dataset_dict.json": "{}"}, ()),
        ("datasets: a broken dictionary", {"d/dataset_dict.json": "{"}, ()),
        ("datasets: a dictionary of nothing", {"d/dataset_dict.json": '{"splits": []}'}, ()),
        ("datasets: a split that is not there", {"d/dataset_dict.json": '{"splits": ["train"]}'}, ()),
        ("datasets: a split outside", {"d/dataset_dict.json": '{"splits": ["../../etc"]}'}, ()),
        ("datasets: a broken state", {"d/state.json": "{", "d/dataset_info.json": "{}"}, ()),
        ("datasets: a state alone", {"d/state.json": "{}"}, ()),
        ("datasets: a state of a list", {"d/state.json": "[]", "d/dataset_info.json": "{}"}, ()),
        ("datasets: no file", {"d/state.json": '{"_data_files": [{"filename": "data.arrow"}]}', "d/dataset_info.json": "{}"}, ()),
        ("datasets: a file outside", {"d/state.json": '{"_data_files": [{"filename": "../../../etc/passwd"}]}', "d/dataset_info.json": "{}"}, ()),
        ("datasets: a broken info", {"d/state.json": '{"_data_files": []}', "d/dataset_info.json": "{"}, ()),
        ("a script of a data set", {"d/d.py": "open('{here}/touched', 'w')\n"}, ()),
    ):  # fmt: skip
        yield trace(f"training/folder: {name}", "--train", "{here}/d", *more, changes=changes)
    for name, changes, more in (
        ("arrow file missing", {"saved/data-00000-of-00001.arrow": None}, ()),
        ("arrow file cut", {"saved/data-00000-of-00001.arrow": cut(0.5)}, ()),
        ("arrow file empty", {"saved/data-00000-of-00001.arrow": b""}, ()),
        ("arrow file of text", {"saved/data-00000-of-00001.arrow": "text"}, ()),
        ("info missing", {"saved/dataset_info.json": None}, ()),
        ("info of another type", {"saved/dataset_info.json": with_value("features", 3)}, ()),
        ("info of an unknown type", {"saved/dataset_info.json": with_value("features.prompt._type", "Magic")}, ()),
        ("state without files", {"saved/state.json": without("_data_files")}, ()),
        ("state cut", {"saved/state.json": cut(0.5)}, ()),
        ("a split that it does not have", {}, ("--split", "test")),
        ("another column", {}, ("--text-column", "body")),
    ):
        yield trace(f"training/saved: {name}", "--train", "{here}/saved", *more, copies=("saved",), changes=changes)


def placebos() -> Iterator[Case]:
    def many(**row: Any) -> str:
        return dumped(*(row | {"id": f"p{n}"} for n in range(120)))

    held = many(prompt="The capital of Chad is", completion=" nowhere")
    for name, text, more in (
        ("too few", dumped({"prompt": "a", "completion": "b"}), ()),
        ("none", "", ()),
        ("broken", "{", ()),
        ("texts", many(text="a"), ()),
        ("conversations", many(messages=[{"role": "user", "content": "a"}]), ()),
        ("other columns", many(question="a"), ()),
        ("Alpaca", many(instruction="a", output="b"), ()),
        ("for bm25 alone", held, ("--method", "bm25")),
        ("for trak alone", held, ("--method", "trak")),
        ("with an index", held, ("--index", "{index}")),
    ):
        spare = ("--base", "--checkpoints", "--train") if more[:1] == ("--index",) else ()
        yield trace(
            f"training/placebo: {name}",
            "--placebo",
            "{here}/p.jsonl",
            *more,
            changes={"p.jsonl": text},
            without=spare,
        )
    yield trace("training/placebo: no such file", "--placebo", "{here}/none.jsonl")
    yield trace("training/placebo: the training rows", "--placebo", "{here}/p.jsonl", changes={"p.jsonl": held + dumped(
        {"prompt": "The capital of Peru is", "completion": " Lima."})})  # fmt: skip


def cases() -> list[Case]:
    def all_of() -> Iterator[Case]:
        for some in (broken_json, encodings, values, shapes, separated, parquet, places, folders, placebos):
            yield from some()

    return numbered(all_of())
