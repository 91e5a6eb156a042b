"""From rows to what Axolotl trains on: token ids and labels, pairs, or single answers with a label.

The work is done in batches, in as many processes as the recipe says. What is wrong with a row travels in a column
beside the results and is counted afterwards, so counts do not depend on the processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from solar_plugins.data.encoder import Encoder
from solar_plugins.data.formatters.base import (
    Formatter,
    PreferenceFormatter,
    PreferencePair,
    Row,
    RowError,
    SFTFormatter,
)
from solar_plugins.data.template import examples, render

ROW_COLUMN = "solar_row"
PROBLEM_COLUMN = "solar_problem"
TOO_LONG = "too long"
"""In the problem column: an example that does not fit, which is no fault of the row's."""

SFT_COLUMNS = {"input_ids": "int32", "attention_mask": "int8", "labels": "int64"}
"""The types that Axolotl's own strategies give, so that sets of both kinds can be joined."""
PAIR_COLUMNS = {"prompt": "string", "chosen": "string", "rejected": "string"}
KTO_COLUMNS = {"prompt": "string", "completion": "string", "label": "bool"}

type Record = dict[str, Any]


@dataclass(frozen=True)
class RowReader:
    """Everything that turns a row into records.

    Args:
        formatter: How to read the row.
        encoder: The tokenizer.
        sequence_len: Longer examples are too long.
        truncate: Whether Axolotl will cut them; then only those are too long of which no answer would be left.
        unpaired: Whether to give each answer of a pair alone, with a label, as KTO wants it.
        seed: Of the chance that formatters may use.
    """

    formatter: Formatter
    encoder: Encoder
    sequence_len: int
    truncate: bool = False
    unpaired: bool = False
    seed: int = 0

    @property
    def columns(self) -> dict[str, str]:
        """The columns of a record, and their types."""
        if isinstance(self.formatter, SFTFormatter):
            return SFT_COLUMNS
        return KTO_COLUMNS if self.unpaired else PAIR_COLUMNS

    def read_batch(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """The records of some rows, column by column, with the row's index and what is wrong with it."""
        columns = [*self.columns, ROW_COLUMN, PROBLEM_COLUMN]
        result: dict[str, list[Any]] = {column: [] for column in columns}
        for position, index in enumerate(indices):
            row = {name: values[position] for name, values in batch.items()}
            for record in self._records_or_problem(row, index):
                for column in columns:
                    result[column].append(record.get(column))
        return result

    def _records_or_problem(self, row: Row, index: int) -> list[Record]:
        try:
            records = list(self.read(row, index))
        except RowError as error:
            records = [{PROBLEM_COLUMN: str(error)}]
        except Exception as error:
            # A third party's formatter may raise anything; like a bad row it is counted, and named with its kind.
            records = [{PROBLEM_COLUMN: f"{self.formatter.name} failed with {type(error).__name__}: {error}"}]
        return [record | {ROW_COLUMN: index} for record in records]

    def read(self, row: Row, index: int) -> Iterator[Record]:
        """The records of one row.

        Raises:
            RowError: It gives none.
        """
        if isinstance(self.formatter, SFTFormatter):
            return self._conversation(self.formatter, row)
        return self._pair(self.formatter, row, index)

    def _conversation(self, formatter: SFTFormatter, row: Row) -> Iterator[Record]:
        messages = formatter.to_messages(row)
        self.encoder.check_messages(messages)
        for example in examples(messages):
            ids, labels = self.encoder.encode(example)
            num_prompt_tokens = next(i for i, label in enumerate(labels) if label >= 0)
            if (num_prompt_tokens < self.sequence_len) if self.truncate else (len(ids) <= self.sequence_len):
                yield {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
            else:
                yield {PROBLEM_COLUMN: TOO_LONG}

    def _pair(self, formatter: PreferenceFormatter, row: Row, index: int) -> Iterator[Record]:
        pair = formatter.to_pair(row, random.Random(f"{self.seed}:{index}"))
        if pair.chosen == pair.rejected:
            raise RowError("chosen", "is equal to rejected")
        self._check_pair(pair)
        prompt = render(pair.prompt, add_generation_prompt=True)
        if not self._pair_fits(prompt, pair):
            yield {PROBLEM_COLUMN: TOO_LONG}
            return
        chosen, rejected = pair.chosen + self.encoder.end_token, pair.rejected + self.encoder.end_token
        if self.unpaired:
            yield {"prompt": prompt, "completion": chosen, "label": True}
            yield {"prompt": prompt, "completion": rejected, "label": False}
        else:
            yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    def _check_pair(self, pair: PreferencePair) -> None:
        self.encoder.check_messages(pair.prompt)
        self.encoder.check_messages([{"role": "assistant", "content": text} for text in pair[1:]])

    def _pair_fits(self, prompt: str, pair: PreferencePair) -> bool:
        room = self.sequence_len - len(self.encoder.start_ids) - 1
        if self.truncate:
            return self.encoder.count(prompt) <= room
        return all(self.encoder.count(prompt + answer) <= room for answer in (pair.chosen, pair.rejected))
