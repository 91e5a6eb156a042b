"""Rows of the instruction sets that SOLAR was tuned on, read as conversations.

| formatter | columns | sets of this shape |
|---|---|---|
| `alpaca` | instruction, input (may be empty), output | Alpaca-GPT4 |
| `alpaca_prompt` | the same, in Alpaca's own prompt wording | Alpaca-GPT4 |
| `openorca` | system_prompt (may be empty), question, response | OpenOrca |
| `metamath` | query, response | MetaMathQA, the paper's stand-in for Synth. Math-Instruct |
| `messages` | messages: list of role, content | most newer sets |
| `sharegpt` | conversations: list of from, value | ShareGPT and its many relatives |
"""

from __future__ import annotations

from solar_plugins.data.formatters.base import (
    Messages,
    Row,
    SFTFormatter,
    answer_of,
    optional_text,
    read_messages,
    single_turn,
    text,
)
from solar_plugins.plugins.markers import hookimpl

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
"""Alpaca's own wording, from the README of tatsu-lab/stanford_alpaca (``PROMPT_DICT`` in its ``train.py``)."""


def alpaca(row: Row) -> Messages:
    r"""The instruction, a blank line and the input as the user's text; the output as the answer.

    The paper calls its format "Alpaca-styled" and shows no row with an input; the blank line is ours.

    >>> alpaca({"instruction": "Add.", "input": "1, 2", "output": "3"})[0]["content"]
    'Add.\n\n1, 2'
    """
    instruction, extra = text(row.get("instruction"), "instruction"), optional_text(row.get("input"), "input")
    return single_turn(f"{instruction}\n\n{extra}" if extra else instruction, text(row.get("output"), "output"))


def alpaca_prompt(row: Row) -> Messages:
    """The same row in Alpaca's own wording, all of it as the user's text."""
    instruction, extra = text(row.get("instruction"), "instruction"), optional_text(row.get("input"), "input")
    wording = ALPACA_WITH_INPUT if extra else ALPACA_WITHOUT_INPUT
    return single_turn(wording.format(instruction=instruction, input=extra), text(row.get("output"), "output"))


def openorca(row: Row) -> Messages:
    """The system prompt, if there is one, the question, and the response as the answer."""
    return single_turn(
        text(row.get("question"), "question"),
        text(row.get("response"), "response"),
        optional_text(row.get("system_prompt"), "system_prompt"),
    )


def metamath(row: Row) -> Messages:
    """The query, and the response as the answer."""
    return single_turn(text(row.get("query"), "query"), text(row.get("response"), "response"))


def messages(row: Row) -> Messages:
    """The conversation in ``messages``. Every answer in it is learnt."""
    return _conversation(row, "messages")


def sharegpt(row: Row) -> Messages:
    """The conversation in ``conversations``. Every answer in it is learnt."""
    return _conversation(row, "conversations")


def _conversation(row: Row, column: str) -> Messages:
    conversation = read_messages(row.get(column), column)
    answer_of(conversation, column)
    return conversation


@hookimpl
def register_sft_formatters() -> list[SFTFormatter]:
    """The built-in formatters."""
    instruction_columns = ("instruction", "output")
    return [
        SFTFormatter(
            name="alpaca", columns=instruction_columns, to_messages=alpaca, summary="instruction, input, output"
        ),
        SFTFormatter(
            name="alpaca_prompt",
            columns=instruction_columns,
            to_messages=alpaca_prompt,
            summary="instruction, input, output in Alpaca's own prompt wording",
        ),
        SFTFormatter(
            name="openorca",
            columns=("question", "response"),
            to_messages=openorca,
            summary="system_prompt, question, response",
        ),
        SFTFormatter(name="metamath", columns=("query", "response"), to_messages=metamath, summary="query, response"),
        SFTFormatter(
            name="messages", columns=("messages",), to_messages=messages, summary="messages of role and content"
        ),
        SFTFormatter(
            name="sharegpt", columns=("conversations",), to_messages=sharegpt, summary="conversations of from and value"
        ),
    ]
