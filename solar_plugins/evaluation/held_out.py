"""The held-out answers and pairs that later stages name, read as training reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from solar_plugins.axolotl_adapter.recipe_checks import FormattedSet, formatted_sets
from solar_plugins.data.encoder import Encoded, Encoder, make_encoder
from solar_plugins.data.formatters.base import PreferenceFormatter, SFTFormatter
from solar_plugins.data.row_encoder import PROBLEM_COLUMN, RowReader
from solar_plugins.data.template import Example, render
from solar_plugins.errors import CheckpointError, SolarError
from solar_plugins.evaluation.preference_files import EncodedPair
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
            encoder = _encoder(stage, tokenizers)
            answers, questions, words = list[Encoded](), list[Question](), list[str]()
            for rows in _read(stage, found, encoder):
                length = rows.reader.sequence_len
                answers += [Encoded(row["input_ids"][:length], row["labels"][:length]) for row in rows.ready]
                questions += _first_questions(rows, NUM_QUESTIONS - len(questions))
                words.append(rows.words)
            return HeldOutAnswers(stage.name, tuple(words), tuple(answers), tuple(questions), tokenizers[stage.name])
    return None


def held_out_pairs(stages: Sequence[Stage], tokenizers: Tokenizers) -> HeldOutPairs | None:
    """Those of the first stage that names any, or None.

    Raises:
        SolarError: They cannot be read.
    """
    for stage in stages:
        if found := _test_sets(stage, PreferenceFormatter):
            encoder = _encoder(stage, tokenizers)
            pairs, words = list[EncodedPair](), list[str]()
            for rows in _read(stage, found, encoder):
                pairs += [_pair(row, number, encoder, rows.reader) for number, row in enumerate(rows.ready, start=1)]
                words.append(rows.words)
            return HeldOutPairs(stage.name, tuple(words), tuple(pairs))
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


class _Rows(NamedTuple):
    """A set: its rows, what is ready to be measured, how it was read, what became of the rows."""

    raw: Any
    ready: Any
    reader: RowReader
    words: str


def _test_sets(stage: Stage, kind: type[SFTFormatter] | type[PreferenceFormatter]) -> list[FormattedSet]:
    if stage.recipe is None:
        return []
    try:
        sets = list(formatted_sets(stage.recipe))
    except SolarError as error:
        raise type(error)(f"{stage.recipe.path}: {error}") from None
    return [found for found in sets if found.key == "test_datasets" and isinstance(found.formatter, kind)]


def _encoder(stage: Stage, tokenizers: Tokenizers) -> Encoder:
    return make_encoder(tokenizers[stage.name], str(stage.directory))


def _read(stage: Stage, sets: Sequence[FormattedSet], encoder: Encoder) -> Iterator[_Rows]:
    require("solar report on test_datasets of type solar_plugins.*")
    from solar_plugins.axolotl_adapter.datasets import expanded, judged, load_rows, make_reader
    from solar_plugins.data.prepared_datasets import read_set

    recipe = stage.recipe
    assert recipe is not None  # it named the sets
    try:
        _ = recipe.sequence_tokens  # Refuses a length at which nothing can be measured.
        for source in (one for found in sets for one in expanded(found)):
            raw = load_rows(recipe, source)
            # KTO trains on single answers; here they are compared.
            reader = replace(make_reader(recipe, source, encoder), unpaired=False)
            ready, report = read_set(raw, reader, source.where, None)
            yield _Rows(raw, ready, reader, judged(recipe, report, reader))
    except SolarError as error:
        raise type(error)(f"{recipe.path}: {error}") from None


def _first_questions(rows: _Rows, count: int) -> list[Question]:
    questions = list[Question]()
    for index, row in enumerate(rows.raw):
        if len(questions) >= count:
            break
        # Read as a batch of one, which says what is wrong instead of raising.
        problems = rows.reader.read_batch({column: [value] for column, value in row.items()}, [index])[PROBLEM_COLUMN]
        if problems[0] is None and isinstance(rows.reader.formatter, SFTFormatter):
            messages = rows.reader.formatter.to_messages(row)
            asked = messages[: next(i for i, message in enumerate(messages) if message["role"] == "assistant")]
            shown = "\n\n".join(message["content"] for message in asked)
            questions.append(Question(shown, render(asked, add_generation_prompt=True)))
    return questions


def _pair(row: Mapping[str, str], number: int, encoder: Encoder, reader: RowReader) -> EncodedPair:
    end, length = len(encoder.end_token), reader.sequence_len
    whole = [encoder.encode(Example(row["prompt"], row[answer][:-end])) for answer in ("chosen", "rejected")]
    chosen, rejected = (Encoded(ids[:length], labels[:length]) for ids, labels in whole)
    return EncodedPair(number, chosen, rejected, any(len(ids) > length for ids, _ in whole))
