"""Rows of instruction datasets, among them those that SOLAR was tuned on, read as conversations.

| formatter | columns | datasets of this form |
|---|---|---|
| `alpaca` | instruction, input, output; input and history may be empty | Alpaca-GPT4, LLaMA-Factory's Alpaca form |
| `alpaca_prompt` | the same, in Alpaca's own prompt wording | Alpaca-GPT4 |
| `openorca` | question, response | OpenOrca |
| `metamath` | query, response | MetaMathQA, stands in for the paper's Synth. Math-Instruct |
| `messages` | messages: list of role, content | UltraChat, Tulu 3, OpenAI's format, most newer datasets |
| `sharegpt` | conversations: list of from, value | ShareGPT, SlimOrca, OpenHermes 2.5 and many relatives |

Each also reads a system message from a column of its own (`columns.SYSTEM_COLUMNS`), and rejects a row rather than
ignore a column that is part of the prompt (`columns.PROMPT_COLUMNS`) or changes what the row trains (`marks`).
"""

from __future__ import annotations

from collections.abc import Iterator

from solar_plugins.data.formatters.base import (
    Message,
    Messages,
    NothingToLearn,
    Row,
    RowError,
    SFTFormatter,
    is_blank,
    optional_text,
    single_turn,
    text,
)
from solar_plugins.data.formatters.columns import SYSTEM_COLUMNS, with_input, with_system
from solar_plugins.data.formatters.conversations import answer_of, read_messages, with_flags
from solar_plugins.data.formatters.marks import ROW_MARKS

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
    r"""The instruction, a blank line and the input as the user's message; the output as the answer.

    Earlier turns in ``history`` come first, each a question and its answer, which is trained on too (LLaMA-Factory,
    data/README.md).

    >>> alpaca({"instruction": "Add.", "input": "1, 2", "output": "3"})[0]["content"]
    'Add.\n\n1, 2'
    """
    instruction, extra = text(row.get("instruction"), "instruction"), optional_text(row.get("input"), "input")
    return _alpaca_turns(row, with_input(instruction, extra))


def alpaca_prompt(row: Row) -> Messages:
    """The same row in Alpaca's own prompt wording, all of it as the user's message."""
    instruction, extra = text(row.get("instruction"), "instruction"), optional_text(row.get("input"), "input")
    wording = ALPACA_WITH_INPUT if extra else ALPACA_WITHOUT_INPUT
    return _alpaca_turns(row, wording.format(instruction=instruction, input=extra))


def _alpaca_turns(row: Row, asked: str) -> Messages:
    return with_system(row, [*_history(row), *single_turn(asked, text(row.get("output"), "output"))])


def _history(row: Row) -> Iterator[Message]:
    history = row.get("history")
    if is_blank(history):
        return
    if not isinstance(history, list):
        raise RowError("history", f"has type {type(history).__name__}, expected a list of questions with their answers")
    for turn, pair in enumerate(history):
        field = f"history[{turn}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(field, f"is {pair!r:.60}, expected a question and its answer")
        yield from single_turn(text(pair[0], f"{field}[0]"), text(pair[1], f"{field}[1]"))


def openorca(row: Row) -> Messages:
    """The question, and the response as the answer."""
    return with_system(row, single_turn(text(row.get("question"), "question"), text(row.get("response"), "response")))


def metamath(row: Row) -> Messages:
    """The query, and the response as the answer."""
    return with_system(row, single_turn(text(row.get("query"), "query"), text(row.get("response"), "response")))


def messages(row: Row) -> Messages:
    """The conversation in ``messages``. The loss covers every answer that is not masked (`marks`)."""
    return _conversation(row, "messages")


def sharegpt(row: Row) -> Messages:
    """The conversation in ``conversations``. The loss covers every answer that is not masked (`marks`)."""
    return _conversation(row, "conversations")


def _conversation(row: Row, column: str) -> Messages:
    conversation = read_messages(with_flags(row, column), column)
    answer_of(conversation, column)
    if not any(message["role"] == "assistant" and message.get("learn", True) for message in conversation):
        raise NothingToLearn(column, "has no answer to train on: all are masked (weight: 0)")
    return with_system(row, conversation)


def built_in_sft_formatters() -> list[SFTFormatter]:
    """The built-in formatters."""
    return [
        SFTFormatter(
            name="alpaca",
            columns=("instruction", "output"),
            to_messages=alpaca,
            summary="instruction, input, output; history",
            version=3,
            optional_columns=("input", "history", *SYSTEM_COLUMNS),
        ),
        SFTFormatter(
            name="alpaca_prompt",
            columns=("instruction", "output"),
            to_messages=alpaca_prompt,
            summary="instruction, input, output in Alpaca's own prompt wording; history",
            version=3,
            optional_columns=("input", "history", *SYSTEM_COLUMNS),
        ),
        SFTFormatter(
            name="openorca",
            columns=("question", "response"),
            to_messages=openorca,
            summary="system_prompt, question, response",
            version=3,
            optional_columns=SYSTEM_COLUMNS,
        ),
        SFTFormatter(
            name="metamath",
            columns=("query", "response"),
            to_messages=metamath,
            summary="query, response",
            version=3,
            optional_columns=SYSTEM_COLUMNS,
        ),
        SFTFormatter(
            name="messages",
            columns=("messages",),
            to_messages=messages,
            summary="messages of role and content",
            version=3,
            optional_columns=(*SYSTEM_COLUMNS, *ROW_MARKS),
        ),
        SFTFormatter(
            name="sharegpt",
            columns=("conversations",),
            to_messages=sharegpt,
            summary="conversations of from and value",
            version=3,
            optional_columns=(*SYSTEM_COLUMNS, *ROW_MARKS),
        ),
    ]
