"""Columns that hold parts of the prompt, and the check that none of them is ignored.

A dataset may have any columns. Most are metadata (id, source, category, score, model, ...) and are ignored. Those of
`PROMPT_COLUMNS` are part of the prompt in some published format. If one is filled, its texts must occur in the messages
that the formatter returns; otherwise the row is bad. `marks` has the same rule for everything else that changes what a
row trains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from solar_plugins.data.formatters.base import (
    Formatter,
    Messages,
    NothingToLearn,
    Row,
    RowError,
    is_blank,
    number,
    optional_text,
    stands_in,
    text,
)
from solar_plugins.data.formatters.conversations import read_messages
from solar_plugins.data.formatters.marks import check_row

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
"""Names of a column with the system message; every built-in formatter reads them."""
QUESTION_COLUMNS = ("prompt", "instruction", "question", "query", "input")
"""Names of a column with the user's message."""
PROMPT_COLUMNS = (
    *SYSTEM_COLUMNS,
    *QUESTION_COLUMNS,
    *("context", "documents", "history", "tools", "functions", "chat_template_kwargs"),
    *("images", "image", "videos", "video", "audios", "audio"),
)
"""Columns that are part of the prompt in some published format."""
SCORE_COLUMNS = (
    ("score_chosen", "score_rejected"),  # HuggingFaceH4/ultrafeedback_binarized
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),  # argilla/dpo-mix-7k
    ("chosen-rating", "rejected-rating"),  # argilla/ultrafeedback-binarized-preferences-cleaned
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("rating_chosen", "rating_rejected"),  # argilla/distilabel-capybara-dpo-7k-binarized
)
"""Names of the columns with the scores of a pair's two answers."""
PAIR_COLUMNS = (*SYSTEM_COLUMNS, *QUESTION_COLUMNS, "status", *(name for names in SCORE_COLUMNS for name in names))
"""What the formatters for pairs read in addition to the answers, if a row has it."""


def wanted_columns(formatter: Formatter) -> frozenset[str] | None:
    """The columns on which a formatter's output depends; None means all: the formatter does not declare them."""
    if formatter.optional_columns is None:
        return None
    return frozenset({*formatter.columns, *formatter.optional_columns, *PROMPT_COLUMNS})


def check_nothing_is_ignored(row: Row, formatter: Formatter, messages: Messages) -> None:
    """Reject a row if the formatter ignores something that changes what the row trains.

    That is a filled column of `PROMPT_COLUMNS` whose texts are not in the messages, or one of `marks`.

    Args:
        row: The row.
        formatter: Checked only if it declares its ``optional_columns``.
        messages: What it returned, answers included.

    Raises:
        NothingToLearn: The row is marked as not to be trained on.
        RowError: The row has such a column.
    """
    if formatter.optional_columns is None:
        return
    read = tuple(message["content"] for message in messages)
    check_row(row, formatter, [message["content"] for message in messages if message["role"] == "assistant"])
    for column in PROMPT_COLUMNS:
        value = row.get(column)
        if is_blank(value):
            continue
        occurs = _is_text if column == "history" else stands_in  # History turns become messages of their own.
        if not all(any(occurs(part, whole) for whole in read) for part in _texts(value)) and not (
            isinstance(value, str) and _is_written_out(row, formatter, value)
        ):
            raise RowError(column, f"is filled, but the formatter {formatter.name} does not use it")


def _is_text(part: str, whole: str) -> bool:
    return part == whole.strip()


_ALPACA_WORDS = re.compile(
    r"Below is an instruction that describes a task(, paired with an input that provides further context)?\.|"
    r"Write a response that appropriately completes the request\.|### (Instruction|Input|Response|Output):"
)


def _is_written_out(row: Row, formatter: Formatter, value: str) -> bool:
    """Whether a column only repeats, in Alpaca's wording, what the formatter reads from other columns.

    The ``prompt`` of python_code_instructions_18k_alpaca does: it repeats instruction, input and output.
    """
    rest, found = _ALPACA_WORDS.subn("", value)
    parts = [part for name in formatter.columns if isinstance(part := row.get(name), str)]
    parts += [part for name in formatter.optional_columns or () if isinstance(part := row.get(name), str)]
    for part in sorted(map(str.strip, parts), key=len, reverse=True):
        rest = rest.replace(part, "", 1)
    return bool(found) and not rest.strip()


