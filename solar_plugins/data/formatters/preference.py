"""Rows of preference datasets, read as pairs of answers, or as single answers with a label.

| formatter | columns | datasets of this form |
|---|---|---|
| `preference` | prompt, chosen, rejected: texts or lists of messages; the prompt may be in the lists only | \
TRL's preference form, argilla's Orca pairs (input), orpo-dpo-mix, truthy-dpo |
| `orca_dpo_pairs` | question, chosen, rejected | Intel/orca_dpo_pairs |
| `ultrafeedback_binarized` | chosen, rejected: message lists; prompt, if these hold only the answer | \
allenai/ultrafeedback_binarized_cleaned, HuggingFaceH4/ultrafeedback_binarized |
| `ultrafeedback_scores` | instruction, completions: list of response, overall_score | openbmb/UltraFeedback |
| `math_pairs` | rephrased_question, rephrased_answer, original_answer | the paper's Synth. Math-Alignment |
| `sharegpt_pairs` | conversations: list of from, value; chosen, rejected: a message or a text | LLaMA-Factory's demo |
| `hh_rlhf` | chosen, rejected: transcripts of "Human:" and "Assistant:" | Anthropic/hh-rlhf |
| `unpaired_preference` | prompt, completion, label (true: desirable); only with ``rl: kto`` | TRL's unpaired form |

All read a system message from a column of its own, leave out ties (`columns.check_preference`), and reject a row rather
than ignore a column that is part of the prompt (`columns.PROMPT_COLUMNS`) or changes what the row trains (`marks`).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from solar_plugins.data.formatters.base import (
    LabelledAnswer,
    Message,
    Messages,
    NotedPair,
    NothingToLearn,
    PreferenceFormatter,
    PreferencePair,
    Row,
    RowError,
    UnpairedFormatter,
    number,
    question,
    text,
)
from solar_plugins.data.formatters.columns import (
    PAIR_COLUMNS,
    SYSTEM_COLUMNS,
    check_preference,
    checked_prompt,
    is_messages_as_text,
    plain_text,
    prompt_column,
    with_system,
)
from solar_plugins.data.formatters.conversations import answer_of, message_list, read_message, read_messages


def preference(row: Row, rng: random.Random) -> PreferencePair:
    """A prompt and two answers, each a string or a list of messages; the lists may include the prompt.

    >>> preference({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, random.Random(0))[1:]
    ('4', '5')
    """
    check_preference(row)
    return _pair(_prompt_and_answer(row, "chosen"), _prompt_and_answer(row, "rejected"))


def _pair(chosen: tuple[Messages, str], rejected: tuple[Messages, str]) -> PreferencePair:
    if _stripped(rejected[0]) != _stripped(chosen[0]):
        raise RowError("rejected", "answers a different prompt than chosen does")
    return PreferencePair(*chosen, rejected[1])


def _stripped(messages: Messages) -> list[tuple[str, str]]:
    return [(message["role"], message["content"].strip()) for message in messages]


def _prompt_and_answer(row: Row, column: str) -> tuple[Messages, str]:
    """The prompt and the answer from a column: a string, a message, or messages that may include the prompt."""
    value = row.get(column)
    if isinstance(value, list) and len(value) != 1:
        messages = read_messages(value, column)
        prompt, answer = answer_of(messages, column)
        _check_in_loss(messages[-1], column)
        return with_system(row, prompt), answer
    if isinstance(value, list):
        return prompt_column(row), _answer_message(value[0], f"{column}[0]")
    return prompt_column(row), _answer(value, column)


def _answer(value: Any, field: str) -> str:
    return _answer_message(value, field) if isinstance(value, Mapping) else plain_text(value, field)


def _answer_message(value: Any, field: str) -> str:
    message = read_message(value, field)
    if message["role"] != "assistant":
        raise RowError(field, f"has the role {message['role']}, expected assistant")
    _check_in_loss(message, field)
    return message["content"]


def _check_in_loss(answer: Message, field: str) -> None:
    if not answer.get("learn", True):
        raise NothingToLearn(field, "is marked as not to be trained on (weight: 0)")


def orca_dpo_pairs(row: Row, rng: random.Random) -> PreferencePair:
    """The system message, if any, and the question form the prompt."""
    check_preference(row)
    prompt = with_system(row, question(text(row.get("question"), "question")))
    return PreferencePair(prompt, text(row.get("chosen"), "chosen"), text(row.get("rejected"), "rejected"))


def ultrafeedback_binarized(row: Row, rng: random.Random) -> PreferencePair:
    """The two conversations of a row, which differ only in their last message, the answer."""
    texts = [column for column in ("chosen", "rejected") if not isinstance(row.get(column), list)]
    lists = {column: message_list(row.get(column), column) for column in texts}
    return preference({**row, **lists}, rng)


MAX_SCORE_GAP = 4.5
"""The largest allowed difference between an overall score (1 to 10) and twice the fine-grained one (1 to 5): half the
scale. The known error in published copies, a 1 that became a 10, differs by 6 or more (OpenBMB/UltraFeedback, issue
8)."""


class _Completion(NamedTuple):
    response: str
    score: float
    fine: float | None

    def beats(self, other: _Completion) -> bool:
        """Whether the overall score is higher and the fine-grained one not lower."""
        opposite = self.fine is not None and other.fine is not None and self.fine < other.fine
        return self.score > other.score and not opposite


def ultrafeedback_scores(row: Row, rng: random.Random) -> PreferencePair:
    """The completion with the highest overall score against a randomly chosen worse one.

    Zephyr built its pairs from UltraFeedback's four completions this way (Tunstall et al. 2023, arXiv:2310.16944, sec.
    3). Ties are broken by the fine-grained score, then by order. Completions are skipped and counted if they are empty,
    have no score, or have an overall score that contradicts the fine-grained one by more than `MAX_SCORE_GAP`. A
    completion is worse if its overall score is lower and its fine-grained one is not higher; a row without a worse
    completion is left out. As in Zephyr, the system prompts of the completions are not read, because the scores rate
    the answer to the instruction only.
    """
    completions = row.get("completions")
    if not isinstance(completions, list) or len(completions) < 2:
        raise RowError("completions", f"is {completions!r:.60}, expected a list of at least two completions")
    prompt = with_system(row, question(text(row.get("instruction"), "instruction")))
    kept, notes = list[_Completion](), Counter[str]()
    for index, completion in enumerate(completions):
        found = _scored(completion, f"completions[{index}]")
        if isinstance(found, str):
            notes[found] += 1
        else:
            kept.append(found)
    skipped = ", ".join(f"{count} {note}" for note, count in notes.items())
    if len(kept) < 2:
        raise RowError("completions", f"has {len(kept)} usable of {len(completions)}, expected at least 2 ({skipped})")
    best = max(kept, key=lambda completion: (completion.score, completion.fine or 0.0))
    worse = [completion for completion in kept if best.beats(completion)]
    if not worse:
        tie = all(completion.score == best.score for completion in kept)
        why = "all have the same overall_score" if tie else "the fine-grained scores contradict the overall scores"
        raise NothingToLearn("completions", f"have no preference: {why}")
    pair = NotedPair(prompt, best.response, rng.choice(worse).response)
    pair.notes = tuple(notes.elements())
    return pair


def _scored(completion: Any, field: str) -> _Completion | str:
    """A completion with its scores, or why it is skipped.

    Raises:
        RowError: It is not a completion.
    """
    if not isinstance(completion, Mapping):
        raise RowError(field, f"has type {type(completion).__name__}, expected a response with its overall_score")
    response = completion.get("response")
    if response is None or (isinstance(response, str) and not response.strip()):
        return "empty completion(s) skipped"
    score, fine = number(completion.get("overall_score")), _fine_grained(completion)
    if score is None:
        return "completion(s) without overall_score skipped"
    if fine is not None and abs(score - 2 * fine) > MAX_SCORE_GAP:
        return "completion(s) skipped because overall_score contradicts the fine-grained score"
    return _Completion(text(response, f"{field}.response"), score, fine)


def _fine_grained(completion: Mapping[str, Any]) -> float | None:
    """The mean rating of the four aspects, from 1 to 5: the given one, or computed from the annotations."""
    given = number(completion.get("fine-grained_score"))
    if given is not None:
        return given
    annotations = completion.get("annotations")
    aspects = annotations.values() if isinstance(annotations, Mapping) else ()
    ratings = [number(aspect.get("Rating")) for aspect in aspects if isinstance(aspect, Mapping)]
    known = [rating for rating in ratings if rating is not None]
    return sum(known) / len(known) if known else None


def math_pairs(row: Row, rng: random.Random) -> PreferencePair:
    """The rephrased question; its rephrased answer is chosen and the original answer rejected (SOLAR, sec. 2.2)."""
    check_preference(row)
    prompt = with_system(row, question(text(row.get("rephrased_question"), "rephrased_question")))
    chosen = text(row.get("rephrased_answer"), "rephrased_answer")
    return PreferencePair(prompt, chosen, text(row.get("original_answer"), "original_answer"))


def sharegpt_pairs(row: Row, rng: random.Random) -> PreferencePair:
    """The conversation so far, and two possible next messages."""
    check_preference(row)
    field = "conversations"
    value = row.get(field)
    is_text = isinstance(value, str) and not is_messages_as_text(value)
    messages = question(text(value, field)) if is_text else read_messages(value, field)
    prompt = with_system(row, checked_prompt(messages, field))
    return PreferencePair(prompt, _answer(row.get("chosen"), "chosen"), _answer(row.get("rejected"), "rejected"))


TURN = re.compile(r"\n\n(Human|Assistant): ?")


def hh_rlhf(row: Row, rng: random.Random) -> PreferencePair:
    """Two transcripts that differ only in their last answer."""
    check_preference(row)
    return _pair(_transcript(row, "chosen"), _transcript(row, "rejected"))


def _transcript(row: Row, column: str) -> tuple[Messages, str]:
    before, *turns = TURN.split(text(row.get(column), column))
    if before.strip() or not turns:
        raise RowError(column, "does not start with a blank line and 'Human:'")
    messages: list[Message] = [
        {"role": "user" if speaker == "Human" else "assistant", "content": said}
        for speaker, said in zip(turns[::2], turns[1::2], strict=True)
    ]
    prompt, answer = answer_of(read_messages(messages, column), column)
    return with_system(row, prompt), answer


def unpaired_preference(row: Row) -> LabelledAnswer:
    """A prompt, one answer to it, and whether the answer is desirable.

    >>> unpaired_preference({"prompt": "2 + 2?", "completion": "5", "label": False})[1:]
    ('5', False)
    """
    label = row.get("label")
    if label not in (True, False):  # 1 and 0 are equal to these.
        raise RowError("label", f"is {label!r:.40}, expected true (desirable answer) or false")
    return LabelledAnswer(*_prompt_and_answer(row, "completion"), bool(label))


def built_in_preference_formatters() -> list[PreferenceFormatter]:
    """The built-in formatters."""
    return [
        PreferenceFormatter(
            name="orca_dpo_pairs",
            columns=("question", "chosen", "rejected"),
            to_pair=orca_dpo_pairs,
            summary="system, question, chosen, rejected",
            version=3,
            optional_columns=PAIR_COLUMNS,
        ),
        PreferenceFormatter(
            name="ultrafeedback_binarized",
            columns=("chosen", "rejected"),
            to_pair=ultrafeedback_binarized,
            summary="chosen and rejected as message lists",
            version=3,
            optional_columns=PAIR_COLUMNS,
        ),
        PreferenceFormatter(
            name="ultrafeedback_scores",
            columns=("instruction", "completions"),
            to_pair=ultrafeedback_scores,
            summary="the best of the scored completions against a random worse one, as in Zephyr",
            version=3,
            optional_columns=SYSTEM_COLUMNS,
        ),
        PreferenceFormatter(
            name="math_pairs",
            columns=("rephrased_question", "rephrased_answer", "original_answer"),
            to_pair=math_pairs,
            summary="the rephrased answer against the original one",
            version=3,
            optional_columns=PAIR_COLUMNS,
        ),
        PreferenceFormatter(
            name="sharegpt_pairs",
            columns=("conversations", "chosen", "rejected"),
            to_pair=sharegpt_pairs,
            summary="conversations of from and value, and two possible next messages",
            version=3,
            optional_columns=PAIR_COLUMNS,
        ),
        PreferenceFormatter(
            name="preference",
            columns=("chosen", "rejected"),
            to_pair=preference,
            summary="prompt, chosen, rejected: strings or lists of messages; the prompt may be in the lists only",
            version=2,
            optional_columns=PAIR_COLUMNS,
        ),
        PreferenceFormatter(
            name="hh_rlhf",
            columns=("chosen", "rejected"),
            to_pair=hh_rlhf,
            summary="chosen and rejected as transcripts of Human: and Assistant:",
            version=2,
            optional_columns=PAIR_COLUMNS,
        ),
    ]


def built_in_unpaired_formatters() -> list[UnpairedFormatter]:
    """The built-in formatters."""
    return [
        UnpairedFormatter(
            name="unpaired_preference",
            columns=("completion", "label"),
            to_answer=unpaired_preference,
            summary="prompt, completion, label: an answer and whether it is desirable",
            version=2,
            optional_columns=PAIR_COLUMNS,
        )
    ]
