"""SOLAR's chat template: the Jinja file that tokenizers carry, and plain string functions that render the same text.

Training prompts equal inference prompts. The published template puts nothing after an answer, so a multi-turn
conversation becomes one example per answer: the prompt is
``apply_chat_template(messages_so_far, add_generation_prompt=True)``, and the loss covers only the answer and the EOS
token after it. So each answer is trained on once. The template trims nothing, and neither does this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.data.formatters.base import Message, Messages

GENERATION_PROMPT = "### Assistant:\n"


class Example(NamedTuple):
    """A prompt, and the answer that is trained on. The EOS token is added when it is encoded."""

    prompt: str
    answer: str


@cache
def template_text() -> str:
    """The Jinja template, as the tokenizer of a trained model carries it."""
    return (Path(__file__).parent / "solar.jinja").read_text(encoding="utf-8").rstrip("\n")


def render(messages: Messages, add_generation_prompt: bool = False) -> str:
    r"""The text that the Jinja template renders.

    >>> render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    '### User:\nHi\n\n### Assistant:\n'
    """
    return "".join(map(_render_message, messages)) + (GENERATION_PROMPT if add_generation_prompt else "")


def _render_message(message: Message) -> str:
    content = message["content"]
    if message["role"] == "assistant":
        return f"{GENERATION_PROMPT}{content}"
    if message["role"] == "system":
        return f"### System:\n{content}\n\n" if content else ""
    return f"### User:\n{content}\n\n"


def is_in_loss(message: Message) -> bool:
    """Whether the loss covers a message: it is an answer and not masked."""
    return message["role"] == "assistant" and message.get("learn", True)


def examples(messages: Messages) -> Iterator[Example]:
    """One example for each answer of a conversation that the loss covers, in order."""
    for number, message in enumerate(messages):
        if is_in_loss(message):
            yield Example(render(messages[:number], add_generation_prompt=True), message["content"])


PROBES: tuple[Messages, ...] = (
    [{"role": "user", "content": "u"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "u"}],
    [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
    ],
    [
        {"role": "system", "content": " s\n"},
        {"role": "user", "content": "\n u "},
        {"role": "assistant", "content": "    a\n"},
        {"role": "user", "content": "v\n"},
    ],
)
"""Includes white space: a template that trims it would render prompts that differ from training."""


def renders_as_solar(apply: Callable[[Messages], Any]) -> bool:
    """Whether a chat template renders the same text as SOLAR's, however it is written.

    Args:
        apply: Renders messages, with the generation prompt after them.
    """
    try:
        return all(apply(probe) == render(probe, add_generation_prompt=True) for probe in PROBES)
    except Exception:  # A template may raise anything, for example on unknown roles.
        return False
