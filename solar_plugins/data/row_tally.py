"""What became of the rows of a dataset: counted, named, and judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, Self

from solar_plugins.data.formatters.base import NothingToLearn, RowError
from solar_plugins.errors import DataError

NAMED_ROWS = 5
"""How many rows of each kind are named; all are counted."""

NAMED_KINDS = 8
"""How many kinds of problems are named, the most frequent first."""

REPETITION_WORTH_SAYING = 1.5
"""How many times the text of conversations the examples have before the summary says so."""

TOO_LONG = "too long"
"""The kind of rows that do not fit, beside the problems of bad rows."""


class Fit(Protocol):
    """How an example fits into the length that is allowed."""

    @property
    def too_long(self) -> bool:
        """Whether it cannot be used."""

    @property
    def cut(self) -> bool:
        """Whether it lost its end."""

    @property
    def num_tokens(self) -> int:
        """How long it is, where the length of conversations is of interest, else 0."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of its row."""


@dataclass
class RowTally:
    """The counts of one dataset. Rows are named by their number, counted from 1.

    Args:
        where: The dataset's name in messages: ``datasets[0] (train.jsonl)``.
        formatter: The formatter's name.
        rows_read: Rows that were counted.
        examples: What they gave: a conversation with two answers gives two examples.
        bad: Rows that could not be read, by their problem.
        nothing_to_learn: Sound rows that give no example, by the reason.
        too_long: Rows of which every example is too long.
        examples_too_long: Examples that are too long, of rows that gave others.
        cut: Examples that lost their end.
        num_tokens: Of all examples.
        num_tokens_once: Of the longest example of each row, which holds the others' text.
        notes: What was left out of rows that were kept, with how often.
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
        """Count a row that gives no example.

        Args:
            index: The row's place, counted from 0.
            error: Why.
        """
        self.add_bad(index, str(error), sound=isinstance(error, NothingToLearn))

    def add_bad(self, index: int, problem: str, sound: bool = False) -> None:
        """Count a row that gives no example.

        Args:
            index: The row's place, counted from 0.
            problem: Why.
            sound: The row is no fault; it only has nothing to learn.
        """
        self.rows_read += 1
        counts = self.nothing_to_learn if sound else self.bad
        counts[problem] = counts.get(problem, 0) + 1
        self._name(problem, index)

    def add(self, index: int, examples: Sequence[Fit]) -> None:
        """Count a row that was read.

        Args:
            index: The row's place, counted from 0.
            examples: What it gave, at least one example.
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
        """Call the first rows what their files call them.

        Args:
            place: From a row's place in the dataset, counted from 0, to its number or its file and number.
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
        """Rows that gave an example."""
        return self.rows_read - self.num_bad - sum(self.nothing_to_learn.values()) - self.too_long

    @property
    def repetition(self) -> float:
        """How many times the text of the conversations is in the examples."""
        return self.num_tokens / self.num_tokens_once if self.num_tokens_once else 1.0

    @property
    def first_bad(self) -> list[tuple[int | str, str]]:
        """The first bad rows: number and problem."""
        named = [(row, problem) for problem in self.bad for row in self.first_rows[problem]]
        return sorted(named, key=lambda one: (one[0] if isinstance(one[0], int) else 0, str(one)))[:NAMED_ROWS]

    def words(self, sequence_len: int) -> str:
        """One line for the log."""
        gave = "" if self.examples == self.rows_kept else f" (giving {self.examples} examples)"
        text = f"{self.where} as {self.formatter}: {self.rows_read} rows read, {self.rows_kept} kept{gave}, "
        reasons = self._reasons(sequence_len)
        text += f"{self.rows_read - self.rows_kept} dropped" + (f": {'; '.join(reasons)}" if reasons else "")
        if self.examples_too_long:
            text += f". Of conversations that were kept, {self.examples_too_long} later answers are too long and were "
            text += "left out"
        if self.cut:
            text += f". {self.cut} of {self.examples} examples are cut at sequence_len {sequence_len}"
        for note, count in self.notes.items():
            text += f". {count} {note} ({_listed(self.first_rows[note], count)})"
        if self.repetition >= REPETITION_WORTH_SAYING:
            text += (
                f". The examples have {self.repetition:.1f} times the tokens of the conversations, because each "
                "answer's prompt repeats the turns before it; long conversations weigh more. For one example for each "
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
        """The problems of rows without an example, with counts and first rows, the most frequent first."""
        kinds = sorted((self.bad | self.nothing_to_learn).items(), key=lambda kind: (-kind[1], kind[0]))
        reasons = [
            f"{count} {problem} ({_listed(self.first_rows[problem], count)})" for problem, count in kinds[:NAMED_KINDS]
        ]
        if others := kinds[NAMED_KINDS:]:
            reasons.append(f"{sum(count for _, count in others)} for {len(others)} more reasons")
        return reasons

    def judge(self, bad_rows: str, max_bad_share: float, sequence_len: int) -> None:
        """Check whether training may use the dataset.

        Args:
            bad_rows: ``solar.data.bad_rows``.
            max_bad_share: ``solar.data.max_bad_share``.
            sequence_len: The recipe's.

        Raises:
            DataError: A row is bad and the recipe says stop, too many are bad, or nothing is left.
        """
        found = "\n  ".join(["", *self._reasons(sequence_len)])
        if not self.rows_read:
            raise DataError(
                f"{self.where}: has no rows; expected rows for {self.formatter}. Give another file or split"
            )
        if self.num_bad and bad_rows == "stop":
            raise DataError(
                f"{self.where}: {self.num_bad} of {self.rows_read} rows cannot be read as {self.formatter}:{found}\n"
                "Fix them, or drop them with solar: {data: {bad_rows: drop}}"
            )
        if self.num_bad > max_bad_share * self.rows_read:
            raise DataError(
                f"{self.where}: {self.num_bad} of {self.rows_read} rows cannot be read as {self.formatter}, more than "
                f"the share of {max_bad_share:g} that solar.data.max_bad_share allows:{found}\n"
                "Check that the dataset fits the formatter; fix the rows, or allow a larger share"
            )
        if not self.rows_kept:
            raise DataError(
                f"{self.where}: none of its {self.rows_read} rows is left to train on:{found}\n"
                f"{'Raise sequence_len, or give' if self.too_long else 'Give'} another dataset"
            )

    def to_json(self) -> str:
        """The tally as a file holds it."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], where: str) -> Self:
        """The tally that a file holds, of a dataset that this recipe calls ``where``.

        Raises:
            TypeError: The fields are not those of a tally.
        """
        return cls(**{**fields, "where": where})


def _listed(rows: Sequence[int | str], total: int) -> str:
    return f"{'row' if total == 1 else 'rows'} {', '.join(map(str, rows))}{', ...' if total > len(rows) else ''}"
