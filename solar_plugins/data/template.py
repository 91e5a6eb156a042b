"""SOLAR's chat template: the Jinja file that tokenizers carry, and the same text from plain string functions.

Training sees exactly what a model is asked later. The published template puts nothing after an answer, so a
conversation of several turns gives one example for each of its answers: the prompt is what
``apply_chat_template(messages_so_far, add_generation_prompt=True)`` gives, with earlier answers as they are; then come
the answer and the end-of-sequence token, and these alone are learnt. Each answer is learnt once. The template trims
nothing, so neither does anything here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.data.formatters.base import Message, Messages

GENERATION_PROMPT = "### Assistant:\n"


class Example(NamedTuple):
    """A prompt, and the answer that is to be learnt; the end-of-sequence token follows it."""

    prompt: str
    answer: str


@cache
def template_text() -> str:
    """The Jinja template, as the tokenizer of a trained model carries it."""
    return (Path(__file__).parent / "solar.jinja").read_text(encoding="utf-8").rstrip("\n")


def render(messages: Messages, add_generation_prompt: bool = False) -> str:
    r"""What the Jinja template gives.

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


def is_learnt(message: Message) -> bool:
    """Whether a message is an answer that is trained on."""
    return message["role"] == "assistant" and message.get("learn", True)


def examples(messages: Messages) -> Iterator[Example]:
    """One example for each answer of a conversation that is trained on, first to last."""
    for number, message in enumerate(messages):
        if is_learnt(message):
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
"""White space included: a template that trims it gives other prompts than training."""


def renders_as_solar(apply: Callable[[Messages], Any]) -> bool:
    """Whether a chat template gives SOLAR's text, whatever it looks like.

    Args:
        apply: Gives the text of messages and of the generation prompt after them.
    """
    try:
        return all(apply(probe) == render(probe, add_generation_prompt=True) for probe in PROBES)
    except Exception:  # A template may raise anything, on roles that it does not know for one.
        return False
