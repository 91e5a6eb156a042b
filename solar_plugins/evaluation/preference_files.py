"""Preference pairs from a file: which formatter reads its rows, which rows are taken, which cannot be used."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solar_plugins.data.formatters import preference_formatters
from solar_plugins.data.formatters.base import (
    Messages,
    PreferenceFormatter,
    PreferencePair,
    Row,
    RowError,
    question,
    read_messages,
    text,
)
from solar_plugins.data.formatters.preference import ultrafeedback_binarized
from solar_plugins.data.row_encoder import EncodedPair, RowEncoder
from solar_plugins.data.row_files import read_blocks, require_readable
from solar_plugins.data.row_tally import RowTally
from solar_plugins.errors import DataError


def prompt_and_answers(row: Row, chance: random.Random) -> PreferencePair:
    """A prompt, a chosen and a rejected answer, as texts or as lists of messages.

    >>> prompt_and_answers({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, random.Random(0))[1:]
    ('4', '5')
    """
    if isinstance(row.get("chosen"), list):
        return ultrafeedback_binarized(row, chance)
    prompt = row.get("prompt")
    messages: Messages = (
        read_messages(prompt, "prompt") if isinstance(prompt, list) else question(text(prompt, "prompt"))
    )
    if messages[-1]["role"] != "user":
        raise RowError("prompt", "does not end with the user's message")
    return PreferencePair(messages, text(row.get("chosen"), "chosen"), text(row.get("rejected"), "rejected"))


PLAIN = PreferenceFormatter(
    name="prompt_and_answers",
    columns=("prompt", "chosen", "rejected"),
    to_pair=prompt_and_answers,
    summary="prompt, chosen, rejected: texts or lists of messages",
)


@dataclass(frozen=True)
class PreferenceFile:
    """A file, and how to read it.

    Args:
        path: JSON lines, plain or gzipped; a JSON list; parquet.
        formatter: For all its rows.
        num_rows: How many it has.
    """

    path: Path
    formatter: PreferenceFormatter
    num_rows: int


def find_file(path: Path, formatter_name: str | None) -> PreferenceFile:
    """Look at a file: is it there, how many rows has it, and which formatter reads them.

    Args:
        path: The file.
        formatter_name: The one that shall be taken; by default the one whose columns the first row has, and of several
            the one with the most.

    Raises:
        DataError: The file or the formatter cannot be used.
    """
    require_readable(str(path))
    first, num_rows = None, 0
    for _, line in _rows(path):
        first = line if first is None else first
        num_rows += 1
    if first is None:
        raise DataError(f"{path}: has no rows; expected preference pairs, one JSON object in a line")
    return PreferenceFile(path, _formatter(path, formatter_name, first), num_rows)


def _rows(path: Path) -> Iterator[tuple[int, bytes]]:
    for block in read_blocks(str(path)):
        for offset, line in enumerate(block.lines):
            if line.strip():
                yield block.first_row + offset, line


def _formatter(path: Path, name: str | None, first: bytes) -> PreferenceFormatter:
    known = {formatter.name: formatter for formatter in (PLAIN, *preference_formatters().values())}
    if name is not None:
        if name not in known:
            raise DataError(f"--type: {name!r} is no preference formatter; known: {', '.join(sorted(known))}")
        return known[name]
    try:
        row = _parsed(first)
    except RowError as error:
        raise DataError(f"{path}: the first row {error}; expected a JSON object for each row") from None
    fitting = [
        formatter for formatter in known.values() if all(row.get(column) is not None for column in formatter.columns)
    ]
    if not fitting:
        expected = "; ".join(f"{formatter.name}: {', '.join(formatter.columns)}" for formatter in known.values())
        raise DataError(
            f"{path}: the first row has the columns {', '.join(map(str, row)) or 'none'}; expected those of a "
            f"preference formatter ({expected}). Is it an instruction set? Else name the formatter with --type"
        )
    return max(fitting, key=lambda formatter: len(formatter.columns))


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError("it", f"is not JSON ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(row, dict):
        raise RowError("it", f"is a {type(row).__name__}, expected an object")
    return row


def drawn_rows(num_rows: int, limit: int | None, seed: int) -> frozenset[int]:
    """Which rows are judged, by their place among those of the file, from 0: all, or ``limit`` drawn at random."""
    if limit is None or limit >= num_rows:
        return frozenset(range(num_rows))
    return frozenset(random.Random(seed).sample(range(num_rows), limit))


def encoded_pairs(
    file: PreferenceFile, places: frozenset[int], encoder: RowEncoder, tally: RowTally
) -> Iterator[EncodedPair | None]:
    """One item for each row at ``places``: its pair, or None where it gave none.

    Args:
        file: The file.
        places: Which rows, by their place among those of the file, counted from 0.
        encoder: Encodes a row.
        tally: Counts the rows.
    """
    for place, (number, line) in enumerate(_rows(file.path)):
        if place in places:
            yield _pair(encoder, number - 1, line, tally)


def _pair(encoder: RowEncoder, index: int, line: bytes, tally: RowTally) -> EncodedPair | None:
    try:
        pair = encoder.pair(_parsed(line), index)
    except RowError as error:
        tally.add_bad(index, str(error))
        return None
    tally.add(index, [pair])
    return None if pair.too_long else pair
