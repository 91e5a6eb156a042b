"""Counts what happened to the rows of a dataset, and checks the counts against the recipe's limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, Self

from solar_plugins.data.formatters.base import NothingToLearn, RowError
from solar_plugins.errors import DataError

NAMED_ROWS = 5
"""How many row numbers are given for each kind of problem."""
NAMED_KINDS = 8
"""How many kinds of problems are listed, the most frequent first."""
NOTABLE_REPETITION = 1.5
"""The summary mentions the repetition of tokens from this factor on."""
TOO_LONG = "too long"
"""The kind of rows that do not fit; other kinds are the problems of bad rows."""


FORMATTER_FAILED = "failed with"
"""How a problem goes on after the formatter's name if the formatter raised something other than `RowError`."""


class Fit(Protocol):
    """How an example fits into the maximum length."""

    @property
    def too_long(self) -> bool:
        """Whether it cannot be used."""

    @property
    def cut(self) -> bool:
        """Whether it was truncated."""

    @property
    def num_tokens(self) -> int:
        """Its length if it comes from a conversation, else 0."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of its row."""


@dataclass
class RowTally:
    """The counts of one dataset. Rows are numbered from 1.

    Args:
        where: The dataset's name in messages: ``datasets[0] (train.jsonl)``.
        formatter: The formatter's name.
        rows_read: Rows that were counted.
        examples: Their examples; a conversation with two answers has two.
        bad: Rows that could not be read, by problem.
        nothing_to_learn: Valid rows without an example, by reason.
        too_long: Rows whose examples are all too long.
        examples_too_long: Examples that are too long, of rows with other examples.
        cut: Truncated examples.
        num_tokens: Tokens of all examples.
        num_tokens_once: Tokens of the longest example of each row, which contains the text of the others.
        notes: What was left out of kept rows, with counts.
        first_rows: The first rows of each kind: numbers, or file and number after `name_rows`.
    """

    where: str
    formatter: str
    rows_read: int = 0
    examples: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    nothing_to_learn: dict[str, int] = field(default_factory=dict)
    too_long: int = 0
    examples_too_long: int = 0
    cut: int = 0
    num_tokens: int = 0
    num_tokens_once: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    first_rows: dict[str, list[int | str]] = field(default_factory=dict)

    def add_error(self, index: int, error: RowError) -> None:
        """Count a row without an example.

        Args:
            index: The row's index.
            error: Why.
        """
        self.add_bad(index, str(error), sound=isinstance(error, NothingToLearn))

    def add_bad(self, index: int, problem: str, sound: bool = False) -> None:
        """Count a row without an example.

        Args:
            index: The row's index.
            problem: Why.
            sound: The row is valid and only has nothing to train on.
        """
        self.rows_read += 1
        counts = self.nothing_to_learn if sound else self.bad
        counts[problem] = counts.get(problem, 0) + 1
        self._name(problem, index)

    def add(self, index: int, examples: Sequence[Fit]) -> None:
        """Count a row that was read.

        Args:
            index: The row's index.
            examples: Its examples, at least one.
        """
        self.rows_read += 1
        kept = [example for example in examples if not example.too_long]
        if not kept:
            self.too_long += 1
            self._name(TOO_LONG, index)
            return
        self.examples += len(kept)
        self.examples_too_long += len(examples) - len(kept)
        self.cut += sum(example.cut for example in kept)
        self.num_tokens += sum(example.num_tokens for example in kept)
        self.num_tokens_once += max(example.num_tokens for example in kept)
        for note in (note for example in examples for note in example.notes):
            self.notes[note] = self.notes.get(note, 0) + 1
            self._name(note, index)

    def _name(self, kind: str, index: int) -> None:
        rows = self.first_rows.setdefault(kind, [])
        if len(rows) < NAMED_ROWS:
            rows.append(index + 1)

    def name_rows(self, place: Callable[[int], int | str]) -> Self:
        """Replace the row numbers by those in their files.

        Args:
            place: Maps a row's index in the dataset to its number, or to its file and number.
        """
        self.first_rows = {
            kind: [place(row - 1) if isinstance(row, int) else row for row in rows]
            for kind, rows in self.first_rows.items()
        }
        return self

    @property
    def num_bad(self) -> int:
        """Rows that could not be read."""
        return sum(self.bad.values())

    @property
    def rows_kept(self) -> int:
        """Rows with at least one example."""
        return self.rows_read - self.num_bad - sum(self.nothing_to_learn.values()) - self.too_long

    @property
    def repetition(self) -> float:
        """How many times the examples repeat the tokens of the conversations."""
        return self.num_tokens / self.num_tokens_once if self.num_tokens_once else 1.0

    @property
    def first_bad(self) -> list[tuple[int | str, str]]:
        """The first bad rows: number and problem."""
        named = [(row, problem) for problem in self.bad for row in self.first_rows[problem]]
        return sorted(named, key=lambda one: (one[0] if isinstance(one[0], int) else 0, str(one)))[:NAMED_ROWS]

    def summary(self, sequence_len: int) -> str:
        """One line for the log."""
        gave = "" if self.examples == self.rows_kept else f" ({self.examples} examples)"
        text = f"{self.where} as {self.formatter}: {self.rows_read} rows read, {self.rows_kept} kept{gave}, "
        reasons = self._reasons(sequence_len)
        text += f"{self.rows_read - self.rows_kept} dropped" + (f": {'; '.join(reasons)}" if reasons else "")
        if self.examples_too_long:
            text += f". {self.examples_too_long} later answers of kept conversations are too long and were left out"
        if self.cut:
            text += f". {self.cut} of {self.examples} examples are truncated at sequence_len {sequence_len}"
        for note, count in self.notes.items():
            text += f". {count} {note} ({_listed(self.first_rows[note], count)})"
        if self.repetition >= NOTABLE_REPETITION:
            text += (
                f". The examples have {self.repetition:.1f} times the tokens of the conversations, because the prompt "
                "of each answer repeats the turns before it; long conversations get more weight. For one example per "
                "conversation, set solar: {data: {examples_per: conversation}}"
            )
        return text

    def _reasons(self, sequence_len: int) -> list[str]:
        reasons = self.bad_reasons()
        if self.too_long:
            rows = _listed(self.first_rows[TOO_LONG], self.too_long)
            reasons.append(f"{self.too_long} longer than sequence_len {sequence_len} ({rows})")
        return reasons

    def bad_reasons(self) -> list[str]:
        """Why rows have no example, with counts and first rows, the most frequent first."""
        kinds = sorted((self.bad | self.nothing_to_learn).items(), key=lambda kind: (-kind[1], kind[0]))
        reasons = [
            f"{count} {problem} ({_listed(self.first_rows[problem], count)})" for problem, count in kinds[:NAMED_KINDS]
        ]
        if others := kinds[NAMED_KINDS:]:
            reasons.append(f"{sum(count for _, count in others)} for {len(others)} other reasons")
        return reasons

    def judge(self, bad_rows: str, max_bad_share: float, sequence_len: int) -> None:
        """Check the counts against the recipe's limits.

        Args:
            bad_rows: ``solar.data.bad_rows``.
            max_bad_share: ``solar.data.max_bad_share``.
            sequence_len: The recipe's.

        Raises:
            DataError: A row is bad and ``bad_rows`` is ``stop``, too many are bad, or none is left.
        """
        found = "\n  ".join(["", *self._reasons(sequence_len)])
        if not self.rows_read:
            raise DataError(f"{self.where}: no rows; expected rows for {self.formatter}. Use another file or split")
        if self.num_bad and bad_rows == "stop":
            raise DataError(
                f"{self.where}: {self.num_bad} of {self.rows_read} rows cannot be read as {self.formatter}:{found}\n"
                f"{self._broken_formatter() or 'Fix them, or drop them with solar: {data: {bad_rows: drop}}'}"
            )
        if self.num_bad > max_bad_share * self.rows_read:
            raise DataError(
                f"{self.where}: {self.num_bad} of {self.rows_read} rows cannot be read as {self.formatter}, more than "
                f"the share of {max_bad_share:g} that solar.data.max_bad_share allows:{found}\n"
                f"{self._broken_formatter() or 'Fix the rows, use the formatter that fits them, or allow more'}"
            )
        if not self.rows_kept:
            raise DataError(
                f"{self.where}: none of its {self.rows_read} rows is left to train on:{found}\n"
                f"{'Raise sequence_len, or use' if self.too_long else 'Use'} another dataset"
            )

    def _broken_formatter(self) -> str:
        """The fix if no row is at fault: the formatter raised errors other than `RowError`; empty otherwise."""
        failed = all(problem.startswith(f"{self.formatter} {FORMATTER_FAILED}") for problem in self.bad)
        return f"Fix the formatter {self.formatter}: it raised these errors (RowError rejects a row)" if failed else ""

    def to_json(self) -> str:
        """The tally as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], where: str) -> Self:
        """A tally from its JSON fields, of a dataset that this recipe calls ``where``.

        Raises:
            TypeError: These are not the fields of a tally.
        """
        return cls(**{**fields, "where": where})


def _listed(rows: Sequence[int | str], total: int) -> str:
    return f"{'row' if total == 1 else 'rows'} {', '.join(map(str, rows))}{', ...' if total > len(rows) else ''}"
