"""What became of the rows of a data set: counted, named, and judged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from solar_plugins.errors import DataError

NAMED_ROWS = 5
"""How many rows of each kind the words name; all are counted."""

NAMED_KINDS = 8
"""How many kinds of problems the words name, the most frequent first."""


@dataclass
class RowReport:
    """The counts of one data set. Rows are counted from 1, as an editor counts the lines of a JSONL file.

    Args:
        where: The key of the recipe and the file: ``datasets[0] (train.jsonl)``.
        formatter: The formatter's name.
        rows_read: Rows of the set.
        examples: What they gave: a conversation with two answers gives two examples.
        bad: Rows that could not be read, by what is wrong with them.
        too_long: Rows of which every example is longer than ``sequence_len``.
        shortened: Examples that were too long, of rows that gave others.
        first_rows: The first rows of each kind.
    """

    where: str
    formatter: str
    rows_read: int = 0
    examples: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    too_long: int = 0
    shortened: int = 0
    first_rows: dict[str, list[int]] = field(default_factory=dict)

    def add_bad(self, problems: Iterable[tuple[int, str]]) -> None:
        """Count bad rows: the row's index from 0, and what is wrong with it."""
        counts = Counter(self.bad)
        for index, problem in problems:
            counts[problem] += 1
            self._name(problem, index)
        self.bad = dict(counts)

    def add_too_long(self, indices: Iterable[int]) -> None:
        """Count rows that are too long, by their index from 0."""
        for index in indices:
            self.too_long += 1
            self._name("too long", index)

    def _name(self, kind: str, index: int) -> None:
        rows = self.first_rows.setdefault(kind, [])
        if len(rows) < NAMED_ROWS:
            rows.append(index + 1)

    @property
    def num_bad(self) -> int:
        """Rows that could not be read."""
        return sum(self.bad.values())

    @property
    def rows_kept(self) -> int:
        """Rows that gave something to train on."""
        return self.rows_read - self.num_bad - self.too_long

    def words(self, sequence_len: int) -> str:
        """One line for the log."""
        gave = "" if self.examples == self.rows_kept else f" (giving {self.examples} examples)"
        text = f"{self.where} as {self.formatter}: {self.rows_read} rows read, {self.rows_kept} kept{gave}, "
        reasons = self._reasons(sequence_len)
        text += f"{self.rows_read - self.rows_kept} dropped" + (f": {'; '.join(reasons)}" if reasons else "")
        if self.shortened:
            text += f". Of conversations that were kept, {self.shortened} later answers are too long and were left out"
        return text

    def _reasons(self, sequence_len: int) -> list[str]:
        kinds = sorted(self.bad.items(), key=lambda kind: (-kind[1], kind[0]))
        reasons = [f"{count} {problem} ({self._rows(problem)})" for problem, count in kinds[:NAMED_KINDS]]
        if len(kinds) > NAMED_KINDS:
            reasons.append(
                f"{sum(count for _, count in kinds[NAMED_KINDS:])} for {len(kinds) - NAMED_KINDS} more reasons"
            )
        if self.too_long:
            reasons.append(f"{self.too_long} longer than sequence_len {sequence_len} ({self._rows('too long')})")
        return reasons

    def _rows(self, kind: str) -> str:
        rows = self.first_rows[kind]
        total = self.too_long if kind == "too long" else self.bad[kind]
        listed = ", ".join(map(str, rows)) + (", ..." if total > len(rows) else "")
        return f"{'row' if total == 1 else 'rows'} {listed}"

    def judge(self, bad_rows: str, max_bad_share: float, sequence_len: int) -> None:
        """Let the run go on, or stop it.

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
                "Mend them, or let them be left out with solar: {data: {bad_rows: drop}}"
            )
        if self.num_bad > max_bad_share * self.rows_read:
            raise DataError(
                f"{self.where}: {self.num_bad} of {self.rows_read} rows cannot be read as {self.formatter}, more than "
                f"the share of {max_bad_share:g} that solar.data.max_bad_share allows:{found}\n"
                "Look whether the set fits the formatter; mend the rows, or allow a larger share"
            )
        if not self.rows_kept:
            raise DataError(
                f"{self.where}: none of its {self.rows_read} rows is left to train on:{found}\n"
                "Raise sequence_len, or give another set"
            )

    def to_json(self) -> str:
        """The report as a file keeps it."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], where: str) -> Self:
        """The report that a file keeps, of a set that this recipe calls ``where``.

        Raises:
            TypeError: The fields are not those of a report.
        """
        return cls(**{**fields, "where": where})
