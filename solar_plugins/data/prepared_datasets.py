"""Prepared datasets: rows encoded into the columns that Axolotl trains on, cached in directories.

The columns are token ids and labels for SFT, texts for pairs, single texts for KTO. Rows are encoded in batches, by as
many processes as the recipe says. What happened to each row is kept in extra columns and counted afterwards, so the
counts do not depend on the number of processes.

Axolotl's own cache key includes neither the formatter nor the content of a file, and `datasets` identifies a file by
path and time, so a changed file could train on old rows. Here the name of the directory is a hash of everything that
the result depends on, including the content of local files; Axolotl's cache key, which hashes the path, follows. Code
enters the hash as version numbers, so comments and refactorings do not invalidate caches. A directory is written
completely or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.data.formatters.base import (
    NothingToLearn,
    PreferenceFormatter,
    Row,
    RowError,
    SFTFormatter,
    UnpairedFormatter,
)
from solar_plugins.data.row_encoder import EncodedAnswer, RowEncoder
from solar_plugins.data.row_selection import Examples
from solar_plugins.data.row_tables import row_place, rows_of_batch
from solar_plugins.data.row_tally import TOO_LONG, RowTally
from solar_plugins.data.template import template_text
from solar_plugins.errors import DataError
from solar_plugins.storage.atomic import ensure_directory, write_errors_explained
from solar_plugins.storage.untrusted import read_json_object

ROW_COLUMN = "solar_row"
"""The index in the dataset of the row that a record comes from."""
PROBLEM_COLUMN = "solar_problem"
"""Why a record cannot be trained on: what is wrong with the row, or `TOO_LONG`; null if it can."""
CUT_COLUMN = "solar_cut"
"""Whether the record's example was truncated."""
SOUND_COLUMN = "solar_sound"
"""Whether a row with a problem is not bad but has nothing to train on (`NothingToLearn`)."""
TOKENS_COLUMN = "solar_tokens"
"""The number of tokens of a conversation's example; 0 for other kinds."""
NOTES_COLUMN = "solar_notes"
"""What was left out of the row, one note per line; null if nothing was."""
OPENING_COLUMN = "solar_opening"
"""A hash of the first user message, by which rows are grouped; 0 if the record cannot be trained on."""
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
"""The types that Axolotl's own strategies produce, so that both kinds of datasets can be concatenated."""
PAIR_COLUMNS = {"prompt": "string", "chosen": "string", "rejected": "string"}
KTO_COLUMNS = {"prompt": "string", "completion": "string", "label": "bool"}

type Record = dict[str, Any]


@dataclass(frozen=True)
class TrainingRecords:
    """Turns rows into records.

    Args:
        rows: Encodes a row.
        unpaired: Make a labeled record of each answer of a pair, as KTO needs.
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
        """The records of a batch of rows, by column, bookkeeping included. Every row has at least one record."""
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
        answer, label = self.rows.labeled(row)
        yield {PROBLEM_COLUMN: TOO_LONG} if answer.too_long else _labeled(answer, label)

    def _pair(self, row: Row, index: int) -> Iterator[Record]:
        pair = self.rows.pair(row, index)
        chosen, rejected = pair.chosen, pair.rejected
        if pair.too_long:
            yield {PROBLEM_COLUMN: TOO_LONG}
        elif self.unpaired:
            yield _labeled(chosen, True)
            yield _labeled(rejected, False)
        else:
            answers = {"chosen": chosen.completion, "rejected": rejected.completion}
            yield {"prompt": chosen.prompt, **answers, **_bookkeeping(chosen, pair.cut)}


def _labeled(answer: EncodedAnswer, label: bool) -> Record:
    texts = {"prompt": answer.prompt, "completion": answer.completion}
    return {**texts, "label": label, **_bookkeeping(answer, answer.cut)}


def _bookkeeping(answer: EncodedAnswer, cut: bool) -> Record:
    opening = hashlib.blake2b(answer.opening.encode(errors="surrogatepass"), digest_size=8).digest()
    return {CUT_COLUMN: cut, NOTES_COLUMN: _lines(answer.notes), OPENING_COLUMN: int.from_bytes(opening, signed=True)}


def _lines(notes: tuple[str, ...]) -> str | None:
    return "\n".join(notes) or None


class _Counted(NamedTuple):
    """A record's `TALLY_COLUMNS`: what `RowTally` needs of an example, and its row."""

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
    """Add rows to a tally, given their `TALLY_COLUMNS` in the order of `TrainingRecords.read_batch`."""
    for index, records in groupby(map(_Counted._make, zip(*columns, strict=True)), key=lambda record: record.row):
        of_row = list(records)
        problem = of_row[0].problem
        if problem and problem != TOO_LONG:
            tally.add_bad(index, problem, of_row[0].sound)
        else:
            tally.add(index, of_row)
    return tally


