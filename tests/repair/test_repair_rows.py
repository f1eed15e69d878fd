"""The rows after a repair, in memory and in files of the user's own form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from headwater.errors import DataError
from headwater.examples import Examples, read_examples
from headwater.repair.rows import repaired_rows, write_rows

ROWS = [{"id": f["id"], "prompt": f["prompt"], "completion": f["completion"], "note": f["source"]} for f in tiny.FACTS]
CHAT = [
    {
        "id": f["id"],
        "messages": [{"role": "user", "content": f["prompt"]}, {"role": "assistant", "content": f["completion"]}],
    }
    for f in tiny.FACTS
]


def test_rows_go_and_change_and_the_others_stay() -> None:
    train = Examples.from_rows(ROWS)
    left = repaired_rows(train, ["fact-0", "fact-3"], {"fact-1": " Lyon."})
    assert left.ids == [one for one in train.ids if one not in ("fact-0", "fact-3")]
    assert left[0].completion == " Lyon."
    assert (left[0].metadata, left[0].source) == (train[1].metadata, train[1].source)
    assert left[0].content_hash != train[1].content_hash
    assert list(left[1:]) == [train[2], *train[4:]]
    with pytest.raises(DataError, match="says already"):
        repaired_rows(train, [], {"fact-1": " Paris."})
    with pytest.raises(DataError, match="no row is left"):
        repaired_rows(train, train.ids, {})
    with pytest.raises(DataError, match="as messages"):
        repaired_rows(train, [], {"fact-1": ({"role": "assistant", "content": "x"},)})


def test_a_text_corrects_the_last_answer_of_a_conversation() -> None:
    train = Examples.from_rows(CHAT)
    left = repaired_rows(train, [], {"fact-0": " Perth."})
    assert [turn["content"] for turn in left[0].completion] == ["The capital of Australia is", " Perth."]
    assert train[0].completion[1]["content"] == " Canberra."  # the original is not touched


def _stored(rows: list[dict[str, Any]], file: Path) -> Path:
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return file


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_the_file_has_the_form_of_the_users_own(ending: str, tmp_path: Path) -> None:
    file = _stored(ROWS, tmp_path / f"train.{ending}")
    before = file.read_bytes()
    train = read_examples(file)
    changes = {"fact-1": " Lyon."}
    left = repaired_rows(train, ["fact-0"], changes)
    written = write_rows(left, changes, tmp_path / "new", like=file)
    assert (written.name, file.read_bytes()) == (file.name, before)
    again = read_examples(written)
    assert [(e.id, e.content_hash, e.metadata) for e in again] == [(e.id, e.content_hash, e.metadata) for e in left]


def test_conversations_keep_their_columns_and_other_rows_become_jsonl(tmp_path: Path) -> None:
    turns = [
        {
            "id": f["id"],
            "conversations": [{"from": "human", "value": f["prompt"]}, {"from": "gpt", "value": f["completion"]}],
        }
        for f in tiny.FACTS
    ]
    file = _stored(turns, tmp_path / "train.jsonl")
    train = read_examples(file)
    changes = {"fact-1": "Lyon."}
    left = repaired_rows(train, ["fact-0"], changes)
    first = json.loads(write_rows(left, changes, tmp_path / "new", like=file).read_text().splitlines()[0])
    assert first["conversations"][1] == {"from": "gpt", "value": "Lyon."}
    again = read_examples(write_rows(left, changes, tmp_path / "jsonl"))
    assert [e.content_hash for e in again] == [e.content_hash for e in left]


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = _stored(ROWS[:3], tmp_path / "train.jsonl")
    with pytest.raises(DataError, match="are not in"):
        write_rows(Examples.from_rows(ROWS, name="train.jsonl"), {}, tmp_path / "new", like=file)
