"""The scores of a testbed judged by another library's own metric classes: quanda's MRRMetric and RecallAtKMetric.

    python -m venv ELSEWHERE && ELSEWHERE/bin/pip install torch datasets && ELSEWHERE/bin/pip install --no-deps quanda
    python benchmarks/judged_elsewhere.py --python ELSEWHERE/bin/python

Trains a small model from nothing on the testbed `backdoor` and traces it by three methods, lets quanda judge the scores
in its own environment, and compares with headwater's figures (quanda's recall@k is headwater's hit@k). Writes
benchmarks/results/judged_elsewhere.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

DEPTHS = (1, 5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="of the environment that has quanda")
    given = parser.parse_args()
    import numpy as np
    from made import RESULTS, environment

    with tempfile.TemporaryDirectory() as folder:
        ours, scores = our_figures(Path(folder))
        np.savez(Path(folder) / "scores.npz", **scores)
        command = [given.python, str(Path(__file__).resolve()), "--judge", str(Path(folder) / "scores.npz")]
        told = subprocess.run(command, capture_output=True, text=True)
        if told.returncode:
            sys.exit(told.stderr)
        theirs = json.loads(told.stdout)
    version = theirs.pop("quanda")
    largest = max(abs(ours[m][k] - theirs[m][k]) for m in ours for k in ours[m])
    record = {
        "command": "python benchmarks/judged_elsewhere.py --python ELSEWHERE/bin/python",
        "environment": environment(1) | {"quanda": version},
        "headwater": ours,
        "quanda": theirs,
        "largest difference": largest,
    }
    (RESULTS / "judged_elsewhere.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def our_figures(folder: Path) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Method -> figure -> mean over the single queries; and the scores and labels they are of."""
    import numpy as np
    from made import small_model

    import headwater as hw
    from headwater.bench import run_bench
    from headwater.scores import Scores
    from headwater.testbeds import country_facts, make_testbed
    from headwater.training import Recipe

    base = small_model(folder / "base", [fact.prompt + fact.completion for fact in country_facts()])
    summary, _ = run_bench(
        lambda seed: make_testbed("backdoor", seed),
        base=base,
        methods=[hw.DDA(), hw.TracIn(), hw.GradientDot()],
        out=folder / "bench",
        recipe=Recipe(epochs=4, batch_size=16, learning_rate=5e-3),
    )
    bed = make_testbed("backdoor", 0)
    table = summary.table["query"]
    ours = {
        name: {"MRR": found["MRR"][0], **{f"hit@{k}": found[f"hit@{k}"][0] for k in DEPTHS}}
        for name, found in table.items()
    }
    scores: dict[str, Any] = {}
    for name in table:
        found = Scores.load(folder / "bench" / "seed-0" / "trace", bed.examples, method=name)
        rows = [r for r, target in enumerate(found.targets) if target.kind == "query"]
        scores[name] = found.values[rows]
    guilty = [example.id in bed.all_culprits for example in bed.examples]
    scores["labels"] = np.tile(guilty, (len(rows), 1))
    return ours, scores


def judge(file: Path) -> None:
    """Runs in quanda's environment. quanda's packages import frameworks that its metrics do not need: the metrics'
    modules are loaded without them."""
    import importlib
    import importlib.util
    from importlib.metadata import version

    import numpy as np
    import torch

    spec = importlib.util.find_spec("quanda")
    assert spec is not None and spec.origin is not None
    home = Path(spec.origin).parent
    for name in ("quanda", "quanda.metrics", "quanda.metrics.downstream_eval", "quanda.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(home.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    mrr = importlib.import_module("quanda.metrics.downstream_eval.mrr").MRRMetric
    recall = importlib.import_module("quanda.metrics.downstream_eval.recall_at_k").RecallAtKMetric
    data = np.load(file)
    labels = torch.tensor(data["labels"])
    model, out = torch.nn.Linear(1, 1), {"quanda": version("quanda")}
    for name in data.files:
        if name == "labels":
            continue
        values = torch.tensor(data[name])
        metrics = {"MRR": mrr(model, None), **{f"hit@{k}": recall(model, None, k=k) for k in DEPTHS}}
        for metric in metrics.values():
            metric.update(values, labels)
        out[name] = {key: metric.compute()["score"] for key, metric in metrics.items()}
    print(json.dumps(out))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--judge"]:
        judge(Path(sys.argv[2]))
    else:
        main()
