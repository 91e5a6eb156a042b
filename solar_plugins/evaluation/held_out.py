"""Held-out data: texts for the loss, prompts to continue, and the eval responses and pairs of later stages.

Eval responses and pairs are encoded exactly as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from solar_plugins.axolotl_adapter.recipe_checks import FormattedDataset, formatted_datasets
from solar_plugins.data.encoder import Encoded, Encoder, make_encoder
from solar_plugins.data.formatters.base import PreferenceFormatter, Row, RowError, SFTFormatter
from solar_plugins.data.row_encoder import EncodedAnswer, EncodedPair, RowEncoder
from solar_plugins.data.row_files import parse_row, read_blocks
from solar_plugins.data.row_tables import numbered_rows, row_place
from solar_plugins.data.row_tally import Fit, RowTally
from solar_plugins.data.template import render
from solar_plugins.errors import ArgsError, CheckpointError, DataError, SolarError
from solar_plugins.extras import require
from solar_plugins.logs import logger
from solar_plugins.recipe import Recipe
from solar_plugins.solar_block import DataArgs
from solar_plugins.text import half_character

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOG = logger("report")

NUM_PROMPTS, PROMPT_WORDS = 3, 12


def held_out_path(recipe: Recipe, option: Path | None) -> Path:
    """The file of held-out texts: the option, else the first of the recipe's ``test_datasets``.

    Raises:
        ArgsError: Neither is a file.
    """
    if option is not None:
        return option
    entries = recipe.test_datasets
    first = entries[0] if isinstance(entries, list) and entries else None
    path = first.get("path") if isinstance(first, Mapping) else None
    if not isinstance(path, str) or not Path(path).is_file():
        raise ArgsError(
            f"test_datasets{': missing' if first is None else f'[0].path: {path!r} is not a local file'}; "
            'the report needs held-out text: use --held-out FILE.jsonl (a JSON object with a "text" in each line), or '
            "set path of the first entry of test_datasets to such a file"
        )
    return Path(path)


def read_texts(path: Path) -> list[str]:
    """The texts in the column ``text`` of a file, in order.

    Bad rows are dropped with a warning, as in training; more than `DataArgs.max_bad_share` of them are an error.

    Args:
        path: JSON Lines, JSON or Parquet.

    Raises:
        SolarError: The file cannot be read, is empty, or has too many rows without a text.
    """
    texts, bad = list[str](), list[str]()
    for block in read_blocks(str(path), wanted=("text",)):
        for number, line in enumerate(block.lines, start=block.first_row):
            if not line.strip():
                continue
            try:
                texts.append(_row_text(line))
            except RowError as error:
                bad.append(f"row {number}: {error}")
    if not texts and not bad:
        raise ArgsError(f'{path}: empty; expected held-out text, a JSON object with a "text" in each line')
    if bad:
        found = f"{path}: {len(bad)} of {len(texts) + len(bad)} rows cannot be used, the first is {bad[0]}"
        if len(bad) > DataArgs().max_bad_share * (len(texts) + len(bad)):
            raise ArgsError(
                f'{found}; expected a JSON object with a "text" that is not blank, such as {{"text": "Once upon a '
                'time"}. Fix or remove the rows'
            )
        LOG.warning("%s; they are dropped", found)
    return texts


def _row_text(line: bytes) -> str:
    value = parse_row(line)["text"]
    if not isinstance(value, str) or not value.strip():
        raise RowError("text", f"is {value!r:.40}")
    if half := half_character(value):
        raise RowError("text", f"contains {half}")
    return value


def checked_prompts(prompts: Sequence[str], texts: Sequence[str]) -> tuple[str, ...]:
    """The given prompts, or else the first words of the first held-out texts.

    Raises:
        ArgsError: A prompt is blank, or contains bytes that are not UTF-8.

    Example:
        >>> checked_prompts([], ["one two three four five six seven eight nine ten eleven twelve thirteen"])
        ('one two three four five six seven eight nine ten eleven twelve',)
    """
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise ArgsError(f"prompt {number}: {prompt!r} is blank; expected the start of a text")
        if (half := half_character(prompt)) is not None:
            raise ArgsError(f"prompt {number}: contains {half}; expected valid UTF-8")
    return tuple(prompts) or tuple(" ".join(text.split()[:PROMPT_WORDS]) for text in texts[:NUM_PROMPTS])


NUM_QUESTIONS = 3


class Stage(Protocol):
    """A stage of training that may have held-out rows."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def directory(self) -> Path:
        """The folder of its model and tokenizer."""

    @property
    def recipe(self) -> Recipe | None:
        """Its recipe; None for a merge."""


class Question(NamedTuple):
    """A prompt in SOLAR's chat format.

    Args:
        shown: The texts of its messages.
        prompt: The rendered messages with the generation prompt.
    """

    shown: str
    prompt: str


