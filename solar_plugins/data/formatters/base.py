"""What a formatter is: a name, the columns it needs, and one pure function from a row to messages or to a pair.

Texts lose the white space around them: a prompt ends with a line break and an answer starts with a word, which is the
one place where every tokenizer puts a token boundary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict

type Row = Mapping[str, Any]
type Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One turn, as `apply_chat_template` takes it."""

    role: Role
    content: str


type Messages = list[Message]


class PreferencePair(NamedTuple):
    """A prompt and two answers to it. The prompt's last message is the user's."""

    prompt: Messages
    chosen: str
    rejected: str


class RowError(Exception):
    """A row that cannot be used. It is counted and named in the report; alone it does not stop a run.

    Args:
        field: The column, with the way into it: ``conversations[2].value``.
        problem: What is wrong with it, to be read after the field: ``is empty``.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTFormatter:
    """A way to read the rows of a data set as conversations.

    Args:
        name: What stands after ``type: solar_plugins.`` in a recipe.
        columns: Columns without which no row can be read.
        to_messages: From a row to a conversation that ends with an answer. Pure; raises `RowError`.
        summary: One line for people.
        version: Raise it when a change to the formatter gives another result for some row. Rows that were prepared with
            another version are prepared again; a change that does not raise it leaves them in use.
    """

    name: str
    columns: tuple[str, ...]
    to_messages: Callable[[Row], Messages]
    summary: str
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceFormatter:
    """A way to read the rows of a data set as preference pairs.

    Args:
        name: What stands after ``type: solar_plugins.`` in a recipe that has ``rl:``.
        columns: Columns without which no row can be read.
        to_pair: From a row, and a source of chance, to a pair. Pure; raises `RowError`. The chance is seeded by the
            recipe's ``seed`` and the row's number, so that it does not depend on how many processes read the rows.
        summary: One line for people.
        version: Raise it when a change to the formatter gives another result for some row. Rows that were prepared with
            another version are prepared again; a change that does not raise it leaves them in use.
    """

    name: str
    columns: tuple[str, ...]
    to_pair: Callable[[Row, random.Random], PreferencePair]
    summary: str
    version: int = 1


type Formatter = SFTFormatter | PreferenceFormatter


def text(value: Any, field: str) -> str:
    """The text in a field, without the white space around it.

    Raises:
        RowError: There is none, or it is no text.
    """
    if value is None:
        raise RowError(field, "is missing")
    if not isinstance(value, str):
        raise RowError(field, f"is a {type(value).__name__}, expected a text")
    if not value.strip():
        raise RowError(field, "is empty")
    return value.strip()


def optional_text(value: Any, field: str) -> str:
    """The text in a field that a row may leave out or empty.

    Raises:
        RowError: It holds something else than a text.
    """
    return "" if value is None or value == "" or (isinstance(value, str) and not value.strip()) else text(value, field)


def single_turn(user: str, assistant: str, system: str = "") -> Messages:
    """A question and its answer, after a system text unless that is empty.

    >>> [message["role"] for message in single_turn("2 + 2?", "4")]
    ['user', 'assistant']
    """
    return [*question(user, system), {"role": "assistant", "content": assistant}]


def question(user: str, system: str = "") -> Messages:
    """A question, after a system text unless that is empty."""
    start: Messages = [{"role": "system", "content": system}] if system else []
    return [*start, {"role": "user", "content": user}]


ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
}
"""How data sets call the three roles."""


def read_message(value: Any, field: str) -> Message:
    """A message of the ShareGPT form (from, value) or of the usual one (role, content).

    Raises:
        RowError: It is neither, or its role is not one of `ROLES`.
    """
    if not isinstance(value, Mapping):
        raise RowError(field, f"is a {type(value).__name__}, expected a message")
    form = ("role", "content") if value.get("role") is not None or "from" not in value else ("from", "value")
    role_name = text(value.get(form[0]), f"{field}.{form[0]}")
    role = ROLES.get(role_name)
    if role is None:
        raise RowError(f"{field}.{form[0]}", f"is {role_name!r}, expected one of {', '.join(ROLES)}")
    read = optional_text if role == "system" else text
    return {"role": role, "content": read(value.get(form[1]), f"{field}.{form[1]}")}


def read_messages(value: Any, field: str) -> Messages:
    """A conversation: a system text or none, then user and assistant in turn, starting with the user.

    Raises:
        RowError: The value is no list of messages, or their order is another one.
    """
    if value is None:
        raise RowError(field, "is missing")
    if not isinstance(value, list):
        raise RowError(field, f"is a {type(value).__name__}, expected a list of messages")
    if not value:
        raise RowError(field, "is empty")
    messages = [read_message(message, f"{field}[{number}]") for number, message in enumerate(value)]
    first = 1 if messages[0]["role"] == "system" else 0
    for number, message in enumerate(messages[first:]):
        expected = "assistant" if number % 2 else "user"
        if message["role"] != expected:
            raise RowError(f"{field}[{first + number}]", f"is the {message['role']}'s, expected the {expected}'s")
    return [message for message in messages if message["content"]]


def answer_of(messages: Messages, field: str) -> tuple[Messages, str]:
    """A conversation's last answer, and all that stands before it.

    Raises:
        RowError: It does not end with an answer to a question.
    """
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise RowError(field, "does not end with an answer of the assistant")
    return messages[:-1], messages[-1]["content"]
