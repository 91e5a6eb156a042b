"""Held-out texts, and the prompts that models continue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from solar_plugins.errors import ArgsError
from solar_plugins.recipe import Recipe

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
    """The texts of a ``.jsonl`` file, in order. Rows of white space are passed over.

    Raises:
        ArgsError: The file is missing, not ``.jsonl`` or empty, or a row (counted from 1) has no text.
    """
    if path.suffix != ".jsonl":
        raise ArgsError(f'{path}: expected held-out text as .jsonl, one JSON object with a "text" in each row')
    texts = []
    try:
        with path.open(encoding="utf-8") as file:
            texts = [_row_text(path, number, row) for number, row in enumerate(file, start=1) if row.strip()]
    except OSError as error:
        raise ArgsError(
            f"{path}: the held-out text cannot be read ({error.strerror}); give the path of a .jsonl file"
        ) from None
    except UnicodeDecodeError as error:
        raise ArgsError(
            f"{path}: the held-out text is not UTF-8 ({error.reason} at byte {error.start}); convert it"
        ) from None
    if not texts:
        raise ArgsError(f'{path}: empty; expected held-out text, one JSON object with a "text" in each row')
    return texts


def _row_text(path: Path, number: int, row: str) -> str:
    expected = 'expected a JSON object with a "text" that is not blank, such as {"text": "Once upon a time"}'
    try:
        content = json.loads(row)
    except (ValueError, RecursionError) as error:
        raise ArgsError(f"{path}, row {number}: not valid JSON ({error}); {expected}. Mend or remove the row") from None
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ArgsError(f"{path}, row {number}: found {row.strip()!r:.80}; {expected}. Mend or remove the row")
    if (half := _half_character(text)) is not None:
        raise ArgsError(f"{path}, row {number}: its text holds {half}. Mend or remove the row")
    return text


def _half_character(text: str) -> str | None:
    """The surrogate in it that stands alone, in words; no tokenizer reads such a text, and no file can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{text[error.start]!r}, half of a UTF-16 pair; expected whole characters"
    return None


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
        if (half := _half_character(prompt)) is not None:
            raise ArgsError(f"prompt {number}: holds {half}, as UTF-8")
    return tuple(prompts) or tuple(" ".join(text.split()[:PROMPT_WORDS]) for text in texts[:NUM_PROMPTS])
