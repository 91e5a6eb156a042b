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
from solar_plugins.data.encoder import Encoded, make_encoder
from solar_plugins.data.formatters.base import PreferenceFormatter, Row, RowError, SFTFormatter
from solar_plugins.data.row_encoder import EncodedAnswer, EncodedPair, RowEncoder
from solar_plugins.data.row_files import numbered_rows, parse_row, read_blocks, row_place
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
class HeldOutAnswers:
    """The ``test_datasets`` of a stage of instruction tuning.

    Args:
        stage: Its name.
        sets: A summary of the rows of each dataset.
        answers: Prompt and answer; the labels cover the answer and EOS.
        questions: The first of them, as questions.
        tokenizer: The stage's; its EOS token ends every answer.
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
        sets: A summary of the rows of each dataset.
        pairs: The encoded pairs.
    """

    stage: str
    sets: tuple[str, ...]
    pairs: tuple[EncodedPair, ...]


type Tokenizers = Mapping[str, PreTrainedTokenizerBase]
"""The tokenizer of each stage, by the stage's name."""


def held_out_answers(stages: Sequence[Stage], tokenizers: Tokenizers) -> HeldOutAnswers | None:
    """Those of the first stage that has any, or None.

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
    """Those of the first stage that has any, or None.

    Raises:
        SolarError: They cannot be read.
    """
    for stage in stages:
        if found := _test_sets(stage, PreferenceFormatter):
            # For KTO too: it trains on single answers, but they are compared here.
            pairs, lines = _read(stage, found, tokenizers, lambda encoder, row, index: [encoder.pair(row, index)])
            return HeldOutPairs(stage.name, lines, tuple(pairs))
    return None


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


def _test_sets(stage: Stage, kind: type[SFTFormatter] | type[PreferenceFormatter]) -> list[FormattedDataset]:
    if stage.recipe is None:
        return []
    try:
        sets = list(formatted_datasets(stage.recipe))
    except SolarError as error:
        raise type(error)(f"{stage.recipe.path}: {error}") from None
    return [found for found in sets if found.key == "test_datasets" and isinstance(found.formatter, kind)]


def _read[Example: Fit](
    stage: Stage,
    sets: Sequence[FormattedDataset],
    tokenizers: Tokenizers,
    encode: Callable[[RowEncoder, Row, int], Sequence[Example]],
) -> tuple[list[Example], tuple[str, ...]]:
    """The examples of some datasets, without those that are too long, and a summary of each dataset."""
    from tqdm import tqdm

    require("solar report on test_datasets of type solar_plugins.*")
    from solar_plugins.axolotl_adapter.datasets import check_tally, expanded, load_rows, row_encoder

    recipe = stage.recipe
    assert recipe is not None  # it named the sets
    tokens = make_encoder(tokenizers[stage.name], str(stage.directory))
    kept, lines = list[Example](), list[str]()
    try:
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
    except SolarError as error:
        raise type(error)(f"{recipe.path}: {error}") from None
    return kept, tuple(lines)


def _first_questions(answers: Sequence[EncodedAnswer]) -> tuple[Question, ...]:
    first = (answer for answer in answers if all(message["role"] != "assistant" for message in answer.messages))
    return tuple(
        Question("\n\n".join(message["content"] for message in answer.messages), answer.prompt)
        for answer in islice(first, NUM_QUESTIONS)
    )
