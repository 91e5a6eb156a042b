import random

import pytest

from solar_plugins.data.encoder import make_encoder
from solar_plugins.data.formatters import preference_formatters, sft_formatters
from solar_plugins.data.formatters.base import (
    NothingToLearn,
    PreferenceFormatter,
    PreferencePair,
    RowError,
    SFTFormatter,
    question,
    text,
)
from solar_plugins.data.row_encoder import RowEncoder
from solar_plugins.data.template import template_text

PAIR = {"question": "u", "chosen": "good", "rejected": "bad and longer"}
INSTRUCTION = {"instruction": "u", "output": "good"}
PROMPT = "### User:\nu\n\n### Assistant:\n"


@pytest.fixture
def encoder(tokenizer):
    def make(name, **options):
        formatter = {**sft_formatters(), **preference_formatters()}[name]
        return RowEncoder(formatter, make_encoder(tokenizer, "test"), **({"max_length": 64} | options))

    return make


def in_loss(tokenizer, answer):
    return tokenizer.decode([label for label in answer.tokens.labels if label >= 0])


def test_a_row_of_instructions(encoder, tokenizer):
    [answer] = encoder("alpaca").conversation(INSTRUCTION)
    assert answer.messages == question("u")
    assert (answer.prompt, answer.completion) == (PROMPT, "good</s>")
    assert answer.tokens.input_ids == tokenizer(PROMPT + "good</s>")["input_ids"]
    assert in_loss(tokenizer, answer) == "good</s>"
    assert answer.num_tokens == len(answer.tokens.input_ids) == len(answer.tokens.labels)
    assert not answer.cut


def test_each_answer_of_a_conversation_is_encoded_with_its_context(encoder, tokenizer):
    turns = [("user", "u"), ("assistant", "good"), ("user", "v"), ("assistant", "bye")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    answers = encoder("messages").conversation(row)
    assert [in_loss(tokenizer, answer) for answer in answers] == ["good</s>", "bye</s>"]
    assert [answer.messages for answer in answers] == [row["messages"][:1], row["messages"][:3]]
    assert tokenizer.decode(answers[1].tokens.input_ids).endswith("good### User:\nv\n\n### Assistant:\nbye</s>")


TURNS = [("system", "s"), ("user", "u"), ("assistant", "good"), ("user", "v"), ("assistant", " bye\n")]
CHAT = [{"role": role, "content": content} for role, content in TURNS]


def whole(encoder, messages, **options):
    return encoder("messages", whole_conversations=True, **options).conversation({"messages": messages})


def test_a_conversation_as_one_example(encoder, tokenizer):
    [answer] = whole(encoder, CHAT)
    assert answer.tokens.input_ids == [
        tokenizer.bos_token_id,
        *tokenizer.apply_chat_template(CHAT, chat_template=template_text(), tokenize=True, return_dict=False),
        tokenizer.eos_token_id,
    ], "what the template gives for the conversation, and the end"
    assert in_loss(tokenizer, answer) == "good bye\n</s>"
    assert (answer.messages, answer.completion) == (CHAT[:4], " bye\n</s>")
    labels = answer.tokens.labels
    runs = [label >= 0 and labels[place - 1] < 0 for place, label in enumerate(labels)]
    assert sum(runs) == 2, "two runs of labels: the turns between the answers are masked"


def test_masked_answers_are_not_trained_on_in_either_form(encoder, tokenizer):
    marked = [*CHAT[:2], CHAT[2] | {"weight": 0}, *CHAT[3:]]
    [answer] = encoder("messages").conversation({"messages": marked})
    assert in_loss(tokenizer, answer) == "bye\n</s>"
    assert len(answer.notes) == 1
    [answer] = whole(encoder, marked)
    assert in_loss(tokenizer, answer) == "bye\n</s>"
    [answer] = whole(encoder, [*CHAT[:4], CHAT[4] | {"weight": 0}])
    assert in_loss(tokenizer, answer) == "good</s>", "it ends with the last answer that is trained on"
    with pytest.raises(NothingToLearn, match="weight: 0"):
        whole(encoder, [CHAT[1], CHAT[2] | {"weight": 0}])


def test_a_conversation_that_is_too_long_ends_with_the_last_answer_that_fits(encoder, tokenizer):
    [first] = whole(encoder, CHAT[:3])
    length = first.num_tokens
    kept, left_out = whole(encoder, CHAT, max_length=length)
    assert kept == first
    assert left_out.too_long
    assert [answer.too_long for answer in whole(encoder, CHAT, max_length=length - 1)] == [True, True]
    [cut] = whole(encoder, CHAT, max_length=length, truncate=True)
    assert (cut.cut, len(cut.tokens.input_ids)) == (True, length)


def test_a_pair(encoder, tokenizer):
    pair = encoder("orca_dpo_pairs").pair(PAIR, 4)
    assert pair.row == 5, "counted from 1"
    assert [(answer.prompt, answer.completion) for answer in pair[1:]] == [
        (PROMPT, "good</s>"),
        (PROMPT, "bad and longer</s>"),
    ]
    for answer in pair[1:]:
        assert answer.tokens.input_ids == tokenizer(PROMPT + answer.completion)["input_ids"]
        assert in_loss(tokenizer, answer) == answer.completion
    assert (pair.too_long, pair.cut) == (False, False)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (PAIR | {"rejected": " good "}, "chosen equals rejected"),
        (PAIR | {"chosen": ""}, "chosen is empty"),
        (PAIR | {"chosen": "a</s>b"}, "the assistant message .*'</s>'"),
        (PAIR | {"question": "a<s>b"}, "the user message .*'<s>'"),
    ],
)
def test_bad_pairs(encoder, row, problem):
    with pytest.raises(RowError, match=f"^{problem}$"):
        encoder("orca_dpo_pairs").pair(row, 0)


