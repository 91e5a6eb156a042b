"""The held-out answers and pairs that later stages name, read as training reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from solar_plugins.axolotl_adapter.recipe_checks import FormattedSet, formatted_sets
from solar_plugins.data.encoder import Encoded, make_encoder
from solar_plugins.data.formatters.base import PreferenceFormatter, Row, RowError, SFTFormatter
from solar_plugins.data.row_encoder import EncodedAnswer, EncodedPair, RowEncoder
from solar_plugins.data.row_tables import numbered_rows, row_place
from solar_plugins.data.row_tally import Fit, RowTally
from solar_plugins.data.template import render
from solar_plugins.errors import CheckpointError, DataError, SolarError
from solar_plugins.extras import require
from solar_plugins.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_QUESTIONS = 3


class Stage(Protocol):
    """A stage of training that may name held-out rows."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def directory(self) -> Path:
        """Its model and tokenizer."""

    @property
    def recipe(self) -> Recipe | None:
        """Its recipe; None for a merge."""


class Question(NamedTuple):
    """A prompt in SOLAR's chat format.

    Args:
        shown: Its messages' texts.
        prompt: What a model reads: the rendered messages with the generation prompt.
    """

    shown: str
    prompt: str


@dataclass(frozen=True, slots=True)
class HeldOutAnswers:
    """The ``test_datasets`` of a stage of instruction tuning.

    Args:
        stage: Its name.
        sets: For each set what became of its rows, in words.
        answers: Prompt and answer, with labels on the answer and the end token.
        questions: The first of them as questions.
        tokenizer: The stage's, whose end token ends every answer.
    """

    stage: str
    sets: tuple[str, ...]
    answers: tuple[Encoded, ...]
    questions: tuple[Question, ...]
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class HeldOutPairs:
    """The ``test_datasets`` of a stage of preference training.

    Args:
        stage: Its name.
        sets: For each set what became of its rows, in words.
        pairs: Two answers to a prompt each.
    """

    stage: str
    sets: tuple[str, ...]
    pairs: tuple[EncodedPair, ...]


type Tokenizers = Mapping[str, PreTrainedTokenizerBase]
"""The tokenizer of each stage, by the stage's name."""


def held_out_answers(stages: Sequence[Stage], tokenizers: Tokenizers) -> HeldOutAnswers | None:
    """Those of the first stage that names any, or None.

    Raises:
        SolarError: They cannot be read.
    """
    for stage in stages:
        if found := _test_sets(stage, SFTFormatter):
            answers, lines = _read(stage, found, tokenizers, lambda encoder, row, _: encoder.conversation(row))
            tokens = tuple(answer.tokens for answer in answers)
            return HeldOutAnswers(stage.name, lines, tokens, _first_questions(answers), tokenizers[stage.name])
    return None


def held_out_pairs(stages: Sequence[Stage], tokenizers: Tokenizers) -> HeldOutPairs | None:
    """Those of the first stage that names any, or None.

    Raises:
        SolarError: They cannot be read.
    """
    for stage in stages:
        if found := _test_sets(stage, PreferenceFormatter):
            # Also for KTO, which trains on single answers: here they are compared.
            pairs, lines = _read(stage, found, tokenizers, lambda encoder, row, index: [encoder.pair(row, index)])
            return HeldOutPairs(stage.name, lines, tuple(pairs))
    return None


def ask(texts: Sequence[str]) -> tuple[Question, ...]:
    r"""Questions of a user.

    Example:
        >>> ask(["Why?"])
        (Question(shown='Why?', prompt='### User:\nWhy?\n\n### Assistant:\n'),)
    """
    return tuple(
        Question(text, render([{"role": "user", "content": text}], add_generation_prompt=True)) for text in texts
    )


def require_known_tokens(stage: str, texts: Sequence[Encoded], reference: PreTrainedTokenizerBase) -> None:
    """Nothing, if the base knows every token of a stage's held-out set.

    Raises:
        CheckpointError: A token was added after the base.
    """
    known = set(reference.get_vocab().values())
    unknown = sorted({token for text in texts for token in text.input_ids} - known)
    if unknown:
        raise CheckpointError(
            f"{stage}: its held-out set has the token {unknown[0]}, perhaps the end token, which the base's tokenizer "
            "does not know; all models of a report are measured on the same token ids. Keep to an end token of the "
            "base's (special_tokens), or leave out that stage and the later ones"
        )


def _test_sets(stage: Stage, kind: type[SFTFormatter] | type[PreferenceFormatter]) -> list[FormattedSet]:
    if stage.recipe is None:
        return []
    try:
        sets = list(formatted_sets(stage.recipe))
    except SolarError as error:
        raise type(error)(f"{stage.recipe.path}: {error}") from None
    return [found for found in sets if found.key == "test_datasets" and isinstance(found.formatter, kind)]


def _read[Example: Fit](
    stage: Stage,
    sets: Sequence[FormattedSet],
    tokenizers: Tokenizers,
    encode: Callable[[RowEncoder, Row, int], Sequence[Example]],
) -> tuple[list[Example], tuple[str, ...]]:
    """What the rows of some sets give, without what is too long, and a line on each set."""
    from tqdm import tqdm

    require("solar report on test_datasets of type solar_plugins.*")
    from solar_plugins.axolotl_adapter.datasets import expanded, judged, load_rows, row_encoder

    recipe = stage.recipe
    assert recipe is not None  # it named the sets
    tokens = make_encoder(tokenizers[stage.name], str(stage.directory))
    kept, lines = list[Example](), list[str]()
    try:
        _ = recipe.sequence_tokens  # Refuses a length at which nothing can be measured.
        for source in (one for found in sets for one in expanded(found)):
            if source.entry.get("shards"):
                raise DataError(
                    f"{source.where}: shards: {source.entry['shards']}; the report reads all rows of a set, and "
                    "training may have had the other shards. Give the held-out rows a file of their own"
                )
            encoder = row_encoder(recipe, source, tokens)
            tally = RowTally(source.where, source.formatter.name)
            dataset = load_rows(recipe, source, tokens)
            rows = tqdm(numbered_rows(dataset), f"Reading {source.where}", len(dataset), unit="row", mininterval=0.5)
            for index, numbered in enumerate(rows):
                try:
                    if isinstance(numbered.row, RowError):
                        raise numbered.row
                    examples = encode(encoder, numbered.row, numbered.row_index)
                except RowError as error:
                    tally.add_error(index, error)
                    continue
                tally.add(index, examples)
                kept += [example for example in examples if not example.too_long]
            tally.name_rows(partial(row_place, dataset))
            lines.append(judged(recipe, tally, encoder))
    except SolarError as error:
        raise type(error)(f"{recipe.path}: {error}") from None
    return kept, tuple(lines)


def _first_questions(answers: Sequence[EncodedAnswer]) -> tuple[Question, ...]:
    first = (answer for answer in answers if all(message["role"] != "assistant" for message in answer.messages))
    return tuple(
        Question("\n\n".join(message["content"] for message in answer.messages), answer.prompt)
        for answer in islice(first, NUM_QUESTIONS)
    )
