"""The benchmark texts of a mixture, read from their files into one index of n-grams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from solar_plugins.data.formatters.base import RowError
from solar_plugins.data.mixture_args import BenchmarkArgs, DecontaminateArgs
from solar_plugins.data.ngrams import NgramIndex, Place, Searched
from solar_plugins.data.row_checks import texts_in
from solar_plugins.data.row_files import parse_row, read_blocks
from solar_plugins.errors import DataError


def benchmark_index(args: DecontaminateArgs) -> NgramIndex:
    """The n-grams of every benchmark file.

    Raises:
        DataError: A file cannot be read, a row lacks a named column, or a file holds no text. Nothing is skipped here:
            a benchmark that was read in part would let rows pass without a word.
    """
    return NgramIndex(args.ngram, (found for one in args.against for found in _texts_of(one)))


def rows_by_search(args: DecontaminateArgs, index: NgramIndex) -> dict[str, dict[str, int]]:
    """For each benchmark file how many of its rows are searched in which way."""
    found = {one.path: index.rows(one.path) for one in args.against}
    return {path: {how.name.lower(): rows[how] for how in Searched} for path, rows in found.items()}


def _texts_of(args: BenchmarkArgs) -> Iterator[tuple[str, Place]]:
    found = False
    for number, text in _lines(args.path) if args.columns is None else _columns(args.path, args.columns):
        found = found or bool(text.strip())
        yield text, Place(args.path, number)
    if not found:
        raise DataError(f"{args.path}: holds no text to compare with; give the benchmark's own file and its columns")


def _lines(path: str) -> Iterator[tuple[int, str]]:
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            yield from enumerate(file, start=1)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); convert the file to UTF-8") from None


def _columns(path: str, columns: list[str]) -> Iterator[tuple[int, str]]:
    for block in read_blocks(path, wanted=columns):
        for number, line in enumerate(block.lines, start=block.first_row):
            if line.strip():
                yield from ((number, text) for text in _row_texts(line, path, number, columns))


def _row_texts(line: bytes, path: str, number: int, columns: list[str]) -> Iterator[str]:
    try:
        row = parse_row(line)
    except RowError as error:
        raise DataError(f"{path}: row {number}: {error}. It begins {line[:80]!r}. Fix or remove the row") from None
    for column in columns:
        texts = list(texts_in(row.get(column)))
        if not texts:
            raise DataError(
                f"{path}: row {number} has no text in the column {column!r}; its columns are {', '.join(row)}. Name "
                "the columns of this benchmark under decontaminate.against"
            )
        yield from texts
