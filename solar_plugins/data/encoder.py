"""From an example to token ids and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from solar_plugins.data.formatters.base import Message, Messages, RowError
from solar_plugins.data.template import Example, is_learnt, render
from solar_plugins.errors import DataError
from solar_plugins.text import half_character

IGNORED_LABEL = -100
"""What torch's cross-entropy leaves out."""


ANY_LETTER = "a"
"""What no tokenizer joins with white space after it."""


class Encoded(NamedTuple):
    """Token ids, and the same with `IGNORED_LABEL` where nothing is learnt."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, and what has to be known about it.

    Args:
        tokenizer: A fast tokenizer of transformers.
        start_ids: What it puts before every text: ``<s>``, or nothing.
        added_end_ids: What it puts after every text, usually nothing. `encode` leaves it out.
        special_tokens: Texts that it would take for a token of control.
    """

    tokenizer: Any
    start_ids: tuple[int, ...]
    added_end_ids: tuple[int, ...]
    special_tokens: tuple[str, ...]

    @property
    def end_token(self) -> str:
        """The text of the token that ends every answer: ``</s>`` in SOLAR."""
        return str(self.tokenizer.eos_token)

    def encode(self, example: Example) -> Encoded:
        """The ids of prompt, answer and end; the labels of answer and end.

        The ids of the prompt are those of the prompt alone, as at inference. Most tokenizers split at the line break
        that ends a prompt; some join it with white space that follows, and then the answer is encoded by itself.

        Raises:
            RowError: The answer cannot be told from what stands before it.
        """
        ids, start = self._joined(example)
        if start is None:
            prompt = self._ids(example.prompt)
            ids, start = [*prompt, *self._continuation(example.answer)], len(prompt)
        return self._with_ends(ids, [(start, len(ids))], learn_end=True)

    def encode_for_trl(self, example: Example) -> Encoded:
        """The same, as TRL tokenizes the two texts.

        Raises:
            RowError: This tokenizer joins the start of the answer with the prompt, so that TRL would drop it.
        """
        ids, start = self._joined(example)
        if start is None:
            raise RowError(
                "an answer", "starts with white space that this tokenizer joins with the prompt's last line break"
            )
        return self._with_ends(ids, [(start, len(ids))], learn_end=True)

    def encode_conversation(self, messages: Messages) -> Encoded:
        """A whole conversation as one example, with the ids that ``apply_chat_template`` gives.

        The labels are those of its answers; the end token is learnt after the last answer, the only place where the
        template leaves room for it.
        """
        ids = self._ids(render(messages))
        spans = [
            (
                _common(ids, self._ids(render(messages[:place], add_generation_prompt=True))),
                _common(ids, self._ids(render(messages[: place + 1]))),
            )
            for place, message in enumerate(messages)
            if is_learnt(message)
        ]
        return self._with_ends(ids, spans, learn_end=is_learnt(messages[-1]))

    def _joined(self, example: Example) -> tuple[list[int], int | None]:
        """The ids of prompt and answer as one text, and where the answer starts; None if a token holds parts of both.

        The characters of the tokens tell, in half the time that it takes to encode the prompt alone too; but not before
        white space, which some tokenizers leave out of a token's characters, and not where they have lost count.
        """
        text = example.prompt + example.answer
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoded["input_ids"]
        offsets: list[tuple[int, int]] = encoded["offset_mapping"]
        if example.answer[:1].isspace() or offsets[-1][1] < len(text):
            prompt = self._ids(example.prompt)
            return ids, len(prompt) if ids[: len(prompt)] == prompt else None
        start = sum(end <= len(example.prompt) for _, end in offsets)
        return ids, None if offsets[start][0] < len(example.prompt) else start

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _continuation(self, answer: str) -> list[int]:
        """The ids of an answer that follows something: what a tokenizer puts before a text has no place there."""
        before, ids = self._ids(ANY_LETTER), self._ids(ANY_LETTER + answer)
        if ids[: len(before)] != before:
            raise RowError("an answer", "starts with characters that this tokenizer joins with the prompt's last ones")
        return ids[len(before) :]

    def _with_ends(self, ids: list[int], spans: list[tuple[int, int]], learn_end: bool) -> Encoded:
        labels = [IGNORED_LABEL] * len(ids)
        for start, end in spans:
            labels[start:end] = ids[start:end]
        end_id = self.tokenizer.eos_token_id
        return Encoded(
            [*self.start_ids, *ids, end_id],
            [*[IGNORED_LABEL] * len(self.start_ids), *labels, end_id if learn_end else IGNORED_LABEL],
        )

    def count(self, text: str) -> int:
        """How many tokens a text has, without start and end."""
        return len(self._ids(text))

    def check_messages(self, messages: Messages) -> None:
        """Refuse texts in which a token of control is spelt out, which the model would read, and halves of characters.

        Raises:
            RowError: There is one.
        """
        for message in messages:
            self._check_message(message)

    def _check_message(self, message: Message) -> None:
        for token in self.special_tokens:
            if token in message["content"]:
                raise RowError(f"the {message['role']}'s text", f"holds the special token {token!r}")
        if half := half_character(message["content"]):
            raise RowError(f"the {message['role']}'s text", f"holds {half}")


def _common(ids: list[int], other: list[int]) -> int:
    """How many tokens both start with."""
    return next(
        (place for place, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(map(len, (ids, other)))
    )


def make_encoder(tokenizer: Any, name: str) -> Encoder:
    """Look at a tokenizer.

    Args:
        tokenizer: As Axolotl loaded it.
        name: What to call it in an error.

    Raises:
        DataError: It cannot end an answer, or cannot tell which characters a token stands for.
    """
    end = tokenizer.eos_token
    if not end:
        raise DataError(
            f"tokenizer_config: the tokenizer of {name} has no end-of-sequence token; an answer has to end with one "
            "(SOLAR's is '</s>'), or a trained model never stops. Name one that is in its vocabulary:\n"
            "  special_tokens: {eos_token: </s>}"
        )
    end_ids = tokenizer(end, add_special_tokens=False)["input_ids"]
    if list(end_ids) != [tokenizer.eos_token_id]:
        raise DataError(
            f"tokenizer_config: the tokenizer of {name} reads its own end-of-sequence token {end!r} as {end_ids}, "
            f"expected the one id {tokenizer.eos_token_id}; repair its special tokens"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"tokenizer_config: the tokenizer of {name} is no fast tokenizer, so it cannot say where an answer starts; "
            "remove tokenizer_use_fast or tokenizer_use_mistral_common, or convert it to a tokenizer.json"
        )
    with_added, plain = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    place = next(i for i in range(len(with_added)) if with_added[i : i + len(plain)] == plain)
    special = tuple(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return Encoder(tokenizer, tuple(with_added[:place]), tuple(with_added[place + len(plain) :]), special)
