"""Marks that change what a row trains: keys of a message, and columns of a row.

No built-in formatter ignores anything that changes the meaning of a row. Either it applies the mark, or the row is bad
and the reason says what the mark means and what to do. All other keys and columns are metadata (id, source, category,
score, reward, model, language, ...) and are ignored. For parts of the prompt in columns of their own, see
`columns.PROMPT_COLUMNS`.

| marks | meaning | on a message | on a row |
|---|---|---|---|
| `LEARNING_MARKS`, `MASKED_MARKS` | train on it: 0 or 1 | applied: context only | applied: row left out |
| the same, a list | the same for each message or answer | | applied to conversations, else bad |
| the same, another number | a weight in the loss | bad | bad |
| `UNCLEAR_MARKS` | the same, but ambiguous | bad | bad |
| `PARTIAL_MARKS`, `TOKEN_COLUMNS` | the same for parts of a text | bad | bad |
| `CONTINUED_MARKS`, `END_MARKS` | the answer does not end there | bad | |
| `is_reasoning` | reasoning before the answer | bad unless the answer contains it | likewise |
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
"""Keys of a message that a model reads or writes but that SOLAR's template cannot express: if one is filled, the row is
bad. Other keys (id, model, name, language, ...) are metadata and are ignored."""

LEARNING_MARKS = (
    *("weight", "train", "training", "trainable", "learn", "loss", "loss_mask"),
    *("loss_weight", "loss_scale", "compute_loss"),
)
"""Keys that say whether a message, or a row, is trained on: ``weight`` of OpenAI and Mistral (0 or 1, on answers; on a
row too for Fireworks); ``train`` and ``training`` of Axolotl (``message_field_training``); ``loss`` and ``loss_scale``
of ms-swift; and similar names."""
MASKED_MARKS = ("masked",)
"""The same, inverted (torchtune)."""
UNCLEAR_MARKS = ("mask", "ignore")
"""Ambiguous names: a loss mask is 1 where tokens are trained on, but masked text is not trained on; an ignored message
is left out of the loss, or of the conversation."""
PARTIAL_MARKS = ("train_detail", "training_detail", "reasoning_training_detail")
"""Keys by which a message says which of its characters are trained on (Axolotl, ``message_field_training_detail``)."""
CONTINUED_MARKS = ("prefix", "partial")
"""Keys of an incomplete answer that the model should continue: ``prefix`` (Mistral, DeepSeek), ``partial`` (Kimi,
Qwen)."""
END_MARKS = ("eot", "eos", "end_of_turn")
"""Keys that say whether an end token follows a message (torchtune's ``eot``)."""
REASONING_CHANNELS = ("analysis", "commentary")
"""Values of ``channel`` (OpenAI's Harmony) of messages that are not answers."""

ROW_MARKS: Mapping[str, str] = {
    **{mark: mark for mark in (*LEARNING_MARKS, *MASKED_MARKS)},
    **{"weights": "weight", "sample_weight": "weight", "example_weight": "weight", "loss_masks": "loss_mask"},
}
"""Columns with the same meaning for a row, or as a list for its messages; mapped to the key of a message."""
TOKEN_COLUMNS = ("assistant_masks", "assistant_mask", "completion_mask", "label_mask", "labels")
"""Columns with a number per token (TRL, transformers), made for another template and tokenizer."""

_REASONING = re.compile(
    r"(?P<whose>.*[_\- ])?"
    r"(reasoning|thinking|think|thoughts?|cot|chain[_\- ]?of[_\- ]?thoughts?|scratchpad)"
    r"[_\- ]?(content|text|process|chain|details|traces?|steps|trajectory|trajectories)?"
)
_SETTINGS = ("on", "off", "yes", "no", "true", "false", "none", "auto", "low", "medium", "high", "enabled", "disabled")
"""Values of a column that only says how much a model reasoned (Llama-Nemotron's ``reasoning: off``)."""


def check_message(message: Mapping[str, Any], content: str, role: Role, field: str) -> None:
    """Reject a message that SOLAR's template or the loss cannot express.

    Raises:
        RowError: The message has such a mark.
    """
    for key in NO_PLACE_IN_TEMPLATE:
        if not is_blank(message.get(key)):
            raise RowError(f"{field}.{key}", "is filled, but SOLAR's template has no place for it")
    for key in CONTINUED_MARKS:
        if not is_blank(message.get(key)):
            raise RowError(
                f"{field}.{key}",
                "is set: the answer is incomplete, but every answer is trained on with the EOS token after it. "
                "Complete the answer and remove the key",
            )
    for key in END_MARKS:
        if role == "assistant" and (end := message.get(key)) is not None and end in (0, ""):
            raise RowError(
                f"{field}.{key}",
                f"is {end!r}: the answer does not end here, but every answer is trained on with the EOS token after "
                "it. Join the parts of the answer",
            )
    if (channel := message.get("channel")) in REASONING_CHANNELS:
        raise RowError(
            f"{field}.channel",
            f"is {channel!r}: not an answer, and SOLAR's template has no place for it; remove the message",
        )
    for key in reasoning_left_out(message, [content]):
        raise RowError(f"{field}.{key}", _NO_PLACE_FOR_REASONING)


_NO_PLACE_FOR_REASONING = (
    "is reasoning that the answer does not contain, and SOLAR's template has no place for it; put it into the answer "
    "(<think>...</think>), or remove it"
)


def is_in_loss(message: Mapping[str, Any], role: Role, field: str) -> bool:
    """Whether the loss covers the message according to its marks; True for messages that are not answers.

    Raises:
        RowError: A mark is not boolean, or asks to train on a message that is not an answer.
    """
    in_loss = True
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
            raise RowError(
                f"{field}.{key}", f"is {mark!r:.40}, expected {trained}; other loss weights are not supported"
            )
        mark = not mark if key in MASKED_MARKS else mark
        if role == "assistant":
            in_loss = in_loss and bool(mark)
        # OpenAI defines weight for answers only, but some datasets fill it in for every message.
        elif mark and key not in ("weight", *MASKED_MARKS):
            raise RowError(f"{field}.{key}", f"asks to train on the {role}'s message; SOLAR trains on answers only")
    return in_loss


_PARTIAL = "asks to train on a part of the text; the loss covers an answer completely or not at all"
_UNCLEAR = (
    ", which is ambiguous: some trainers train on such text, others mask it; "
    "rename it to weight (0: not trained on) or masked (1: not trained on)"
)


def check_part(part: Mapping[str, Any], field: str) -> None:
    """Reject an answer if a part of its content is marked as not to be trained on (Axolotl's ``train``, ``weight``).

    Raises:
        RowError: It is.
    """
    for key in (*LEARNING_MARKS, *MASKED_MARKS):
        mark = part.get(key)
        if mark is not None and not is_nan(mark) and mark != (0 if key in MASKED_MARKS else 1):
            raise RowError(f"{field}.{key}", _PARTIAL)


@cache
def is_reasoning(name: str) -> str:
    """Whether the name of a column or key stands for reasoning: ``"own"``, ``"prefixed"``, or an empty string.

    A prefixed name (``deepseek_reasoning``) may also be a label (``type_of_reasoning``).

    >>> is_reasoning("reasoning_content"), is_reasoning("Complex_CoT"), is_reasoning("reasoning_type")
    ('own', 'prefixed', '')
    """
    found = _REASONING.fullmatch(name.lower())
    return "" if found is None else "prefixed" if found["whose"] else "own"


def reasoning_left_out(fields: Mapping[str, Any], answers: Sequence[str], *, judged: bool = False) -> Iterator[str]:
    """Names of fields with reasoning that none of the answers contains.

    Args:
        fields: Of a row or a message.
        answers: The answers that are trained on.
        judged: ``rationale`` and ``analysis`` come from a judge, as in preference datasets, and do not count.
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
    """Reject a row with a column that changes what the row trains but that the formatter does not read.

    Args:
        row: The row.
        formatter: One that declares its ``optional_columns``.
        answers: The answers that it returned.

    Raises:
        NothingToLearn: The row is marked as not to be trained on.
        RowError: The row has such a column.
    """
    read = (*formatter.columns, *(formatter.optional_columns or ()))
    ignored = {column: value for column, value in row.items() if column not in read}
    for column in ROW_MARKS:
        if are_flags(value := ignored.get(column)):
            raise RowError(
                column, "has a flag for each message or token, which this formatter does not use; remove the column"
            )
        check_mark(value, column)
    for column in TOKEN_COLUMNS:
        if are_flags(ignored.get(column)) and (column != "labels" or are_flags(row.get("input_ids"))):
            raise RowError(
                column, "masks tokens of another template; remove the column, or mark messages with weight: 0"
            )
    mask = ignored.get("mask")
    if _as_number(mask) is not None or are_flags(mask) or (isinstance(mask, str) and mask.lower() == "assistant"):
        raise RowError("mask", f"is {mask!r:.40}{_UNCLEAR}")
    if ignored.get("ignore") is True:
        raise NothingToLearn("ignore", "is True: the row is marked as to be left out")
    is_sft = isinstance(formatter, SFTFormatter)
    if is_sft and ignored.get("kto_tag") is False:
        raise NothingToLearn("kto_tag", "is False: the answer is undesirable (LLaMA-Factory's KTO format)")
    for column in reasoning_left_out(ignored, answers, judged=not is_sft):
        raise RowError(column, _NO_PLACE_FOR_REASONING)


def check_mark(value: Any, column: str) -> None:
    """Reject a row to which one of `ROW_MARKS` gives a weight other than 1.

    Raises:
        NothingToLearn: The weight is 0.
        RowError: It is another number.
    """
    if column == "loss" and not isinstance(value, bool):
        return  # A model's loss on the row, not a mark.
    mark = _as_number(value)
    if mark is None:
        return
    if mark not in (0, 1):
        raise RowError(
            column,
            f"is {value!r:.40}, a loss weight for the row; all rows have the same weight. Remove the column, or make "
            "one dataset for each weight and set its weight: in the recipe",
        )
    if (mark == 0) != (column in MASKED_MARKS):
        raise NothingToLearn(column, f"is {value!r}: the row is marked as not to be trained on")


def _as_number(value: Any) -> float | None:
    """A boolean or a number, also as a string; None for anything else."""
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return float(value.strip().lower() == "true")
    return float(value) if isinstance(value, bool) else number(value)


def are_flags(value: Any) -> TypeGuard[Sequence[float]]:
    """Whether a value is a list of booleans or numbers."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, int | float) for one in value)
