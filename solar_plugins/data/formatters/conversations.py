"""Messages of a row: the ShareGPT form and the usual one, read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from solar_plugins.data.formatters.base import Message, Messages, Role, Row, RowError, optional_text, text
from solar_plugins.data.formatters.marks import ROW_MARKS, are_flags, check_mark, check_message, check_part, is_learnt

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
}
"""How datasets call the three roles; ``developer`` is OpenAI's newer name of the system text."""


def read_message(value: Any, field: str) -> Message:
    """A message of the ShareGPT form (from, value) or of the usual one (role, content).

    Content may be a list of parts that are all text, as OpenAI writes it. An answer that is marked not to be trained on
    (`marks.LEARNING_MARKS`) has ``learn: False``.

    Raises:
        RowError: It is neither, its role is not one of `ROLES`, or it says something that the template cannot.
    """
    if not isinstance(value, Mapping):
        raise RowError(field, f"is a {type(value).__name__}, expected a message")
    role_key, content_key = _form(value)
    role_name = text(value.get(role_key), f"{field}.{role_key}")
    role = ROLES.get(role_name)
    if role is None:
        raise RowError(f"{field}.{role_key}", f"is {role_name!r}, expected one of {', '.join(ROLES)}")
    content = _content(value.get(content_key), role, f"{field}.{content_key}")
    check_message(value, content if isinstance(content, str) else "", role, field)
    read = optional_text if role == "system" else text
    message: Message = {"role": role, "content": read(content, f"{field}.{content_key}")}
    if not is_learnt(value, role, field):
        message["learn"] = False
    return message


def _form(message: Mapping[str, Any]) -> tuple[str, str]:
    return ("role", "content") if message.get("role") is not None or "from" not in message else ("from", "value")


def _content(value: Any, role: Role, field: str) -> Any:
    """The text of content parts, or the value itself, which `text` judges."""
    joined = joined_parts(value)
    if joined is None:
        return value
    for place, part in enumerate(value):
        if role == "assistant":
            check_part(part, f"{field}[{place}]")
    return joined


def joined_parts(value: Any) -> str | None:
    """The text of a message's content that is a list of parts; None if it is anything else than texts."""
    if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
        return "".join(part["text"] for part in value)
    return None


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def read_messages(value: Any, field: str) -> Messages:
    """A conversation: a system text or none, then user and assistant in turn, starting with the user.

    Args:
        value: A list of messages, or a text that holds one as JSON, as CSV exports do.
        field: What messages call it.

    Raises:
        RowError: The value is no list of messages, or their order is another one.
    """
    values = message_list(value, field)
    messages = [read_message(message, f"{field}[{number}]") for number, message in enumerate(values)]
    first = 1 if messages[0]["role"] == "system" else 0
    for number, message in enumerate(messages[first:], start=first):
        expected = "assistant" if (number - first) % 2 else "user"
        if message["role"] != expected:
            name = values[number][_form(values[number])[0]]
            rule = "; a system text stands first" if message["role"] == "system" else ""
            raise RowError(f"{field}[{number}]", f"is the {name}'s, expected the {expected}'s{rule}")
    return [message for message in messages if message["content"]]


def message_list(value: Any, field: str) -> list[Any]:
    """The messages of a field that holds nothing else, not read yet.

    Raises:
        RowError: It is no list and no text with one as JSON, or the list is empty.
    """
    if value is None:
        raise RowError(field, "is missing")
    if isinstance(value, str):
        value = _from_json(text(value, field), field)
    if not isinstance(value, list):
        raise RowError(field, f"is a {type(value).__name__}, expected a list of messages")
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
            field, "holds messages as a text that is no JSON, such as Python prints them; write them with json.dumps"
        )
    raise RowError(field, "is a text, expected a list of messages, or one as JSON")


def with_flags(row: Row, field: str) -> list[Any]:
    """The messages in a column with the marks that the row has in lists: one for each message, or for each answer.

    Raises:
        NothingToLearn: A mark says of the whole row that it is not to be trained on.
        RowError: There are no messages, a list is of another length, or the row has a weight.
    """
    messages = message_list(row.get(field), field)
    for column, key in ROW_MARKS.items():
        if not are_flags(flags := row.get(column)):
            check_mark(flags, column)
            continue
        answers = [place for place, message in enumerate(messages) if _is_answer(message)]
        places = range(len(messages)) if len(flags) == len(messages) else answers
        if len(flags) != len(places):
            raise RowError(
                column,
                f"has {len(flags)} flags for {len(messages)} messages with {len(answers)} answers; expected one for "
                "each message or each answer",
            )
        flag_of = dict(zip(places, flags, strict=True))
        messages = [
            {**message, key: flag_of[place]} if place in flag_of and isinstance(message, Mapping) else message
            for place, message in enumerate(messages)
        ]
    return messages


def _is_answer(message: Any) -> bool:
    return isinstance(message, Mapping) and ROLES.get(str(message.get(_form(message)[0]))) == "assistant"


def answer_of(messages: Messages, field: str) -> tuple[Messages, str]:
    """A conversation's last answer, and all that stands before it.

    Raises:
        RowError: It does not end with an answer to a question.
    """
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise RowError(field, "does not end with an answer of the assistant")
    return messages[:-1], messages[-1]["content"]
