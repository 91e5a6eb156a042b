"""Each formatter of instruction sets: one row of its set's shape, and exactly its text in SOLAR's format."""

import pytest

from solar_plugins.data.formatters import sft_formatters
from solar_plugins.data.formatters.base import RowError
from solar_plugins.data.template import render

# Alpaca's prompt texts as its authors print them (tatsu-lab/stanford_alpaca, README, "Data Release").
PRINTED_WITH_INPUT = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
Add.

### Input:
1, {2}

### Response:"""
PRINTED_WITHOUT_INPUT = """\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
Say hi.

### Response:"""

TURNS = [("human", "u1"), ("gpt", "a1"), ("human", "u2"), ("gpt", "a2")]
CASES = {
    "alpaca with input": (
        "alpaca",
        {"instruction": "Add.", "input": "1, {2}", "output": " 3\n", "text": "ignored"},
        "### User:\nAdd.\n\n1, {2}\n\n### Assistant:\n 3\n",
    ),
    "alpaca without input": (
        "alpaca",
        {"instruction": "Say hi.", "input": "", "output": "Hi."},
        "### User:\nSay hi.\n\n### Assistant:\nHi.",
    ),
    "alpaca without the column input": (
        "alpaca",
        {"instruction": "Say hi.", "output": "Hi."},
        "### User:\nSay hi.\n\n### Assistant:\nHi.",
    ),
    "alpaca's own wording with input": (
        "alpaca_prompt",
        {"instruction": "Add.", "input": "1, {2}", "output": "3"},
        f"### User:\n{PRINTED_WITH_INPUT}\n\n### Assistant:\n3",
    ),
    "alpaca's own wording without input": (
        "alpaca_prompt",
        {"instruction": "Say hi.", "input": " ", "output": "Hi."},
        f"### User:\n{PRINTED_WITHOUT_INPUT}\n\n### Assistant:\nHi.",
    ),
    "openorca": (
        "openorca",
        {"id": "flan.1", "system_prompt": "Be brief.", "question": "2 + 2?", "response": "4"},
        "### System:\nBe brief.\n\n### User:\n2 + 2?\n\n### Assistant:\n4",
    ),
    "openorca without system prompt": (
        "openorca",
        {"id": "flan.1", "system_prompt": "", "question": "2 + 2?", "response": "4"},
        "### User:\n2 + 2?\n\n### Assistant:\n4",
    ),
    "metamath": (
        "metamath",
        {"query": "2 + 2?", "response": "The answer is: 4", "type": "MATH_Rephrased", "original_question": "x"},
        "### User:\n2 + 2?\n\n### Assistant:\nThe answer is: 4",
    ),
    "sharegpt": (
        "sharegpt",
        {"conversations": [{"from": role, "value": value} for role, value in [("system", "s"), *TURNS]]},
        "### System:\ns\n\n### User:\nu1\n\n### Assistant:\na1### User:\nu2\n\n### Assistant:\na2",
    ),
    "messages": (
        "messages",
        {"messages": [{"role": "user", "content": "u1"}, {"role": "assistant", "content": "a1"}]},
        "### User:\nu1\n\n### Assistant:\na1",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_text_of_a_row(case):
    name, row, text = CASES[case]
    assert render(sft_formatters()[name].to_messages(row)) == text


def test_every_built_in_formatter_has_a_case():
    assert {name for name, _, _ in CASES.values()} == sft_formatters().keys()


@pytest.mark.parametrize("case", CASES)
def test_a_row_without_one_of_its_columns_is_named_by_it(case):
    name, row, _ = CASES[case]
    for column in sft_formatters()[name].columns:
        with pytest.raises(RowError, match=f"^{column} is missing$"):
            sft_formatters()[name].to_messages({key: value for key, value in row.items() if key != column})


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        ("alpaca", {"instruction": "Add.", "output": ""}, "output is empty"),
        ("alpaca", {"instruction": "Add.", "input": 3, "output": "x"}, "^input .*int, expected a string"),
        ("alpaca_prompt", {"instruction": "Add.", "output": ["x"]}, "^output .*list, expected a string"),
        ("openorca", {"question": "q", "response": " "}, "response is empty"),
        ("metamath", {"query": None, "response": "r"}, "query is missing"),
        ("messages", {"messages": []}, "messages is empty"),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "u"}]},
            "conversations does not end with an answer of the assistant",
        ),
    ],
)
def test_bad_rows(name, row, problem):
    with pytest.raises(RowError, match=problem):
        sft_formatters()[name].to_messages(row)
