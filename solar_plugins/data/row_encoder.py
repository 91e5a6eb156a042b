"""From a row to the token ids and labels that models are trained and measured on.

Training, ``solar sdpo-order`` and ``solar report`` encode rows here and nowhere else, so a row has the same ids, labels
and random choices in all three.

Axolotl trains conversations on these ids. Of pairs it hands the texts to TRL, which tokenizes the prompt alone, and
prompt and answer together. For pairs that fit, the result is `EncodedAnswer.tokens` (compared with the batches of the
trainers for DPO, KTO, ORPO and SimPO). Known differences:

* ORPO and SimPO put the BOS token before a prompt even if the tokenizer itself puts nothing there.
* A tokenizer that puts an end token after every text makes DPO and KTO misplace the boundary;
  `axolotl_adapter.datasets` refuses it.
* With ``excess_length_strategy: truncate`` Axolotl cuts the texts of pairs: it decodes the first tokens of an answer,
  and TRL tokenizes that again, so the last few tokens may differ where the cut splits a character or a word.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from solar_plugins.data.encoder import Encoded, Encoder
from solar_plugins.data.formatters.base import (
    Formatter,
    Messages,
    NotedPair,
    PreferenceFormatter,
    Row,
    RowError,
    SFTFormatter,
    UnpairedFormatter,
)
from solar_plugins.data.formatters.columns import check_nothing_is_ignored
from solar_plugins.data.template import Example, is_learnt, render

DEFAULT_SEED = 42
"""Of recipes and commands that name none; Axolotl's own."""

UNLEARNT = "answer not trained on, as it is marked (weight: 0)"
"""Note of a row."""


class EncodedAnswer(NamedTuple):
    """An answer to a prompt, as texts and as tokens.

    Args:
        messages: The messages of the prompt.
        prompt: The same as one text, which ends with the generation prompt.
        completion: The answer and the end-of-sequence token.
        tokens: The ids of prompt and completion with the tokenizer's start token, if it has one; the completion is
            labelled. Cut at ``max_length`` where the encoder truncates.
        num_tokens: How many tokens there are before cutting.
        too_long: Whether it cannot be used: it does not fit, or cutting left nothing of the answer.
        notes: What was left out of the row, for the dataset's summary.
    """

    messages: Messages
    prompt: str
    completion: str
    tokens: Encoded
    num_tokens: int
    too_long: bool
    notes: tuple[str, ...] = ()

    @property
    def cut(self) -> bool:
        """Whether the answer lost its end."""
        return self.num_tokens > len(self.tokens.input_ids)

    @property
    def opening(self) -> str:
        """How the conversation begins: the user's first text."""
        return next((message["content"].strip() for message in self.messages if message["role"] == "user"), "")


class EncodedPair(NamedTuple):
    """Two answers to one prompt.

    Args:
        row: The number of the row, counted from 1.
        chosen: The preferred answer.
        rejected: The other one.
    """

    row: int
    chosen: EncodedAnswer
    rejected: EncodedAnswer

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of the row, for the dataset's summary."""
        return self.chosen.notes

    @property
    def num_tokens(self) -> int:
        """0: the two answers repeat their prompt by nature."""
        return 0

    @property
    def too_long(self) -> bool:
        """Whether the pair cannot be used because one of its answers cannot."""
        return self.chosen.too_long or self.rejected.too_long

    @property
    def cut(self) -> bool:
        """Whether an answer lost its end."""
        return self.chosen.cut or self.rejected.cut


