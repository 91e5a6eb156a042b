"""Rows of .jsonl, .jsonl.gz, .json and .parquet files, read a few megabytes at a time."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

from solar_plugins.errors import DataError
from solar_plugins.extras import require

BLOCK_BYTES = 2_000_000
"""Read at once, and sent to a process at once."""
MAX_ROW_BYTES = 64_000_000
"""A row this long is no row; the file is of another kind, or damaged."""
PARQUET_ROWS = 2000


class Block(NamedTuple):
    """Some rows of a file, one after another."""

    path: str
    first_row: int
    """Number of the first, counted from 1: its line in .jsonl (blank lines count), its place in the others."""
    lines: list[bytes]
    """Each row as JSON on one line. Blank lines of a file are blank here, so that numbers stay right."""
    read_bytes: int
    """How much of the file was read for it, as it lies on the disk."""


def read_blocks(path: str) -> Iterator[Block]:
    """The rows of a file in order.

    Raises:
        DataError: The file is missing, damaged, or of a kind that is not known.
        SolarError: What reads such a file is not installed.
    """
    blocks = _reader(path)
    try:
        yield from blocks(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); fetch it again") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); convert the file to UTF-8") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check the path (it is taken from the folder in which "
            "the command runs), or fetch the file to this place"
        ) from None


def require_readable(path: str) -> tuple[int, int]:
    """Size and time of change of a file that is there and of a known kind.

    Raises:
        DataError: It is missing, or of no known kind.
        SolarError: What reads such a file is not installed.
    """
    if not path.endswith(".txt"):
        _reader(path)
    try:
        if not Path(path).is_file():
            raise FileNotFoundError(2, "no such file")
        state = Path(path).stat()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); expected a file of rows. Check the path (it is taken from the "
            "folder in which the command runs), or fetch the file to this place"
        ) from None
    return state.st_size, state.st_mtime_ns


def _reader(path: str) -> Callable[[str], Iterator[Block]]:
    for ending, reader in READERS.items():
        if path.endswith(ending):
            if reader is _parquet_blocks:
                require("reading a .parquet file")
            return reader
    raise DataError(f"{path}: unknown kind of file; expected a name that ends in {', '.join(READERS)}")


def _lines_blocks(path: str) -> Iterator[Block]:
    with Path(path).open("rb") as raw, gzip.open(raw) if path.endswith(".gz") else nullcontext(raw) as stream:
        first, row, done = stream.read(len(codecs.BOM_UTF8)), 1, 0
        rest = b"" if first == codecs.BOM_UTF8 else first
        while chunk := stream.read(BLOCK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > MAX_ROW_BYTES:
                raise _too_long(path, row + len(lines))
            if lines:
                yield Block(path, row, lines, raw.tell() - done)
                row, done = row + len(lines), raw.tell()
        if rest.strip():
            yield Block(path, row, [rest], raw.tell() - done)


def _too_long(path: str, row: int) -> DataError:
    return DataError(
        f"{path}: row {row} is longer than {MAX_ROW_BYTES // 1_000_000} MB; expected a JSON object for each row. Is "
        "the file of another kind than its name says, or damaged?"
    )


def _values_blocks(path: str) -> Iterator[Block]:
    """Blocks of a .json file: an array of rows, or rows one after another, as some .json files are JSON lines."""
    with Path(path).open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as stream:
        row, lines, size, done = 1, list[bytes](), 0, 0
        for value in _JsonValues(path, stream).values():
            lines.append(value.replace("\n", " ").replace("\r", " ").encode())
            size += len(lines[-1])
            if size > BLOCK_BYTES:
                position = raw.tell()
                yield Block(path, row, lines, position - done)
                row, lines, size, done = row + len(lines), [], 0, position
        if lines:
            yield Block(path, row, lines, raw.tell() - done)


class _JsonValues:
    """The texts of the values in a JSON array, or one after another, found while the file is read."""

    def __init__(self, path: str, stream: IO[str]) -> None:
        self.path, self.stream = path, stream
        self.text, self.at, self.row = "", 0, 1

    def values(self) -> Iterator[str]:
        array = self._next_character() == "["
        self.at += array
        while (character := self._next_character()) and not (array and character == "]"):
            yield self._value()
            self.row += 1
            if array and self._next_character() not in (",", "]"):
                raise self._damaged("expected a comma or the end of the list after it", self.row - 1)
            self.at += array and self._next_character() == ","
        if array and not character:
            raise self._damaged("the file ends inside the list")
        self.at += array
        if self._next_character():
            raise self._damaged("something follows the end of the list")

    def _more(self) -> bool:
        chunk = self.stream.read(BLOCK_BYTES)
        self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)

    def _next_character(self) -> str:
        """The next one that is no white space, not taken yet; empty at the end of the file."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in " \t\r\n":
                    return self.text[self.at]
                self.at += 1
            if not self._more():
                return ""

    def _value(self) -> str:
        while True:
            end, problem = None, ""
            try:
                _, end = _DECODER.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                problem = str(error)
            if end is not None and end < len(self.text):
                break
            if len(self.text) - self.at > MAX_ROW_BYTES:
                raise _too_long(self.path, self.row)
            # What ends where the text so far ends, or is not readable, may go on in the next chunk.
            taken = self.at
            if not self._more():
                if end is None:
                    raise self._damaged(problem)
                end -= taken
                break
        value, self.at = self.text[self.at : end], end
        return value

    def _damaged(self, problem: str, row: int | None = None) -> DataError:
        return DataError(
            f"{self.path}: row {row or self.row} is not readable JSON ({problem}); expected an array of objects, or an "
            "object on each line. Mend the row, or fetch the file again"
        )


_DECODER = json.JSONDecoder()


def _parquet_blocks(path: str) -> Iterator[Block]:
    import pyarrow
    import pyarrow.parquet

    size, row, done = Path(path).stat().st_size, 1, 0
    try:
        # Defaults would hold the whole file in memory by its end, and start threads, after which a fork is not safe.
        with pyarrow.parquet.ParquetFile(path, buffer_size=BLOCK_BYTES, pre_buffer=False) as file:
            total = max(file.metadata.num_rows, 1)
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group], use_threads=False):
                    position = size * (row - 1 + batch.num_rows) // total
                    yield Block(path, row, [_as_json(path, row, one) for one in batch.to_pylist()], position - done)
                    row, done = row + batch.num_rows, position
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a whole Parquet file ({error}); fetch it again") from None


def _as_json(path: str, first_row: int, row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path}: a row at or after {first_row} cannot be written as JSON ({error}); expected columns of text, "
            "numbers, lists and maps. Leave the column out, or convert it to text"
        ) from None


READERS: dict[str, Callable[[str], Iterator[Block]]] = {
    ".jsonl": _lines_blocks,
    ".jsonl.gz": _lines_blocks,
    ".json": _values_blocks,
    ".parquet": _parquet_blocks,
}
