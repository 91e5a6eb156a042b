"""No built-in formatter ignores a column or a key that changes the meaning of a row; all ignore what describes it."""

import pytest

from solar_plugins.data.encoder import make_encoder
from solar_plugins.data.formatters import preference_formatters, sft_formatters, unpaired_formatters
from solar_plugins.data.formatters.base import (
    LEARNING_MARKS,
    NO_PLACE_IN_TEMPLATE,
    PARTIAL_MARKS,
    RowError,
    read_message,
    read_messages,
)
from solar_plugins.data.formatters.columns import PROMPT_COLUMNS, QUESTION_COLUMNS, SYSTEM_COLUMNS, wanted_columns
from solar_plugins.data.row_encoder import RowEncoder
from solar_plugins.data.training_records import TrainingRecords

USER, ANSWER = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}
PAIR = {"chosen": "a", "rejected": "b"}
LISTS = {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER | {"content": "b"}]}
ROWS = {
    "alpaca": {"instruction": "u", "input": "", "output": "a"},
    "alpaca_prompt": {"instruction": "u", "input": "", "output": "a"},
    "openorca": {"question": "u", "response": "a"},
    "metamath": {"query": "u", "response": "a"},
    "messages": {"messages": [USER, ANSWER]},
    "sharegpt": {"conversations": [HUMAN, GPT]},
    "preference": {"prompt": "u", **PAIR},
    "orca_dpo_pairs": {"question": "u", **PAIR},
    "ultrafeedback_binarized": LISTS,
    "ultrafeedback_scores": {
        "instruction": "u",
        "completions": [{"response": "a", "overall_score": 9}, {"response": "b", "overall_score": 1}],
    },
    "math_pairs": {"rephrased_question": "u", "rephrased_answer": "a", "original_answer": "b"},
    "sharegpt_pairs": {"conversations": [HUMAN], **PAIR},
    "hh_rlhf": {name: f"\n\nHuman: u\n\nAssistant: {name}" for name in PAIR},
    "unpaired_preference": {"prompt": "u", "completion": "a", "label": True},
}
DESCRIBES = {
    # columns of published sets: tatsu-lab/alpaca, OpenOrca, MetaMathQA, OpenHermes 2.5, UltraFeedback, argilla
    **{"text": "x", "id": "flan.1", "type": "GSM_SV", "original_question": "x", "source": "x", "category": "x"},
    **{"custom_instruction": True, "skip_prompt_formatting": False, "model_name": "x", "language": "en", "views": 3},
    **{"prompt_id": "x", "messages_": [USER], "score": 3.5, "margin": 1, "status": "unchanged", "rationale": "x"},
    **{"generations": ["x"], "in_gsm8k_train": False, "chosen-model": "x", "correct_answers": ["None"]},
}


def formatters():
    return {**sft_formatters(), **preference_formatters(), **unpaired_formatters()}


@pytest.fixture
def records(tokenizer):
    """What a formatter makes of a row; a bad row's problem."""

    def read(name, row):
        encoder = RowEncoder(formatters()[name], make_encoder(tokenizer, "test"), 512)
        batch = TrainingRecords(encoder).read_batch({column: [value] for column, value in row.items()}, [0])
        if problem := batch["solar_problem"][0]:
            raise RowError("row", problem)
        parts = [batch[column][0] for column in ("prompt", "chosen", "rejected", "completion") if column in batch]
        return "".join(parts) if parts else tokenizer.decode(batch["input_ids"][0])

    return read


def test_every_built_in_formatter_is_walked_and_says_what_it_reads():
    assert ROWS.keys() == formatters().keys()
    for name, row in ROWS.items():
        assert set(row) <= wanted_columns(formatters()[name])


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("column", PROMPT_COLUMNS)
def test_a_filled_column_of_the_prompt_is_read_or_makes_the_row_bad(records, name, column):
    for value in ("ZEBRA", ["ZEBRA"], [{"role": "user", "content": "ZEBRA"}], {"xml_tools": ["ZEBRA"]}, 7):
        try:
            assert "ZEBRA" in records(name, ROWS[name] | {column: value})
        except RowError:
            continue


