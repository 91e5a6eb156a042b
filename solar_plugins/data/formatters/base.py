"""What a formatter is: a name, the columns it reads, and one pure function from a row to messages or to a pair.

Texts stay as they are, white space included, because SOLAR's template trims nothing: the indentation of code is part of
an answer, and a prompt is what ``apply_chat_template`` gives at inference.
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

    ``learn: False`` marks an answer that is part of the context only; without it every answer is trained on.
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
    """A pair that leaves out something of its row; the notes are counted in the dataset's summary."""

    notes: tuple[str, ...] = ()


class LabelledAnswer(NamedTuple):
    """A prompt, one answer to it, and whether the answer is wanted: what KTO trains on."""

    prompt: Messages
    completion: str
    label: bool


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


class NothingToLearn(RowError):
    """A sound row that gives nothing to train on, such as a pair of equal scores.

    It is counted and named, but it does not count as a bad row: ``solar.data.max_bad_share`` is about faults.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTFormatter:
    """A way to read the rows of a dataset as conversations.

    Args:
        name: What stands after ``type: solar_plugins.`` in a recipe.
        columns: Columns without which no row can be read.
        to_messages: From a row to a conversation that ends with an answer. Pure; raises `RowError`.
        summary: One line for people.
        version: Raise it when a change to the formatter gives another result for some row. Rows that were prepared with
            another version are prepared again; a change that does not raise it leaves them in use.
        optional_columns: Columns that are read where a row has them. With it, rows are refused if a column that is
            known to change a row's meaning (`columns.PROMPT_COLUMNS`, `marks`) is filled but not read; None turns the
            check off.
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
        name: What stands after ``type: solar_plugins.`` in a recipe that has ``rl:``.
        columns: Columns without which no row can be read.
        to_pair: From a row, and a source of chance, to a pair. Pure; raises `RowError`. The chance is seeded by the
            recipe's ``seed`` and the row's number, so that it does not depend on how many processes read the rows.
        summary: One line for people.
        version: As of `SFTFormatter`.
        optional_columns: As of `SFTFormatter`.
    """

    name: str
    columns: tuple[str, ...]
    to_pair: Callable[[Row, random.Random], PreferencePair]
    summary: str
    version: int = 1
    optional_columns: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpairedFormatter:
    """A way to read the rows of a dataset as single answers, each wanted or not, for ``rl: kto``.

    Args:
        name: What stands after ``type: solar_plugins.`` in a recipe that has ``rl: kto``.
        columns: Columns without which no row can be read.
        to_answer: From a row to a labelled answer. Pure; raises `RowError`.
        summary: One line for people.
        version: As of `SFTFormatter`.
        optional_columns: As of `SFTFormatter`.
    """

    name: str
    columns: tuple[str, ...]
    to_answer: Callable[[Row], LabelledAnswer]
    summary: str
    version: int = 1
    optional_columns: tuple[str, ...] | None = None


type Formatter = SFTFormatter | PreferenceFormatter | UnpairedFormatter


def text(value: Any, field: str) -> str:
    """The text in a field, as it is.

    Raises:
        RowError: There is none, it is blank, or it is no text.
    """
    if value is None:
        raise RowError(field, "is missing")
    if not isinstance(value, str):
        raise RowError(field, f"is a {type(value).__name__}, expected a text")
    if not value.strip():
        raise RowError(field, "is empty")
    return value


def optional_text(value: Any, field: str) -> str:
    """The text in a field that a row may leave out or empty; a blank text counts as empty, and so does NaN.

    Raises:
        RowError: It holds something else than a text.
    """
    blank = not value.strip() if isinstance(value, str) else value is None or is_nan(value)
    return "" if blank else text(value, field)


def is_nan(value: Any) -> bool:
    """Whether a value is not a number, which pandas writes for what a row lacks."""
    return isinstance(value, float) and math.isnan(value)


def number(value: Any) -> float | None:
    """A finite number, also as text (``"4"``), or None.

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
    """Whether a text occurs in another, and not only as a piece of a word or a number there, as 3 does in 13."""
    at = whole.find(part)
    while at >= 0:
        end = at + len(part)
        if not _one_word(whole[at - 1 : at], part[:1]) and not _one_word(part[-1:], whole[end : end + 1]):
            return True
        at = whole.find(part, at + 1)
    return False


def _one_word(character: str, following: str) -> bool:
    """Whether two characters belong together; of other scripts nobody knows without a dictionary."""
    return character.isalnum() and following.isalnum() and (character + following).isascii()


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


def is_blank(value: Any) -> bool:
    """Whether a field says nothing: None, NaN, False, a blank text, or a collection of such; also as JSON in a text.

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
