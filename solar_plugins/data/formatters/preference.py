"""Rows of the preference sets that SOLAR was aligned with, read as pairs.

| formatter | columns | sets of this shape |
|---|---|---|
| `orca_dpo_pairs` | system (may be empty), question, chosen, rejected | Intel/orca_dpo_pairs |
| `ultrafeedback_binarized` | chosen, rejected: message lists; prompt, where these hold the answer alone | \
allenai/ultrafeedback_binarized_cleaned, HuggingFaceH4/ultrafeedback_binarized |
| `ultrafeedback_scores` | instruction, completions: list of response, overall_score | openbmb/UltraFeedback |
| `math_pairs` | rephrased_question, rephrased_answer, original_answer | the paper's Synth. Math-Alignment |
| `sharegpt_pairs` | conversations: list of from, value; chosen, rejected: a message or a text | LLaMA-Factory's demo |
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from solar_plugins.data.formatters.base import (
    Messages,
    PreferenceFormatter,
    PreferencePair,
    Row,
    RowError,
    answer_of,
    optional_text,
    question,
    read_message,
    read_messages,
    text,
)
from solar_plugins.plugins.markers import hookimpl


def orca_dpo_pairs(row: Row, chance: random.Random) -> PreferencePair:
    """The system text, if there is one, and the question as the prompt."""
    prompt = question(text(row.get("question"), "question"), optional_text(row.get("system"), "system"))
    return PreferencePair(prompt, text(row.get("chosen"), "chosen"), text(row.get("rejected"), "rejected"))


def ultrafeedback_binarized(row: Row, chance: random.Random) -> PreferencePair:
    """The two conversations of a row: they differ in their last message alone, which is the answer."""
    chosen_prompt, chosen = _prompt_and_answer(row, "chosen")
    rejected_prompt, rejected = _prompt_and_answer(row, "rejected")
    if rejected_prompt != chosen_prompt:
        raise RowError("rejected", "answers another prompt than chosen does")
    return PreferencePair(chosen_prompt, chosen, rejected)


def _prompt_and_answer(row: Row, column: str) -> tuple[Messages, str]:
    value = row.get(column)
    if isinstance(value, list) and len(value) == 1:
        return _prompt(row.get("prompt"), "prompt"), _answer(value[0], f"{column}[0]")
    return answer_of(read_messages(value, column), column)


def ultrafeedback_scores(row: Row, chance: random.Random) -> PreferencePair:
    """The completion with the highest overall score against one of the others by chance.

    So Zephyr made its pairs of UltraFeedback's four completions (Tunstall et al. 2023, arXiv:2310.16944, sec. 3). Of
    equal scores the first is the best.
    """
    completions = row.get("completions")
    if not isinstance(completions, list) or len(completions) < 2:
        raise RowError("completions", f"is {completions!r:.60}, expected a list of two completions or more")
    scored = [_scored(completion, f"completions[{number}]") for number, completion in enumerate(completions)]
    best = max(range(len(scored)), key=lambda number: scored[number][0])
    rejected = chance.choice([number for number in range(len(scored)) if number != best])
    prompt = question(text(row.get("instruction"), "instruction"))
    return PreferencePair(prompt, scored[best][1], scored[rejected][1])


def _scored(completion: Any, field: str) -> tuple[float, str]:
    if not isinstance(completion, Mapping):
        raise RowError(field, f"is a {type(completion).__name__}, expected a response with its overall_score")
    score = completion.get("overall_score")
    if isinstance(score, bool) or not isinstance(score, int | float) or score != score:
        raise RowError(f"{field}.overall_score", f"is {score!r:.60}, expected a number")
    return score, text(completion.get("response"), f"{field}.response")


def math_pairs(row: Row, chance: random.Random) -> PreferencePair:
    """The rephrased question; its rephrased answer is chosen and the original answer rejected (SOLAR, sec. 2.2)."""
    prompt = question(text(row.get("rephrased_question"), "rephrased_question"))
    chosen = text(row.get("rephrased_answer"), "rephrased_answer")
    return PreferencePair(prompt, chosen, text(row.get("original_answer"), "original_answer"))


def sharegpt_pairs(row: Row, chance: random.Random) -> PreferencePair:
    """The conversation so far, and two messages that could follow."""
    prompt = _prompt(row.get("conversations"), "conversations")
    return PreferencePair(prompt, _answer(row.get("chosen"), "chosen"), _answer(row.get("rejected"), "rejected"))


def _prompt(value: Any, field: str) -> Messages:
    if isinstance(value, str):
        return question(text(value, field))
    messages = read_messages(value, field)
    if not messages or messages[-1]["role"] != "user":
        raise RowError(field, "does not end with the user's message")
    return messages


def _answer(value: Any, field: str) -> str:
    if not isinstance(value, Mapping):
        return text(value, field)
    message = read_message(value, field)
    if message["role"] != "assistant":
        raise RowError(field, f"is the {message['role']}'s, expected the assistant's")
    return message["content"]


@hookimpl
def register_preference_formatters() -> list[PreferenceFormatter]:
    """The built-in formatters."""
    return [
        PreferenceFormatter(
            name="orca_dpo_pairs",
            columns=("question", "chosen", "rejected"),
            to_pair=orca_dpo_pairs,
            summary="system, question, chosen, rejected",
        ),
        PreferenceFormatter(
            name="ultrafeedback_binarized",
            columns=("chosen", "rejected"),
            to_pair=ultrafeedback_binarized,
            summary="chosen and rejected as message lists",
        ),
        PreferenceFormatter(
            name="ultrafeedback_scores",
            columns=("instruction", "completions"),
            to_pair=ultrafeedback_scores,
            summary="the best of scored completions against another one by chance, as Zephyr did",
        ),
        PreferenceFormatter(
            name="math_pairs",
            columns=("rephrased_question", "rephrased_answer", "original_answer"),
            to_pair=math_pairs,
            summary="the rephrased answer against the original one",
        ),
        PreferenceFormatter(
            name="sharegpt_pairs",
            columns=("conversations", "chosen", "rejected"),
            to_pair=sharegpt_pairs,
            summary="conversations of from and value, and two messages that could follow",
        ),
    ]
