from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headwater.errors import DataError
from headwater.examples import Columns, read_examples

Write = Callable[..., Path]
ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d", "topic": "x"}]


def test_json_lines(write_lines: Write) -> None:
    examples = read_examples(write_lines(*ROWS))
    assert [(row.id, row.source) for row in examples] == [("train.jsonl:1",) * 2, ("train.jsonl:2",) * 2]
    assert examples.name == "train.jsonl"
    assert examples[1].metadata == {"topic": "x"}


def test_own_ids_and_sources(write_lines: Write) -> None:
    examples = read_examples(str(write_lines({**ROWS[0], "id": 7}, ROWS[1])))
    assert [(row.id, row.source) for row in examples] == [("7", "train.jsonl:1"), ("train.jsonl:2",) * 2]


def test_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,question,answer,page\n7,"a\nb",c,1\n8,d,e,2\n')
    examples = read_examples(tmp_path / "t.csv", columns=Columns(prompt="question", completion="answer"))
    assert [(row.id, row.source, row.prompt, dict(row.metadata)) for row in examples] == [
        ("7", "t.csv:2", "a\nb", {"page": "1"}),
        ("8", "t.csv:4", "d", {"page": "2"}),
    ]


def test_parquet_conversations_come_without_the_nulls_that_parquet_adds(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    turns = [{"role": "user", "content": "Q", "name": "ann"}, {"role": "assistant", "content": "A"}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns}]), tmp_path / "t.parquet")
    examples = read_examples(tmp_path / "t.parquet")
    assert examples[0].completion == tuple(turns)
    assert examples[0].id == "t.parquet:1"


def test_a_folder_of_files_is_read_in_order(write_lines: Write, tmp_path: Path) -> None:
    write_lines(ROWS[1], name="data/b.jsonl")
    write_lines(ROWS[0], name="data/a.jsonl")
    write_lines(ROWS[0], name="data/inner/a.jsonl")
    write_lines(ROWS[0], name="data/.cache/a.jsonl")
    (tmp_path / "data" / "README.md").write_text("words")
    (tmp_path / "data" / "dataset_infos.json").write_text("{}")
    examples = read_examples(tmp_path / "data")
    assert examples.name == "data"
    assert examples.ids == ["a.jsonl:1", "b.jsonl:1", "inner/a.jsonl:1"]


def test_splits_of_a_folder(write_lines: Write, tmp_path: Path) -> None:
    write_lines(ROWS[0], name="data/train-00000-of-00002.jsonl")
    write_lines(ROWS[1], name="data/train-00001-of-00002.jsonl")
    write_lines(*ROWS, name="data/test.jsonl")
    write_lines(ROWS[1], name="data/validation/0.jsonl")
    assert len(read_examples(tmp_path / "data", split="train")) == 2
    assert read_examples(tmp_path / "data", split="validation").ids == ["validation/0.jsonl:1"]
    with pytest.raises(DataError, match=re.escape("several splits (test, train, validation)")):
        read_examples(tmp_path / "data")
    with pytest.raises(
        DataError, match='no split "dev"; expected one of the splits that exist: test, train, validation'
    ):
        read_examples(tmp_path / "data", split="dev")


def test_folders_that_hold_no_rows(write_lines: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data files in the folder"):
        read_examples(tmp_path)
    write_lines({}, name="config.json")
    with pytest.raises(DataError, match="the folder of a model"):
        read_examples(tmp_path)


def test_a_folder_of_several_formats_is_refused(write_lines: Write, tmp_path: Path) -> None:
    write_lines(*ROWS)
    (tmp_path / "train.csv").write_text("prompt,completion\na,b\n")
    with pytest.raises(DataError, match=re.escape("several formats (csv, json)")):
        read_examples(tmp_path)


def test_what_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "a", "completion": "b", "topic": None}, {"prompt": "c", "completion": "d", "topic": "x"}]
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(str(tmp_path / "one"))
    examples = read_examples(tmp_path / "one")
    assert examples.name == "one"
    assert [(row.id, row.prompt, dict(row.metadata)) for row in examples] == [
        ("one:1", "a", {"topic": None}),
        ("one:2", "c", {"topic": "x"}),
    ]
    with pytest.raises(DataError, match=r'split "train" of .* a single data set'):
        read_examples(tmp_path / "one", split="train")

    datasets.DatasetDict({"train": saved, "test": saved.select([1])}).save_to_disk(str(tmp_path / "two"))
    assert read_examples(tmp_path / "two", split="test").ids == ["two:1"]
    with pytest.raises(DataError, match=re.escape("several splits (train, test)")):
        read_examples(tmp_path / "two")
    with pytest.raises(DataError, match='no split "dev"; expected one of the splits that exist: train, test'):
        read_examples(tmp_path / "two", split="dev")

    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "three"))
    assert len(read_examples(tmp_path / "three")) == 2


