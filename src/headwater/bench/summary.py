"""From scores to figures: each target judged, then means with intervals over queries and seeds.

Every figure lies in [0, 1] and larger is better, but for linear datamodeling scores (-1 to 1) and changes (nats).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headwater.evaluation import bootstrap_nested, detection_curve, evaluate_ranking
from headwater.scores import Scores
from headwater.testbeds import Testbed

DEPTHS = (1, 5, 10, 50)
Interval = tuple[float, float, float]
"""Mean, and the ends of its 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """How well one method ranks the culprits of one target.

    Attributes:
        kind: "query", "group" (the queries of a fault together), or "row" (rows judged by themselves).
        values: measure -> its value; "auc, look-alikes" and "auc, clean" are AUCs against these rows alone.
        curve: fraction of the culprits found after inspecting each hundredth of the rows [101].
    """

    seed: int
    method: str
    target: str
    kind: str
    fault: str
    values: Mapping[str, float]
    curve: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Means over targets and seeds.

    Attributes:
        table: kind -> method -> measure -> mean and interval.
        differences: kind -> method -> measure -> mean and interval of (first method - method), paired by target.
    """

    table: Mapping[str, Mapping[str, Mapping[str, Interval]]]
    differences: Mapping[str, Mapping[str, Mapping[str, Interval]]]

    def markdown(self, measures: Sequence[str] = ("auc", "average precision", "recall@10", "MRR")) -> str:
        """Tables, a kind each, in Markdown: best average precision first."""
        lines = []
        for kind, methods in self.table.items():
            shown = [m for m in measures if all(m in found for found in methods.values())]
            first, compared = next(iter(methods)), shown[min(1, len(shown) - 1)]
            last = f" {first} minus it: {compared} |"
            lines += [f"| per {kind} | {' | '.join(shown)} |{last}", "| --- " * (len(shown) + 2) + "|"]
            order = sorted(methods, key=lambda m: -methods[m].get("average precision", methods[m][shown[0]])[0])
            for method in order:
                cells = [shown_interval(methods[method][measure]) for measure in shown]
                paired = self.differences[kind].get(method)
                cells.append(shown_interval(paired[compared]) if paired else "")
                lines.append(f"| {method} | {' | '.join(cells)} |")
            lines.append("")
        return "\n".join(lines)


def shown_interval(value: Interval) -> str:
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def judge(answers: Mapping[str, Scores], bed: Testbed, seed: int) -> list[Figure]:
    """The figures of every method and target; a target's fault is its queries' group."""
    out = []
    ids = np.array([example.id for example in bed.examples])
    for method, scores in answers.items():
        for r, target in enumerate(scores.targets):
            fault = str(scores.queries[target.members[0]].group)
            out.append(
                figure(
                    scores.values[r], ids, bed, fault, seed=seed, method=method, target=target.name, kind=target.kind
                )
            )
    return out


def figure(score_N: Any, ids: Any, bed: Testbed, fault: str, **names: Any) -> Figure:
    """One ranking judged: all rows but those set aside, and the culprits against each kind of look-alike."""
    judged = ~np.isin(ids, list(bed.set_aside.get(fault, ())))
    culprit = np.isin(ids, list(bed.culprits[fault]))
    ranking = evaluate_ranking(score_N[judged], culprit[judged], ks=DEPTHS)
    values = {
        "auc": ranking.auc,
        "average precision": ranking.average_precision,
        **{f"recall@{k}": value for k, value in ranking.recall_at.items()},
        **{f"hit@{k}": value for k, value in ranking.hit_at.items()},
        "MRR": ranking.reciprocal_rank,
        "precision at culprits": ranking.precision_at_culprits,
    }
    for name, kind in (("auc, look-alikes", bed.lookalikes), ("auc, clean", bed.clean)):
        others = np.isin(ids, list(kind[fault]))
        if others.any():
            among = culprit | others
            values[name] = evaluate_ranking(score_N[among], culprit[among], ks=()).auc
    curve = detection_curve(score_N[judged], culprit[judged])
    at = np.linspace(0, len(curve) - 1, 101)
    return Figure(
        values=values, fault=fault, curve=tuple(np.interp(at, np.arange(len(curve)), curve).tolist()), **names
    )


def summarise(figures: Sequence[Figure]) -> Summary:
    """Means with intervals by resampling seeds, then targets."""
    table: dict[str, dict[str, dict[str, Interval]]] = {}
    differences: dict[str, dict[str, dict[str, Interval]]] = {}
    for kind in dict.fromkeys(f.kind for f in figures):
        of_kind = [f for f in figures if f.kind == kind]
        methods = list(dict.fromkeys(f.method for f in of_kind))
        table[kind], differences[kind] = {}, {}
        for method in methods:
            mine = {(f.seed, f.target): f.values for f in of_kind if f.method == method}
            first = {(f.seed, f.target): f.values for f in of_kind if f.method == methods[0]}
            measures = [m for m in next(iter(mine.values())) if all(m in values for values in mine.values())]
            table[kind][method] = {m: bootstrap_nested(_by_seed({k: v[m] for k, v in mine.items()})) for m in measures}
            shared = [k for k in mine if k in first]
            if method != methods[0] and shared:
                differences[kind][method] = {
                    m: bootstrap_nested(_by_seed({k: first[k][m] - mine[k][m] for k in shared}))
                    for m in measures
                    if all(m in first[k] for k in shared)
                }
    return Summary(table=table, differences=differences)


def _by_seed(values: Mapping[tuple[int, str], float]) -> list[list[float]]:
    return [[v for (s, _), v in values.items() if s == seed] for seed in dict.fromkeys(s for s, _ in values)]
