"""The whole files that bad inputs are made from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import headwater as hw
import tiny

QUERY = hw.Query("The capital of Australia is", " Sydney.", corrected=" Canberra.")


@pytest.fixture(scope="session")
def whole(run_folder: Path, lora_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> folder or file: models, rows, an index, traces."""
    from datasets import Dataset

    place = tmp_path_factory.mktemp("whole")
    pairs = [{key: fact[key] for key in ("prompt", "completion", "id")} for fact in tiny.FACTS]
    train, held = place / "train.jsonl", place / "held.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    held.write_text("".join(json.dumps({"prompt": f"Row {n}", "completion": " x"}) + "\n" for n in range(100)))
    Dataset.from_list(pairs).save_to_disk(str(place / "saved"))
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    rows, compute = hw.read_examples(train), hw.Compute(rank=2)
    index = hw.build_index(run, rows, out=place / "index", compute=compute, chunk_rows=5)
    hw.trace_all(
        run,
        rows,
        [QUERY],
        methods=[hw.DDA(), hw.BM25()],
        words=2,
        placebo=hw.read_examples(held),
        out=place / "traced",
    )
    hw.trace_index(index, [QUERY], methods=[hw.DDA()], limit=2, out=place / "ends")
    return {
        "run": run_folder / "run",
        "base": run_folder / "base",
        "lora": lora_folder / "run",
        "train": train,
        "held": held,
        "saved": place / "saved",
        "index": place / "index",
        "traced": place / "traced",
        "ends": place / "ends",
    }