def test_a_damaged_folder_of_datasets(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"not readable as a folder of datasets\.save_to_disk"):
        read_examples(tmp_path)


def test_datasets_is_not_needed_before_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "state.json").write_text("{}")
    for path in (tmp_path, "owner/name"):
        with pytest.raises(DataError, match=re.escape("pip install 'headwater[datasets]'")):
            read_examples(path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Puts a hub in place that gives out what it is told, and returns what it was asked."""
    datasets = pytest.importorskip("datasets")
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def place(*, info: Exception | None = None, load: Any = None, offline: bool = False) -> list[Any]:
        asked: list[Any] = []

        def dataset_info(self: object, name: str, *, timeout: float) -> None:
            asked.append(name)
            if info is not None:
                raise info

        def load_dataset(name: str, *, split: str | None = None) -> Any:
            asked.append((name, split))
            if isinstance(load, Exception):
                raise load
            return load if split is None else load[split]

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        return asked

    return place


def test_a_data_set_of_the_hub(hub: Callable[..., list[Any]]) -> None:
    datasets = pytest.importorskip("datasets")
    train = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    asked = hub(load=datasets.DatasetDict({"train": train, "test": train}))
    examples = read_examples("owner/name", split="train")
    assert (examples.name, examples.ids) == ("owner/name", ["owner/name:1", "owner/name:2"])
    assert asked == ["owner/name", ("owner/name", "train")]
    with pytest.raises(DataError, match=re.escape("owner/name: several splits (train, test)")):
        read_examples("owner/name")


def test_a_copy_in_the_cache_is_read_offline(hub: Callable[..., list[Any]]) -> None:
    datasets = pytest.importorskip("datasets")
    asked = hub(
        info=ConnectionError("no network"),
        load=datasets.DatasetDict({"train": datasets.Dataset.from_list([{"text": "a"}])}),
        offline=True,
    )
    assert len(read_examples("owner/name")) == 1
    assert asked == [("owner/name", None)]


@pytest.mark.parametrize(
    ("failures", "words"),
    [
        ({"info": ConnectionError("[Errno -2] Name not known\nmore")}, "hub gives out ([Errno -2] Name not known)"),
        ({"load": RuntimeError()}, "hub gives out (RuntimeError)"),
        (
            {"load": ValueError("Unknown split \"train\". Should be one of ['test'].")},
            'no split "train" in owner/name (Unknown split "train". Should be one of [\'test\'].)',
        ),
    ],
)
def test_a_hub_that_does_not_answer(hub: Callable[..., list[Any]], failures: dict[str, Any], words: str) -> None:
    asked = hub(**failures)
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        read_examples("owner/name", split="train")
    assert "\n" not in str(caught.value)
    assert len(asked) <= 2


@pytest.mark.parametrize(
    "name", ["train.jsonl", "data/train.csv", "./here", "/no/such/place", "a/b/c", "train.parquet"]
)
def test_missing_files_are_not_looked_for_on_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        read_examples(name)


def test_a_split_of_a_file(write_lines: Write) -> None:
    with pytest.raises(DataError, match='split "train" of the single file'):
        read_examples(write_lines(*ROWS), split="train")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(DataError, match="an ending that is not known"):
        read_examples(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("name", "text"), [("t.jsonl", ""), ("t.jsonl", "\n\n"), ("t.json", "[]"), ("t.csv", "prompt\n")]
)
def test_files_without_rows(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}: no rows"):
        read_examples(tmp_path / name)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([ROWS[0], {"prompt": "p", "completion": 3}], 'train.jsonl:2: column "completion" is 3 (int)'),
        ([ROWS[0], {"prompt": "p", "completion": None}], 'train.jsonl:2: column "completion" is null'),
        ([{**ROWS[0], "id": "a"}, {**ROWS[1], "id": "a"}], 'id "a" twice: train.jsonl:1 and train.jsonl:2'),
        ([{"question": "q", "answer": "a"}], "train.jsonl:1: the columns question, answer"),
        (
            [ROWS[0], {"prompt": [{"role": "user", "content": "Q"}], "completion": "c"}],
            'train.jsonl:2: a row of kind "chat" where train.jsonl:1 is of kind "completion"',
        ),
    ],
)
def test_bad_rows_are_named_by_file_and_line(write_lines: Write, rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        read_examples(write_lines(*rows))


def test_reading_loads_no_model_library(write_lines: Write) -> None:
    code = (
        "import sys; from headwater.examples import read_examples; read_examples(sys.argv[1]); "
        "print([name for name in ('torch', 'transformers', 'datasets', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(write_lines(*ROWS))], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
