"""Preference pairs from a file: which formatter reads its rows, which rows are taken, which cannot be used."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.data.encoder import Encoded, Encoder
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
from solar_plugins.data.row_files import read_blocks, require_readable
from solar_plugins.data.template import Example, render
from solar_plugins.errors import DataError

NAMED_ROWS = 3
"""How many bad rows the words name; all are counted."""


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


class EncodedPair(NamedTuple):
    """A pair as token ids, no answer longer than allowed.

    Args:
        row: Its number in the file, counted from 1.
        chosen: Prompt and chosen answer; what is judged has a label.
        rejected: Prompt and rejected answer.
        cut: Whether an answer lost its end.
    """

    row: int
    chosen: Encoded
    rejected: Encoded
    cut: bool


@dataclass
class RowCounts:
    """What became of the rows that gave no pair.

    Args:
        bad: How many could not be read.
        too_long: How many have a prompt that leaves no room for an answer; training leaves them out as well.
        named: The first bad ones: row and problem.
    """

    bad: int = 0
    too_long: int = 0
    named: list[tuple[int, str]] = field(default_factory=list)

    def add_bad(self, row: int, problem: str) -> None:
        """Count a bad row."""
        self.bad += 1
        if len(self.named) < NAMED_ROWS:
            self.named.append((row, problem))

    def words(self) -> str:
        """The bad rows by name."""
        listed = "; ".join(f"row {row}: {problem}" for row, problem in self.named)
        return listed + ("; ..." if self.bad > len(self.named) else "")


def drawn_rows(num_rows: int, limit: int | None, seed: int) -> frozenset[int]:
    """Which rows are judged, by their place among those of the file, from 0: all, or ``limit`` drawn at random."""
    if limit is None or limit >= num_rows:
        return frozenset(range(num_rows))
    return frozenset(random.Random(seed).sample(range(num_rows), limit))


@dataclass(frozen=True)
class PairReader:
    """Everything that turns rows into pairs of token ids.

    Args:
        encoder: The tokenizer.
        max_length: Longer texts lose their end, as in TRL (``truncation_mode: keep_start``).
        seed: Of the chance that a formatter may use.
    """

    encoder: Encoder
    max_length: int
    seed: int

    def read(self, file: PreferenceFile, places: frozenset[int], counts: RowCounts) -> Iterator[EncodedPair | None]:
        """One item for each row at ``places``: its pair, or None where it gave none; ``counts`` says why."""
        for place, (number, line) in enumerate(_rows(file.path)):
            if place in places:
                try:
                    pair = self._pair(file.formatter, number, line)
                except RowError as error:
                    counts.add_bad(number, str(error))
                    yield None
                    continue
                counts.too_long += pair is None
                yield pair

    def _pair(self, formatter: PreferenceFormatter, number: int, line: bytes) -> EncodedPair | None:
        # The chance is that of training: a row's own, counted from 0 (formatters/rows.py).
        pair = formatter.to_pair(_parsed(line), random.Random(f"{self.seed}:{number - 1}"))
        if pair.chosen == pair.rejected:
            raise RowError("chosen", "is equal to rejected")
        self.encoder.check_messages(pair.prompt)
        self.encoder.check_messages([{"role": "assistant", "content": answer} for answer in pair[1:]])
        prompt = render(pair.prompt, add_generation_prompt=True)
        whole = [self.encoder.encode(Example(prompt, answer)) for answer in (pair.chosen, pair.rejected)]
        chosen, rejected = (Encoded(ids[: self.max_length], labels[: self.max_length]) for ids, labels in whole)
        if not all(any(label >= 0 for label in labels) for _, labels in (chosen, rejected)):
            return None
        return EncodedPair(number, chosen, rejected, any(len(ids) > self.max_length for ids, _ in whole))
