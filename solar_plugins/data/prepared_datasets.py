"""Datasets that are ready for Axolotl, kept in directories that are whole or absent.

Axolotl's own cache knows neither the formatter nor the content of a file, and that of `datasets` knows a file by path
and time, so a changed file trains on yesterday's rows. Here the directory's name is a hash of all that the result
depends on, the content of local files included, and Axolotl's cache, which hashes the path, follows. Code enters that
hash as version numbers, so that a comment or a refactoring keeps all caches.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.data.formatters.base import PreferenceFormatter, SFTFormatter
from solar_plugins.data.row_selection import Examples
from solar_plugins.data.row_tables import row_place
from solar_plugins.data.row_tally import RowTally
from solar_plugins.data.template import template_text
from solar_plugins.data.training_records import (
    BOOKKEEPING_COLUMNS,
    OPENING_COLUMN,
    PROBLEM_COLUMN,
    ROW_COLUMN,
    SFT_COLUMNS,
    TALLY_COLUMNS,
    TrainingRecords,
    count_rows,
)
from solar_plugins.errors import DataError
from solar_plugins.storage.atomic import ensure_directory, write_errors_explained
from solar_plugins.storage.untrusted import read_json_object

FORMAT_VERSION = 2
"""Version of what this package's own code makes of a row. Raise it when a change to the encoder, the rendering, the
records or a helper of `formatters.base` gives another result for some row; a formatter has a version of its own."""

TALLY_FILE = "solar_rows.json"
EXAMPLES_FILE = "solar_examples.parquet"
"""From which row each example comes, and how its conversation begins."""
WHAT, OTHERWISE = "prepared dataset", "choose another place with dataset_prepared_path"
REPAIR = "remove the folder, and it is made again"
SMALL_SET = 2_000
"""Rows below which one process is faster than several."""


class PreparedSet(NamedTuple):
    """Where a set lies, and what became of its rows."""

    path: Path
    tally: RowTally


def prepared_set(
    dataset: Any, records: TrainingRecords, where: str, directory: Path, num_proc: int | None
) -> PreparedSet:
    """The ready form of a dataset, from ``directory`` or made now. Other processes wait until it is made.

    Args:
        dataset: A `datasets.Dataset`.
        records: How to read it.
        where: What to call it in words.
        directory: Where ready sets lie.
        num_proc: Processes that may work.

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
    """Where the examples of a prepared dataset come from.

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


def selected_set(prepared: PreparedSet, places: Sequence[int], why: str) -> PreparedSet:
    """The examples of a prepared dataset at some places, beside it in a directory of their own.

    Args:
        prepared: All examples.
        places: Which are taken, counted from 0.
        why: What chose them; with the same dataset it determines the places.

    Raises:
        DataError: It cannot be written.
    """
    name = hashlib.sha256(json.dumps([prepared.path.name, why]).encode()).hexdigest()[:24]
    path = prepared.path.parent / name

    def fill(folder: Path) -> None:
        import pyarrow.parquet
        from datasets import load_from_disk

        load_from_disk(str(prepared.path)).select(places).save_to_disk(str(folder))
        of_all = pyarrow.parquet.read_table(prepared.path / EXAMPLES_FILE)
        pyarrow.parquet.write_table(of_all.take(pyarrow.array(places, pyarrow.int64())), folder / EXAMPLES_FILE)
        (folder / TALLY_FILE).write_text(prepared.tally.to_json(), encoding="utf-8")

    with write_errors_explained(path, WHAT, OTHERWISE, DataError):
        ensure_directory(path, fill, is_finished, what=WHAT)
    return PreparedSet(path, prepared.tally)


def is_finished(path: Path) -> bool:
    """Whether a ready set is there: its tally is written last.

    Raises:
        OSError: It cannot be read, which says nothing about it.
    """
    try:
        read_tally(path, "")
    except (DataError, FileNotFoundError, NotADirectoryError):
        return False
    return True


def read_tally(path: Path, where: str) -> RowTally:
    """The tally of a ready set that this recipe calls ``where``.

    Raises:
        DataError: It is damaged.
        OSError: It cannot be read.
    """
    file = path / TALLY_FILE
    fields = read_json_object(file, error=DataError, fix=REPAIR)
    try:
        return RowTally.from_dict(fields, where)
    except TypeError as error:
        raise DataError(f"{file}: holds other fields than the tally of a dataset ({error}); {REPAIR}") from None


def read_set(
    dataset: Any, records: TrainingRecords, where: str, num_proc: int | None, scratch: Path | None = None
) -> tuple[Any, RowTally]:
    """The ready rows of a dataset, and what became of all of them. Bad rows are left out and reported.

    Args:
        dataset: A `datasets.Dataset`.
        records: How to read it.
        where: What to call it in words.
        num_proc: Processes that may work.
        scratch: A directory for intermediate files; without one the result is kept in memory.
    """
    read, tally = _read(dataset, records, where, num_proc, scratch)
    return _ready(read), tally


def _read(
    dataset: Any, records: TrainingRecords, where: str, num_proc: int | None, scratch: Path | None
) -> tuple[Any, RowTally]:
    """The records with something to train on, bookkeeping included, and what became of all rows."""
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
    if not len(dataset):  # Then `map` leaves the columns as they were.
        read = Dataset.from_dict({name: [] for name in features}, Features(features))
    columns = (read.data.column(name).to_pylist() for name in TALLY_COLUMNS)
    tally = count_rows(RowTally(where, records.rows.formatter.name), *columns)
    tally = tally.name_rows(lambda index: row_place(dataset, index))
    problems: list[str | None] = read.data.column(PROBLEM_COLUMN).to_pylist()
    return read.select([place for place, problem in enumerate(problems) if problem is None]), tally


def _ready(read: Any) -> Any:
    return read.remove_columns(list(BOOKKEEPING_COLUMNS))


def fingerprint(dataset: Any, records: TrainingRecords) -> str:
    """A hash of all that a ready dataset depends on: rows, formatter, template, tokenizer, settings, versions."""
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
