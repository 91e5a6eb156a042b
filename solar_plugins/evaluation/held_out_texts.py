"""Held-out texts, and the prompts that models continue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from solar_plugins.data.formatters.base import RowError
from solar_plugins.data.row_files import parse_row, read_blocks
from solar_plugins.errors import ArgsError
from solar_plugins.logs import logger
from solar_plugins.recipe import Recipe
from solar_plugins.solar_block import DataArgs
from solar_plugins.text import half_character

LOG = logger("report")

NUM_PROMPTS, PROMPT_WORDS = 3, 12


def held_out_path(recipe: Recipe, option: Path | None) -> Path:
    """The file of held-out texts: the one given, else the first of the recipe's ``test_datasets``.

    Raises:
        ArgsError: Neither names a file.
    """
    if option is not None:
        return option
    entries = recipe.test_datasets
    first = entries[0] if isinstance(entries, list) and entries else None
    path = first.get("path") if isinstance(first, Mapping) else None
    if not isinstance(path, str) or not Path(path).is_file():
        raise ArgsError(
            f"test_datasets: {'missing' if first is None else f'its first path, {path!r}, is no file here'}; "
            "the report measures on held-out text, so give a file with --held-out FILE.jsonl (one JSON object with a "
            '"text" in each row), or name such a file as path of the first entry of test_datasets'
        )
    return Path(path)


def read_texts(path: Path) -> list[str]:
    """The texts in the column ``text`` of a file, in order.

    A few bad rows are left out with a warning, as in training; more than `DataArgs.max_bad_share` are an error.

    Args:
        path: JSON lines, JSON or Parquet.

    Raises:
        SolarError: The file cannot be read, is empty, or too many rows have no text.
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
        raise ArgsError(f'{path}: empty; expected held-out text, one JSON object with a "text" in each row')
    if bad:
        found = f"{path}: {len(bad)} of {len(texts) + len(bad)} rows cannot be used, the first is {bad[0]}"
        if len(bad) > DataArgs().max_bad_share * (len(texts) + len(bad)):
            raise ArgsError(
                f'{found}; expected a JSON object with a "text" that is not blank, such as {{"text": "Once upon a '
                'time"}. Fix or remove the rows'
            )
        LOG.warning("%s; they are left out", found)
    return texts


def _row_text(line: bytes) -> str:
    value = parse_row(line)["text"]
    if not isinstance(value, str) or not value.strip():
        raise RowError("text", f"is {value!r:.40}")
    if half := half_character(value):
        raise RowError("text", f"holds {half}")
    return value


def checked_prompts(prompts: Sequence[str], texts: Sequence[str]) -> tuple[str, ...]:
    """The prompts given, or else the beginnings of the first held-out texts.

    Raises:
        ArgsError: A prompt is blank, or holds bytes that are no UTF-8.

    Example:
        >>> checked_prompts([], ["one two three four five six seven eight nine ten eleven twelve thirteen"])
        ('one two three four five six seven eight nine ten eleven twelve',)
    """
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise ArgsError(f"prompt {number}: {prompt!r} is blank; expected the beginning of a text")
        if (half := half_character(prompt)) is not None:
            raise ArgsError(f"prompt {number}: holds {half}, as UTF-8")
    return tuple(prompts) or tuple(" ".join(text.split()[:PROMPT_WORDS]) for text in texts[:NUM_PROMPTS])