@dataclass(frozen=True, slots=True)
class HeldOutRows[Example]:
    """The ``test_datasets`` of a stage.

    Args:
        stage: Its name.
        sets: A summary of the rows of each dataset.
        examples: The encoded rows. The labels of a response cover its answer and EOS.
    """

    stage: str
    sets: tuple[str, ...]
    examples: tuple[Example, ...]


type Tokenizers = Mapping[str, PreTrainedTokenizerBase]
"""The tokenizer of each stage, by the stage's name. Its EOS token ends every answer."""


def held_out_answers(stages: Sequence[Stage], tokenizers: Tokenizers) -> HeldOutRows[EncodedAnswer] | None:
    """The eval responses of the first stage of instruction tuning that has any, or None.

    Raises:
        SolarError: They cannot be read.
    """
    return _first_rows(stages, tokenizers, SFTFormatter, lambda encoder, row, _: encoder.conversation(row))


def held_out_pairs(stages: Sequence[Stage], tokenizers: Tokenizers) -> HeldOutRows[EncodedPair] | None:
    """The eval pairs of the first stage of preference training that has any, or None.

    For KTO too: it trains on single answers, but they are compared here.

    Raises:
        SolarError: They cannot be read.
    """
    return _first_rows(stages, tokenizers, PreferenceFormatter, lambda encoder, row, index: [encoder.pair(row, index)])


def ask(texts: Sequence[str]) -> tuple[Question, ...]:
    r"""User messages as questions.

    Example:
        >>> ask(["Why?"])
        (Question(shown='Why?', prompt='### User:\nWhy?\n\n### Assistant:\n'),)
    """
    return tuple(
        Question(text, render([{"role": "user", "content": text}], add_generation_prompt=True)) for text in texts
    )


def require_known_tokens(stage: str, texts: Sequence[Encoded], reference: PreTrainedTokenizerBase) -> None:
    """Check that the base knows every token of a stage's eval data.

    Raises:
        CheckpointError: A token was added after the base.
    """
    known = set(reference.get_vocab().values())
    unknown = sorted({token for text in texts for token in text.input_ids} - known)
    if unknown:
        raise CheckpointError(
            f"{stage}: its eval data contains the token {unknown[0]}, perhaps EOS, which is not in the base's "
            "vocabulary; expected token ids that all models of a report share. Use an EOS token of the base "
            "(special_tokens), or leave out this stage and the later ones"
        )


def _first_rows[Example: Fit](
    stages: Sequence[Stage],
    tokenizers: Tokenizers,
    kind: type[SFTFormatter] | type[PreferenceFormatter],
    encode: Callable[[RowEncoder, Row, int], Sequence[Example]],
) -> HeldOutRows[Example] | None:
    for stage in stages:
        if stage.recipe is not None:
            try:
                sets = [
                    found
                    for found in formatted_datasets(stage.recipe)
                    if found.key == "test_datasets" and isinstance(found.formatter, kind)
                ]
                if sets:
                    tokens = make_encoder(tokenizers[stage.name], str(stage.directory))
                    return HeldOutRows(stage.name, *_read(stage.recipe, sets, tokens, encode))
            except SolarError as error:
                raise type(error)(f"{stage.recipe.path}: {error}") from None
    return None


def _read[Example: Fit](
    recipe: Recipe,
    sets: Sequence[FormattedDataset],
    tokens: Encoder,
    encode: Callable[[RowEncoder, Row, int], Sequence[Example]],
) -> tuple[tuple[str, ...], tuple[Example, ...]]:
    """A summary of each dataset, and the examples of all without those that are too long."""
    from tqdm import tqdm

    require("solar report on test_datasets of type solar_plugins.*")
    from solar_plugins.axolotl_adapter.datasets import check_tally, expanded, load_rows, row_encoder

    kept, lines = list[Example](), list[str]()
    _ = recipe.sequence_tokens  # Refuses a length at which nothing can be measured.
    for source in (one for found in sets for one in expanded(found)):
        if source.entry.get("shards"):
            raise DataError(
                f"{source.where}: shards: {source.entry['shards']}; the report reads all rows of a dataset, "
                "and the other shards may have been trained on. Put the held-out rows into a file of their own"
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
        lines.append(check_tally(recipe, tally, encoder))
    return tuple(lines), tuple(kept)


def first_questions(answers: Sequence[EncodedAnswer]) -> tuple[Question, ...]:
    """The first eval responses that start a conversation, as questions."""
    first = (answer for answer in answers if all(message["role"] != "assistant" for message in answer.messages))
    return tuple(
        Question("\n\n".join(message["content"] for message in answer.messages), answer.prompt)
        for answer in islice(first, NUM_QUESTIONS)
    )
