"""Columns with texts of the prompt, and the rule that none of them is ignored.

A dataset may have any columns. Most describe a row (id, source, category, score, model, ...) and are ignored. Those of
`PROMPT_COLUMNS` are part of what a model reads in some published format; where one is filled, its texts have to occur
in the messages that the formatter gives, or the row is bad. The same rule for all else that changes what a row teaches
is in `marks`.
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
"""Names of a column with the system text; every built-in formatter reads them."""
QUESTION_COLUMNS = ("prompt", "instruction", "question", "query", "input")
"""Names of a column with what the user says."""
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
"""Names of the scores of a pair's two answers."""
PAIR_COLUMNS = (*SYSTEM_COLUMNS, *QUESTION_COLUMNS, "status", *(name for names in SCORE_COLUMNS for name in names))
"""What the formatters of pairs read beside the answers, where a row has it."""


def wanted_columns(formatter: Formatter) -> frozenset[str] | None:
    """The columns on which the result of a row depends; None for a formatter that does not say, so all of them."""
    if formatter.optional_columns is None:
        return None
    return frozenset({*formatter.columns, *formatter.optional_columns, *PROMPT_COLUMNS})


def check_nothing_is_ignored(row: Row, formatter: Formatter, messages: Messages) -> None:
    """Refuse a row of which the formatter leaves out something that changes what it teaches.

    That is a filled column of `PROMPT_COLUMNS` whose texts are not among what was read, or one of `marks`.

    Args:
        row: The row.
        formatter: Checked only if it declares its ``optional_columns``.
        messages: What it gave, answers included.

    Raises:
        NothingToLearn: The row is marked not to be trained on.
        RowError: There is such a column.
    """
    if formatter.optional_columns is None:
        return
    read = tuple(message["content"] for message in messages)
    check_row(row, formatter, [message["content"] for message in messages if message["role"] == "assistant"])
    for column in PROMPT_COLUMNS:
        value = row.get(column)
        if is_blank(value):
            continue
        occurs = _is_text if column == "history" else stands_in  # Turns of a conversation are texts of their own.
        if not all(any(occurs(part, whole) for whole in read) for part in _texts(value)) and not (
            isinstance(value, str) and _is_written_out(row, formatter, value)
        ):
            raise RowError(column, f"is filled, but {formatter.name} has no place for it")


def _is_text(part: str, whole: str) -> bool:
    return part == whole.strip()


_ALPACA_WORDS = re.compile(
    r"Below is an instruction that describes a task(, paired with an input that provides further context)?\.|"
    r"Write a response that appropriately completes the request\.|### (Instruction|Input|Response|Output):"
)


def _is_written_out(row: Row, formatter: Formatter, value: str) -> bool:
    """Whether a column holds what the formatter reads in Alpaca's wording, and nothing else.

    The ``prompt`` of python_code_instructions_18k_alpaca is such a column: it repeats instruction, input and output.
    """
    rest, found = _ALPACA_WORDS.subn("", value)
    parts = [part for name in formatter.columns if isinstance(part := row.get(name), str)]
    parts += [part for name in formatter.optional_columns or () if isinstance(part := row.get(name), str)]
    for part in sorted(map(str.strip, parts), key=len, reverse=True):
        rest = rest.replace(part, "", 1)
    return bool(found) and not rest.strip()


def _texts(value: Any) -> Iterator[str]:
    """The texts in a column, without names of roles; what is no text is given as a text that occurs nowhere."""
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, Mapping):
        yield from (text for key, one in value.items() if key not in ("role", "from") for text in _texts(one))
    elif isinstance(value, list | tuple):
        yield from (text for one in value for text in _texts(one))
    elif value is not None and value is not False:
        yield "\0no text"


def system_text(row: Row) -> str:
    """The system text in a column of its own, or nothing.

    Raises:
        RowError: Two columns hold different ones, or one holds no text.
    """
    found = {column: text(row[column], column) for column in SYSTEM_COLUMNS if not is_blank(row.get(column))}
    if len({system.strip() for system in found.values()}) > 1:
        raise RowError(list(found)[1], f"differs from {next(iter(found))}")
    return next(iter(found.values()), "")


def with_system(row: Row, messages: Messages) -> Messages:
    """A conversation, started with the system text in a column of its own, if there is one.

    Raises:
        RowError: The conversation starts with another system text.
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
    """The prompt in a column of its own: messages that end with the user's, or a text; with the row's system text.

    Instruction and input are one text, as in Alpaca.

    Raises:
        RowError: There is none, or it cannot be read.
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
    """Whether a text begins as messages that were written as text do, as JSON or as Python prints them."""
    return _MESSAGES_AS_TEXT.match(value) is not None


def plain_text(value: Any, field: str) -> str:
    """The text in a field that may hold messages instead; what a table made of messages is no text to learn.

    Raises:
        RowError: There is none, or it is messages that were written as text, as in CSV exports.
    """
    if is_messages_as_text(found := text(value, field)):
        raise RowError(field, "holds messages written as one text, expected a list of them; parse it")
    return found


def with_input(instruction: str, extra: str) -> str:
    """Alpaca's instruction and input as one text.

    The SOLAR paper calls its format "Alpaca-styled" and shows no row with an input; the blank line is ours.
    """
    return f"{instruction}\n\n{extra}" if extra else instruction


def checked_prompt(messages: Messages, field: str) -> Messages:
    """Messages that end with the user's.

    Raises:
        RowError: They do not.
    """
    if not messages or messages[-1]["role"] != "user":
        raise RowError(field, "does not end with the user's message")
    return messages


def check_preference(row: Row) -> None:
    """Refuse a pair of which the row itself says that chosen is not the better answer.

    Raises:
        NothingToLearn: Its ``status`` is tie (argilla's Orca pairs), or its scores are equal or the other way round.
    """
    if row.get("status") == "tie":
        raise NothingToLearn("status", "is tie: neither answer is preferred")
    for names in SCORE_COLUMNS:
        chosen, rejected = (number(row.get(name)) for name in names)
        if chosen is None or rejected is None:
            continue
        if chosen == rejected:
            raise NothingToLearn(names[0], f"is equal to {names[1]}: neither answer is preferred")
        if chosen < rejected:
            raise NothingToLearn(names[0], f"is below {names[1]}")
