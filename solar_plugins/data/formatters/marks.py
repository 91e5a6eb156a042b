"""Marks that change what a row teaches: keys of a message, and columns of a row.

The rule for every built-in formatter: nothing that changes the meaning of a row is ignored. A mark is read with its
meaning, or the row is bad and the reason says what the mark means and what to do. All other keys and columns describe
a row (id, source, category, score, reward, model, language, ...) and are ignored. Texts of the prompt in columns of
their own are the subject of `columns.PROMPT_COLUMNS`.

| marks | what they say | on a message | on a row |
|---|---|---|---|
| `LEARNING_MARKS`, `MASKED_MARKS` | whether to train on it: 0 or 1 | read: context only | read: nothing to learn |
| the same, a list | the same for each message or answer | | read for conversations, else bad |
| the same, another number | a weight in the loss | bad | bad |
| `UNCLEAR_MARKS` | the same, but not which way round | bad | bad |
| `PARTIAL_MARKS`, `TOKEN_COLUMNS` | the same for parts of a text | bad | bad |
| `CONTINUED_MARKS`, `END_MARKS` | the answer does not end there | bad | |
| `is_reasoning` | what the model writes before its answer | bad unless the answer has it too | likewise |
| `NO_PLACE_IN_TEMPLATE` | tool calls, images, ... | bad | `columns.PROMPT_COLUMNS` |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeGuard

from solar_plugins.data.formatters.base import (
    Formatter,
    NothingToLearn,
    Role,
    Row,
    RowError,
    SFTFormatter,
    is_blank,
    is_nan,
    number,
    stands_in,
)

NO_PLACE_IN_TEMPLATE = (
    *("tool_calls", "function_call", "tool_call_id", "tool_responses", "tools", "functions", "tool_plan", "ipython"),
    *("refusal", "images", "image", "videos", "video", "audios", "audio", "files", "attachments"),
)
"""Keys of a message that a model reads or writes, and for which SOLAR's template has no place: if one is filled, the
row is bad. Other keys beside role and content (id, model, name, language, ...) describe a message and are ignored."""

LEARNING_MARKS = (
    *("weight", "train", "training", "trainable", "learn", "loss", "loss_mask"),
    *("loss_weight", "loss_scale", "compute_loss"),
)
"""Keys that say whether a message, or a row, is trained on: OpenAI's and Mistral's ``weight`` (0 or 1, of answers),
which Fireworks also reads on a row; Axolotl's ``train`` and ``training`` (``message_field_training``); ms-swift's
``loss`` and ``loss_scale``; and words like these."""
MASKED_MARKS = ("masked",)
"""The opposite of these marks (torchtune)."""
UNCLEAR_MARKS = ("mask", "ignore")
"""Words that one trainer or another takes for either: a mask of the loss is 1 where a text is learnt, a masked text is
not learnt; an ignored message is left out of the loss or of the conversation."""
PARTIAL_MARKS = ("train_detail", "training_detail", "reasoning_training_detail")
"""Keys by which a message says which of its characters are trained on (Axolotl, ``message_field_training_detail``)."""
CONTINUED_MARKS = ("prefix", "partial")
"""Keys of an answer that is only the beginning of one, for the model to go on with: ``prefix`` (Mistral, DeepSeek),
``partial`` (Kimi, Qwen)."""
END_MARKS = ("eot", "eos", "end_of_turn")
"""Keys that say whether an end token follows a message (torchtune's ``eot``)."""
REASONING_CHANNELS = ("analysis", "commentary")
"""Values of ``channel`` (OpenAI's Harmony) by which a message is no answer."""

ROW_MARKS: Mapping[str, str] = {
    **{mark: mark for mark in (*LEARNING_MARKS, *MASKED_MARKS)},
    **{"weights": "weight", "sample_weight": "weight", "example_weight": "weight", "loss_masks": "loss_mask"},
}
"""Columns that say for a row, or in a list for its messages, what these marks say; by the mark of a message."""
TOKEN_COLUMNS = ("assistant_masks", "assistant_mask", "completion_mask", "label_mask", "labels")
"""Columns with a number for each token (TRL, transformers): made for another template."""

_REASONING = re.compile(
    r"(?P<whose>.*[_\- ])?"
    r"(reasoning|thinking|think|thoughts?|cot|chain[_\- ]?of[_\- ]?thoughts?|scratchpad)"
    r"[_\- ]?(content|text|process|chain|details|traces?|steps|trajectory|trajectories)?"
)
_SETTINGS = ("on", "off", "yes", "no", "true", "false", "none", "auto", "low", "medium", "high", "enabled", "disabled")
"""Values of a column that says how much a model thought (Llama-Nemotron's ``reasoning: off``)."""


def check_message(message: Mapping[str, Any], content: str, role: Role, field: str) -> None:
    """Refuse a message that says what neither SOLAR's template nor the loss has a place for.

    Raises:
        RowError: It has such a mark.
    """
    for key in NO_PLACE_IN_TEMPLATE:
        if not is_blank(message.get(key)):
            raise RowError(f"{field}.{key}", "is filled; SOLAR's template has no place for it")
    for key in CONTINUED_MARKS:
        if not is_blank(message.get(key)):
            raise RowError(
                f"{field}.{key}",
                "is set: the text is the start of an answer that goes on; here every answer ends with the end token. "
                "Complete the answer and drop the key",
            )
    for key in END_MARKS:
        if role == "assistant" and (end := message.get(key)) is not None and end in (0, ""):
            raise RowError(
                f"{field}.{key}",
                f"is {end!r}: no end token follows, but here every answer ends with it. Join the parts of an answer",
            )
    if (channel := message.get("channel")) in REASONING_CHANNELS:
        raise RowError(
            f"{field}.channel", f"is {channel!r}: no answer, and SOLAR's template has no place for it; drop the message"
        )
    for key in reasoning_left_out(message, [content]):
        raise RowError(f"{field}.{key}", _NO_PLACE_FOR_REASONING)


_NO_PLACE_FOR_REASONING = (
    "is reasoning that the answer's text lacks, and SOLAR's template has no place for it; put it into the text "
    "(<think>...</think>), or drop the key"
)


def is_learnt(message: Mapping[str, Any], role: Role, field: str) -> bool:
    """Whether the message's marks leave it to be trained on; True for all but answers.

    Raises:
        RowError: A mark is no yes or no, or asks to train on something else than an answer.
    """
    learnt = True
    for key in PARTIAL_MARKS:
        if not is_blank(message.get(key)):
            raise RowError(f"{field}.{key}", _PARTIAL)
    for key in UNCLEAR_MARKS:
        if (mark := message.get(key)) is not None and not is_nan(mark) and (key == "mask" or mark):
            raise RowError(f"{field}.{key}", f"is {mark!r:.40}{_UNCLEAR}")
    for key in (*LEARNING_MARKS, *MASKED_MARKS):
        mark = message.get(key)
        if mark is None or is_nan(mark):
            continue
        if mark not in (0, 1):
            trained = "1 (not trained on) or 0" if key in MASKED_MARKS else "0 (not trained on) or 1"
            raise RowError(f"{field}.{key}", f"is {mark!r:.40}, expected {trained}; texts have no other weights here")
        mark = not mark if key in MASKED_MARKS else mark
        if role == "assistant":
            learnt = learnt and bool(mark)
        elif mark and key not in (
            "weight",
            *MASKED_MARKS,
        ):  # OpenAI defines weight for answers alone; some sets fill it for every message.
            raise RowError(f"{field}.{key}", f"asks to train on the {role}'s text; SOLAR's format trains on answers")
    return learnt


_PARTIAL = "asks to train on a part of the text; here a whole answer is learnt or none"
_UNCLEAR = (
    ", which some trainers take for text that is learnt and others for text that is not; "
    "rename it: weight (0: not trained on) or masked (1: not trained on)"
)


def check_part(part: Mapping[str, Any], field: str) -> None:
    """Refuse a part of an answer's content that is marked not to be trained on (Axolotl's ``train`` and ``weight``).

    Raises:
        RowError: It is.
    """
    for key in (*LEARNING_MARKS, *MASKED_MARKS):
        mark = part.get(key)
        if mark is not None and not is_nan(mark) and mark != (0 if key in MASKED_MARKS else 1):
            raise RowError(f"{field}.{key}", _PARTIAL)


@cache
def is_reasoning(name: str) -> str:
    """Whether a column or key is named as what a model writes before its answer: ``"own"``, or ``"prefixed"``, or no.

    A name with something before it (``deepseek_reasoning``) may be a label too (``type_of_reasoning``).

    >>> is_reasoning("reasoning_content"), is_reasoning("Complex_CoT"), is_reasoning("reasoning_type")
    ('own', 'prefixed', '')
    """
    found = _REASONING.fullmatch(name.lower())
    return "" if found is None else "prefixed" if found["whose"] else "own"


def reasoning_left_out(fields: Mapping[str, Any], answers: Sequence[str], *, judged: bool = False) -> Iterator[str]:
    """Names of fields with reasoning that is in none of the answers.

    Args:
        fields: Of a row or a message.
        answers: What is learnt of it.
        judged: ``rationale`` and ``analysis`` are a judge's, as in preference sets.
    """
    for name, value in fields.items():
        kind = "own" if not judged and name in ("rationale", "analysis") else is_reasoning(name)
        if not kind:
            continue
        for part in _strings(value):
            label = part.lower() in _SETTINGS or (kind == "prefixed" and len(part.split()) == 1)
            if part and not label and not any(stands_in(part, answer) for answer in answers):
                yield name
                break


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield "" if is_blank(value) else value.strip()
    elif isinstance(value, Mapping):
        yield from (text for one in value.values() for text in _strings(one))
    elif isinstance(value, list | tuple):
        yield from (text for one in value for text in _strings(one))


def check_row(row: Row, formatter: Formatter, answers: Sequence[str]) -> None:
    """Refuse a row with a column that changes what it teaches, and that the formatter does not read.

    Args:
        row: The row.
        formatter: One that declares its ``optional_columns``.
        answers: What it gave.

    Raises:
        NothingToLearn: The row is marked not to be trained on.
        RowError: There is such a column.
    """
    read = (*formatter.columns, *(formatter.optional_columns or ()))
    ignored = {column: value for column, value in row.items() if column not in read}
    for column in ROW_MARKS:
        if are_flags(value := ignored.get(column)):
            raise RowError(column, "has a flag for each message or token, and nothing here reads them; drop the column")
        check_mark(value, column)
    for column in TOKEN_COLUMNS:
        if are_flags(ignored.get(column)) and (column != "labels" or are_flags(row.get("input_ids"))):
            raise RowError(column, "marks tokens of another template; drop the column, or mark messages with weight: 0")
    mask = ignored.get("mask")
    if _as_number(mask) is not None or are_flags(mask) or (isinstance(mask, str) and mask.lower() == "assistant"):
        raise RowError("mask", f"is {mask!r:.40}{_UNCLEAR}")
    if ignored.get("ignore") is True:
        raise NothingToLearn("ignore", "is True: the row is marked to be left out")
    is_sft = isinstance(formatter, SFTFormatter)
    if is_sft and ignored.get("kto_tag") is False:
        raise NothingToLearn("kto_tag", "is False: the answer is not wanted (LLaMA-Factory's form of KTO)")
    for column in reasoning_left_out(ignored, answers, judged=not is_sft):
        raise RowError(column, _NO_PLACE_FOR_REASONING)


def check_mark(value: Any, column: str) -> None:
    """Refuse a row that one of `ROW_MARKS` does not let count as every other row.

    Raises:
        NothingToLearn: The row is not to be trained on.
        RowError: It has another weight.
    """
    if column == "loss" and not isinstance(value, bool):
        return  # The loss that some model had on the row.
    mark = _as_number(value)
    if mark is None:
        return
    if mark not in (0, 1):
        raise RowError(
            column,
            f"is {value!r:.40}, a weight of the row in the loss; here every row counts the same. Drop the column, or "
            "make a dataset of the rows of each weight and set its weight: in the recipe",
        )
    if (mark == 0) != (column in MASKED_MARKS):
        raise NothingToLearn(column, f"is {value!r}: the row is marked not to be trained on")


def _as_number(value: Any) -> float | None:
    """A yes, a no or a number, also as text; None for all else."""
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return float(value.strip().lower() == "true")
    return float(value) if isinstance(value, bool) else number(value)


def are_flags(value: Any) -> TypeGuard[Sequence[float]]:
    """Whether a value is a list of yes, no or numbers."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, int | float) for one in value)