FORMAT_VERSION = 2
"""Raise it when a change to the encoder, the rendering, the records or a helper of `formatters.base` changes the result
for any row. Formatters have a version of their own."""

TALLY_FILE = "solar_rows.json"
EXAMPLES_FILE = "solar_examples.parquet"
"""The row and the opening of each example."""
WHAT, OTHERWISE = "prepared dataset", "set dataset_prepared_path to another folder"
REPAIR = "delete the folder; the next run prepares the dataset again"
SMALL_SET = 2_000
"""Below this number of rows, one process is faster than several."""


class PreparedSet(NamedTuple):
    """The directory of a dataset, and the tally of its rows."""

    path: Path
    tally: RowTally


def prepared_set(
    dataset: Any, records: TrainingRecords, where: str, directory: Path, num_proc: int | None
) -> PreparedSet:
    """The prepared dataset, from the cache or prepared now. Other processes wait until it is finished.

    Args:
        dataset: A `datasets.Dataset`.
        records: How to read it.
        where: Its name in messages.
        directory: The cache.
        num_proc: Number of worker processes.

    Raises:
        DataError: It cannot be written.
    """
    path = directory / fingerprint(dataset, records)

    def fill(folder: Path) -> None:
        scratch = folder / "scratch"
        scratch.mkdir()
        read, tally = _read(dataset, records, where, num_proc, scratch)
        read.select_columns([ROW_COLUMN, OPENING_COLUMN]).to_parquet(str(folder / EXAMPLES_FILE))
        _ready(read).save_to_disk(str(folder))
        shutil.rmtree(scratch)
        (folder / TALLY_FILE).write_text(tally.to_json(), encoding="utf-8")

    with write_errors_explained(path, WHAT, OTHERWISE, DataError):
        ensure_directory(path, fill, is_finished, what=WHAT)
        return PreparedSet(path, read_tally(path, where))


def examples_of(prepared: PreparedSet) -> Examples:
    """The rows and openings of the examples of a prepared dataset.

    Raises:
        DataError: It is damaged.
    """
    import pyarrow.parquet

    file = prepared.path / EXAMPLES_FILE
    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file}: cannot be read ({error}); {REPAIR}") from None
    return Examples(table.column(ROW_COLUMN).to_pylist(), table.column(OPENING_COLUMN).to_pylist())


def selected_set(prepared: PreparedSet, indices: Sequence[int], why: str) -> PreparedSet:
    """A subset of a prepared dataset, in a directory of its own in the same cache.

    Args:
        prepared: All examples.
        indices: The examples to select.
        why: How they were chosen; together with the dataset it determines ``indices``.

    Raises:
        DataError: It cannot be written.
    """
    name = hashlib.sha256(json.dumps([prepared.path.name, why]).encode()).hexdigest()[:24]
    path = prepared.path.parent / name

    def fill(folder: Path) -> None:
        import pyarrow.parquet
        from datasets import load_from_disk

        load_from_disk(str(prepared.path)).select(indices).save_to_disk(str(folder))
        of_all = pyarrow.parquet.read_table(prepared.path / EXAMPLES_FILE)
        pyarrow.parquet.write_table(of_all.take(pyarrow.array(indices, pyarrow.int64())), folder / EXAMPLES_FILE)
        (folder / TALLY_FILE).write_text(prepared.tally.to_json(), encoding="utf-8")

    with write_errors_explained(path, WHAT, OTHERWISE, DataError):
        ensure_directory(path, fill, is_finished, what=WHAT)
    return PreparedSet(path, prepared.tally)


