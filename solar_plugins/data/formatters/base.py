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
    """A way to read the rows of a data set as conversations.

    Args:
        name: What stands after ``type: solar_plugins.`` in a recipe.
        columns: Columns without which no row can be read.
        to_messages: From a row to a conversation that ends with an answer. Pure; raises `RowError`.
        summary: One line for people.
        version: Raise it when a change to the formatter gives another result for some row. Rows that were prepared with
            another version are prepared again; a change that does not raise it leaves them in use.
        optional_columns: Columns that are read where a row has them. With it, rows are refused if a column that is
            known to change a row's meaning (`columns.PROMPT_COLUMNS`) is filled but not read; None turns the check off.
    """

    name: str
    columns: tuple[str, ...]
    to_messages: Callable[[Row], Messages]
    summary: str
    version: int = 1
    optional_columns: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceFormatter:
    """A way to read the rows of a data set as preference pairs.

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
    """A way to read the rows of a data set as single answers, each wanted or not, for ``rl: kto``.

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

NO_PLACE_IN_TEMPLATE = (
    *("tool_calls", "function_call", "tool_call_id", "tool_responses", "tools", "functions"),
    *("reasoning_content", "reasoning", "thinking", "refusal"),
    *("images", "image", "videos", "video", "audios", "audio", "files", "attachments"),
)
"""Keys of a message that a model reads or writes, and for which SOLAR's template has no place: if one is filled, the
row is bad. Other keys beside role and content (id, model, name, language, ...) describe a message and are ignored."""

LEARNING_MARKS = ("weight", "train", "training", "trainable", "loss", "loss_mask")
"""Keys by which a message says whether it is trained on: OpenAI's ``weight`` (0 or 1, of answers), Axolotl's ``train``
and ``training`` (``message_field_training``), ms-swift's ``loss``, and words like these."""
MASKED = "masked"
"""The opposite of these marks (torchtune)."""
PARTIAL_MARKS = ("train_detail", "training_detail")
"""Keys by which a message says which of its characters are trained on (Axolotl, ``message_field_training_detail``)."""


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


def read_message(value: Any, field: str) -> Message:
    """A message of the ShareGPT form (from, value) or of the usual one (role, content).

    Content may be a list of parts that are all text, as OpenAI writes it. An answer that is marked not to be trained on
    (`LEARNING_MARKS`) has ``learn: False``.

    Raises:
        RowError: It is neither, its role is not one of `ROLES`, or it says something that the template cannot.
    """
    if not isinstance(value, Mapping):
        raise RowError(field, f"is a {type(value).__name__}, expected a message")
    form = ("role", "content") if value.get("role") is not None or "from" not in value else ("from", "value")
    role_name = text(value.get(form[0]), f"{field}.{form[0]}")
    role = ROLES.get(role_name)
    if role is None:
        raise RowError(f"{field}.{form[0]}", f"is {role_name!r}, expected one of {', '.join(ROLES)}")
    for key in NO_PLACE_IN_TEMPLATE:
        if not is_blank(value.get(key)):
            raise RowError(f"{field}.{key}", "is filled; SOLAR's template has no place for it")
    read = optional_text if role == "system" else text
    message: Message = {"role": role, "content": read(_content(value.get(form[1])), f"{field}.{form[1]}")}
    if not _is_learnt(value, role, field):
        message["learn"] = False
    return message


def _content(value: Any) -> Any:
    """The text of content parts, or the value itself, which `text` judges."""
    if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
        return "".join(part["text"] for part in value)
    return value


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _is_learnt(message: Mapping[str, Any], role: Role, field: str) -> bool:
    """Whether the message's marks leave it to be trained on; True for all but answers.

    Raises:
        RowError: A mark is no yes or no, or asks to train on something else than an answer.
    """
    learnt = True
    for key in PARTIAL_MARKS:
        if not is_blank(message.get(key)):
            raise RowError(
                f"{field}.{key}", "asks to train on a part of the text; here a whole answer is learnt or none"
            )
    for key in (*LEARNING_MARKS, MASKED):
        mark = message.get(key)
        if mark is None or is_nan(mark):
            continue
        if mark not in (0, 1):
            trained = "1 (not trained on) or 0" if key == MASKED else "0 (not trained on) or 1"
            raise RowError(f"{field}.{key}", f"is {mark!r:.40}, expected {trained}")
        mark = not mark if key == MASKED else mark
        if role == "assistant":
            learnt = learnt and bool(mark)
        elif mark and key not in (
            "weight",
            MASKED,
        ):  # OpenAI defines weight for answers alone; some sets fill it for every message.
            raise RowError(f"{field}.{key}", f"asks to train on the {role}'s text; SOLAR's format trains on answers")
    return learnt


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
