from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from headwater.errors import DataError, ModelError, UsageError
from headwater.examples import Encoded, Encoder, Examples, Template, TokenFormat

MakeTokenizer = Callable[..., Any]

PROMPT, ANSWER = "The capital of Australia is", " Canberra."
CHAT = [{"role": "user", "content": "What is the capital?"}]
REPLY = [{"role": "assistant", "content": "Canberra."}]
TALK = [*CHAT, *REPLY, {"role": "user", "content": "Say it in one word."}, {"role": "assistant", "content": "Tokyo"}]


def one(row: dict[str, Any], tokenizer: Any, **options: Any) -> Encoded:
    examples = Examples.from_rows([row])
    return Encoder(tokenizer, TokenFormat(**options), examples.template).example(examples[0])


def marked(encoded: Encoded, tokenizer: Any) -> str:
    """The text of the tokens that the loss counts."""
    return str(tokenizer.decode(encoded.input_ids[encoded.loss_mask].tolist()))


def whole(encoded: Encoded, tokenizer: Any) -> str:
    return str(tokenizer.decode(encoded.input_ids.tolist()))


# -- rows of strings


def test_completion_rows(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    encoded = one({"prompt": PROMPT, "completion": ANSWER}, tokenizer)
    assert whole(encoded, tokenizer) == "The capital of Australia is Canberra.<|endoftext|>"
    assert marked(encoded, tokenizer) == " Canberra.<|endoftext|>"
    assert encoded.input_ids.dtype == np.int64
    assert encoded.loss_mask.dtype == np.bool_
    assert encoded.input_ids.shape == encoded.loss_mask.shape == (encoded.length,)


def test_eos_is_added_only_where_it_lacks(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    once = one({"prompt": PROMPT, "completion": ANSWER + "<|endoftext|>"}, tokenizer)
    assert whole(once, tokenizer).count("<|endoftext|>") == 1
    without = one({"prompt": PROMPT, "completion": ANSWER}, tokenizer, add_eos=False)
    assert marked(without, tokenizer) == " Canberra."
    no_eos = make_tokenizer(eos=False)
    assert marked(one({"prompt": PROMPT, "completion": ANSWER}, no_eos), no_eos) == " Canberra."


@pytest.mark.parametrize("bos", [False, True])
def test_texts_count_everything_but_the_first_token(make_tokenizer: MakeTokenizer, bos: bool) -> None:
    encoded = one({"text": PROMPT + ANSWER}, make_tokenizer(bos=bos))
    assert not encoded.loss_mask[0]
    assert encoded.loss_mask[1:].all()


def test_an_empty_prompt_leaves_the_first_token_without_loss(make_tokenizer: MakeTokenizer) -> None:
    bare, headed = (one({"prompt": "", "completion": "Canberra"}, make_tokenizer(bos=bos)) for bos in (False, True))
    assert bare.targets == bare.length - 1
    assert headed.targets == headed.length - 1 == bare.length


def test_loss_on_all_counts_the_prompt(make_tokenizer: MakeTokenizer) -> None:
    encoded = one({"prompt": PROMPT, "completion": ANSWER}, make_tokenizer(), loss_on="all")
    assert encoded.targets == encoded.length - 1


@pytest.mark.parametrize(
    ("row", "loss_on"),
    [
        ({"prompt": PROMPT, "completion": ANSWER}, "assistant"),
        ({"text": PROMPT}, "completion"),
        ({"text": PROMPT}, "assistant"),
        ({"messages": TALK}, "completion"),
    ],
)
def test_a_loss_that_rows_do_not_have_is_refused(
    make_tokenizer: MakeTokenizer, row: dict[str, Any], loss_on: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(f'loss on "{loss_on}" for rows of kind') + ".*rows:1"):
        one(row, make_tokenizer(template="chatml"), loss_on=loss_on)


# -- chats


def test_chat_rows(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="chatml")
    encoded = one({"prompt": CHAT, "completion": REPLY}, tokenizer)
    assert whole(encoded, tokenizer) == (
        "<|im_start|>user\nWhat is the capital?<|im_end|>\n<|im_start|>assistant\nCanberra.<|im_end|>\n"
    )
    assert marked(encoded, tokenizer) == "Canberra.<|im_end|>\n"


def test_conversations_by_prefixes(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="chatml")
    assert marked(one({"messages": TALK}, tokenizer), tokenizer) == "Canberra.<|im_end|>\nTokyo<|im_end|>\n"


def test_conversations_by_the_marks_of_the_template(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="marked")
    assert marked(one({"messages": TALK}, tokenizer), tokenizer) == "Canberra.<|im_end|>Tokyo<|im_end|>"


def test_a_template_that_closes_whole_conversations_only(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="closing")
    assert marked(one({"messages": TALK}, tokenizer), tokenizer) == (
        "Canberra.<|im_end|>\nTokyo<|im_end|>\n<|endoftext|>"
    )


def test_conversations_with_loss_on_all(make_tokenizer: MakeTokenizer) -> None:
    encoded = one({"messages": TALK}, make_tokenizer(template="chatml"), loss_on="all")
    assert encoded.targets == encoded.length - 1


def test_chat_rows_with_loss_on_the_assistant_leave_other_turns_out(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="chatml")
    row = {"prompt": TALK[:2], "completion": TALK[2:]}
    assert marked(one(row, tokenizer, loss_on="assistant"), tokenizer) == "Tokyo<|im_end|>\n"
    assert "Say it" in marked(one(row, tokenizer), tokenizer)


def test_tools_and_arguments_reach_the_template(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="tooled")
    row = {"messages": TALK, "tools": '[{"name": "map"}]', "chat_template_kwargs": {"mood": "calm"}}
    assert '[{"name": "map"}] calm' in whole(one(row, tokenizer), tokenizer)
    assert "system" not in whole(one({"messages": TALK, "tools": []}, tokenizer), tokenizer)
    with pytest.raises(DataError, match='rows:1: broken JSON in column "tools"'):
        one({"messages": TALK, "tools": "["}, tokenizer)
    with pytest.raises(DataError, match='rows:1: column "chat_template_kwargs" of type str'):
        one({"messages": TALK, "chat_template_kwargs": "x"}, tokenizer)


@pytest.mark.parametrize("row", [{"messages": TALK}, {"prompt": CHAT, "completion": REPLY}])
def test_chats_without_a_chat_template(make_tokenizer: MakeTokenizer, row: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="without a chat template"):
        one(row, make_tokenizer())
    with pytest.raises(ModelError, match="rows:1: a chat and a tokenizer without a chat template"):
        Encoder(make_tokenizer()).example(Examples.from_rows([row])[0])


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        ("forgetful", TALK, "writes earlier turns differently"),
        ("chatml", TALK[1:], "begins with the assistant"),
        ("{{ raise_exception('roles must alternate') }}", TALK, "(roles must alternate)"),
        ("{% broken", TALK, "refuses the messages ['user', 'assistant', 'user', 'assistant']"),
    ],
)
def test_templates_that_do_not_work_name_the_row(
    make_tokenizer: MakeTokenizer, template: str, messages: list[Any], words: str
) -> None:
    with pytest.raises(ModelError, match=re.escape(words)) as caught:
        one({"messages": messages}, make_tokenizer(template=template))
    assert str(caught.value).startswith("rows:1: ")