@dataclass(frozen=True)
class RowEncoder:
    """Everything on which the encoding of a row depends.

    Args:
        formatter: How to read the row.
        encoder: The tokenizer.
        max_length: The most tokens that prompt and answer may have together, start and end token included.
        truncate: Cut longer answers at ``max_length``, as TRL does (``truncation_mode: keep_start``). By default they
            are too long.
        seed: Random seed of the formatter's choices.
        whole_conversations: Give one example for each conversation, instead of one for each of its answers.
    """

    formatter: Formatter
    encoder: Encoder
    max_length: int
    truncate: bool = False
    seed: int = DEFAULT_SEED
    whole_conversations: bool = False

    def conversation(self, row: Row) -> list[EncodedAnswer]:
        """The answers of a conversation, first to last; the prompt of each holds the turns before it.

        Raises:
            RowError: The row cannot be used.
            TypeError: The formatter gives pairs.
        """
        formatter = self._formatter(SFTFormatter)
        with self._failures_as_row_errors():
            messages = formatter.to_messages(row)
            self._check(row, messages)
            places = [place for place, message in enumerate(messages) if is_learnt(message)]
            if not places:
                raise RowError(formatter.name, "gave a conversation without an answer")
            if self.whole_conversations:
                answers = self._whole_conversation(messages, places)
            else:
                examples = ((place, self.encoder.encode(_example(messages, place))) for place in places)
                answers = [self._answer(messages, place, tokens) for place, tokens in examples]
        num_answers = sum(message["role"] == "assistant" for message in messages)
        notes = (UNLEARNT,) * (num_answers - len(places))
        return [answers[0]._replace(notes=notes), *answers[1:]]

    def _whole_conversation(self, messages: Messages, places: list[int]) -> list[EncodedAnswer]:
        """One example that ends with the last answer that fits; the answers after it are too long."""
        left_out: list[EncodedAnswer] = []
        for place in reversed(places):
            answer = self._answer(messages, place, self.encoder.encode_conversation(messages[: place + 1]))
            if not answer.too_long:
                return [answer, *left_out]
            left_out.insert(0, answer)
        return left_out

    def pair(self, row: Row, index: int) -> EncodedPair:
        """The two answers of a preference pair.

        Args:
            row: The row.
            index: Its place in the dataset, counted from 0. With `seed` it determines the formatter's choices.

        Raises:
            RowError: The row cannot be used.
            TypeError: The formatter gives conversations.
        """
        formatter = self._formatter(PreferenceFormatter)
        with self._failures_as_row_errors():
            pair = formatter.to_pair(row, random.Random(f"{self.seed}:{index}"))
            if pair.chosen.strip() == pair.rejected.strip():
                raise RowError("chosen", "is equal to rejected")
            chosen, rejected = (self._answered(pair.prompt, answer) for answer in (pair.chosen, pair.rejected))
            self._check(row, [*pair.prompt, chosen[-1], rejected[-1]])
            notes = pair.notes if isinstance(pair, NotedPair) else ()
            first, second = self._answer_of_pair(chosen), self._answer_of_pair(rejected)
            return EncodedPair(index + 1, first._replace(notes=notes), second)

    def labelled(self, row: Row) -> tuple[EncodedAnswer, bool]:
        """A single answer, and whether it is wanted.

        Raises:
            RowError: The row cannot be used.
            TypeError: The formatter gives something else.
        """
        formatter = self._formatter(UnpairedFormatter)
        with self._failures_as_row_errors():
            found = formatter.to_answer(row)
            messages = self._answered(found.prompt, found.completion)
            self._check(row, messages)
            return self._answer_of_pair(messages), found.label

    def _formatter[F](self, kind: type[F]) -> F:
        if not isinstance(self.formatter, kind):
            raise TypeError(f"the formatter {self.formatter.name} is a {type(self.formatter).__name__}")
        return self.formatter

    @contextmanager
    def _failures_as_row_errors(self) -> Iterator[None]:
        try:
            yield
        except RowError:
            raise
        except Exception as error:
            # A third party's formatter may raise or return anything; the row is counted as bad and the error named.
            raise RowError(self.formatter.name, f"failed with {type(error).__name__}: {error}") from error

    def _check(self, row: Row, messages: Messages) -> None:
        check_nothing_is_ignored(row, self.formatter, messages)
        self.encoder.check_messages(messages)

    @staticmethod
    def _answered(prompt: Messages, answer: str) -> Messages:
        return [*prompt, {"role": "assistant", "content": answer}]

    def _answer_of_pair(self, messages: Messages) -> EncodedAnswer:
        place = len(messages) - 1
        return self._answer(messages, place, self.encoder.encode_for_trl(_example(messages, place)))

    def _answer(self, messages: Messages, place: int, tokens: Encoded) -> EncodedAnswer:
        prompt, answer = _example(messages, place)
        num_tokens = len(tokens.input_ids)
        too_long = num_tokens > self.max_length
        if self.truncate:
            tokens = Encoded(tokens.input_ids[: self.max_length], tokens.labels[: self.max_length])
            too_long = not any(label >= 0 for label in tokens.labels)
        return EncodedAnswer(messages[:place], prompt, answer + self.encoder.end_token, tokens, num_tokens, too_long)


def _example(messages: Messages, place: int) -> Example:
    """The answer at a place, and the prompt that is all before it."""
    return Example(render(messages[:place], add_generation_prompt=True), messages[place]["content"])
