"""No built-in formatter ignores a column with a part of the prompt; all ignore metadata."""

import pytest
from formatter_rows import ANSWER, DESCRIBES, ROWS, USER, formatters

from solar_plugins.data.formatters import sft_formatters
from solar_plugins.data.formatters.base import RowError
from solar_plugins.data.formatters.columns import PROMPT_COLUMNS, QUESTION_COLUMNS, SYSTEM_COLUMNS, wanted_columns


def test_every_built_in_formatter_is_tested_and_declares_its_columns():
    assert ROWS.keys() == formatters().keys()
    for name, row in ROWS.items():
        assert set(row) <= wanted_columns(formatters()[name])


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("column", PROMPT_COLUMNS)
def test_a_nonempty_prompt_column_is_used_or_the_row_is_bad(records, name, column):
    for value in ("ZEBRA", ["ZEBRA"], [{"role": "user", "content": "ZEBRA"}], {"xml_tools": ["ZEBRA"]}, 7):
        try:
            assert "ZEBRA" in records(name, ROWS[name] | {column: value})
        except RowError:
            continue


@pytest.mark.parametrize("name", ROWS)
def test_every_formatter_reads_a_system_message(records, name):
    for column in SYSTEM_COLUMNS:
        assert "### System:\nZEBRA\n\n### User:" in records(name, ROWS[name] | {column: "ZEBRA"})
    assert "ZEBRA" in records(name, ROWS[name] | {"system": "ZEBRA", "system_prompt": "ZEBRA"})
    with pytest.raises(RowError, match="system_prompt differs from system"):
        records(name, ROWS[name] | {"system": "ZEBRA", "system_prompt": "LION"})


@pytest.mark.parametrize("name", ROWS)
def test_metadata_and_empty_columns_change_nothing(records, name):
    plain = records(name, ROWS[name])
    assert records(name, DESCRIBES | ROWS[name]) == plain
    unused = [column for column in PROMPT_COLUMNS if column not in ROWS[name]]
    for nothing in (None, "", " "):
        assert records(name, ROWS[name] | dict.fromkeys(unused, nothing)) == plain
    unused = [column for column in unused if column not in QUESTION_COLUMNS]
    for nothing in ([], {}, "[]", "{}", "null", False, [None], {"xml_tools": [], "custom": None}):
        assert records(name, ROWS[name] | dict.fromkeys(unused, nothing)) == plain


def test_a_prompt_that_is_also_in_the_conversation_changes_nothing(records):
    """UltraChat 200k, no_robots and UltraFeedback have it in addition to the messages."""
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
def test_a_short_text_that_happens_to_be_part_of_a_word_does_not_count_as_read(records, row, column):
    with pytest.raises(RowError, match=f"{next(iter(column))} is filled, but .*metamath"):
        records("metamath", row | column)


def test_a_prompt_that_repeats_the_row_in_alpacas_wording_changes_nothing(records):
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


def test_nan_is_a_missing_value(records):
    assert records("alpaca", ROWS["alpaca"] | {"input": float("nan"), "system": float("nan")}) == records(
        "alpaca", ROWS["alpaca"]
    )
    with pytest.raises(RowError, match=r"output .*float, expected a string"):
        records("alpaca", ROWS["alpaca"] | {"output": float("nan")})


def test_a_system_message_in_a_column_and_in_the_conversation(records):
    row = {"messages": [{"role": "system", "content": "ZEBRA"}, USER, ANSWER]}
    assert records("messages", row | {"system": "ZEBRA"}).count("ZEBRA") == 1
    with pytest.raises(RowError, match="system differs from the conversation's own system message"):
        records("messages", row | {"system": "LION"})


def test_the_history_of_an_alpaca_row_comes_first_and_is_trained_on():
    row = ROWS["alpaca"] | {"system": "s", "history": [["q", "first"], ["r", "second"]]}
    roles = ["system", "user", "assistant", "user", "assistant", "user", "assistant"]
    contents = ["s", "q", "first", "r", "second", "u", "a"]
    assert sft_formatters()["alpaca"].to_messages(row) == [
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=True)
    ]
    for bad in ([["q"]], [["q", ""]], "q", [{"q": "a"}], [["q", None]]):
        with pytest.raises(RowError, match=r"^history"):
            sft_formatters()["alpaca"].to_messages(ROWS["alpaca"] | {"history": bad})
