"""What one model says to the questions, how likely it finds the wrong and the corrected output, and its loss on rows
that no training touches."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater import progress
from headwater.attribution.asking import generate, loaded
from headwater.checkpoints import Checkpoint, TrainingRun
from headwater.errors import DataError
from headwater.examples import Encoder, Examples, Query, TokenFormat, differing_span
from headwater.run import RunState

if TYPE_CHECKING:
    from headwater.examples import Encoded, Template

LOSS_TOKENS = 4096
"""Tokens of a batch of untouched rows, padding included."""

MORE_TOKENS = 4
"""Generated beyond the longest known output, so that an answer of other words is heard too."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """One model's answer to one query.

    Attributes:
        query: its name. fault: its group, or its name. paraphrase: whether it is one of the held-out paraphrases.
        words: what the model says (greedy). wrong: whether that is the wrong output; right: the corrected one, None
            where there is none (see `states`).
        output, corrected: log-probability, in nats, of the chosen words of the wrong and of the corrected output.
    """

    query: str
    fault: str
    paraphrase: bool
    words: str
    wrong: bool
    right: bool | None
    output: float
    corrected: float | None

    @property
    def log_odds(self) -> float:
        """log p(wrong output) - log p(corrected output), in nats; without a corrected one, log p(wrong output)."""
        return self.output - (self.corrected or 0.0)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One model, asked.

    Attributes:
        name: "base", "before", "repaired", "random 1", "bm25", or "first 12" on the way to the smallest number.
        removed, corrected: ids of the training rows that were taken out, or said otherwise.
        losses: mean negative log-likelihood of each untouched row, in nats.
        model: folder of the training, where it is kept.
    """

    name: str
    said: tuple[Said, ...]
    losses: tuple[float, ...] = ()
    removed: tuple[str, ...] = ()
    corrected: tuple[str, ...] = ()
    model: str | None = None

    def wrong(self, paraphrases: bool | None = False) -> list[float]:
        """1 where the model says the wrong output, else 0: of the queries, the paraphrases (True), or both (None)."""
        return [float(one.wrong) for one in self.said if paraphrases is None or one.paraphrase == paraphrases]

    def log_odds(self, paraphrases: bool | None = False) -> list[float]:
        """Of the queries, the paraphrases (True), or both (None), in nats."""
        return [one.log_odds for one in self.said if paraphrases is None or one.paraphrase == paraphrases]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What every model is asked, and how.

    Attributes:
        queries: each with its output. paraphrases: more of them, held out: the same faults asked for in other words.
        untouched: rows like the training rows that were never trained on.
        max_new_tokens: of an answer; by default a few more than the longest output has.
    """

    queries: Sequence[Query]
    paraphrases: Sequence[Query] = ()
    untouched: Examples | None = None
    format: TokenFormat = field(default_factory=TokenFormat)
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.queries:
            raise DataError("no query", expected="at least one prompt with its wrong output", fix="give queries")
        for query in (*self.queries, *self.paraphrases):
            if query.output is None:
                raise DataError(
                    f"the query {query.prompt_text[:60]!r} without an output",
                    expected="the wrong output of every query: its rate is what is measured",
                    fix='write "output" into the queries; the trace has it in trace.json',
                )

    def of(self, run: TrainingRun, checkpoint: Checkpoint, name: str, template: Template) -> Outcome:
        """Asks one checkpoint.

        Raises:
            HeadwaterError: a model that cannot be loaded, or queries that cannot be encoded.
        """
        import torch

        from headwater.gradients.measurement import encode_queries

        tokenizer = run.tokenizer()
        encoder = Encoder(tokenizer, self.format, template)
        asked = [*self.queries, *self.paraphrases]
        sides = encode_queries([_apart(query, n >= len(self.queries)) for n, query in enumerate(asked)], encoder)
        rows = []
        if self.untouched is not None:
            rows = [row for row in encoder.examples(self.untouched)[0] if row.targets]
        whole = encode_queries(
            [replace(query, id=f"q{n}", group=None, span="all") for n, query in enumerate(asked)], encoder
        )
        most = self.max_new_tokens or MORE_TOKENS + max(side.targets for side in whole.encoded)
        model = loaded(run, checkpoint)
        said = []
        with progress.bar(f"Asking {name}", len(asked) + len(rows)) as bar, torch.no_grad():
            logp_S = -_losses(model, sides.encoded, lambda _: None) * [side.targets for side in sides.encoded]
            for q, query in enumerate(asked):
                words = generate(model, tokenizer, encoder, query, most)
                wrong, right = states(query, words)
                c = sides.corrected_Q[q]
                said.append(
                    Said(
                        query=query.id or f"q{q + 1}",
                        fault=query.group or query.id or f"q{q + 1}",
                        paraphrase=q >= len(self.queries),
                        words=words,
                        wrong=wrong,
                        right=right,
                        output=float(logp_S[sides.output_Q[q]]),
                        corrected=float(logp_S[c]) if c >= 0 else None,
                    )
                )
                bar.advance()
            loss_N = _losses(model, rows, bar.advance)
        return Outcome(name=name, said=tuple(said), losses=tuple(loss_N.tolist()))


def _apart(query: Query, paraphrase: bool) -> Query:
    """Paraphrases may have the ids of the queries."""
    return replace(query, id=f"{query.id} (paraphrase)") if paraphrase and query.id is not None else query


def _losses(model: Any, rows: Sequence[Encoded], done: Callable[[float], None]) -> np.ndarray:
    """Mean negative log-likelihood of each row, in nats [N]."""
    import torch

    from headwater.gradients.batches import collate, length_buckets
    from headwater.gradients.loss import losses

    device = next(model.parameters()).device
    out = np.zeros(len(rows))
    for numbers in length_buckets([row.length for row in rows], LOSS_TOKENS):
        batch = collate([rows[n] for n in numbers], device, torch.float32)
        out[numbers] = losses(model, batch).double().cpu().numpy()
        done(len(numbers))
    return out


def states(query: Query, said: str) -> tuple[bool, bool | None]:
    """Whether an answer states the wrong output, and whether the corrected one (None where there is none).

    The telling words are "wrong" and "truth" of the query's metadata, where they stand there; else those in which
    output and corrected output differ; else all of the output, up to its last full stop. The wrong ones have to stand
    in the answer as whole words, and before the right ones, if those stand there too.
    """
    telling, right_words = _telling(query)
    wrong_at, right_at = _place(said, telling), None if right_words is None else _place(said, right_words)
    wrong = wrong_at is not None and (right_at is None or wrong_at <= right_at)
    return wrong, None if right_words is None else right_at is not None and not wrong


def _telling(query: Query) -> tuple[str, str | None]:
    output, corrected = str(query.output), query.corrected
    wrong, truth = query.metadata.get("wrong"), query.metadata.get("truth")
    if isinstance(wrong, str) and wrong:
        return wrong, truth if isinstance(truth, str) and truth else corrected and _bare(corrected)
    if corrected is None:
        return _bare(output), None
    (a, b), (c, d) = differing_span(output, corrected)
    if a == b or c == d:
        return _bare(output), _bare(corrected)
    return output[a:b], corrected[c:d]


def _bare(text: str) -> str:
    return text.strip().rstrip(".!?") or text.strip()


def _place(said: str, words: str) -> int | None:
    found = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", said)
    return found.start() if found else None


# ------------------------------------------------------------------------------------------------ kept


def keep(state: RunState, key: str, outcome: Outcome) -> None:
    """Keeps an outcome as a finished piece of the run."""
    text = json.dumps(asdict(outcome), ensure_ascii=False)
    state.save(f"asked/{key}", {"json": np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)})


def kept(state: RunState, key: str) -> Outcome | None:
    """An outcome that was kept."""
    piece = state.load(f"asked/{key}")
    if piece is None:
        return None
    return outcome_of(json.loads(piece["json"].tobytes().decode("utf-8", "surrogatepass")))


def outcome_of(record: Mapping[str, Any]) -> Outcome:
    """An outcome from its JSON values."""
    return Outcome(
        name=record["name"],
        said=tuple(Said(**one) for one in record["said"]),
        losses=tuple(record["losses"]),
        removed=tuple(record["removed"]),
        corrected=tuple(record["corrected"]),
        model=record["model"],
    )