@pytest.mark.parametrize("name", ROWS)
def test_every_formatter_reads_a_system_text(records, name):
    for column in SYSTEM_COLUMNS:
        assert "### System:\nZEBRA\n\n### User:" in records(name, ROWS[name] | {column: "ZEBRA"})
    assert "ZEBRA" in records(name, ROWS[name] | {"system": "ZEBRA", "system_prompt": "ZEBRA"})
    with pytest.raises(RowError, match="system_prompt differs from system"):
        records(name, ROWS[name] | {"system": "ZEBRA", "system_prompt": "LION"})


@pytest.mark.parametrize("name", ROWS)
def test_columns_that_describe_a_row_and_empty_ones_change_nothing(records, name):
    plain = records(name, ROWS[name])
    assert records(name, DESCRIBES | ROWS[name]) == plain
    unused = [column for column in PROMPT_COLUMNS if column not in ROWS[name]]
    for nothing in (None, "", " "):
        assert records(name, ROWS[name] | dict.fromkeys(unused, nothing)) == plain
    unused = [column for column in unused if column not in QUESTION_COLUMNS]
    for nothing in ([], {}, "[]", "{}", "null", False, [None], {"xml_tools": [], "custom": None}):
        assert records(name, ROWS[name] | dict.fromkeys(unused, nothing)) == plain


def test_a_prompt_that_stands_in_the_conversation_too_changes_nothing(records):
    """UltraChat 200k, no_robots and UltraFeedback have it beside the messages."""
    for name in ("messages", "ultrafeedback_binarized", "sharegpt"):
        assert records(name, ROWS[name] | {"prompt": "u"}) == records(name, ROWS[name])
        assert records(name, ROWS[name] | {"prompt": [USER]}) == records(name, ROWS[name])


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"query": "What is 13?", "response": "a"}, {"input": "3"}),
        ({"query": "Hi there", "response": "ok"}, {"history": [["Hi", "ok"]]}),
    ],
)
def test_a_short_text_that_is_a_piece_of_another_by_chance_is_not_taken_for_read(records, row, column):
    with pytest.raises(RowError, match=f"{next(iter(column))} is filled, but metamath has no place for it"):
        records("metamath", row | column)


def test_a_prompt_that_writes_the_row_out_in_alpacas_words_changes_nothing(records):
    """iamtarun/python_code_instructions_18k_alpaca has such a column."""
    row = {"instruction": "Sum the list", "input": "[1, 2]", "output": "sum([1, 2])"}
    words = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSum the list\n\n### Input:\n[1, 2]\n\n### Output:\nsum([1, 2])"
    )
    assert records("alpaca", row | {"prompt": words}) == records("alpaca", row)
    for other in (words.replace("[1, 2]", "[3, 4]"), f"You are a pirate. {words}"):
        with pytest.raises(RowError, match="prompt is filled"):
            records("alpaca", row | {"prompt": other})


def test_what_pandas_writes_for_a_missing_value_is_none(records):
    assert records("alpaca", ROWS["alpaca"] | {"input": float("nan"), "system": float("nan")}) == records(
        "alpaca", ROWS["alpaca"]
    )
    with pytest.raises(RowError, match="output is a float"):
        records("alpaca", ROWS["alpaca"] | {"output": float("nan")})


def test_a_system_text_beside_and_in_a_conversation(records):
    row = {"messages": [{"role": "system", "content": "ZEBRA"}, USER, ANSWER]}
    assert records("messages", row | {"system": "ZEBRA"}).count("ZEBRA") == 1
    with pytest.raises(RowError, match="system differs from the conversation's own system message"):
        records("messages", row | {"system": "LION"})


