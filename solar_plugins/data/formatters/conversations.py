"""Messages of a row, in the ShareGPT form (from, value) or the OpenAI form (role, content), read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from solar_plugins.data.formatters.base import Message, Messages, Role, Row, RowError, optional_text, text
from solar_plugins.data.formatters.marks import ROW_MARKS, are_flags, check_mark, check_message, check_part, is_in_loss

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
}
"""What datasets call the three roles; ``developer`` is OpenAI's newer name for the system role."""


def read_message(value: Any, field: str) -> Message:
    """A message in the ShareGPT form (from, value) or the OpenAI form (role, content).

    Content may be a list of text parts, as OpenAI writes it. An answer that is marked as not to be trained on
    (`marks.LEARNING_MARKS`) gets ``learn: False``.

    Raises:
        RowError: It has neither form, its role is not in `ROLES`, or the template cannot express it.
    """
    if not isinstance(value, Mapping):
        raise RowError(field, f"has type {type(value).__name__}, expected a message")
    role_key, content_key = _form(value)
    role_name = text(value.get(role_key), f"{field}.{role_key}")
    role = ROLES.get(role_name)
    if role is None:
        raise RowError(f"{field}.{role_key}", f"is {role_name!r}, expected one of {', '.join(ROLES)}")
    content = _content(value.get(content_key), role, f"{field}.{content_key}")
    check_message(value, content if isinstance(content, str) else "", role, field)
    read = optional_text if role == "system" else text
    message: Message = {"role": role, "content": read(content, f"{field}.{content_key}")}
    if not is_in_loss(value, role, field):
        message["learn"] = False
    return message


def _form(message: Mapping[str, Any]) -> tuple[str, str]:
    return ("role", "content") if message.get("role") is not None or "from" not in message else ("from", "value")


def _content(value: Any, role: Role, field: str) -> Any:
    """The joined text of content parts, or the value itself, which the caller checks."""
    joined = joined_parts(value)
    if joined is None:
        return value
    for index, part in enumerate(value):
        if role == "assistant":
            check_part(part, f"{field}[{index}]")
    return joined


def joined_parts(value: Any) -> str | None:
    """The joined text of a message's content parts; None if it is not a list of text parts."""
    if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
        return "".join(part["text"] for part in value)
    return None


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def read_messages(value: Any, field: str) -> Messages:
    """A conversation: an optional system message, then user and assistant in turn, the user first.

    Args:
        value: A list of messages, or that list as JSON, as in CSV exports.
        field: Its name in error messages.

    Raises:
        RowError: The value is not a list of messages, or their order is wrong.
    """
    values = message_list(value, field)
    messages = [read_message(message, f"{field}[{number}]") for number, message in enumerate(values)]
    first = 1 if messages[0]["role"] == "system" else 0
    for number, message in enumerate(messages[first:], start=first):
        expected = "assistant" if (number - first) % 2 else "user"
        if message["role"] != expected:
            name = values[number][_form(values[number])[0]]
            rule = "; a system message must come first" if message["role"] == "system" else ""
            raise RowError(f"{field}[{number}]", f"has the role {name}, expected {expected}{rule}")
    return [message for message in messages if message["content"]]


def message_list(value: Any, field: str) -> list[Any]:
    """The raw messages of a field.

    Raises:
        RowError: It is neither a list nor a list as JSON, or the list is empty.
    """
    if value is None:
        raise RowError(field, "is missing")
    if isinstance(value, str):
        value = _from_json(text(value, field), field)
    if not isinstance(value, list):
        raise RowError(field, f"has type {type(value).__name__}, expected a list of messages")
    if not value:
        raise RowError(field, "is empty")
    return value


def _from_json(written: str, field: str) -> Any:
    try:
        found = json.loads(written)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list):
        return found
    if written.lstrip().startswith("["):
        raise RowError(
            field,
            "holds messages serialized as a string that is not JSON (str() of a Python list?); use json.dumps",
        )
    raise RowError(field, "is a string, expected a list of messages, or that list as JSON")


def with_flags(row: Row, field: str) -> list[Any]:
    """The messages in a column, each with the flags that the row keeps in lists: one per message, or one per answer.

    Raises:
        NothingToLearn: The row as a whole is marked as not to be trained on.
        RowError: The messages are missing, a list has the wrong length, or the row has a weight.
    """
    messages = message_list(row.get(field), field)
    for column, key in ROW_MARKS.items():
        if not are_flags(flags := row.get(column)):
            check_mark(flags, column)
            continue
        answers = [index for index, message in enumerate(messages) if _is_answer(message)]
        indices = range(len(messages)) if len(flags) == len(messages) else answers
        if len(flags) != len(indices):
            raise RowError(
                column,
                f"has {len(flags)} flags for {len(messages)} messages with {len(answers)} answers; expected one per "
                "message or one per answer",
            )
        flag_of = dict(zip(indices, flags, strict=True))
        messages = [
            {**message, key: flag_of[index]} if index in flag_of and isinstance(message, Mapping) else message
            for index, message in enumerate(messages)
        ]
    return messages


def _is_answer(message: Any) -> bool:
    return isinstance(message, Mapping) and ROLES.get(str(message.get(_form(message)[0]))) == "assistant"


def answer_of(messages: Messages, field: str) -> tuple[Messages, str]:
    """A conversation split into its prompt and its last answer.

    Raises:
        RowError: It does not end with an answer of the assistant.
    """
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise RowError(field, "does not end with an answer of the assistant")
    return messages[:-1], messages[-1]["content"]
