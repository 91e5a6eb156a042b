"""What a formatter is: a name, the columns it reads, and one pure function from a row to messages or to a pair.

Texts are kept as they are, white space included, because SOLAR's template trims nothing: the indentation of code is
part of an answer, and the prompt must equal what ``apply_chat_template`` gives at inference.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

type Row = Mapping[str, Any]
type Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One turn, as `apply_chat_template` takes it.

    ``learn: False`` masks an answer: it is context only. By default the loss covers every answer.
    """

    role: Role
    content: str
    learn: NotRequired[bool]


type Messages = list[Message]


class PreferencePair(NamedTuple):
    """A prompt and two answers to it. The prompt's last message is the user's."""

    prompt: Messages
    chosen: str
    rejected: str


class NotedPair(PreferencePair):
    """A pair that leaves out part of its row. The dataset's summary counts the notes."""

    notes: tuple[str, ...] = ()


class LabelledAnswer(NamedTuple):
    """A prompt, one answer to it, and whether the answer is desirable: what KTO trains on."""

    prompt: Messages
    completion: str
    label: bool


class RowError(Exception):
    """A row that cannot be used. The report counts it and gives its number; a single one does not stop a run.

    Args:
        field: The column, with the path into it: ``conversations[2].value``.
        problem: What is wrong with it; messages put it after the field: ``is empty``.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem


class NothingToLearn(RowError):
    """A valid row without anything to train on, such as a pair with equal scores.

    It is reported but is not a bad row, so it does not count towards ``solar.data.max_bad_share``.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTFormatter:
    """A way to read the rows of a dataset as conversations.

    Args:
        name: The part after ``type: solar_plugins.`` in a recipe.
        columns: Required columns.
        to_messages: Turns a row into a conversation that ends with an answer. Pure; raises `RowError`.
        summary: One line for listings.
        version: Raise it when a change to the formatter changes its output for any row. Prepared datasets are cached by
            this version, so they are rebuilt only when it changes.
        optional_columns: Columns that are read if a row has them. If this is set, rows are rejected where a column that
            is known to change the meaning of a row (`columns.PROMPT_COLUMNS`, `marks`) is filled but not read. None
            turns the check off.
    """

    name: str
    columns: tuple[str, ...]
    to_messages: Callable[[Row], Messages]
    summary: str
    version: int = 1
    optional_columns: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceFormatter:
    """A way to read the rows of a dataset as preference pairs.

    Args:
        name: The part after ``type: solar_plugins.`` in a recipe with ``rl:``.
        columns: Required columns.
        to_pair: Turns a row and a `random.Random` into a pair. Pure; raises `RowError`. The rng is seeded with the
            recipe's ``seed`` and the row's number, so the result does not depend on the number of worker processes.
        summary: One line for listings.
        version: As in `SFTFormatter`.
        optional_columns: As in `SFTFormatter`.
    """

    name: str
    columns: tuple[str, ...]
    to_pair: Callable[[Row, random.Random], PreferencePair]
    summary: str
    version: int = 1
    optional_columns: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpairedFormatter:
    """A way to read the rows of a dataset as single answers, each desirable or not, for ``rl: kto``.

    Args:
        name: The part after ``type: solar_plugins.`` in a recipe with ``rl: kto``.
        columns: Required columns.
        to_answer: Turns a row into a labeled answer. Pure; raises `RowError`.
        summary: One line for listings.
        version: As in `SFTFormatter`.
        optional_columns: As in `SFTFormatter`.
    """

    name: str
    columns: tuple[str, ...]
    to_answer: Callable[[Row], LabelledAnswer]
    summary: str
    version: int = 1
    optional_columns: tuple[str, ...] | None = None


type Formatter = SFTFormatter | PreferenceFormatter | UnpairedFormatter


def text(value: Any, field: str) -> str:
    """The string in a field, unchanged.

    Raises:
        RowError: It is missing, blank, or not a string.
    """
    if value is None:
        raise RowError(field, "is missing")
    if not isinstance(value, str):
        raise RowError(field, f"has type {type(value).__name__}, expected a string")
    if not value.strip():
        raise RowError(field, "is empty")
    return value


def optional_text(value: Any, field: str) -> str:
    """The string in an optional field; empty if it is missing, blank or NaN.

    Raises:
        RowError: It is not a string.
    """
    blank = not value.strip() if isinstance(value, str) else value is None or is_nan(value)
    return "" if blank else text(value, field)


def is_nan(value: Any) -> bool:
    """Whether a value is NaN, which pandas writes for missing values."""
    return isinstance(value, float) and math.isnan(value)


def number(value: Any) -> float | None:
    """A finite number, also from a string (``"4"``), or None.

    >>> number("4"), number("N/A"), number(True), number(float("nan"))
    (4.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if abs(found) < float("inf") else None


def stands_in(part: str, whole: str) -> bool:
    """Whether a text occurs in another as whole words: 3 does not occur in 13."""
    at = whole.find(part)
    while at >= 0:
        end = at + len(part)
        if not _one_word(whole[at - 1 : at], part[:1]) and not _one_word(part[-1:], whole[end : end + 1]):
            return True
        at = whole.find(part, at + 1)
    return False


def _one_word(character: str, following: str) -> bool:
    """Whether two characters belong to one word. ASCII only: other scripts would need a dictionary."""
    return character.isalnum() and following.isalnum() and (character + following).isascii()


def single_turn(user: str, assistant: str, system: str = "") -> Messages:
    """A question and its answer, with a system message first unless it is empty.

    >>> [message["role"] for message in single_turn("2 + 2?", "4")]
    ['user', 'assistant']
    """
    return [*question(user, system), {"role": "assistant", "content": assistant}]


def question(user: str, system: str = "") -> Messages:
    """A question, with a system message first unless it is empty."""
    start: Messages = [{"role": "system", "content": system}] if system else []
    return [*start, {"role": "user", "content": user}]


def is_blank(value: Any) -> bool:
    """Whether a field is empty: None, NaN, False, a blank string, empty JSON, or a collection of these.

    >>> is_blank({"tools": "[]", "history": [["", None]]}), is_blank(0), is_blank("none")
    (True, False, False)
    """
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    if isinstance(value, Mapping):
        return all(map(is_blank, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_blank, value))
    return value is None or value is False or is_nan(value)