def test_the_history_of_an_alpaca_row_comes_first_and_its_answers_are_learnt():
    row = ROWS["alpaca"] | {"system": "s", "history": [["q", "first"], ["r", "second"]]}
    roles = ["system", "user", "assistant", "user", "assistant", "user", "assistant"]
    contents = ["s", "q", "first", "r", "second", "u", "a"]
    assert sft_formatters()["alpaca"].to_messages(row) == [
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=True)
    ]
    for bad in ([["q"]], [["q", ""]], "q", [{"q": "a"}], [["q", None]]):
        with pytest.raises(RowError, match=r"^history"):
            sft_formatters()["alpaca"].to_messages(ROWS["alpaca"] | {"history": bad})


@pytest.mark.parametrize("key", NO_PLACE_IN_TEMPLATE)
def test_a_message_that_says_what_the_template_cannot_is_refused(key):
    for value in ("x", [{"name": "weather"}], {"name": "weather"}, 1):
        with pytest.raises(RowError, match=rf"^m\.{key} is filled"):
            read_message(ANSWER | {key: value}, "m")
    for nothing in (None, "", [], {}, "[]", False):
        assert read_message(ANSWER | {key: nothing}, "m") == ANSWER


@pytest.mark.parametrize("role", ["tool", "function", "function_call", "observation", "ipython", "developer", "bing"])
def test_roles_without_a_place_in_the_template_are_refused(role):
    with pytest.raises(RowError, match="expected one of system, user"):
        read_messages([USER, {"role": role, "content": "x"}, ANSWER], "m")


def test_content_parts():
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]
    assert read_message({"role": "user", "content": parts}, "m") == {"role": "user", "content": "2 + 2?"}
    for other in ({"type": "image_url", "image_url": {}}, {"type": "text"}, {"type": "input_audio"}, "text"):
        with pytest.raises(RowError, match=r"^m\.content is a list, expected a text"):
            read_message({"role": "user", "content": [*parts, other]}, "m")


@pytest.mark.parametrize("key", LEARNING_MARKS)
def test_marks_of_answers_that_are_not_learnt(key):
    for no in (0, 0.0, False):
        assert read_message(ANSWER | {key: no}, "m") == ANSWER | {"learn": False}
        assert read_message(USER | {key: no}, "m") == USER
    for yes in (1, 1.0, True, None):
        assert read_message(ANSWER | {key: yes}, "m") == ANSWER
    for value in (0.5, "0", 2, []):
        with pytest.raises(RowError, match=rf"^m\.{key} is .*, expected 0 \(not trained on\) or 1"):
            read_message(ANSWER | {key: value}, "m")


def test_a_mask_is_the_opposite_of_these_marks():
    assert read_message(ANSWER | {"masked": True}, "m") == ANSWER | {"learn": False}
    assert read_message(ANSWER | {"masked": False}, "m") == ANSWER
    for masked in (True, False):
        assert read_message(USER | {"masked": masked}, "m") == USER
    with pytest.raises(RowError, match=r"^m\.masked is 'no', expected 1 \(not trained on\) or 0"):
        read_message(ANSWER | {"masked": "no"}, "m")


def test_marks_of_other_messages():
    assert read_message(USER | {"weight": 1}, "m") == USER, "OpenAI defines it for answers alone"
    for key in ("train", "training", "loss"):
        with pytest.raises(RowError, match="asks to train on the user's text"):
            read_message(USER | {key: True}, "m")


@pytest.mark.parametrize("key", PARTIAL_MARKS)
def test_marks_of_parts_of_an_answer_are_refused(key):
    """Axolotl's docs/dataset-formats/conversation.qmd."""
    with pytest.raises(RowError, match=rf"^m\.{key} asks to train on a part"):
        read_message(ANSWER | {key: [{"begin_offset": 0, "end_offset": 0, "train": False}]}, "m")
    assert read_message(ANSWER | {key: None}, "m") == ANSWER


def test_slim_orca_marks_every_message(records):
    weights = [("system", "s", None), ("human", "u", 0.0), ("gpt", "a", 1.0)]
    row = {"conversations": [{"from": who, "value": text, "weight": weight} for who, text, weight in weights]}
    assert records("sharegpt", row).endswith("### System:\ns\n\n### User:\nu\n\n### Assistant:\na</s>")
