"""Ids and labels, against literal pieces and against Axolotl's own `type: chat_template` with the same template."""

import copy

import pytest

from solar_plugins.data.encoder import IGNORED_LABEL, make_encoder
from solar_plugins.data.formatters import sft_formatters
from solar_plugins.data.formatters.base import RowError, single_turn
from solar_plugins.data.row_encoder import RowEncoder
from solar_plugins.data.template import Example, examples, template_text
from solar_plugins.errors import DataError

TRICKY = [
    ("Write a loop.", "for i in range(3):\n    print(i)\n\n\tdone"),
    ("  What is\u00a0it? ", "\u00dcber 12,345.67 \u20ac \u2014 \u65e5\u672c\u8a9e \U0001f600!"),
    ("### User:\nWho?", "### Assistant:\nMe.\n\n### User:\nWho?"),
    ("a", "b"),
    ("[[dummy_message]]", "### is a header. \u200b#"),
    ("Spell <|im_end|> [INST]", "\u0301combining, \ufeffmark, 1\ufe0f\u20e3"),
]


def axolotl_strategy(tokenizer, **options):
    """The strategy that `type: chat_template` gets in a recipe with `chat_template: solar`."""
    from axolotl.prompt_strategies.chat_template import ChatTemplatePrompter, ChatTemplateStrategy

    prompter = ChatTemplatePrompter(
        tokenizer, template_text(), max_length=10**6, chat_template_kwargs={"end_answers": True}, **options
    )
    return ChatTemplateStrategy(
        prompter,
        tokenizer,
        train_on_inputs=False,
        sequence_len=10**6,
        roles_to_train=["assistant"],
        train_on_eos="turn",
    )


def axolotls(tokenizer, messages):
    """What Axolotl returns for a conversation if only the last answer is trained on."""
    marked = [message | {"training": number == len(messages) - 1} for number, message in enumerate(messages)]
    result = axolotl_strategy(tokenizer, message_field_training="training").tokenize_prompt({"messages": marked})
    return result["input_ids"], result["labels"]


def compare(tokenizer, conversations):
    encoder = make_encoder(tokenizer, "test")
    compared = 0
    for messages in conversations:
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        for number, example in zip(answers, examples(messages), strict=True):
            ids, labels = encoder.encode(example)
            expected_ids, expected_labels = axolotls(tokenizer, messages[: number + 1])
            start = len(encoder.start_ids)
            assert ids[start:] == expected_ids
            assert labels == [IGNORED_LABEL] * start + expected_labels
            compared += 1
    return compared


def test_ids_and_labels_piece_by_piece(tokenizer):
    """`###` is 774 at the start of a text and 27332 after a line break."""
    ids, labels = make_encoder(tokenizer, "test").encode(Example("### User:\nHi\n\n### Assistant:\n", "Hello.\n### Ok"))
    pieces = [
        "<s>", "\u2581###", "\u2581User", ":", "<0x0A>", "Hi", "<0x0A>", "<0x0A>", "##", "#", "\u2581Ass", "istant",
        ":", "<0x0A>", "Hello", ".", "<0x0A>", "##", "#", "\u2581Ok", "</s>",
    ]  # fmt: skip
    found = tokenizer.convert_ids_to_tokens(ids)
    assert "".join(found) == "".join(pieces)
    assert (ids[0], ids[1], ids[-1]) == (1, 774, 2)
    assert ids.count(774) == 1
    assert ids.count(27332) == 2
    learnt = [token for token in labels if token != IGNORED_LABEL]
    assert labels == [IGNORED_LABEL] * (len(ids) - len(learnt)) + learnt, "one run of labels at the end"
    assert learnt == ids[-len(learnt) :]
    assert tokenizer.convert_ids_to_tokens(learnt)[0] == "Hello"
    assert tokenizer.decode(learnt) == "Hello.\n### Ok</s>"


def test_a_tokenizer_without_bos_gets_none(plain_tokenizer):
    ids, labels = make_encoder(plain_tokenizer, "test").encode(Example("### User:\nHi\n\n### Assistant:\n", "Yo"))
    assert ids[0] == 774
    assert plain_tokenizer.decode([token for token in labels if token != IGNORED_LABEL]) == "Yo</s>"


def test_an_eos_that_the_tokenizer_adds_is_not_doubled(tokenizer):
    from tokenizers.processors import TemplateProcessing

    ending = copy.deepcopy(tokenizer)
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    encoder = make_encoder(ending, "test")
    assert (encoder.start_ids, encoder.added_end_ids) == ((1,), (2,))
    example = Example("### User:\nHi\n\n### Assistant:\n", "Yo")
    assert encoder.encode(example) == make_encoder(tokenizer, "test").encode(example)
    assert make_encoder(tokenizer, "test").added_end_ids == ()


@pytest.mark.parametrize("name", ["tokenizer", "plain_tokenizer"])
def test_axolotls_own_path_agrees_on_tricky_texts(name, request):
    conversations = [single_turn(user.strip(), answer) for user, answer in TRICKY]
    conversations += [single_turn(user.strip(), answer, "Be kind.") for user, answer in TRICKY]
    several = [message for user, answer in TRICKY for message in single_turn(user.strip(), answer)]
    assert compare(request.getfixturevalue(name), [*conversations, several]) == 3 * len(TRICKY)


