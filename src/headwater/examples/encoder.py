"""From rows and queries to token ids and the positions that the loss counts, as TRL's SFTTrainer makes them.

The loss is the mean negative log-likelihood, in nats, of the tokens that `loss_mask` marks, each predicted from the
tokens before it; position 0 is predicted from nothing and is never marked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headwater import progress
from headwater.errors import DataError, ModelError, UsageError
from headwater.examples.example import Example
from headwater.examples.files import json_fault
from headwater.examples.messages import Message, message_text
from headwater.examples.prompts import TEMPLATES, Template, templated
from headwater.examples.tokens import Encoded, EncodingReport, LossOn, TokenFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_BAR_FROM = 500  # rows; fewer are encoded in a moment


class Encoder:
    """Turns rows and queries into tokens.

    Args:
        tokenizer: the tokenizer that training used.
        format: how training turned rows into tokens.
        template: how bare prompts of queries become prompts like those of the rows (`Examples.template`).

    Raises:
        ModelError: for template "chat" and a tokenizer without a chat template.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, format: TokenFormat | None = None, template: Template = "plain"
    ) -> None:
        if template not in TEMPLATES:
            raise UsageError(f'template "{template}"', expected=", ".join(TEMPLATES), fix="choose one of these")
        self._tokenizer: Any = tokenizer
        self.format = format or TokenFormat()
        self.template: Template = template
        if template == "chat":
            self._chat_template("chat rows")

    def example(self, example: Example) -> Encoded:
        """Encodes a training row as TRL does: T tokens, at most `max_length`.

        Raises:
            ModelError: for a chat without a usable chat template.
            UsageError: for a `loss_on` that rows of this kind do not have.
        """
        return self._row(example)[0]

    def examples(self, examples: Iterable[Example]) -> tuple[list[Encoded], EncodingReport]:
        """Encodes all rows, in order, none left out, and counts what should not pass in silence."""
        rows = list(examples)
        encoded: list[Encoded] = []
        truncated = merged = empty = 0
        with progress.bar("Encoding rows", len(rows)) if len(rows) >= _BAR_FROM else nullcontext() as bar:
            for row in rows:
                one, was_truncated, was_merged = self._row(row)
                encoded.append(one)
                truncated += was_truncated
                merged += was_merged
                empty += _is_empty(row)
                if bar is not None:
                    bar.advance()
        return encoded, EncodingReport(
            rows=len(rows),
            tokens=sum(one.length for one in encoded),
            targets=sum(one.targets for one in encoded),
            truncated=truncated,
            empty_completions=empty,
            without_targets=sum(one.targets == 0 for one in encoded),
            duplicates=len(rows) - len({row.content_hash for row in rows}),
            merged_boundaries=merged,
        )

    def query(self, prompt: str | Sequence[Message], output: str, *, span: tuple[int, int] | None = None) -> Encoded:
        """Encodes a prompt with an output: no end-of-sequence token, never cut.

        Args:
            prompt: a bare string, which gets the template, or messages.
            output: what follows the prompt, to the character.
            span: characters of the output (start, end exclusive): the loss then counts only the tokens that overlap
                them, else all tokens of the output.

        Raises:
            DataError: for an empty output, a span outside of it, nothing that the loss could count, and more than
                `max_length` tokens.
            ModelError: for a chat without a usable chat template, and a span with a tokenizer that has no offsets.
        """
        if not output:
            raise DataError("an empty output", expected="at least one character", fix="give the output of the query")
        if span is not None and not 0 <= span[0] < span[1] <= len(output):
            raise DataError(
                f"span {span[0]}..{span[1]} in an output of {len(output)} characters",
                expected=f"0 <= start < end <= {len(output)}",
                fix="count characters (not tokens) from 0, end exclusive",
            )
        text, special = self._prompt(prompt)
        full, offsets = self._offset_ids(text + output, special, wanted=span is not None)
        if len(full) > self.format.max_length:
            raise DataError(
                f"a query of {len(full)} tokens",
                expected=f"at most {self.format.max_length}, the maximum length; queries are not cut",
                fix="shorten the prompt, or raise the maximum length",
            )
        mask = np.zeros(len(full), dtype=np.bool_)
        mask[_common_prefix(self._text_ids(text, special), full) :] = True
        if span is not None:
            first, last = len(text) + span[0], len(text) + span[1]
            # some tokenizers leave white space to no token: count it to the token that follows
            reached = [0, *accumulate((end for _, end in offsets), max)]
            filled = [(min(start, before), end) for (start, end), before in zip(offsets, reached, strict=False)]
            mask &= _overlap(filled, first, last)
        encoded = _encoded(full, mask)
        if not encoded.targets:
            raise DataError(
                f"no token to count the loss of in the output {output!r}",
                expected="a token of the output after the first token of the sequence",
                cause="an empty prompt, and a tokenizer that puts no token in front",
                fix="give a prompt, or a longer output",
            )
        return encoded

    def prompt_ids(self, prompt: str | Sequence[Message]) -> list[int]:
        """The token ids to generate from: the same prompt that `query` puts in front of the output."""
        return self._text_ids(*self._prompt(prompt))

    def _row(self, example: Example) -> tuple[Encoded, bool, bool]:
        """Returns the tokens of a row, whether it was cut, and whether prompt and completion merged."""
        loss_on = self._loss_on(example)
        merged = False
        if example.kind in ("completion", "text"):
            prompt, completion = str(example.prompt), self._ended(str(example.completion))
            full = self._ids(prompt + completion)
            start = 0
            if example.kind == "completion":
                prompt_ids = self._ids(prompt)
                start = _common_prefix(prompt_ids, full)
                merged = start < len(prompt_ids)
            mask = np.arange(len(full)) >= (start if loss_on == "completion" else 0)
        else:
            turns = [*_messages(example.prompt), *_messages(example.completion)]
            options = self._template_options(example)
            if loss_on == "assistant":
                full, mask = self._assistant(turns, example.source, options)
            else:
                full = self._chat_ids(turns, example.source, options)
                mask = np.ones(len(full), dtype=np.bool_)
            if example.kind == "chat":
                prompt_ids = self._chat_ids(list(_messages(example.prompt)), example.source, options, answer=True)
                start = _common_prefix(prompt_ids, full)
                merged = start < len(prompt_ids)
                if loss_on != "all":
                    mask &= np.arange(len(full)) >= start
        limit = self.format.max_length
        kept = slice(None, limit) if self.format.keep == "start" else slice(-limit, None)
        return _encoded(full[kept], mask[kept]), len(full) > limit, merged

    def _loss_on(self, example: Example) -> LossOn:
        wanted = self.format.loss_on
        natural: dict[str, LossOn] = {"completion": "completion", "chat": "completion", "messages": "assistant"}
        if wanted == "auto":
            return natural.get(example.kind, "all")
        possible = {
            "completion": ("completion", "all"),
            "chat": ("completion", "assistant", "all"),
            "messages": ("assistant", "all"),
            "text": ("all",),
        }[example.kind]
        if wanted not in possible:
            raise UsageError(
                f'loss on "{wanted}" for rows of kind "{example.kind}" ({example.source})',
                expected=f"auto, {', '.join(possible)}",
                fix='use "auto", which takes what the rows have',
            )
        return wanted

    def _ended(self, text: str) -> str:
        eos = self._tokenizer.eos_token
        return text + eos if self.format.add_eos and eos and not text.endswith(eos) else text

    def _ids(self, text: str) -> list[int]:
        """Tokens of a whole string, with the special tokens that the tokenizer puts around it, as in training."""
        return list(self._tokenizer(text, verbose=False)["input_ids"])

    def _prompt(self, prompt: str | Sequence[Message]) -> tuple[str, bool]:
        """A prompt as text, and whether the tokenizer's own special tokens are still to come."""
        written = templated(prompt, self.template) if isinstance(prompt, str) else prompt
        if isinstance(written, str):
            return written, True
        return self._text(list(written), "the query", {}, answer=True), False

    def _text_ids(self, text: str, special: bool) -> list[int]:
        return self._offset_ids(text, special, wanted=False)[0]

    def _offset_ids(self, text: str, special: bool, *, wanted: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of the beginning of a text that goes on, and their characters (start, end) where these are wanted."""
        if wanted:
            self._require_offsets()
        out = self._tokenizer(text, add_special_tokens=special, return_offsets_mapping=wanted, verbose=False)
        ids = list(out["input_ids"])
        # some tokenizers close every text; what comes next is the output, or its continuation
        eos = self._tokenizer.eos_token
        while special and eos and ids and ids[-1] == self._tokenizer.eos_token_id and not text.endswith(eos):
            ids.pop()
        return ids, out["offset_mapping"][: len(ids)] if wanted else []

    def _require_offsets(self) -> None:
        if not self._tokenizer.is_fast:
            raise ModelError(
                "a tokenizer that does not know which characters its tokens stand for",
                expected="a fast tokenizer (tokenizer.json), for spans and for conversations",
                fix='convert the tokenizer; a query with span "all" can do without',
            )

    def _chat_template(self, what: str) -> str:
        try:
            template = self._tokenizer.get_chat_template()
        except (ValueError, AttributeError) as error:
            raise ModelError(
                f"{what} and a tokenizer without a chat template",
                expected="the tokenizer that training used, chat template included",
                cause="the tokenizer of a base model",
                fix="name the folder of the fine-tuned model's tokenizer, or give the rows as strings",
            ) from error
        return str(template)

    def _template_options(self, example: Example) -> dict[str, Any]:
        """What TRL hands to the chat template besides the messages: the columns tools and chat_template_kwargs."""
        tools = example.metadata.get("tools")
        if isinstance(tools, str):
            try:
                tools = json.loads(tools)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f'{example.source}: broken JSON in column "tools" ({json_fault(error)})',
                    expected="a list of tools",
                    fix="repair or drop the column",
                ) from error
        arguments = example.metadata.get("chat_template_kwargs") or {}
        if not isinstance(arguments, Mapping):
            raise DataError(
                f'{example.source}: column "chat_template_kwargs" of type {type(arguments).__name__}',
                expected="an object",
                fix="repair or drop the column",
            )
        return {"tools": tools or None, **arguments}

    def _chat_ids(
        self, messages: list[Message], where: str, options: Mapping[str, Any], *, answer: bool = False
    ) -> list[int]:
        out = self._rendered(messages, where, options, tokenize=True, return_dict=True, add_generation_prompt=answer)
        return list(out["input_ids"])

    def _rendered(self, messages: list[Message], where: str, options: Mapping[str, Any], **arguments: Any) -> Any:
        """The tokenizer's apply_chat_template, its errors turned into ours."""
        self._chat_template(f"{where}: a chat")
        try:
            return self._tokenizer.apply_chat_template([dict(turn) for turn in messages], **arguments, **options)
        except Exception as error:  # whatever a template's author chose to raise
            reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            raise ModelError(
                f"{where}: the chat template refuses the messages {[turn.get('role') for turn in messages]} ({reason})",
                expected="messages that the tokenizer's chat template can write",
                fix="correct the roles and their order, or use the tokenizer that training used",
            ) from error

    def _assistant(
        self, turns: list[Message], where: str, options: Mapping[str, Any]
    ) -> tuple[list[int], npt.NDArray[np.bool_]]:
        """Tokens of a conversation, and those of the assistant's turns.

        By the template's own {% generation %} marks where it has them, else by prefixes of the text: a turn begins
        where the conversation so far with the generation prompt parts from the whole, and ends where the conversation
        up to the turn ends.
        """
        self._require_offsets()
        if _GENERATION.search(self._chat_template(f"{where}: a chat")):
            out = self._rendered(
                turns, where, options, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            return list(out["input_ids"]), np.array(out["assistant_masks"], dtype=np.bool_)
        whole = self._text(turns, where, options)
        ids, offsets = self._offset_ids(whole, False, wanted=True)
        mask = np.zeros(len(ids), dtype=np.bool_)
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            if index == 0:
                raise ModelError(
                    f"{where}: a conversation that begins with the assistant",
                    expected="a chat template with {% generation %} marks, or a turn of another role first",
                    fix="mark the assistant's part in the chat template, or put a system or user turn first",
                )
            before = self._part(turns[:index], where, options, whole)
            after = self._part(turns[: index + 1], where, options, whole)
            start = _common_prefix(self._text(turns[:index], where, options, answer=True), whole)
            if start < len(before) or not whole.startswith(after):
                raise ModelError(
                    f"{where}: a chat template that writes earlier turns differently once later ones follow",
                    expected="a template in which each turn only adds to the text, or one with {% generation %} marks",
                    cause="a template that drops the reasoning from earlier turns",
                    fix="put the template that training used into the tokenizer (for TRL, what its "
                    "get_training_chat_template returns), or mark the assistant's part by {% generation %}",
                )
            mask |= _overlap(offsets, start, len(after))
        return ids, mask

    def _text(self, messages: list[Message], where: str, options: Mapping[str, Any], *, answer: bool = False) -> str:
        return str(self._rendered(messages, where, options, tokenize=False, add_generation_prompt=answer))

    def _part(self, messages: list[Message], where: str, options: Mapping[str, Any], whole: str) -> str:
        """The beginning of a conversation as text, without the end-of-sequence token that closes whole ones only."""
        text = self._text(messages, where, options)
        eos = self._tokenizer.eos_token
        return text.removesuffix(eos) if eos and not whole.startswith(text) else text


def _messages(content: str | tuple[Message, ...]) -> tuple[Message, ...]:
    return () if isinstance(content, str) else content


def _encoded(ids: Sequence[int], mask: npt.NDArray[np.bool_]) -> Encoded:
    loss_mask = np.array(mask, dtype=np.bool_)
    loss_mask[:1] = False
    return Encoded(np.array(ids, dtype=np.int64), loss_mask)


def _common_prefix(some: Sequence[object], others: Sequence[object]) -> int:
    """The number of leading tokens, or characters, that two sequences share."""
    for position, (one, other) in enumerate(zip(some, others, strict=False)):
        if one != other:
            return position
    return min(len(some), len(others))


def _overlap(offsets: Sequence[tuple[int, int]], first: int, last: int) -> npt.NDArray[np.bool_]:
    """bool [T]: the tokens that share a character with first..last (end exclusive)."""
    return np.array([start < last and end > first for start, end in offsets], dtype=np.bool_)


def _is_empty(example: Example) -> bool:
    if isinstance(example.completion, str):
        return not example.completion.strip()
    turns = [turn for turn in example.completion if turn["role"] == "assistant" or example.kind == "chat"]
    return not any(message_text(turn).strip() for turn in turns)