def is_finished(path: Path) -> bool:
    """Whether the directory holds a complete prepared dataset; the tally is written last.

    Raises:
        OSError: It cannot be read, so this is unknown.
    """
    try:
        read_tally(path, "")
    except (DataError, FileNotFoundError, NotADirectoryError):
        return False
    return True


def read_tally(path: Path, where: str) -> RowTally:
    """The tally of a prepared dataset, which this recipe calls ``where``.

    Raises:
        DataError: It is damaged.
        OSError: It cannot be read.
    """
    file = path / TALLY_FILE
    fields = read_json_object(file, error=DataError, fix=REPAIR)
    try:
        return RowTally.from_dict(fields, where)
    except TypeError as error:
        raise DataError(f"{file}: not the tally of a prepared dataset ({error}); {REPAIR}") from None


def read_set(
    dataset: Any, records: TrainingRecords, where: str, num_proc: int | None, scratch: Path | None = None
) -> tuple[Any, RowTally]:
    """The prepared rows of a dataset, and their tally. Bad rows are dropped and counted.

    Args:
        dataset: A `datasets.Dataset`.
        records: How to read it.
        where: Its name in messages.
        num_proc: Number of worker processes.
        scratch: A directory for intermediate files; without it everything is kept in memory.
    """
    read, tally = _read(dataset, records, where, num_proc, scratch)
    return _ready(read), tally


def _read(
    dataset: Any, records: TrainingRecords, where: str, num_proc: int | None, scratch: Path | None
) -> tuple[Any, RowTally]:
    """The records that can be trained on, bookkeeping included, and the tally of all rows."""
    from datasets import Dataset, Features, List, Value

    features: dict[str, Any] = {
        name: List(Value(kind)) if name in SFT_COLUMNS else Value(kind) for name, kind in records.columns.items()
    }
    features |= {name: Value(kind) for name, kind in BOOKKEEPING_COLUMNS.items()}
    read = dataset.map(
        records.read_batch,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features(features),
        num_proc=num_proc if num_proc and len(dataset) >= SMALL_SET else None,
        load_from_cache_file=False,
        keep_in_memory=scratch is None,
        cache_file_name=str(scratch / "rows.arrow") if scratch else None,
        new_fingerprint=fingerprint(dataset, records),
        desc=f"Reading {where}",
    )
    if not len(dataset):  # `map` keeps the old columns of an empty dataset.
        read = Dataset.from_dict({name: [] for name in features}, Features(features))
    columns = (read.data.column(name).to_pylist() for name in TALLY_COLUMNS)
    tally = count_rows(RowTally(where, records.rows.formatter.name), *columns)
    tally = tally.name_rows(lambda index: row_place(dataset, index))
    problems: list[str | None] = read.data.column(PROBLEM_COLUMN).to_pylist()
    return read.select([index for index, problem in enumerate(problems) if problem is None]), tally


def _ready(read: Any) -> Any:
    return read.remove_columns(list(BOOKKEEPING_COLUMNS))


def fingerprint(dataset: Any, records: TrainingRecords) -> str:
    """A hash of everything that the result depends on: rows, formatter, template, tokenizer, settings, versions."""
    rows = records.rows
    encoder, formatter = rows.encoder, rows.formatter
    function: object = (
        formatter.to_messages
        if isinstance(formatter, SFTFormatter)
        else formatter.to_pair
        if isinstance(formatter, PreferenceFormatter)
        else formatter.to_answer
    )
    package = str(getattr(function, "__module__", "")).partition(".")[0]
    parts = {
        "format": FORMAT_VERSION,
        "rows": dataset._fingerprint,
        "formatter": [type(formatter).__name__, package, formatter.name, formatter.version],
        "template": template_text(),
        "tokenizer": hashlib.sha256(encoder.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "tokens": [encoder.start_ids, encoder.end_token, encoder.special_tokens],
        "settings": [rows.max_length, rows.truncate, rows.seed, records.unpaired, rows.whole_conversations],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
