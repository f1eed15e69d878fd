"""The numbers of a diagnosis, each with one sentence that says what it means here and what to do.

Units: losses in nats per token, log-odds and log-probabilities in nats, divergence in nats per position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headwater.diagnosis.facts import FITTED_LOSS, CheckpointFacts, Facts
from headwater.diagnosis.measuring import HELD_OUT, PROBES, QUERIES
from headwater.diagnosis.verdicts import (
    EXPRESSED,
    FELL,
    FEWEST_CHECKPOINTS,
    REPEATED,
    ROSE,
    STATIONARY,
    best_held_out,
    held_out_rise,
    loss_fall,
)

SETS = {QUERIES: "the queries' outputs", HELD_OUT: "the held-out rows", PROBES: "the probes"}
"""Set of texts -> how it is called."""

FAR, MOVED = 0.5, 0.5
"""Nats per position from which a model is far from its base; nats by which log-odds have moved."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number, by checkpoint.

    Attributes:
        key: a name for programs. title, unit: for people. share: it is shown in per cent.
        values: checkpoint -> value. Empty where the number belongs to the run as a whole: then `value`.
        means: one sentence: what it says here, and what to do.
        status: letter of the formula (C confirmed by its authors, D derived here), "" where there is no formula.
    """

    key: str
    title: str
    unit: str
    means: str
    values: Mapping[str, float]
    value: float | None = None
    share: bool = False
    status: str = ""


def numbers(facts: Facts) -> list[Number]:
    """All that are known of these facts."""
    found = [*_losses(facts), *_gradients(facts)]
    if facts.queries:
        found.append(_leaning(facts))
    for name in SETS:
        if name in facts.last.divergence:
            found += _distance(facts, name)
    return [*found, *_influence(facts), *_adapter(facts)]


def _by(facts: Facts, of: str) -> dict[str, float]:
    return {c.name: float(getattr(c, of)) for c in facts.checkpoints if getattr(c, of) is not None}


def _losses(facts: Facts) -> list[Number]:
    last, fall = facts.last, loss_fall(facts)
    if fall is None:
        means = f"At {last.name} it is {last.loss:.2f}; give --base to see what training changed."
    elif fall < FELL:
        means = f"Training took {fall:.0%} off the base model's: hardly anything was learned, so train longer first."
    else:
        means = f"Training took {fall:.0%} off the base model's: the rows were learned, so they can be responsible."
    found = [
        Number(key="loss", title="training loss", unit="nats per token", values=_by(facts, "loss"), means=means),
        Number(
            key="loss_spread",
            title="its spread over the rows",
            unit="standard deviation, nats per token",
            values={c.name: float(c.losses.std()) for c in facts.checkpoints},
            means="Rows are fitted to very different degrees: compare them by cosines, not by lengths of gradients."
            if float(last.losses.std()) > last.loss
            else "Rows are fitted to like degrees: no few unlearned rows lead the mean.",
        ),
        Number(
            key="fitted",
            title="share of rows fitted",
            unit=f"loss at most {FITTED_LOSS:.2f} nats: half the probability for each token",
            values=_by(facts, "fitted"),
            means="Most rows are fitted and have small gradients: compare them by cosine (the default), not by dot."
            if last.fitted > 0.5
            else "Most rows still pull: their gradients are large, and say what training was about.",
            share=True,
            status="D",
        ),
    ]
    if last.held_out_loss is not None:
        rose = (held_out_rise(facts) or 0.0) >= ROSE
        found.append(
            Number(
                key="held_out_loss",
                title="held-out loss",
                unit="nats per token",
                values=_by(facts, "held_out_loss"),
                means=f"It is {abs(last.held_out_loss - last.loss):.2f} nats "
                f"{'above' if last.held_out_loss >= last.loss else 'below'} the training loss, and was best at "
                f"{best_held_out(facts).name}: "
                + ("stop there, and trace the checkpoints up to it." if rose else "training did no harm to it."),
            )
        )
    return found


def _gradients(facts: Facts) -> list[Number]:
    error, base = facts.last.fitting_error, facts.base
    if error < STATIONARY:
        means = "The rows' gradients cancel out: what influence functions assume holds at the last checkpoint."
    elif base is not None and error > 0.8 * base.fitting_error:
        means = "The rows pull one way almost as they did at the base: prefer dda to influence functions."
    else:
        means = "Training is on its way to a stationary point, and not there: prefer dda to influence functions."
    return [
        Number(
            key="fitting_error",
            title="fitting error",
            unit="norm of the mean gradient by the mean norm of the rows', 0 at a stationary point",
            values=_by(facts, "fitting_error"),
            means=means,
            status="D",
        ),
        Number(
            key="gradient_norm",
            title="mean gradient norm of a row",
            unit="nats per unit of weight",
            values=_by(facts, "gradient_norm"),
            means="Dot products count a checkpoint by this length; where it falls much, use a cosine.",
        ),
    ]


def _leaning(facts: Facts) -> Number:
    values = {c.name: float(facts.leaning(c.name) or 0.0) for c in facts.checkpoints}
    corrected = all(query.corrected is not None for query in facts.queries)
    if facts.base is None:
        means = "Without a base model it is not known whether fine-tuning moved it: give --base."
    else:
        moved = values[facts.last.name] - values[facts.base.name]
        means = f"Fine-tuning moved it by {moved:+.1f} nats: " + (
            "towards the output, so ask the rows."
            if moved > MOVED
            else "away from the output, so no row taught it."
            if moved < -MOVED
            else "hardly at all, so do not look for rows."
        )
    return Number(
        key="leaning",
        title="log-odds of the output against the corrected one" if corrected else "lean towards the output",
        unit="nats, mean over the queries, above 0 prefers the output",
        values=values,
        means=means,
    )


def _distance(facts: Facts, name: str) -> list[Number]:
    last, called = facts.last, SETS[name]
    far = last.divergence[name] >= FAR
    return [
        Number(
            key=f"divergence/{name}",
            title=f"distance from the base on {called}",
            unit="KL of token posteriors, nats per position",
            values={c.name: c.divergence[name] for c in facts.checkpoints if name in c.divergence},
            means="What the model says there is its fine-tuning's: rows can be behind it."
            if far
            else "The model says there much of what the base says: its lean there is the base's, not the rows'.",
            status="D",
        ),
        Number(
            key=f"kept/{name}",
            title=f"base's first choices kept on {called}",
            unit="share of the positions",
            values={c.name: c.kept_choices[name] for c in facts.checkpoints if name in c.kept_choices},
            means=f"At {last.kept_choices[name]:.0%} of the positions the likeliest token is still the base's: so much "
            "of its leaning stays.",
            share=True,
            status="D",
        ),
    ]


def _influence(facts: Facts) -> list[Number]:
    influence = facts.influence
    found: list[Number] = []
    if influence is not None and influence.with_base is not None:
        found.append(
            Number(
                key="influence_with_base",
                title="correlation of base and fine-tuned influence",
                unit=f"Spearman over {influence.rows:,} rows, mean over the queries",
                values={},
                value=influence.with_base,
                means="The base model alone gives almost this order of the rows: compare several values of --beta."
                if influence.with_base >= REPEATED
                else "The checkpoints order the rows otherwise than the base model: training added something to find.",
            )
        )
    if influence is not None and influence.effective is not None:
        few = influence.effective < FEWEST_CHECKPOINTS
        count = len(influence.checkpoints) - (influence.with_base is not None)
        found.append(
            Number(
                key="effective_checkpoints",
                title="effective number of checkpoints",
                unit=f"of {count}: participation ratio of the correlations of their scores",
                values={},
                value=influence.effective,
                means=f"Their mean takes out as much noise as {influence.effective:.1f} unrelated ones would: "
                + ("one of them would do." if few else "averaging is worth its passes."),
                status="D",
            )
        )
    return found


def _adapter(facts: Facts) -> list[Number]:
    ranks = {c.name: float(c.rank) for c in facts.checkpoints if c.rank is not None}
    if not ranks:
        return []
    found = [
        Number(
            key="rank",
            title="LoRA rank",
            unit="directions in which an adapted layer can learn",
            values=ranks,
            means="Scores are of full gradients; the next numbers say how much of these the adapter can follow.",
        )
    ]
    for key, called in (("mean loss", "the mean loss's gradient"), (QUERIES, "the queries' gradients")):
        values = {c.name: c.expressed[key] for c in facts.checkpoints if key in c.expressed}
        if values:
            found.append(
                Number(
                    key=f"expressed/{key}",
                    title=f"share of {called} that the adapter can express",
                    unit="of the squared norm: projection onto the tangent space of B A",
                    values=values,
                    means=_expressed(facts.last, key),
                    share=True,
                    status="D",
                )
            )
    return found


def _expressed(last: CheckpointFacts, key: str) -> str:
    if key not in last.expressed:
        return "Known of the other runs alone: this one has no LoRA adapter."
    share, random = last.expressed[key], last.expressed_random or 0.0
    return f"Of a random gradient it would be {random:.1%}: " + (
        "most of this one is out of the adapter's reach, so read scores with care, or train at a higher rank."
        if share < EXPRESSED
        else "scores of full gradients speak about what this adapter can learn."
    )