CONVERSATIONS = [
    [message for user, answer in TRICKY for message in single_turn(user.strip(), answer.rstrip("#"))],
    [*single_turn("Who?", "Me.", "Be kind."), *single_turn("Sure?", "Yes...")],
    [*single_turn("Who?", "Me.", ""), *single_turn("a", "b!"), *single_turn("c", "12\n\n    d")],
]
FIELD_ROWS = [
    ("alpaca", {"instruction": "Add.", "input": "1, 2", "output": "3"}, single_turn("Add.\n\n1, 2", "3")),
    ("alpaca", {"instruction": "Add.", "input": "", "output": "3"}, single_turn("Add.", "3")),
    ("alpaca", {"instruction": "Add.", "input": None, "output": "3", "system": ""}, single_turn("Add.", "3")),
    ("alpaca", {"instruction": "Add.", "output": "3", "system": "Be kind."}, single_turn("Add.", "3", "Be kind.")),
    ("openorca", {"system_prompt": " ", "question": "Who?", "response": "Me."}, single_turn("Who?", "Me.")),
    *(("messages", {"messages": one, "tools": None}, one) for one in CONVERSATIONS),
    ("messages", {"messages": [{"role": "system", "content": ""}, *CONVERSATIONS[0]]}, CONVERSATIONS[0]),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "Na\u00efve?"},
                {"from": "gpt", "value": "\u65e5 \U0001f600"},
            ]
        },
        single_turn("Na\u00efve?", "\u65e5 \U0001f600"),
    ),
]


@pytest.mark.parametrize("name", ["tokenizer", "plain_tokenizer"])
@pytest.mark.parametrize(("formatter", "row", "messages"), FIELD_ROWS)
def test_axolotls_own_path_agrees_on_rows_as_one_example_each(name, formatter, row, messages, request):
    """With `examples_per: conversation`, the form that `type: chat_template` has too: the loss covers all answers."""
    tokenizer = request.getfixturevalue(name)
    encoder = make_encoder(tokenizer, "test")
    rows = RowEncoder(sft_formatters()[formatter], encoder, 10**6, whole_conversations=True)
    expected = axolotl_strategy(tokenizer).tokenize_prompt({"messages": messages})
    (answer,) = rows.conversation(row)
    start = list(encoder.start_ids)
    assert answer.tokens.input_ids == start + expected["input_ids"]
    assert answer.tokens.labels == [IGNORED_LABEL] * len(start) + expected["labels"]


def test_the_known_difference_a_token_of_an_answer_and_the_next_header(tokenizer):
    """Axolotl trains on it, we do not: the model never has to write a part of a header."""
    messages = [*single_turn("a", "b #"), *single_turn("c", "d")]
    ids, ours = make_encoder(tokenizer, "test").encode_conversation(messages)
    theirs = axolotl_strategy(tokenizer).tokenize_prompt({"messages": messages})
    assert ids[1:] == theirs["input_ids"]
    different = [number for number, label in enumerate(theirs["labels"], start=1) if label != ours[number]]
    assert tokenizer.convert_ids_to_tokens([ids[number] for number in different]) == ["\u2581####"]


@pytest.mark.network
@pytest.mark.slow
def test_axolotls_own_path_agrees_on_real_rows(tokenizer, real_rows):
    rows = real_rows("alpaca_en_demo.json")
    conversations = [sft_formatters()[name].to_messages(row) for row in rows for name in ("alpaca", "alpaca_prompt")]
    assert compare(tokenizer, conversations) == 2 * 999


def test_the_comparison_detects_a_difference(tokenizer, monkeypatch):
    """A mask that starts one token early, as one that looks for the header's ids would."""
    from solar_plugins.data import encoder as encoding

    right = encoding.Encoder.encode
    monkeypatch.setattr(
        encoding.Encoder, "encode", lambda self, example: right(self, Example(example.prompt[:-1], example.answer))
    )
    with pytest.raises(AssertionError):
        compare(tokenizer, [single_turn("a", "b")])


def test_training_prompts_equal_inference_prompts(tokenizer):
    """The training ids start with `tokenizer(prompt)`, as at inference."""
    messages = single_turn("Who?", "Me.", "Be kind.")
    prompt = tokenizer.apply_chat_template(
        messages[:-1], chat_template=template_text(), tokenize=False, add_generation_prompt=True
    )
    asked = tokenizer(prompt)["input_ids"]
    (example,) = examples(messages)
    assert make_encoder(tokenizer, "test").encode(example).input_ids[: len(asked)] == asked


def test_literal_special_tokens_are_rejected(tokenizer):
    encoder = make_encoder(tokenizer, "test")
    encoder.check_messages(single_turn("a < b > c", "<S>"))
    with pytest.raises(RowError, match=r"^the user message .*'</s>'$"):
        encoder.check_messages(single_turn("a</s>b", "c"))
    with pytest.raises(RowError, match=r"^the assistant message .*'<s>'$"):
        encoder.check_messages(single_turn("a", "<s>struck out"))


def changed(tokenizer, **attributes):
    copy = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    for name, value in attributes.items():
        setattr(copy, name, value)
    return copy


def test_a_tokenizer_without_eos(tokenizer):
    with pytest.raises(DataError, match=r"the tokenizer of base has no EOS token.*\n.*eos_token: </s>"):
        make_encoder(changed(tokenizer, eos_token=None), "base")


def test_a_tokenizer_that_splits_its_own_eos():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"a": 0, "<": 1, "end": 2, ">": 3, "[UNK]": 4}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Punctuation()
    broken = PreTrainedTokenizerFast(tokenizer_object=inner)
    broken._special_tokens_map["eos_token"] = "<end>"
    with pytest.raises(DataError, match=r"tokenizer of base .*'<end>' as \[1, 2, 3\]"):
        make_encoder(broken, "base")


def test_a_slow_tokenizer():
    class Slow:
        eos_token, eos_token_id, is_fast = "</s>", 2, False

        def __call__(self, text, **_):
            return {"input_ids": [2]}

    with pytest.raises(DataError, match=r"tokenizer of base is not a fast tokenizer.*tokenizer\.json"):
        make_encoder(Slow(), "base")
