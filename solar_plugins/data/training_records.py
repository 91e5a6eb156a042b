"""Encoded rows in the columns that Axolotl trains on: token ids and labels, texts of pairs, or single texts for KTO.

Rows are encoded in batches, by as many processes as the recipe says. What became of each row travels in columns beside
the results and is counted afterwards, so the counts do not depend on the number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from solar_plugins.data.formatters.base import NothingToLearn, Row, RowError, SFTFormatter, UnpairedFormatter
from solar_plugins.data.row_encoder import EncodedAnswer, RowEncoder
from solar_plugins.data.row_tables import rows_of_batch
from solar_plugins.data.row_tally import TOO_LONG, RowTally

ROW_COLUMN = "solar_row"
"""The place in the dataset of the row from which a record comes, counted from 0."""
PROBLEM_COLUMN = "solar_problem"
"""Why a record holds nothing to train on: what is wrong with the row, or `TOO_LONG`; null where it does."""
CUT_COLUMN = "solar_cut"
"""Whether the record's example lost its end."""
SOUND_COLUMN = "solar_sound"
"""Whether a row with a problem is no bad row, but has nothing to learn."""
TOKENS_COLUMN = "solar_tokens"
"""The tokens of a conversation's example; 0 for others."""
NOTES_COLUMN = "solar_notes"
"""What was left out of the row, a line each; null if nothing."""
OPENING_COLUMN = "solar_opening"
"""A hash of how the conversation begins, by which rows are kept together; 0 where a record holds nothing."""
TALLY_COLUMNS = {
    ROW_COLUMN: "int64",
    PROBLEM_COLUMN: "string",
    SOUND_COLUMN: "bool",
    CUT_COLUMN: "bool",
    TOKENS_COLUMN: "int32",
    NOTES_COLUMN: "string",
}
BOOKKEEPING_COLUMNS = TALLY_COLUMNS | {OPENING_COLUMN: "int64"}
NO_BOOKKEEPING = {CUT_COLUMN: False, SOUND_COLUMN: False, TOKENS_COLUMN: 0, OPENING_COLUMN: 0}

SFT_COLUMNS = {"input_ids": "int32", "attention_mask": "int8", "labels": "int64"}
"""The types that Axolotl's own strategies give, so that both kinds of datasets can be concatenated."""
PAIR_COLUMNS = {"prompt": "string", "chosen": "string", "rejected": "string"}
KTO_COLUMNS = {"prompt": "string", "completion": "string", "label": "bool"}

type Record = dict[str, Any]


@dataclass(frozen=True)
class TrainingRecords:
    """How rows become records.

    Args:
        rows: Encodes a row.
        unpaired: Give each answer of a pair alone, with a label, as KTO trains on.
    """

    rows: RowEncoder
    unpaired: bool = False

    @property
    def columns(self) -> dict[str, str]:
        """The columns to train on, and their types."""
        if isinstance(self.rows.formatter, SFTFormatter):
            return SFT_COLUMNS
        return KTO_COLUMNS if self.unpaired or isinstance(self.rows.formatter, UnpairedFormatter) else PAIR_COLUMNS

    def read_batch(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """The records of some rows column by column, those for bookkeeping included. Every row has at least one."""
        columns = [*self.columns, *BOOKKEEPING_COLUMNS]
        result: dict[str, list[Any]] = {column: [] for column in columns}
        for place, numbered in zip(indices, rows_of_batch(batch, indices), strict=True):
            for record in self._records(numbered.row, numbered.row_index):
                for column in columns:
                    result[column].append(place if column == ROW_COLUMN else record.get(column))
        return result

    def _records(self, row: Row | RowError, index: int) -> Iterator[Record]:
        try:
            if isinstance(row, RowError):
                raise row
            for record in self._examples(row, index):
                yield NO_BOOKKEEPING | record
        except RowError as error:
            yield NO_BOOKKEEPING | {PROBLEM_COLUMN: str(error), SOUND_COLUMN: isinstance(error, NothingToLearn)}

    def _examples(self, row: Row, index: int) -> Iterator[Record]:
        if isinstance(self.rows.formatter, SFTFormatter):
            return self._conversation(row)
        if isinstance(self.rows.formatter, UnpairedFormatter):
            return self._answer(row)
        return self._pair(row, index)

    def _conversation(self, row: Row) -> Iterator[Record]:
        for answer in self.rows.conversation(row):
            ids, labels = answer.tokens
            record = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, TOKENS_COLUMN: len(ids)}
            yield (
                {PROBLEM_COLUMN: TOO_LONG, NOTES_COLUMN: _lines(answer.notes)}
                if answer.too_long
                else record | _bookkeeping(answer, answer.cut)
            )

    def _answer(self, row: Row) -> Iterator[Record]:
        answer, label = self.rows.labelled(row)
        yield {PROBLEM_COLUMN: TOO_LONG} if answer.too_long else _labelled(answer, label)

    def _pair(self, row: Row, index: int) -> Iterator[Record]:
        pair = self.rows.pair(row, index)
        chosen, rejected = pair.chosen, pair.rejected
        if pair.too_long:
            yield {PROBLEM_COLUMN: TOO_LONG}
        elif self.unpaired:
            yield _labelled(chosen, True)
            yield _labelled(rejected, False)
        else:
            answers = {"chosen": chosen.completion, "rejected": rejected.completion}
            yield {"prompt": chosen.prompt, **answers, **_bookkeeping(chosen, pair.cut)}


def _labelled(answer: EncodedAnswer, label: bool) -> Record:
    texts = {"prompt": answer.prompt, "completion": answer.completion}
    return {**texts, "label": label, **_bookkeeping(answer, answer.cut)}


def _bookkeeping(answer: EncodedAnswer, cut: bool) -> Record:
    opening = hashlib.blake2b(answer.opening.encode(errors="surrogatepass"), digest_size=8).digest()
    return {CUT_COLUMN: cut, NOTES_COLUMN: _lines(answer.notes), OPENING_COLUMN: int.from_bytes(opening, signed=True)}


def _lines(notes: tuple[str, ...]) -> str | None:
    return "\n".join(notes) or None


class _Counted(NamedTuple):
    """What `RowTally` asks of an example, and the row that it comes from: a record's `TALLY_COLUMNS`."""

    row: int
    problem: str | None
    sound: bool
    cut: bool
    num_tokens: int
    lines: str | None

    @property
    def too_long(self) -> bool:
        return self.problem == TOO_LONG

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self.lines.split("\n")) if self.lines else ()


def count_rows(tally: RowTally, *columns: Iterable[Any]) -> RowTally:
    """The tally with the rows of these `TALLY_COLUMNS`, which are in the order of `TrainingRecords.read_batch`."""
    for index, records in groupby(map(_Counted._make, zip(*columns, strict=True)), key=lambda record: record.row):
        of_row = list(records)
        problem = of_row[0].problem
        if problem and problem != TOO_LONG:
            tally.add_bad(index, problem, of_row[0].sound)
        else:
            tally.add(index, of_row)
    return tally
