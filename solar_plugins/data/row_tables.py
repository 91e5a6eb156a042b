"""The rows of files as a `datasets.Dataset` on disk: the text of each row, with its number and its file's name.

A dataset from another source has its rows in columns; the functions here read both kinds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from solar_plugins.data.formatters.base import RowError
from solar_plugins.data.row_files import NumberedRow, is_parquet, read_blocks, row_or_error
from solar_plugins.errors import DataError
from solar_plugins.storage.atomic import ensure_directory, write_errors_explained
from solar_plugins.storage.content import content_hashes, stamps

FILE_COLUMN, NUMBER_COLUMN, LINE_COLUMN = "solar_file", "solar_number", "solar_line"
"""The name of the file if a dataset has several, the row's number in it from 1, and the row as JSON."""
TABLE_VERSION = 1
"""Raise it when the same files would give a different table."""
TABLE, DONE = "rows.arrow", "rows.json"


def row_table(files: Sequence[str], kind: str, wanted: Collection[str] | None, directory: Path) -> Any:
    """The rows of files as one `datasets.Dataset` with the columns above, from the cache or written now.

    Args:
        files: The files in order.
        kind: ``json`` or ``parquet``.
        wanted: As in `read_blocks`.
        directory: The cache; each table is named by a hash of the content of its files.

    Raises:
        DataError: A file cannot be read or changes while it is read, or the table cannot be written.
    """
    from datasets import Dataset

    names = _short_names(files)
    try:
        before = stamps(files)
        hashes = content_hashes(files)
        columns = sorted(wanted) if wanted is not None and any(map(is_parquet, files)) else None
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); expected the path of a file") from None
    parts = {
        "version": TABLE_VERSION,
        "kind": kind,
        "wanted": columns,
        "files": [[name, hashes[file]] for name, file in zip(names, files, strict=True)],
    }
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    path = directory / key

    def fill(folder: Path) -> None:
        num_rows = _write_table(folder / TABLE, files, names, kind, wanted)
        if stamps(files) != before:
            raise DataError(f"{', '.join(files)}: changed while being read; run the command again")
        (folder / DONE).write_text(json.dumps({"rows": num_rows, "files": list(files)}), encoding="utf-8")

    with write_errors_explained(path, "table of rows", "set HF_DATASETS_CACHE to another folder", DataError):
        directory.mkdir(parents=True, exist_ok=True)
        ensure_directory(path, fill, lambda folder: (folder / DONE).is_file(), what="table of rows")
        table = Dataset.from_file(str(path / TABLE))
    return Dataset(table.data, info=table.info, fingerprint=key)


def _short_names(files: Sequence[str]) -> list[str]:
    """Names for messages; empty for a single file, because the dataset's name already contains it."""
    if len(files) == 1:
        return [""]
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    return [os.path.relpath(file, folder) for file in files]


def _write_table(
    target: Path, files: Sequence[str], names: Sequence[str], kind: str, wanted: Collection[str] | None
) -> int:
    import pyarrow
    from tqdm import tqdm

    schema = pyarrow.schema(
        {FILE_COLUMN: pyarrow.string(), NUMBER_COLUMN: pyarrow.int64(), LINE_COLUMN: pyarrow.large_binary()}
    )
    total, num_rows = sum(Path(file).stat().st_size for file in files), 0
    with (
        pyarrow.OSFile(str(target), "wb") as sink,
        pyarrow.ipc.new_stream(sink, schema) as writer,
        tqdm(total=total, desc="Reading files", unit="B", unit_scale=True, unit_divisor=1000, mininterval=0.5) as bar,
    ):
        for file, name in zip(files, names, strict=True):
            for block in read_blocks(file, kind=kind, wanted=wanted):
                rows = [row for row in enumerate(block.lines, start=block.first_row) if row[1].strip()]
                numbers, lines = zip(*rows, strict=True) if rows else ((), ())
                batch = pyarrow.record_batch([[name] * len(rows), numbers, lines], schema=schema)
                writer.write_batch(batch)
                num_rows += len(rows)
                bar.update(block.read_bytes)
    return num_rows


def numbered_rows(dataset: Any) -> Iterator[NumberedRow]:
    """All rows of a dataset, from local files or any other source."""
    start = 0
    for batch in dataset.iter(batch_size=1000):
        size = len(next(iter(batch.values())))
        yield from rows_of_batch(batch, range(start, start + size))
        start += size


def rows_of_batch(batch: Mapping[str, Sequence[Any]], indices: Sequence[int]) -> Iterator[NumberedRow]:
    """The rows of a batch of columns, as `datasets` passes it.

    Args:
        batch: The columns.
        indices: The rows' indices in the dataset, used for datasets that are not from local files.
    """
    if LINE_COLUMN not in batch:
        for position, index in enumerate(indices):
            yield NumberedRow("", index, {name: values[position] for name, values in batch.items()})
        return
    for file, number, line in zip(batch[FILE_COLUMN], batch[NUMBER_COLUMN], batch[LINE_COLUMN], strict=True):
        yield NumberedRow(file, number - 1, row_or_error(line))


def row_place(dataset: Any, index: int) -> int | str:
    """The name of a row in messages: its number from 1, with its file if there are several.

    Args:
        dataset: The dataset.
        index: The row's index in it.
    """
    if LINE_COLUMN not in dataset.column_names:
        return index + 1
    row = dataset.select_columns([FILE_COLUMN, NUMBER_COLUMN])[index]
    return f"{row[FILE_COLUMN]}:{row[NUMBER_COLUMN]}" if row[FILE_COLUMN] else int(row[NUMBER_COLUMN])


def columns_of(dataset: Any, needed: Collection[str] | None = None) -> list[str]:
    """The columns of a dataset; for local files, those that any row has. Empty if no row can be read.

    Args:
        dataset: The dataset.
        needed: Stop once all of these have been seen.
    """
    if LINE_COLUMN not in dataset.column_names:
        return list(dataset.column_names)
    found: dict[str, None] = {}
    for numbered in numbered_rows(dataset):
        if not isinstance(numbered.row, RowError):
            found |= dict.fromkeys(numbered.row)
            if needed is not None and all(column in found for column in needed):
                break
    return list(found)
