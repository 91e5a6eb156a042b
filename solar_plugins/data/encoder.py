"""Tokenizes examples and builds their labels."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, NamedTuple

from solar_plugins.data.formatters.base import Message, Messages, RowError
from solar_plugins.data.template import GENERATION_PROMPT, Example, is_in_loss, render
from solar_plugins.errors import DataError
from solar_plugins.text import half_character

IGNORED_LABEL = -100
"""``ignore_index`` of torch's cross-entropy."""

ANY_LETTER = "a"
"""No tokenizer merges it with white space that follows."""


class Encoded(NamedTuple):
    """Token ids, and the labels: the same ids, with `IGNORED_LABEL` where the loss is masked."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Encoder:
    """A tokenizer and the facts about it that encoding needs.

    Args:
        tokenizer: A fast tokenizer of transformers.
        start_ids: Tokens that it adds before every text: ``<s>``, or none.
        added_end_ids: Tokens that it adds after every text, usually none. `encode` leaves them out.
        special_tokens: Strings that it would read as special tokens.
    """

    tokenizer: Any
    start_ids: tuple[int, ...]
    added_end_ids: tuple[int, ...]
    special_tokens: tuple[str, ...]

    @property
    def end_token(self) -> str:
        """The EOS token as text: ``</s>`` in SOLAR."""
        return str(self.tokenizer.eos_token)

    def encode(self, example: Example) -> Encoded:
        """The ids of prompt, answer and EOS; the labels cover the answer and EOS.

        The prompt has the same ids as when it is tokenized by itself, as at inference. Most tokenizers split at the
        line break that ends a prompt; some merge it with white space that follows. Then the answer is tokenized by
        itself.

        Raises:
            RowError: The tokens of prompt and answer cannot be separated.
        """
        ids, start = self._joined(example)
        if start is None:
            prompt = self._ids(example.prompt)
            ids, start = [*prompt, *self._continuation(example.answer)], len(prompt)
        return self._with_ends(ids, [(start, len(ids))], end_in_loss=True)

    def encode_for_trl(self, example: Example) -> Encoded:
        """The same, as TRL tokenizes the two texts.

        Raises:
            RowError: This tokenizer merges the start of the answer with the prompt, so TRL would drop it.
        """
        ids, start = self._joined(example)
        if start is None:
            raise RowError(
                "an answer",
                "starts with white space that this tokenizer merges with the line break that ends the prompt",
            )
        return self._with_ends(ids, [(start, len(ids))], end_in_loss=True)

    def encode_conversation(self, messages: Messages) -> Encoded:
        """A conversation as one example, with the ids of ``apply_chat_template``.

        The labels cover its answers, and EOS after the last one only, because the template puts none between turns.
        """
        text = render(messages)
        ids, offsets = self._with_offsets(text)
        if offsets[-1][1] < len(text):
            offsets = []
        spans, position = [], 0
        for message in messages:
            end = position + len(render([message]))
            if is_in_loss(message):
                start = position + len(GENERATION_PROMPT)
                spans.append((self._boundary(text, start, ids, offsets), self._boundary(text, end, ids, offsets)))
            position = end
        return self._with_ends(ids, spans, end_in_loss=is_in_loss(messages[-1]))

    def _joined(self, example: Example) -> tuple[list[int], int | None]:
        """The ids of prompt + answer, and the index at which the answer starts; None if a token holds parts of both.

        The offset mapping gives that index in half the time that a second pass over the prompt takes. It is not used
        where the answer starts with white space, which some tokenizers leave out of the offsets, or where the offsets
        do not reach the end of the text.
        """
        text = example.prompt + example.answer
        ids, offsets = self._with_offsets(text)
        if example.answer[:1].isspace() or offsets[-1][1] < len(text):
            prompt = self._ids(example.prompt)
            return ids, len(prompt) if ids[: len(prompt)] == prompt else None
        start = sum(end <= len(example.prompt) for _, end in offsets)
        return ids, None if offsets[start][0] < len(example.prompt) else start

    def _boundary(self, text: str, position: int, ids: list[int], offsets: list[tuple[int, int]]) -> int:
        """The number of tokens of a text that are also the first tokens of ``text[:position]``.

        The offset mapping gives it without tokenizing that part of the text again. It is not used where a token holds
        characters of both sides, nor next to white space, which some tokenizers split differently at the end of a text.

        Args:
            text: The text.
            position: An index in it.
            ids: Its tokens.
            offsets: Their offsets; empty if they cannot be used.
        """
        if position == len(text):
            return len(ids)
        if offsets and not text[position].isspace() and not text[position - 2 : position].isspace():
            number = bisect_right(offsets, position, key=lambda offset: offset[1])
            if offsets[number][0] >= position:
                return number
        return _common(ids, self._ids(text[:position]))

    def _with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _continuation(self, answer: str) -> list[int]:
        """The ids of an answer inside a text, without the prefix that some tokenizers add at the start of a text."""
        before, ids = self._ids(ANY_LETTER), self._ids(ANY_LETTER + answer)
        if ids[: len(before)] != before:
            raise RowError("an answer", "starts with characters that this tokenizer merges with the end of the prompt")
        return ids[len(before) :]

    def _with_ends(self, ids: list[int], spans: list[tuple[int, int]], end_in_loss: bool) -> Encoded:
        labels = [IGNORED_LABEL] * len(ids)
        for start, end in spans:
            labels[start:end] = ids[start:end]
        end_id = self.tokenizer.eos_token_id
        return Encoded(
            [*self.start_ids, *ids, end_id],
            [*[IGNORED_LABEL] * len(self.start_ids), *labels, end_id if end_in_loss else IGNORED_LABEL],
        )

    def count(self, text: str) -> int:
        """The number of tokens of a text, without BOS and EOS."""
        return len(self._ids(text))

    def check_messages(self, messages: Messages) -> None:
        """Reject literal special tokens, which would be tokenized as such, and unpaired UTF-16 surrogates.

        Raises:
            RowError: A message contains one.
        """
        for message in messages:
            self._check_message(message)

    def _check_message(self, message: Message) -> None:
        for token in self.special_tokens:
            if token in message["content"]:
                raise RowError(f"the {message['role']} message", f"contains the special token {token!r}")
        if half := half_character(message["content"]):
            raise RowError(f"the {message['role']} message", f"contains {half}")


def _common(ids: list[int], other: list[int]) -> int:
    """The length of the common prefix."""
    return next(
        (index for index, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(map(len, (ids, other)))
    )


def make_encoder(tokenizer: Any, name: str) -> Encoder:
    """Inspect a tokenizer and wrap it.

    Args:
        tokenizer: As Axolotl loaded it.
        name: Its name in error messages.

    Raises:
        DataError: It has no usable EOS token, or is not a fast tokenizer.
    """
    end = tokenizer.eos_token
    if not end:
        raise DataError(
            f"tokenizer_config: the tokenizer of {name} has no EOS token; every answer must end with one (SOLAR uses "
            "'</s>'), or the trained model never stops. Set one that is in the vocabulary:\n"
            "  special_tokens: {eos_token: </s>}"
        )
    end_ids = tokenizer(end, add_special_tokens=False)["input_ids"]
    if list(end_ids) != [tokenizer.eos_token_id]:
        raise DataError(
            f"tokenizer_config: the tokenizer of {name} tokenizes its EOS token {end!r} as {end_ids}, "
            f"expected the single id {tokenizer.eos_token_id}; fix its special tokens"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"tokenizer_config: the tokenizer of {name} is not a fast tokenizer, so it has no offset mapping; "
            "remove tokenizer_use_fast or tokenizer_use_mistral_common, or convert it to a tokenizer.json"
        )
    with_added, plain = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    index = next(i for i in range(len(with_added)) if with_added[i : i + len(plain)] == plain)
    special = tuple(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return Encoder(tokenizer, tuple(with_added[:index]), tuple(with_added[index + len(plain) :]), special)