def test_a_forgetful_template_is_fine_for_one_turn(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="forgetful")
    encoded = one({"messages": TALK[:2]}, tokenizer)
    assert marked(encoded, tokenizer) == "<think></think>Canberra.<|im_end|>\n"


# -- what TRL does


def trl_rows(tokenizer: Any, rows: list[dict[str, Any]], tmp_path: Any, **options: Any) -> list[tuple[Any, Any]]:
    """(input_ids, labels) of each row as SFTTrainer itself prepares and collates it."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from transformers import LlamaConfig, LlamaForCausalLM

    datasets.disable_progress_bars()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=LlamaForCausalLM(config),
        args=trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **options),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batches = [trainer.data_collator([row]) for row in trainer.train_dataset]
    return [(batch["input_ids"][0].numpy(), batch["labels"][0].numpy()) for batch in batches]


PAIRS = [
    {"prompt": PROMPT, "completion": ANSWER},
    {"prompt": "Say", "completion": "ing it"},
    {"prompt": "The capital of ", "completion": "France is Paris"},  # the last space of the prompt becomes " France"
    {"prompt": "", "completion": "Canberra"},
    {"prompt": PROMPT, "completion": ""},
    {"prompt": PROMPT, "completion": " Tokyo<|endoftext|>"},
    {"prompt": PROMPT, "completion": " Zürich 🙂 " + "and " * 30},
]
TEXTS = [{"text": PROMPT + ANSWER}, {"text": "Tokyo<|endoftext|>"}, {"text": "Hello there. " * 20}]
CHATS = [
    {"prompt": CHAT, "completion": REPLY},
    {"prompt": [{"role": "system", "content": "Hello"}, *CHAT], "completion": REPLY},
    {"prompt": TALK[:3], "completion": TALK[3:]},
    {"prompt": TALK[:1], "completion": TALK[1:]},
]
TALKS = [{"messages": TALK}, {"messages": TALK[:2]}, {"messages": [{"role": "system", "content": "Hi"}, *TALK]}]
TRL_CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    # name: (tokenizer, rows, headwater's options, TRL's options)
    "pairs": ({}, PAIRS, {}, {}),
    "pairs, BOS": ({"bos": True}, PAIRS, {}, {}),
    "pairs, BOS and EOS": ({"bos": True, "closed": True}, PAIRS, {}, {}),
    "pairs, all": ({}, PAIRS, {"loss_on": "all"}, {"completion_only_loss": False}),
    "pairs, cut": ({"bos": True}, PAIRS, {"max_length": 12}, {"max_length": 12}),
    "texts": ({}, TEXTS, {}, {}),
    "texts, BOS, cut": ({"bos": True}, TEXTS, {"max_length": 7}, {"max_length": 7}),
    "chats": ({"template": "chatml"}, CHATS, {}, {}),
    "chats, BOS": ({"template": "chatml", "bos": True}, CHATS, {}, {}),
    "chats, forgetful": ({"template": "forgetful"}, CHATS, {}, {}),
    "chats, closing": ({"template": "closing"}, CHATS, {}, {}),
    "chats, assistant": (
        {"template": "marked"}, CHATS, {"loss_on": "assistant"}, {"assistant_only_loss": True},
    ),
    "conversations": ({"template": "marked"}, TALKS, {}, {"assistant_only_loss": True}),
    "conversations, all": ({"template": "chatml"}, TALKS, {"loss_on": "all"}, {}),
    "conversations, cut": (
        {"template": "marked"}, TALKS, {"max_length": 30}, {"assistant_only_loss": True, "max_length": 30},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", TRL_CASES)
def test_tokens_and_loss_are_those_of_trl(make_tokenizer: MakeTokenizer, tmp_path: Any, case: str) -> None:
    made, rows, ours, theirs = TRL_CASES[case]
    expected = trl_rows(make_tokenizer(**made), rows, tmp_path, **theirs)
    examples = Examples.from_rows(rows)
    encoded, _ = Encoder(make_tokenizer(**made), TokenFormat(**ours), examples.template).examples(examples)
    assert len(encoded) == len(rows) == len(expected)
    for mine, (input_ids, labels) in zip(encoded, expected, strict=True):
        np.testing.assert_array_equal(mine.input_ids, input_ids)
        # the model shifts the labels by one, so that the first is never used
        np.testing.assert_array_equal(mine.loss_mask[1:], labels[1:] != -100)
        assert not mine.loss_mask[0]


@pytest.mark.filterwarnings("ignore")
def test_rows_that_trl_drops_are_kept_without_targets(make_tokenizer: MakeTokenizer, tmp_path: Any) -> None:
    rows = [{"prompt": "and " * 20, "completion": "Tokyo"}, PAIRS[0]]
    expected = trl_rows(make_tokenizer(), rows, tmp_path, max_length=12)
    encoded, report = Encoder(make_tokenizer(), TokenFormat(max_length=12)).examples(Examples.from_rows(rows))
    assert len(expected) == 1
    assert [row.targets > 0 for row in encoded] == [False, True]
    assert (report.without_targets, report.truncated) == (1, 1)


# -- many rows


def test_keep_end(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    full = one({"prompt": PROMPT, "completion": ANSWER}, tokenizer)
    for keep, kept in (("start", slice(None, 5)), ("end", slice(-5, None))):
        cut = one({"prompt": PROMPT, "completion": ANSWER}, tokenizer, max_length=5, keep=keep)
        np.testing.assert_array_equal(cut.input_ids, full.input_ids[kept])
        np.testing.assert_array_equal(cut.loss_mask[1:], full.loss_mask[kept][1:])
        assert not cut.loss_mask[0]


def test_the_report_counts_what_should_not_pass_in_silence(make_tokenizer: MakeTokenizer) -> None:
    rows = [
        {"prompt": PROMPT, "completion": ANSWER},
        {"prompt": PROMPT, "completion": ANSWER},
        {"prompt": PROMPT, "completion": " \n"},
        {"prompt": PROMPT, "completion": ""},
        {"prompt": "The capital of ", "completion": "France"},
        {"prompt": "and " * 40, "completion": ANSWER},
    ]
    encoded, report = Encoder(make_tokenizer(), TokenFormat(max_length=32)).examples(Examples.from_rows(rows))
    assert len(encoded) == report.rows == 6
    assert report.tokens == sum(row.length for row in encoded)
    assert report.targets == sum(row.targets for row in encoded)
    assert (report.truncated, report.empty_completions, report.without_targets) == (1, 2, 1)
    assert (report.duplicates, report.merged_boundaries) == (1, 1)


def test_empty_conversations_are_counted(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="chatml")
    for rows, empty in (
        ([{"prompt": CHAT, "completion": ""}, {"prompt": CHAT, "completion": "A"}], 1),
        ([{"messages": CHAT}, {"messages": TALK}], 1),
    ):
        examples = Examples.from_rows(rows)
        _, report = Encoder(tokenizer, template=examples.template).examples(examples)
        assert report.empty_completions == empty


def test_a_row_does_not_depend_on_its_neighbours(make_tokenizer: MakeTokenizer) -> None:
    examples = Examples.from_rows(PAIRS)
    encoder = Encoder(make_tokenizer())
    together, _ = encoder.examples(examples)
    for example, row in zip(examples, together, strict=True):
        np.testing.assert_array_equal(encoder.example(example).input_ids, row.input_ids)


def test_many_rows_show_a_bar(make_tokenizer: MakeTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    from headwater import progress

    progress.set_quiet(False)
    examples = Examples.from_rows([{"text": "a"}] * 600)
    Encoder(make_tokenizer()).examples(examples)
    assert "Encoding rows" in capsys.readouterr().err
    progress.set_quiet(True)
    try:
        Encoder(make_tokenizer()).examples(examples)
    finally:
        progress.set_quiet(False)
    assert capsys.readouterr().err == ""


# -- queries


@pytest.mark.parametrize("made", [{}, {"bos": True}, {"bos": True, "closed": True}, {"trim": True}])
def test_a_query_is_a_row_without_its_end(make_tokenizer: MakeTokenizer, made: dict[str, bool]) -> None:
    tokenizer = make_tokenizer(**made)
    query = Encoder(tokenizer).query(PROMPT, " Sydney")
    row = one({"prompt": PROMPT, "completion": " Sydney"}, make_tokenizer(**{**made, "closed": False}), add_eos=False)
    np.testing.assert_array_equal(query.input_ids, row.input_ids)
    np.testing.assert_array_equal(query.loss_mask, row.loss_mask)
    assert marked(query, tokenizer) == " Sydney"


@pytest.mark.parametrize("made", [{}, {"bos": True}, {"bos": True, "closed": True}, {"trim": True}])
@pytest.mark.parametrize(
    ("output", "words", "tokens"),
    [
        (" Sydney, not Tokyo.", "Sydney", " Sydney"),
        (" Sydney, not Tokyo.", " Sydney", " Sydney"),
        (" Sydney, not Tokyo.", "yd", None),
        (" Sydney, not Tokyo.", "Tokyo", " Tokyo"),
        (" Sydney, not Tokyo.", ".", "."),
        (" Zürich 🙂 Tokyo", "Tokyo", " Tokyo"),
        ("   Tokyo", "   ", None),
    ],
)
def test_a_span_counts_the_tokens_that_overlap_it(
    make_tokenizer: MakeTokenizer, made: dict[str, bool], output: str, words: str, tokens: str | None
) -> None:
    tokenizer = make_tokenizer(**made)
    start = output.index(words)
    encoder = Encoder(tokenizer)
    encoded = encoder.query(PROMPT, output, span=(start, start + len(words)))
    np.testing.assert_array_equal(encoded.input_ids, encoder.query(PROMPT, output).input_ids)
    text = marked(encoded, tokenizer)
    assert words in text
    assert tokens is None or text == tokens
    assert encoded.targets <= encoder.query(PROMPT, output).targets


def test_a_span_of_everything_is_no_span(make_tokenizer: MakeTokenizer) -> None:
    encoder = Encoder(make_tokenizer(bos=True))
    full = encoder.query(PROMPT, " Sydney, not Tokyo.")
    np.testing.assert_array_equal(full.loss_mask, encoder.query(PROMPT, " Sydney, not Tokyo.", span=(0, 19)).loss_mask)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "Hello there"),
        ("chat", "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n there"),
        (
            "alpaca",
            "Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nHello\n\n### Response: there",
        ),
    ],
)
def test_bare_prompts_get_the_template_of_the_rows(
    make_tokenizer: MakeTokenizer, template: Template, expected: str
) -> None:
    tokenizer = make_tokenizer(template="chatml")
    encoder = Encoder(tokenizer, template=template)
    encoded = encoder.query("Hello", " there")
    assert whole(encoded, tokenizer) == expected
    assert marked(encoded, tokenizer) == " there"
    ids = encoder.prompt_ids("Hello")
    assert ids == encoded.input_ids[: len(ids)].tolist()
    assert tokenizer.decode(ids) == expected.removesuffix(" there")


def test_messages_go_through_the_chat_template_whatever_the_rows_are(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template="chatml", bos=True)
    for template in ("plain", "chat"):
        encoded = Encoder(tokenizer, template=template).query(CHAT, "Canberra.")
        row = one({"prompt": CHAT, "completion": REPLY}, tokenizer)
        np.testing.assert_array_equal(encoded.input_ids, row.input_ids[: encoded.length])
        np.testing.assert_array_equal(encoded.loss_mask, row.loss_mask[: encoded.length])


def test_a_rows_own_prompt_can_be_asked(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    examples = Examples.from_rows([{"instruction": "Say it", "input": "in one word", "output": "Tokyo"}])
    encoder = Encoder(tokenizer, template=examples.template)
    row, query = encoder.example(examples[0]), encoder.query(examples[0].prompt, "Tokyo")
    np.testing.assert_array_equal(row.input_ids[:-1], query.input_ids)
    np.testing.assert_array_equal(row.loss_mask[:-1], query.loss_mask)


def test_prompts_to_generate_from_are_not_closed(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(bos=True, closed=True)
    ids = Encoder(tokenizer).prompt_ids(PROMPT)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == PROMPT


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((PROMPT, ""), "an empty output"),
        ((PROMPT, "Sydney", (2, 9)), "span 2..9 in an output of 6 characters"),
        ((PROMPT, "Sydney", (2, 2)), "span 2..2"),
        ((PROMPT, " and" * 40), "at most 32"),
        (("", "a"), "no token to count the loss of in the output 'a'"),
    ],
)
def test_queries_that_cannot_be_measured(make_tokenizer: MakeTokenizer, arguments: tuple[Any, ...], words: str) -> None:
    encoder = Encoder(make_tokenizer(), TokenFormat(max_length=32))
    prompt, output, *span = arguments
    with pytest.raises(DataError, match=re.escape(words)):
        encoder.query(prompt, output, span=span[0] if span else None)


def test_what_a_slow_tokenizer_cannot_do(make_tokenizer: MakeTokenizer) -> None:
    class Slow:
        """A tokenizer that knows no offsets."""

        is_fast = False

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self._inner(*args, **kwargs)

    for template in ("chatml", "marked"):
        encoder = Encoder(Slow(make_tokenizer(template=template)))  # type: ignore[arg-type]
        assert encoder.query(PROMPT, " Sydney").targets > 0
        with pytest.raises(ModelError, match="fast tokenizer"):
            encoder.query(PROMPT, " Sydney", span=(0, 3))
        with pytest.raises(ModelError, match="fast tokenizer"):
            encoder.example(Examples.from_rows([{"messages": TALK}])[0])


def test_unknown_template(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(UsageError, match='template "llama"'):
        Encoder(make_tokenizer(), template="llama")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="chat rows and a tokenizer without a chat template"):
        Encoder(make_tokenizer(), template="chat")
