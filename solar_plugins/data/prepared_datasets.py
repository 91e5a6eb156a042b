"""Data sets that are ready for Axolotl, kept in directories that are whole or absent.

Axolotl's own cache knows neither a formatter's code nor the content of a file, so a changed file trains on yesterday's
rows. Here the directory's name is a hash of all that the result depends on, and Axolotl's cache, which hashes the path,
follows.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.data import encoder as encoding
from solar_plugins.data import row_encoder as rows
from solar_plugins.data import row_tally as row_report
from solar_plugins.data import template
from solar_plugins.data.formatters import base, preference, sft
from solar_plugins.data.formatters.base import SFTFormatter
from solar_plugins.data.row_encoder import PROBLEM_COLUMN, ROW_COLUMN, TOO_LONG, RowReader
from solar_plugins.data.row_tally import RowReport
from solar_plugins.errors import DataError
from solar_plugins.storage.directories import ensure_directory
from solar_plugins.storage.files import write_errors_explained
from solar_plugins.storage.untrusted import read_json_object

REPORT_FILE = "solar_rows.json"
REPAIR = "remove the folder, and it is made again"
SMALL_SET = 2_000
"""Rows below which one process is faster than several."""


class PreparedSet(NamedTuple):
    """Where a set lies, and what became of its rows."""

    path: Path
    report: RowReport


def prepared_set(dataset: Any, reader: RowReader, where: str, directory: Path, num_proc: int | None) -> PreparedSet:
    """The ready form of a data set, from ``directory`` or made now. Other processes wait until it is made.

    Args:
        dataset: A `datasets.Dataset`.
        reader: How to read it.
        where: What to call it in words.
        directory: Where ready sets lie.
        num_proc: Processes that may work.

    Raises:
        DataError: It cannot be written.
    """
    path = directory / fingerprint(dataset, reader)

    def fill(folder: Path) -> None:
        scratch = folder / "scratch"
        scratch.mkdir()
        ready, report = read_set(dataset, reader, where, num_proc, scratch)
        ready.save_to_disk(str(folder))
        shutil.rmtree(scratch)
        (folder / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")

    what, otherwise = "prepared dataset", "choose another place with dataset_prepared_path"
    with write_errors_explained(path, what, otherwise, DataError):
        ensure_directory(path, fill, is_finished, what=what)
        return PreparedSet(path, read_report(path, where))


def is_finished(path: Path) -> bool:
    """Whether a ready set is there: its report is written last.

    Raises:
        OSError: It cannot be read, which says nothing about it.
    """
    try:
        read_report(path, "")
    except (DataError, FileNotFoundError, NotADirectoryError):
        return False
    return True


def read_report(path: Path, where: str) -> RowReport:
    """The report of a ready set that this recipe calls ``where``.

    Raises:
        DataError: It is damaged.
        OSError: It cannot be read.
    """
    file = path / REPORT_FILE
    fields = read_json_object(file, error=DataError, fix=REPAIR)
    try:
        return RowReport.from_dict(fields, where)
    except TypeError as error:
        raise DataError(f"{file}: holds other fields than the report of a dataset ({error}); {REPAIR}") from None


def read_set(
    dataset: Any, reader: RowReader, where: str, num_proc: int | None, scratch: Path | None = None
) -> tuple[Any, RowReport]:
    """The ready rows of a data set, and what became of all of them. Bad rows are left out and reported.

    Args:
        dataset: A `datasets.Dataset`.
        reader: How to read it.
        where: What to call it in words.
        num_proc: Processes that may work.
        scratch: A directory for intermediate files; without one the result is kept in memory.
    """
    from datasets import Features, List, Value

    features: dict[str, Any] = {
        name: List(Value(kind)) if name in rows.SFT_COLUMNS else Value(kind) for name, kind in reader.columns.items()
    }
    features |= {ROW_COLUMN: Value("int64"), PROBLEM_COLUMN: Value("string")}
    read = dataset.map(
        reader.read_batch,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features(features),
        num_proc=num_proc if num_proc and len(dataset) >= SMALL_SET else None,
        load_from_cache_file=False,
        keep_in_memory=scratch is None,
        cache_file_name=str(scratch / "rows.arrow") if scratch else None,
        new_fingerprint=fingerprint(dataset, reader),
        desc=f"Reading {where}",
    )
    return _sort_out(read, RowReport(where, reader.formatter.name, rows_read=len(dataset)))


def _sort_out(read: Any, report: RowReport) -> tuple[Any, RowReport]:
    numbers: list[int] = read.data.column(ROW_COLUMN).to_pylist()
    problems: list[str | None] = read.data.column(PROBLEM_COLUMN).to_pylist()
    good = [position for position, problem in enumerate(problems) if problem is None]
    used = {numbers[position] for position in good}
    pairs = list(zip(numbers, problems, strict=True))
    report.add_bad((number, problem) for number, problem in pairs if problem and problem != TOO_LONG)
    long = [number for number, problem in pairs if problem == TOO_LONG]
    report.add_too_long(dict.fromkeys(number for number in long if number not in used))
    report.shortened = sum(number in used for number in long)
    report.examples = len(good)
    return read.select(good).remove_columns([ROW_COLUMN, PROBLEM_COLUMN]), report


def fingerprint(dataset: Any, reader: RowReader) -> str:
    """A hash of everything that a ready set depends on: rows, formatter, code, template, tokenizer, settings."""
    encoder, formatter = reader.encoder, reader.formatter
    function: Callable[..., Any] = formatter.to_messages if isinstance(formatter, SFTFormatter) else formatter.to_pair
    parts = {
        "rows": dataset._fingerprint,
        "formatter": [formatter.name, _code(inspect.getmodule(function))],
        "code": [_code(module) for module in (base, sft, preference, encoding, rows, row_report, template)],
        "template": template.template_text(),
        "tokenizer": hashlib.sha256(encoder.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "tokens": [encoder.start_ids, encoder.end_token, encoder.special_tokens],
        "settings": [reader.sequence_len, reader.truncate, reader.unpaired, reader.seed],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _code(module: Any) -> str:
    try:
        return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()
    except (OSError, TypeError):
        return repr(module)  # Made in a session, or frozen: there is no file to look at.
