"""The numbers of a diagnosis, each with one sentence that says what it means here and what to do.

Units: losses in nats per token, log-odds and log-probabilities in nats, divergence in nats per position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headwater.diagnosis.facts import FITTED_LOSS, CheckpointFacts, Facts
from headwater.diagnosis.measuring import HELD_OUT, PROBES, QUERIES
from headwater.diagnosis.verdicts import held_out_rise, loss_fall

SETS = {QUERIES: "the queries' outputs", HELD_OUT: "the held-out rows", PROBES: "the probes"}
"""Set of texts -> how it is called."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number, by checkpoint.

    Attributes:
        key: a name for programs. title, unit: for people.
        values: checkpoint -> value. Empty where the number belongs to the run as a whole: then `value`.
        means: one sentence: what it says here, and what to do.
        status: letter of the formula (C confirmed by its authors, D derived here), "" where there is no formula.
    """

    key: str
    title: str
    unit: str
    values: Mapping[str, float]
    means: str
    value: float | None = None
    status: str = ""


def numbers(facts: Facts) -> list[Number]:
    """All that are known of these facts."""
    return [*_loss(facts), *_gradients(facts), *_leanings(facts), *_distances(facts), *_influence(facts), *_adapter(facts)]


def _by(facts: Facts, of: str) -> dict[str, float]:
    return {c.name: float(getattr(c, of)) for c in facts.checkpoints if getattr(c, of) is not None}


def _loss(facts: Facts) -> list[Number]:
    last, fall = facts.last, loss_fall(facts)
    if fall is None:
        means = f"At {last.name} the rows have {last.loss:.2f} nats per token; give --base to see what training changed."
    elif fall < 0.1:
        means = f"Training took {fall:.0%} off the base model's loss: hardly anything was learned, so train longer first."
    else:
        means = f"Training took {fall:.0%} off the base model's loss: the rows were learned, so they can be responsible."
    found = [
        Number(key="loss", title="training loss", unit="nats per token", values=_by(facts, "loss"), means=means),
        Number(
            key="loss_spread",
            title="spread of the training loss over rows",
            unit="nats per token, standard deviation",
            values={c.name: float(c.losses.std()) for c in facts.checkpoints},
            means=_spread(last),
        ),
        Number(
            key="fitted",
            title="share of rows fitted",
            unit=f"loss at most {FITTED_LOSS:.2f} nats: half the probability for each token",
            values=_by(facts, "fitted"),
            means=f"{last.fitted:.0%} of the rows are fitted; fitted rows have small gradients, so compare them by cosine "
            "(the default) and not by dot products."
            if last.fitted > 0.5
            else f"{last.fitted:.0%} of the rows are fitted; the others still pull, and dot products are led by them.",
            status="D",
        ),
    ]
    rise = held_out_rise(facts)
    held = last.held_out_loss
    if held is not None:
        gap = held - last.loss
        best = min((c for c in facts.path if c.held_out is not None), key=lambda c: c.held_out_loss or 0.0)
        means = (
            f"Held-out rows are {gap:.2f} nats worse than training rows, and were best at {best.name}: "
            + ("stop there, and trace the checkpoints up to it." if rise and rise >= 0.05 else "no harm was done to them.")
        )  # fmt: skip
        found.append(
            Number(
                key="held_out_loss", title="held-out loss", unit="nats per token", values=_by(facts, "held_out_loss"),
                means=means,
            )  # fmt: skip
        )
    return found


def _spread(last: CheckpointFacts) -> str:
    deviation = float(last.losses.std())
    if deviation > last.loss:
        return "Rows are fitted to very different degrees: their gradients' lengths say more about this than about their part."
    return "Rows are fitted to like degrees: one checkpoint is not led by a few unlearned rows."


def _gradients(facts: Facts) -> list[Number]:
    last, base = facts.last, facts.base
    error = last.fitting_error
    if error < 0.1:
        means = "The rows' gradients cancel out almost wholly: influence functions' assumption holds at the last checkpoint."
    elif base is not None and error > 0.8 * base.fitting_error:
        means = (
            f"The rows pull in one direction almost as they did at the base ({base.fitting_error:.2f}): training is far from"
            " a stationary point, so prefer dda over influence functions."
        )
    else:
        means = "Training is on its way but not at a stationary point: prefer methods along training, such as dda."
    return [
        Number(
            key="fitting_error",
            title="fitting error",
            unit="norm of the mean gradient / mean norm of the rows' gradients, 0 at a stationary point",
            values=_by(facts, "fitting_error"),
            means=means,
            status="D",
        ),
        Number(
            key="gradient_norm",
            title="mean gradient norm of a row",
            unit="nats per unit of weight",
            values=_by(facts, "gradient_norm"),
            means="Where it falls much, a dot product with that checkpoint counts less in a sum over checkpoints; a cosine"
            " does not.",
        ),
    ]


def _leanings(facts: Facts) -> list[Number]:
    if not facts.queries:
        return []
    values = {c.name: float(facts.leaning(c.name) or 0.0) for c in facts.checkpoints}
    corrected = any(query.corrected is not None for query in facts.queries)
    title = "log-odds of the output against the corrected one" if corrected else "log-probability of the output, per token"
    after = values[facts.last.name]
    if facts.base is None:
        means = "Without a base model it is not known whether fine-tuning moved it: give --base."
    else:
        moved = after - values[facts.base.name]
        means = f"Fine-tuning moved it by {moved:+.1f} nats: " + (
            "towards the output, so rows may be asked who did it."
            if moved > 0.5
            else "it is hardly the fine-tuning's work."
            if moved > -0.5
            else "away from the output, which no row can have taught."
        )
    unit = "nats, mean over the queries, above 0 prefers the output"
    return [Number(key="leaning", title=title, unit=unit, values=values, means=means)]


def _distances(facts: Facts) -> list[Number]:
    found = []
    for name, called in SETS.items():
        values = {c.name: c.divergence[name] for c in facts.checkpoints if name in c.divergence}
        if not values:
            continue
        kept = {c.name: c.kept_choices[name] for c in facts.checkpoints if name in c.kept_choices}
        share = kept[facts.last.name]
        found.append(
            Number(
                key=f"divergence/{name}",
                title=f"distance from the base on {called}",
                unit="nats per position, KL of token posteriors",
                values=values,
                means=f"{'Much' if values[facts.last.name] >= 0.5 else 'Little'} of what the model says there is no longer the"
                " base model's."
                if values[facts.last.name] >= 0.5
                else "The model still says there nearly what the base says: do not look for rows behind it.",
                status="D",
            )
        )
        found.append(
            Number(
                key=f"kept/{name}",
                title=f"base's first choices kept on {called}",
                unit="share of the positions",
                values=kept,
                means=f"At {share:.0%} of the positions the most likely token is still the base model's: that much of its "
                "leaning stays.",
                status="D",
            )
        )
    return found


def _influence(facts: Facts) -> list[Number]:
    influence = facts.influence
    if influence is None:
        return []
    found = []
    if influence.with_base is not None:
        high = influence.with_base >= 0.9
        found.append(
            Number(
                key="influence_with_base",
                title="correlation of base and fine-tuned influence",
                unit=f"Spearman over {influence.rows:,} rows, mean over the queries",
                values={},
                value=influence.with_base,
                means="The base model alone gives almost the same order of the rows: debias has much to take out, so compare"
                " several betas."
                if high
                else "The checkpoints order the rows differently from the base model: there is something that training added.",
            )
        )
    if influence.effective is not None:
        count = len(influence.checkpoints) - (influence.with_base is not None)
        found.append(
            Number(
                key="effective_checkpoints",
                title="effective number of checkpoints",
                unit=f"of {count}, participation ratio of the correlations of their scores",
                values={},
                value=influence.effective,
                means=f"The mean over {count} checkpoints averages as much noise as {influence.effective:.1f} unrelated ones "
                "would: "
                + ("denoise does little here." if influence.effective < 1.2 else "denoise is worth its passes."),
                status="D",
            )
        )
    return found


def _adapter(facts: Facts) -> list[Number]:
    found = []
    ranks = {c.name: float(c.rank) for c in facts.checkpoints if c.rank is not None}
    if not ranks:
        return []
    found.append(
        Number(
            key="rank",
            title="LoRA rank",
            unit="",
            values=ranks,
            means="The number of directions that each adapted layer could learn in.",
        )
    )
    for key, called in (("mean loss", "the mean loss's gradient"), (QUERIES, "the queries' gradients")):
        values = {c.name: c.expressed[key] for c in facts.checkpoints if key in c.expressed}
        if not values:
            continue
        random = facts.last.expressed_random or 0.0
        share = values.get(facts.last.name)
        means = "Of this run nothing is known: it is no LoRA run."
        if share is not None:
            means = f"The adapter can follow {share:.0%} of it ({random:.1%} of a random gradient): " + (
                "what the scores multiply is mostly out of its reach, so read them with care, or train at a higher rank."
                if share < 0.1
                else "enough for scores of full gradients to speak about what it learned."
            )
        found.append(
            Number(
                key=f"expressed/{key}",
                title=f"share of {called} that the adapter can express",
                unit="of the squared norm, projection onto the tangent space of B A",
                values=values,
                means=means,
                status="D",
            )
        )
    return found
