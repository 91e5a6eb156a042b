"""From an example to token ids and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from solar_plugins.data.formatters.base import Message, Messages, RowError
from solar_plugins.data.template import Example
from solar_plugins.errors import DataError

IGNORED_LABEL = -100
"""What torch's cross-entropy leaves out."""


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

        The whole text is encoded at once, as at inference, and the boundary is found by characters. To look for the
        header's own ids would fail: ``###`` is another token at the start of a text than after a line break.
        """
        text = example.prompt + example.answer
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoded["input_ids"]
        boundary = len(example.prompt)
        labels = [
            token if end > boundary else IGNORED_LABEL
            for token, (_, end) in zip(ids, encoded["offset_mapping"], strict=True)
        ]
        end_id = self.tokenizer.eos_token_id
        return Encoded([*self.start_ids, *ids, end_id], [IGNORED_LABEL] * len(self.start_ids) + [*labels, end_id])

    def count(self, text: str) -> int:
        """How many tokens a text has, without start and end."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def check_messages(self, messages: Messages) -> None:
        """Refuse texts in which a token of control is spelt out: the model would read the token.

        Raises:
            RowError: There is one.
        """
        for message in messages:
            self._check_message(message)

    def _check_message(self, message: Message) -> None:
        for token in self.special_tokens:
            if token in message["content"]:
                raise RowError(f"the {message['role']}'s text", f"holds the special token {token!r}")


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