def _texts(value: Any) -> Iterator[str]:
    """The strings in a column, without role names. Anything else becomes a string that occurs nowhere."""
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, Mapping):
        yield from (text for key, one in value.items() if key not in ("role", "from") for text in _texts(one))
    elif isinstance(value, list | tuple):
        yield from (text for one in value for text in _texts(one))
    elif value is not None and value is not False:
        yield "\0no text"


def system_text(row: Row) -> str:
    """The system message from a column of its own, or an empty string.

    Raises:
        RowError: Two columns hold different ones, or one is not a string.
    """
    found = {column: text(row[column], column) for column in SYSTEM_COLUMNS if not is_blank(row.get(column))}
    if len({system.strip() for system in found.values()}) > 1:
        raise RowError(list(found)[1], f"differs from {next(iter(found))}")
    return next(iter(found.values()), "")


def with_system(row: Row, messages: Messages) -> Messages:
    """A conversation, with the system message from a column of its own added in front, if there is one.

    Raises:
        RowError: The conversation starts with a different system message.
    """
    system = system_text(row)
    if not system:
        return messages
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"].strip() != system.strip():
            raise RowError("system", "differs from the conversation's own system message")
        return messages
    return [{"role": "system", "content": system}, *messages]


def prompt_column(row: Row) -> Messages:
    """The prompt from a column of its own: a string, or messages that end with the user's; plus the system message.

    Instruction and input are joined, as in Alpaca.

    Raises:
        RowError: It is missing or cannot be read.
    """
    name = next((name for name in QUESTION_COLUMNS if not is_blank(row.get(name))), "prompt")
    value = row.get(name)
    if isinstance(value, list):
        return with_system(row, checked_prompt(read_messages(value, name), name))
    asked = plain_text(value, name)
    if name == "instruction":
        asked = with_input(asked, optional_text(row.get("input"), "input"))
    return with_system(row, [{"role": "user", "content": asked}])


_MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:""")


def is_messages_as_text(value: str) -> bool:
    """Whether a string looks like a list of messages that was serialized as JSON or with Python's ``str``."""
    return _MESSAGES_AS_TEXT.match(value) is not None


def plain_text(value: Any, field: str) -> str:
    """The string in a field; a serialized list of messages, as in CSV exports, is not text to train on.

    Raises:
        RowError: It is missing, or is a serialized list of messages.
    """
    if is_messages_as_text(found := text(value, field)):
        raise RowError(
            field,
            "holds messages serialized as a string, expected a list; parse it (json.loads or ast.literal_eval)",
        )
    return found


def with_input(instruction: str, extra: str) -> str:
    """Alpaca's instruction and input, joined.

    The SOLAR paper calls its format "Alpaca-styled" but shows no row with an input; the blank line is our choice.
    """
    return f"{instruction}\n\n{extra}" if extra else instruction


def checked_prompt(messages: Messages, field: str) -> Messages:
    """The messages, if the last one is the user's.

    Raises:
        RowError: It is not.
    """
    if not messages or messages[-1]["role"] != "user":
        raise RowError(field, "does not end with the user's message")
    return messages


def check_preference(row: Row) -> None:
    """Reject a pair if the row itself says that the chosen answer is not the better one.

    Raises:
        NothingToLearn: Its ``status`` is tie (argilla's Orca pairs), or the chosen score is not the higher one.
    """
    if row.get("status") == "tie":
        raise NothingToLearn("status", "is 'tie': neither answer is preferred")
    for names in SCORE_COLUMNS:
        chosen, rejected = (number(row.get(name)) for name in names)
        if chosen is None or rejected is None:
            continue
        if chosen == rejected:
            raise NothingToLearn(names[0], f"equals {names[1]}: neither answer is preferred")
        if chosen < rejected:
            raise NothingToLearn(names[0], f"is lower than {names[1]}: the rejected answer has the better score")
