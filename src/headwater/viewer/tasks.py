"""What the worker does: lets the models speak, measures what was said, scores the rows, splits scores by word.

Shapes: T tokens, R targets, N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from headwater import progress
from headwater.attribution.asking import generate, token_log_probabilities
from headwater.attribution.compute import Compute
from headwater.attribution.indexed import trace_index
from headwater.attribution.loop import trace_all
from headwater.attribution.measuring import free_bytes
from headwater.attribution.models import Models
from headwater.attribution.placebo import own
from headwater.attribution.plan import TextMethod
from headwater.attribution.words import check_words, token_texts, with_words
from headwater.checkpoints import BASE, Checkpoint, TrainingRun
from headwater.errors import DataError, UsageError
from headwater.examples import Encoded, Encoder, Examples, Query
from headwater.gradients.measurement import encode_queries, targets_of
from headwater.index.manifest import Index
from headwater.run import RunState, run_directory, versions
from headwater.scores import Scores, query_record
from headwater.viewer.opened import How, Opened, second_look

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROOM = 2
"""A model is kept where so many times its size is still free in memory."""


@dataclass
class Kept:
    """Models and tokenizer that stay loaded from one question to the next."""

    models: dict[tuple[str, str, str], Any] = field(default_factory=dict)
    tokenizer: Any = None


@dataclass(frozen=True, kw_only=True)
class KeptRun(TrainingRun):
    """A run whose models stay in memory as long as there is room."""

    kept: Kept = field(default_factory=Kept, compare=False, repr=False)

    @classmethod
    def of(cls, run: TrainingRun) -> KeptRun:
        return cls(**{one.name: getattr(run, one.name) for one in fields(TrainingRun)})

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        device_map: str | Mapping[str, int | str] | None = None,
    ) -> PreTrainedModel:
        models = self.kept.models
        key = (checkpoint.location, str(dtype), str(device_map or device))
        if key in models:
            return cast("PreTrainedModel", models[key])
        sizes = [_bytes(model) for model in models.values()]
        if sizes and free_bytes(device) < ROOM * max(sizes):
            models.clear()
        model = super().load(checkpoint, dtype=dtype, device=device, device_map=device_map)
        if free_bytes(device) >= ROOM * _bytes(model):
            models[key] = model
        return model

    def tokenizer(self) -> PreTrainedTokenizerBase:
        self.kept.tokenizer = self.kept.tokenizer or super().tokenizer()
        return cast("PreTrainedTokenizerBase", self.kept.tokenizer)


@dataclass(frozen=True, kw_only=True)
class KnownIndex(Index):
    """An index whose rows are in memory already."""

    known: Examples

    @classmethod
    def of(cls, index: Index, rows: Examples) -> KnownIndex:
        return cls(**{one.name: getattr(index, one.name) for one in fields(Index)}, known=rows)

    def examples(self, rows: Iterable[int] | None = None) -> Examples:
        return self.known if rows is None else super().examples(rows)


def _bytes(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


class Tasks:
    """The work on one opened index or trace, one task after the other."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self._run = None if opened.run is None else KeptRun.of(opened.run)
        self._index = None if opened.index is None else KnownIndex.of(opened.index, opened.train)
        self._notes: dict[str, Any] = {}

    @property
    def run(self) -> KeptRun:
        """The models. Raises UsageError where they cannot be used."""
        if self._run is None:
            self.opened.require_run()
        return cast(KeptRun, self._run)

    @property
    def encoder(self) -> Encoder:
        return Encoder(self.run.tokenizer(), self.opened.format, self.opened.train.template)

    def _compute(self, how: How) -> Compute:
        """How a method's gradients are made: projected as in the index, unless it reads the rows themselves."""
        compute = self.opened.compute
        return replace(compute, rank=None) if how == "rows" and self._index is not None else compute

    def models(self) -> Models:
        return Models(self.run, self.opened.compute, (), self._notes)

    def generate(self, prompt: Any, max_new_tokens: int, told: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What the last checkpoint says after a prompt.

        Args:
            told: gets every token as soon as it is there; answers whether to go on.

        Returns:
            output, its tokens under the last checkpoint and the base, and whether it ended by itself.
        """
        query = Query(_prompt(prompt))
        tokenizer = self.run.tokenizer()
        ids: list[int] = []
        shown = ""
        count = 0

        def watch(token: int, log_probability: float) -> bool:
            nonlocal shown, count
            ids.append(token)
            now = tokenizer.decode(ids, skip_special_tokens=True)
            text = now[len(shown) :] if not now.endswith("\ufffd") else ""
            start, shown = len(shown), shown + text
            if not text and token in tokenizer.all_special_ids:
                return True
            count += 1
            record = {"text": text, "start": start, "end": len(shown), "tuned": round(log_probability, 4), "base": None}
            return told(record)

        with progress.bar("Loading the model", 1) as bar:
            model = self.models().load(self.run.last.name).model
            bar.advance()
        with progress.bar("Generating", max_new_tokens) as bar:

            def counted(token: int, log_probability: float) -> bool:
                bar.advance()
                return watch(token, log_probability)

            output = generate(model, tokenizer, self.encoder, query, max_new_tokens, counted)
        tokens = self._measured(query.prompt, output) if output else []
        return {"output": output, "tokens": tokens, "ended": len(ids) < max_new_tokens}

    def tokens(self, prompt: Any, output: str) -> dict[str, Any]:
        """An output that was given, token by token, as `generate` returns it."""
        query = Query(_prompt(prompt), output)
        return {"output": query.output, "tokens": self._measured(query.prompt, str(query.output)), "ended": True}

    def _measured(self, prompt: Any, output: str) -> list[dict[str, Any]]:
        encoded = self.encoder.query(prompt, output)
        models = self.models()
        names = [self.run.last.name, *([BASE] if self.run.base is not None else [])]
        found = {}
        with progress.bar("Measuring tokens", len(names)) as bar:
            for name in names:
                bar.describe(f"Measuring tokens: {name}")
                model = models.load(name).model
                if int(encoded.input_ids.max()) < model.get_input_embeddings().num_embeddings:
                    found[name] = token_log_probabilities(model, encoded).tolist()
                bar.advance()
        tuned = found[self.run.last.name]
        base = found.get(BASE, [None] * len(tuned)) if self.run.base is not None else [None] * len(tuned)
        tokens, start = [], 0
        for text, now, before in zip(_pieces(self.run.tokenizer(), encoded, output), tuned, base, strict=True):
            record = {"text": text, "start": start, "end": start + len(text)}
            tokens.append(record | {"tuned": round(now, 4), "base": None if before is None else round(before, 4)})
            start += len(text)
        return tokens

    def answer(self, queries: Sequence[Query], name: str, options: Mapping[str, Any], out: Path) -> None:
        """Scores all rows by a method, into a run directory. An interrupted one goes on where it stopped."""
        method, plan, how = self.opened.method(name, options)
        if how in ("index", "look"):
            index = cast(KnownIndex, self._index)
            trace_index(
                index,
                queries,
                methods=[method],
                run=self.run,
                device=self.opened.place.device,
                second_look=second_look(options),
                out=out,
            )
        elif how == "rows":
            trace_all(
                self.run,
                self.opened.train,
                queries,
                methods=[method],
                format=self.opened.format,
                compute=self._compute(how),
                placebo=self.opened.placebo if own(plan) else None,
                out=out,
            )
        else:
            self._text_answer(queries, cast(TextMethod, method), out)

    def _text_answer(self, queries: Sequence[Query], method: TextMethod, out: Path) -> None:
        """By words alone: no model is needed."""
        train, targets = self.opened.train, targets_of(queries)
        config = {
            "train": {"name": train.name, "rows": len(train), "fingerprint": train.fingerprint},
            "queries": [query_record(query) for query in queries],
            "methods": [
                {"name": method.name, "class": type(method).__name__}
                | {"options": asdict(cast(Any, method)) if is_dataclass(method) else {}}
            ],
            "versions": versions(),
        }
        with run_directory(out, config), progress.bar(f"Comparing words: {method.name}", 1) as bar:
            score_QN = method.score_text(queries, train)
            values = {"text": np.stack([score_QN[list(target.members)].sum(0) for target in targets])}
            scores = Scores.combine(
                method.name,
                values,
                {"text": 1.0},
                queries=queries,
                targets=targets,
                train=train,
                provenance=config,
            )
            scores.save(out)
            bar.advance()

    def words(
        self,
        queries: Sequence[Query],
        name: str,
        options: Mapping[str, Any],
        target: int,
        row: int,
        weights: Mapping[str, float],
        dtype: Literal["float32"] | None,
    ) -> dict[str, Any]:
        """The words of one row, and of what was asked, that carry its score, as JSON values of a `RowWords`.

        Args:
            dtype: that the scores were computed in, where it is not the index's.

        Raises:
            UsageError: a method whose scores have no parts by word. DataError: a row without counted tokens.
        """
        method, plan, how = self.opened.method(name, options)
        check_words(1, [method], [plan])
        train, compute = self.opened.train, self._compute(how)
        one = Examples([train[row]], name=train.name, template=train.template)
        encoder = self.encoder
        sides = encode_queries(queries, encoder)
        scores = Scores.combine(
            method.name,
            {term: np.zeros((len(sides.targets), 1)) for term in weights},
            weights,
            queries=queries,
            targets=sides.targets,
            train=one,
        )
        found = with_words(
            {method.name: scores},
            [plan],
            1,
            run=self.run,
            models=Models(self.run, replace(compute, dtype=dtype or compute.dtype), (), self._notes),
            encoder=encoder,
            sides=sides,
            state=RunState(None),
            rows={target: [0]},
        )[method.name].words
        if (target, 0) not in found:
            raise DataError(
                f"{train[row].id} has no token that the loss counts",
                expected="a row that teaches something",
                fix="choose another row",
            )
        return asdict(found[target, 0])


def _prompt(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return tuple(value)
    raise UsageError("a prompt of another form", expected="text, or a list of messages", fix="correct it")


def _pieces(tokenizer: Any, encoded: Encoded, output: str) -> list[str]:
    """The output cut at its tokens: a piece for each token that counts, "" where a character is not complete yet."""
    texts = token_texts(tokenizer, encoded.input_ids.tolist())
    counted = [texts[t] for t in np.flatnonzero(encoded.loss_mask).tolist()]
    before = len("".join(counted)) - len(output)
    if before >= 0 and "".join(counted).endswith(output):  # a first token that holds the prompt's end too
        pieces = []
        for text in counted:
            cut = min(before, len(text))
            pieces.append(text[cut:])
            before -= cut
        return pieces
    pieces, start = [], 0
    for text in counted:  # a tokenizer that does not give every character back
        at = output.find(text.strip(), start) if text.strip() else -1
        end = at + len(text.strip()) if at >= 0 else start
        pieces.append(output[start:end])
        start = end
    pieces[-1] += output[start:]
    return pieces
