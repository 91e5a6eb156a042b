"""Preference pairs from a file: which formatter reads its rows, which rows are taken, which cannot be used."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from solar_plugins.data.formatters import preference_formatters
from solar_plugins.data.formatters.base import NothingToLearn, PreferenceFormatter, Row, RowError
from solar_plugins.data.row_encoder import EncodedPair, RowEncoder
from solar_plugins.data.row_files import parse_row, read_blocks, require_readable
from solar_plugins.data.row_tally import RowTally
from solar_plugins.errors import DataError

TRIED_ROWS = 100
"""How many rows tell which formatter reads a file."""
OTHER_NAMES = {"prompt_and_answers": "preference"}
"""Names that ``--type`` took before the formatter was one of training's."""


@dataclass(frozen=True)
class PreferenceFile:
    """A file, and how to read it.

    Args:
        path: JSON lines, plain or compressed; JSON; Parquet.
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
        formatter_name: The one that shall be taken; by default the one that reads most of the first rows, and of
            several the one that needs most columns.

    Raises:
        DataError: The file or the formatter cannot be used.
    """
    require_readable(str(path))
    first, num_rows = list[bytes](), 0
    for _, line in _rows(path):
        if len(first) < TRIED_ROWS:
            first.append(line)
        num_rows += 1
    if not first:
        raise DataError(f"{path}: has no rows; expected preference pairs, one JSON object in a line")
    return PreferenceFile(path, _formatter(path, formatter_name, first), num_rows)


def _rows(path: Path) -> Iterator[tuple[int, bytes]]:
    for block in read_blocks(str(path)):
        for offset, line in enumerate(block.lines):
            if line.strip():
                yield block.first_row + offset, line


def _formatter(path: Path, name: str | None, first: list[bytes]) -> PreferenceFormatter:
    known = preference_formatters()
    if name is not None:
        name = OTHER_NAMES.get(name, name)
        if name not in known:
            raise DataError(f"--type: {name!r} is no preference formatter; known: {', '.join(sorted(known))}")
        return known[name]
    rows = [row for row in map(_row_or_none, first) if row is not None]
    if not rows:
        try:
            parse_row(first[0])
        except RowError as error:
            raise DataError(
                f"{path}: no row can be read; of the first, {error}; expected a JSON object for each row"
            ) from None
    columns = {column: None for row in rows for column, value in row.items() if value is not None}
    fitting = [formatter for formatter in known.values() if columns.keys() >= set(formatter.columns)]
    if not fitting:
        expected = "; ".join(f"{formatter.name}: {', '.join(formatter.columns)}" for formatter in known.values())
        raise DataError(
            f"{path}: the first rows have the columns {', '.join(columns) or 'none'}; expected those of a "
            f"preference formatter ({expected}). Is it an instruction set? Else name the formatter with --type"
        )
    return max(fitting, key=lambda formatter: (sum(_reads(formatter, row) for row in rows), len(formatter.columns)))


def _row_or_none(line: bytes) -> Row | None:
    try:
        return parse_row(line)
    except RowError:
        return None


def _reads(formatter: PreferenceFormatter, row: Row) -> bool:
    try:
        formatter.to_pair(row, random.Random(0))
    except NothingToLearn:
        return True
    except Exception:  # A third party's formatter may raise anything.
        return False
    return True


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
        pair = encoder.pair(parse_row(line), index)
    except RowError as error:
        tally.add_error(index, error)
        return None
    tally.add(index, [pair])
    return None if pair.too_long else pair
