"""Encoded rows in the columns that Axolotl trains on: token ids and labels, texts of pairs, or single texts for KTO.

Rows are encoded in batches, by as many processes as the recipe says. What became of each row travels in columns beside
the results and is counted afterwards, so the counts do not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from solar_plugins.data.formatters.base import Row, RowError, SFTFormatter
from solar_plugins.data.row_encoder import EncodedAnswer, RowEncoder
from solar_plugins.data.row_tally import TOO_LONG, RowTally

ROW_COLUMN = "solar_row"
"""The index of the row from which a record comes."""
PROBLEM_COLUMN = "solar_problem"
"""Why a record holds nothing to train on: what is wrong with the row, or `TOO_LONG`; null where it does."""
CUT_COLUMN = "solar_cut"
"""Whether the record's example lost its end."""
BOOKKEEPING_COLUMNS = {ROW_COLUMN: "int64", PROBLEM_COLUMN: "string", CUT_COLUMN: "bool"}

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
        return KTO_COLUMNS if self.unpaired else PAIR_COLUMNS

    def read_batch(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """The records of some rows column by column, those for bookkeeping included. Every row has at least one."""
        columns = [*self.columns, *BOOKKEEPING_COLUMNS]
        result: dict[str, list[Any]] = {column: [] for column in columns}
        for position, index in enumerate(indices):
            row = {name: values[position] for name, values in batch.items()}
            for record in self._records(row, index):
                for column in columns:
                    result[column].append(record.get(column))
        return result

    def _records(self, row: Row, index: int) -> Iterator[Record]:
        bookkeeping: Record = {ROW_COLUMN: index, CUT_COLUMN: False}
        try:
            is_conversation = isinstance(self.rows.formatter, SFTFormatter)
            for record in self._conversation(row) if is_conversation else self._pair(row, index):
                yield bookkeeping | record
        except RowError as error:
            yield bookkeeping | {PROBLEM_COLUMN: str(error)}

    def _conversation(self, row: Row) -> Iterator[Record]:
        for answer in self.rows.conversation(row):
            ids, labels = answer.tokens
            yield (
                {PROBLEM_COLUMN: TOO_LONG}
                if answer.too_long
                else {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, CUT_COLUMN: answer.cut}
            )

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
            yield {"prompt": chosen.prompt, **answers, CUT_COLUMN: pair.cut}


def _labelled(answer: EncodedAnswer, label: bool) -> Record:
    return {"prompt": answer.prompt, "completion": answer.completion, "label": label, CUT_COLUMN: answer.cut}


class _Fit(NamedTuple):
    too_long: bool
    cut: bool


def count_rows(
    tally: RowTally, indices: Iterable[int], problems: Iterable[str | None], cuts: Iterable[bool]
) -> RowTally:
    """The tally with the rows of these bookkeeping columns, which are in the order of `TrainingRecords.read_batch`."""
    for index, records in groupby(zip(indices, problems, cuts, strict=True), key=itemgetter(0)):
        of_row = [(problem, cut) for _, problem, cut in records]
        problem = of_row[0][0]
        if problem and problem != TOO_LONG:
            tally.add_bad(index, problem)
        else:
            tally.add(index, [_Fit(problem == TOO_LONG, cut) for problem, cut in of_row])
    return tally
