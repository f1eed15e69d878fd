"""Agreement with the code of others: K-FAC's factors with curvlinops, TRAK's scores with traker.

    pip install --no-deps --target LIBRARIES traker curvlinops-for-pytorch einconv backpack-for-pytorch unfoldNd \\
        einops linear_operator jaxtyping wadler-lindig
    python benchmarks/libraries.py --work DIR --libraries LIBRARIES

On a small random Llama in float32. K-FAC: A and S of every linear layer of the blocks from the rows' own tokens, each
divided by its trace; the largest difference in units of the largest entry. TRAK: traker's score computer is given
headwater's projected gradients of one checkpoint, and its scores, times the rows' mean 1 - p, are compared with
headwater's. (EK-FAC against kronfluence, bergson and dattri is a part of benchmarks/speed.) Writes
benchmarks/results/libraries.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made import RESULTS, environment, make_rows, make_run

import headwater as hw
from headwater.attribution.models import Place
from headwater.examples import Encoded, Encoder
from headwater.gradients.batches import collate
from headwater.gradients.curvature import fitting
from headwater.gradients.layers import select_layers
from headwater.gradients.loss import by_example
from headwater.gradients.measurement import encode_queries

CPU = torch.device("cpu")
RANK, DAMPING = 4, 0.01


class Logits(torch.nn.Module):
    """The model as curvlinops wants it: token numbers to logits, of which each is a prediction."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_NT: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids_NT, use_cache=False).logits.flatten(0, 1)


def kfac(model: Any) -> dict[str, float]:
    """Largest differences of A and of S."""
    from curvlinops import KFACLinearOperator

    chance = np.random.default_rng(0)
    ids_NT = chance.integers(2, 500, (12, 17))
    mask = np.ones(17, bool)
    mask[0] = False
    rows = [Encoded(one, mask) for one in ids_NT]
    layers = select_layers(model).layers
    place = Place("made", model, layers, torch.float32)
    stage = fitting.Covariances(place.hooks().shapes)
    hooks = place.hooks(trim=False)
    with hooks.attached():
        stage.batch(hooks, collate(rows, CPU, torch.float32))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    weights = [layer.modules[0].weight.requires_grad_(True) for layer in layers]
    ids = torch.from_numpy(ids_NT)
    data = [(ids[:, :-1], ids[:, 1:].flatten())]
    operator = KFACLinearOperator(
        Logits(model),
        torch.nn.CrossEntropyLoss(),
        weights,
        data,
        fisher_type="empirical",
        kfac_approx="expand",
        num_per_example_loss_terms=16,
        num_data=12,
        check_deterministic=False,
    )
    operator.compute_kronecker_factors()
    found: dict[str, float] = {"A": 0.0, "S": 0.0}
    for number, layer in enumerate(layers):
        name = next(n for n, m in operator._model_func.named_modules() if m is layer.modules[0])
        own = {"A": stage.sums[f"{stage.leader[number]}/A"], "S": stage.sums[f"{number}/S"]}
        theirs = {"A": operator._input_covariances[name], "S": operator._gradient_covariances[name]}
        for key in found:
            one, other = (x[key] / x[key].trace() for x in (own, theirs))
            found[key] = max(found[key], float((one - other).abs().max() / other.abs().max()))
    return found


def trak(folder: Path) -> dict[str, float]:
    """Correlation with traker's scores of the same features, and the largest difference."""
    from trak.score_computers import BasicScoreComputer

    run = hw.TrainingRun.from_pretrained(folder / "run" / "checkpoint-1", base=folder / "base")
    train = hw.read_examples(make_rows(folder / "rows.jsonl", 400))
    queries = [hw.Query(row.prompt_text, row.completion_text, id=f"q{n}") for n, row in enumerate(list(train)[:8])]
    method = hw.TRAK(rank=RANK, damping=DAMPING)
    found = hw.trace(run, train, queries, method=method).values

    encoder = Encoder(run.tokenizer(), hw.TokenFormat(), train.template)
    rows = encoder.examples(train)[0]
    model = run.load(run.last, dtype=torch.float32, device=CPU)
    hooks = Place("made", model, select_layers(model).layers, torch.float32).hooks(rank=RANK)

    def features(encoded: Any) -> tuple[torch.Tensor, torch.Tensor]:
        parts: dict[int, torch.Tensor] = {}
        with hooks.attached():
            batch = collate(encoded, CPU, torch.float32, loss="margin")
            hooks.backward(batch, lambda n, a, d: parts.update({n: torch.bmm(d.mT, a).flatten(1)}))
        doubt_B = by_example(torch.sigmoid(hooks.token_losses_K) * batch.weight_K, batch)
        return torch.cat([parts[n] for n in range(len(parts))], 1), doubt_B

    phi_NF, doubt_N = features(rows)
    phi_QF, _ = features(encode_queries(queries, encoder).encoded)
    xtx = phi_NF.T @ phi_NF
    computer = BasicScoreComputer(torch.float32, CPU, lambda_reg=DAMPING * float(xtx.trace()) / len(xtx))
    score_NQ = torch.zeros(len(phi_NF), len(phi_QF))
    computer.get_scores(computer.get_x_xtx_inv(phi_NF, computer.get_xtx(phi_NF)), phi_QF, accumulator=score_NQ)
    wanted = (len(phi_NF) * score_NQ * doubt_N[:, None]).T.numpy()
    return {
        "correlation": float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(found, wanted, strict=True)])),
        "largest difference of scores of unit length": max(
            float(np.abs(a / np.linalg.norm(a) - b / np.linalg.norm(b)).max())
            for a, b in zip(found, wanted, strict=True)
        ),
        "features": phi_NF.shape[1],
        "rows": len(phi_NF),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the model")
    parser.add_argument("--libraries", type=Path, required=True, help="where pip put the libraries")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.append(str(given.libraries))
    from importlib.metadata import distributions

    versions = {d.name: d.version for d in distributions(path=[str(given.libraries)])}
    folder = make_run(given.work)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "base", attn_implementation="eager").eval()
    data = {
        "command": "python benchmarks/libraries.py --work DIR --libraries LIBRARIES",
        "environment": environment(1)
        | {k: v for k, v in versions.items() if k in ("traker", "curvlinops-for-pytorch")},
        "kfac against curvlinops": kfac(model),
        "trak against traker": trak(folder),
    }
    (RESULTS / "libraries.json").write_text(json.dumps(data, indent=1) + "\n")
    print(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
