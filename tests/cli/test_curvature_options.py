"""--curvature, --damping and --rank, from the rows and from an index."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calling import QUESTION, called

import headwater as hw
import tiny

Called = subprocess.CompletedProcess[str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    return lambda *arguments: called([str(one) for one in arguments], monkeypatch, capfd)


def scores(done: Called, name: str) -> dict[str, float]:
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)["targets"][0]["methods"][name]
    return {row["id"]: row["score"] for row in answer["top"]}


def test_options_reach_the_method(call: Any, given: list[str], run_folder: Path) -> None:
    question = [*QUESTION, "--json", "--quiet", "--top", 12]
    done = call("trace", *given, *question, "--method", "influence", "--measurement", "contrast", "--damping", 0.5)
    run = hw.TrainingRun.from_pretrained(run_folder / "run", base=run_folder / "base")
    query = hw.Query(QUESTION[1], QUESTION[3], corrected=QUESTION[5])
    method = hw.InfluenceFunction(measurement="contrast", damping=0.5)
    wanted = hw.trace(run, hw.Examples.from_rows(tiny.FACTS), [query], method=method)
    assert scores(done, "influence") == pytest.approx({row.id: row.score for row in wanted.top(12)}, rel=1e-3)
    plain, curved = (
        call("trace", *given, *question, "--inner", "dot", "--beta", 0, *more) for more in ([], ["--curvature", "kfac"])
    )
    assert scores(plain, "dda") != scores(curved, "dda")


def test_an_index_settles_the_rank_of_a_method(call: Any, given: list[str], tmp_path: Path) -> None:
    out = tmp_path / "index"
    assert call("index", *given, "--rank", 4, "--features", "float32", "--out", out, "--quiet").returncode == 0
    question = [*QUESTION, "--method", "logra", "--method", "datainf", "--json", "--quiet", "--top", 12]
    found = call("trace", "--index", out, *question)
    again = call("trace", "--index", out, *question)
    wanted = call("trace", *given, *question, "--rank", 4)
    for name in ("logra", "datainf"):
        one, two = scores(found, name), scores(wanted, name)
        assert np.allclose([one[key] for key in two], list(two.values()), rtol=1e-2, atol=1e-3 * max(two.values()))
        assert one == scores(again, name)
    assert len(list((out / "curvature").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "tracin", "--curvature", "kfac"], "--curvature with tracin"),
        (["--method", "dot", "--damping", "0.1"], "--damping with dot"),
        (["--method", "less"], "--allow-pickle"),
        (["--method", "influence", "--dtype", "bfloat16"], "influence in bfloat16"),
        (["--curvature", "nonsense"], "nonsense"),
        (["--method", "logra", "--words", "2"], "words"),
    ],
)
def test_a_mistake_is_one_line(call: Any, given: list[str], arguments: list[str], says: str) -> None:
    done = call("trace", *given, *QUESTION, "--quiet", *arguments)
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr
