"""Turns a row into the token ids and labels that models are trained and evaluated on.

Training, ``solar sdpo-order``, ``solar report`` and ``solar preview`` all encode rows here, so a row has the same ids,
labels and random choices in all of them.

Axolotl trains on these ids for conversations. For pairs it passes the texts to TRL, which tokenizes the prompt alone,
and prompt and answer together. For pairs that fit, the result equals `EncodedAnswer.tokens` (compared with the batches
of the trainers for DPO, KTO, ORPO and SimPO). Known differences:

* ORPO and SimPO put the BOS token before a prompt even if the tokenizer itself does not.
* A tokenizer that adds EOS after every text makes DPO and KTO misplace the boundary; `axolotl_adapter.datasets`
  rejects it.
* With ``excess_length_strategy: truncate`` Axolotl cuts the texts of pairs: it decodes the first tokens of an answer,
  and TRL tokenizes them again, so the last few tokens may differ where the cut splits a character or a word.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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
from solar_plugins.data.row_tally import FORMATTER_FAILED
from solar_plugins.data.template import Example, is_in_loss, render
from solar_plugins.logs import debugging

DEFAULT_SEED = 42
"""For recipes and commands that set no seed; Axolotl's default."""

MASKED_ANSWER = "masked answer(s) used as context only (weight: 0)"
"""A note on a row."""
ROLES = ("system", "user", "assistant")
PACKAGE = str(Path(__file__).parents[1])


class EncodedAnswer(NamedTuple):
    """A prompt and its answer, as text and as tokens.

    Args:
        messages: The messages of the prompt.
        prompt: The rendered prompt, which ends with the generation prompt.
        completion: The answer and the EOS token.
        tokens: The ids of prompt and completion, after the BOS token if the tokenizer adds one; the labels cover the
            completion. Truncated at ``max_length`` if the encoder truncates.
        num_tokens: Number of tokens before truncation.
        too_long: Whether it cannot be used: it does not fit, or truncation removed the entire answer.
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
        """Whether the answer was truncated."""
        return self.num_tokens > len(self.tokens.input_ids)

    @property
    def opening(self) -> str:
        """The first user message, by which conversations are grouped."""
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
        """0: the two answers share a prompt, so its repetition says nothing."""
        return 0

    @property
    def too_long(self) -> bool:
        """Whether the pair cannot be used because one of its answers is too long."""
        return self.chosen.too_long or self.rejected.too_long

    @property
    def cut(self) -> bool:
        """Whether an answer was truncated."""
        return self.chosen.cut or self.rejected.cut


@dataclass(frozen=True)
class RowEncoder:
    """Everything that determines how a row is encoded.

    Args:
        formatter: How to read the row.
        encoder: The tokenizer.
        max_length: Maximum tokens of prompt and answer together, BOS and EOS included.
        truncate: Truncate longer answers at ``max_length``, as TRL does (``truncation_mode: keep_start``). By default
            they are too long and dropped.
        seed: Random seed for the formatter's choices.
        whole_conversations: Make one example per conversation instead of one per answer.
    """

    formatter: Formatter
    encoder: Encoder
    max_length: int
    truncate: bool = False
    seed: int = DEFAULT_SEED
    whole_conversations: bool = False

    def conversation(self, row: Row) -> list[EncodedAnswer]:
        """The answers of a conversation, in order; the prompt of each contains the turns before it.

        Raises:
            RowError: The row cannot be used.
            TypeError: The formatter returns pairs.
        """
        formatter = self._formatter(SFTFormatter)
        with self._failures_as_row_errors():
            messages = formatter.to_messages(row)
            self._check(row, messages)
            indices = [index for index, message in enumerate(messages) if is_in_loss(message)]
            if not indices:
                raise RowError(formatter.name, "returned a conversation without an answer to train on")
            if self.whole_conversations:
                answers = self._whole_conversation(messages, indices)
            else:
                examples = ((index, self.encoder.encode(_example(messages, index))) for index in indices)
                answers = [self._answer(messages, index, tokens) for index, tokens in examples]
        num_answers = sum(message["role"] == "assistant" for message in messages)
        notes = (MASKED_ANSWER,) * (num_answers - len(indices))
        return [answers[0]._replace(notes=notes), *answers[1:]]

    def _whole_conversation(self, messages: Messages, indices: list[int]) -> list[EncodedAnswer]:
        """One example that ends with the last answer that fits; the answers after it are too long."""
        left_out: list[EncodedAnswer] = []
        for index in reversed(indices):
            answer = self._answer(messages, index, self.encoder.encode_conversation(messages[: index + 1]))
            if not answer.too_long:
                return [answer, *left_out]
            left_out.insert(0, answer)
        return left_out

    def pair(self, row: Row, index: int) -> EncodedPair:
        """The two answers of a preference pair.

        Args:
            row: The row.
            index: Its index in the dataset, from 0. Together with `seed` it determines the formatter's choices.

        Raises:
            RowError: The row cannot be used.
            TypeError: The formatter returns conversations.
        """
        formatter = self._formatter(PreferenceFormatter)
        with self._failures_as_row_errors():
            pair = formatter.to_pair(row, random.Random(f"{self.seed}:{index}"))
            if pair.chosen.strip() == pair.rejected.strip():
                raise RowError("chosen", "equals rejected")
            chosen, rejected = (self._answered(pair.prompt, answer) for answer in (pair.chosen, pair.rejected))
            self._check(row, [*pair.prompt, chosen[-1], rejected[-1]])
            notes = pair.notes if isinstance(pair, NotedPair) else ()
            first, second = self._answer_of_pair(chosen), self._answer_of_pair(rejected)
            return EncodedPair(index + 1, first._replace(notes=notes), second)

    def labeled(self, row: Row) -> tuple[EncodedAnswer, bool]:
        """A single answer, and whether it is desirable.

        Raises:
            RowError: The row cannot be used.
            TypeError: The formatter returns something else.
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
            if debugging():
                raise
            # A third-party formatter may raise or return anything: count the row as bad, with the error.
            raise RowError(self.formatter.name, _failure(error)) from error

    def _check(self, row: Row, messages: Messages) -> None:
        for message in messages:
            if message["role"] not in ROLES:
                raise RowError(
                    self.formatter.name, f"returned the role {message['role']!r}, expected one of {', '.join(ROLES)}"
                )
        check_nothing_is_ignored(row, self.formatter, messages)
        self.encoder.check_messages(messages)

    @staticmethod
    def _answered(prompt: Messages, answer: str) -> Messages:
        return [*prompt, {"role": "assistant", "content": answer}]

    def _answer_of_pair(self, messages: Messages) -> EncodedAnswer:
        index = len(messages) - 1
        return self._answer(messages, index, self.encoder.encode_for_trl(_example(messages, index)))

    def _answer(self, messages: Messages, index: int, tokens: Encoded) -> EncodedAnswer:
        prompt, answer = _example(messages, index)
        num_tokens = len(tokens.input_ids)
        too_long = num_tokens > self.max_length
        if self.truncate:
            tokens = Encoded(tokens.input_ids[: self.max_length], tokens.labels[: self.max_length])
            too_long = not any(label >= 0 for label in tokens.labels)
        return EncodedAnswer(messages[:index], prompt, answer + self.encoder.end_token, tokens, num_tokens, too_long)


def _failure(error: Exception) -> str:
    """What a formatter raised, and the line of its file where that happened."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    called = next((file for file, _ in frames if file != __file__), PACKAGE)
    lines = [line for file, line in frames if file == called and not called.startswith(PACKAGE)]
    where = f" ({Path(called).name}:{lines[-1]})" if lines else ""
    return f"{FORMATTER_FAILED} {type(error).__name__}: {error}{where}"


def _example(messages: Messages, index: int) -> Example:
    """The answer at an index, and the prompt: everything before it."""
    return Example(render(messages[:index], add_generation_prompt=True), messages[index]["content"])