def test_the_length_counts_bos_prompt_answer_and_eos(encoder, tokenizer):
    length = len(tokenizer(PROMPT + "good</s>")["input_ids"])
    for room, too_long in ((length, False), (length - 1, True)):
        assert [answer.too_long for answer in encoder("alpaca", max_length=room).conversation(INSTRUCTION)] == [
            too_long
        ]


def test_the_longer_answer_of_a_pair_counts(encoder, tokenizer):
    length = len(tokenizer(PROMPT + "bad and longer</s>")["input_ids"])
    for room, too_long in ((length, False), (length - 1, True)):
        assert encoder("orca_dpo_pairs", max_length=room).pair(PAIR, 0).too_long == too_long


def test_with_truncation_only_the_prompt_has_to_fit(encoder, tokenizer):
    length = len(tokenizer(PROMPT)["input_ids"])
    whole = tokenizer(PROMPT + "bad and longer</s>")["input_ids"]
    pair = encoder("orca_dpo_pairs", max_length=length + 2, truncate=True).pair(PAIR, 0)
    assert pair.rejected.tokens.input_ids == whole[: length + 2]
    assert pair.rejected.tokens.labels == [-100] * length + whole[length : length + 2]
    assert (pair.rejected.cut, pair.chosen.cut, pair.cut, pair.too_long) == (True, False, True, False)
    assert pair.rejected.completion == "bad and longer</s>", "Axolotl cuts the texts of pairs"
    assert encoder("orca_dpo_pairs", max_length=length, truncate=True).pair(PAIR, 0).too_long
    [answer] = encoder("alpaca", max_length=length + 1, truncate=True).conversation(INSTRUCTION)
    assert (len(answer.tokens.input_ids), answer.cut, answer.too_long) == (length + 1, True, False)
    [answer] = encoder("alpaca", max_length=length, truncate=True).conversation(INSTRUCTION)
    assert answer.too_long


def test_random_choices_depend_on_seed_and_row_alone(tokenizer):
    def drawn(row, rng):
        return PreferencePair(question("u"), "chosen", str(rng.random()))

    formatter = PreferenceFormatter(name="drawn", columns=(), to_pair=drawn, summary="")

    def rejected(indices, seed):
        encoder = RowEncoder(formatter, make_encoder(tokenizer, "test"), 99, seed=seed)
        return [encoder.pair({}, index).rejected.completion for index in indices]

    assert rejected([5, 6, 7], 1) == rejected([5], 1) + rejected([6, 7], 1)
    assert len({*rejected([5, 6, 7], 1), *rejected([5, 6, 7], 2)}) == 6
    assert rejected([5], 1) == [f"{random.Random('1:5').random()}</s>"]


@pytest.mark.parametrize(
    ("to_messages", "problem"),
    [
        (
            lambda row: text(row["x"], "x") / 2,
            r"^quiz failed with TypeError: unsupported .* \(test_row_encoder\.py:\d+\)$",
        ),
        (lambda row: None, "^quiz failed with TypeError: 'NoneType' object is not iterable$"),
        (lambda row: question("u"), "^quiz .*without an answer"),
        (lambda row: [{"role": "bot", "content": "Hi"}, *question("u")], "^quiz .*'bot', expected one of system, user"),
        (lambda row: text(None, "y"), "^y is missing"),
    ],
)
def test_a_formatter_that_fails_makes_a_bad_row_under_its_name(tokenizer, to_messages, problem):
    formatter = SFTFormatter(name="quiz", columns=("x",), to_messages=to_messages, summary="")
    with pytest.raises(RowError, match=problem):
        RowEncoder(formatter, make_encoder(tokenizer, "test"), 64).conversation({"x": "a"})


def test_with_the_debug_switch_a_formatters_exception_is_raised(tokenizer, monkeypatch):
    formatter = SFTFormatter(name="quiz", columns=("x",), to_messages=lambda row: row["x"] / 2, summary="")
    rows = RowEncoder(formatter, make_encoder(tokenizer, "test"), 64)
    monkeypatch.setenv("SOLAR_PLUGINS_DEBUG", "0")
    with pytest.raises(RowError):
        rows.conversation({"x": "a"})
    monkeypatch.setenv("SOLAR_PLUGINS_DEBUG", "1")
    with pytest.raises(TypeError, match="unsupported operand"):
        rows.conversation({"x": "a"})


def test_a_formatter_of_the_wrong_kind_is_a_type_error(encoder):
    with pytest.raises(TypeError, match="the formatter alpaca is a SFTFormatter"):
        encoder("alpaca").pair(INSTRUCTION, 0)
    with pytest.raises(TypeError, match="the formatter orca_dpo_pairs is a PreferenceFormatter"):
        encoder("orca_dpo_pairs").conversation(PAIR)
