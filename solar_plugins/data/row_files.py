"""Rows of JSON Lines, JSON and Parquet files, read a few megabytes at a time.

Training, ``solar mix``, ``solar sdpo-order``, ``solar report`` and ``solar preview`` all read local files with it. Rows
are passed around as lines of JSON, so no column types are guessed. `datasets`' own loader infers one type per column
from the first megabytes: a string that looks like a date becomes a timestamp, and a column that starts with nulls, or a
single damaged line, makes the file fail.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import sys
import zlib
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from solar_plugins.data.formatters.base import Row as AnyRow
from solar_plugins.data.formatters.base import RowError
from solar_plugins.errors import DataError
from solar_plugins.extras import require

BLOCK_BYTES = 2_000_000
"""Read at a time, and sent to a worker process at a time."""
MAX_ROW_BYTES = 64_000_000
"""A longer row is an error: the file has another format, or is damaged."""
PARQUET_ROWS, PARQUET_BYTES = 2000, 50_000_000
"""Read at a time from a Parquet file, whichever is less."""
EVERYTHING = range(sys.maxsize)
SNIFF_BYTES = 1_000_000
"""How much of the start of a file is used to detect its layout."""

JSON_NAMES = (".jsonl", ".json", ".ndjson")
PARQUET_NAMES = (".parquet", ".geoparquet", ".gpq")
PARQUET_START = b"PAR1"
COMPRESSIONS = {
    ".gz": b"\x1f\x8b",
    ".bz2": b"BZh",
    ".xz": b"\xfd7zXZ\x00",
    ".zst": b"\x28\xb5\x2f\xfd",
    ".lz4": b"\x04\x22\x4d\x18",
}
"""Magic bytes by file name extension. The content decides the format; the name only that the file is accepted."""


class Block(NamedTuple):
    """Consecutive rows of a file."""

    path: str
    first_row: int
    """Number of the first row, from 1: the line number in JSON Lines (blank lines count), else its position."""
    lines: list[bytes]
    """Each row as one line of JSON, for `parse_row`. Blank lines are kept, so that line numbers stay right."""
    read_bytes: int
    """How many bytes of the file on disk were read for it."""


class Row(dict[str, Any]):
    """A row of a file. A missing column is None, because not every row has every column."""

    def __missing__(self, key: str) -> None:
        return None


def parse_row(line: bytes) -> Row:
    """Parse the row on a line.

    Raises:
        RowError: It is not UTF-8, not JSON, or not an object. Rows with the same fault get the same message.
    """
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        raise RowError("the row", "is not UTF-8; convert the file") from None
    except (ValueError, RecursionError) as error:
        why = str(getattr(error, "msg", error)).replace(
            "Extra data", "extra characters after the object, such as a comma"
        )
        raise RowError("the row", f"is not JSON ({why})") from None
    if not isinstance(row, dict):
        raise RowError("the row", f"has type {type(row).__name__}, expected a JSON object")
    return Row(row)


def read_blocks(
    path: str, *, kind: str | None = None, wanted: Collection[str] | None = None, span: range = EVERYTHING
) -> Iterator[Block]:
    """The rows of a file in order.

    Args:
        path: The file.
        kind: ``json`` or ``parquet``: accept a file name without a known extension. The content decides which it is.
        wanted: Columns that are needed; None for all. Other binary columns of a Parquet file, such as images, are not
            read.
        span: Only the blocks that start in these bytes of the file, counted by the blocks' ``read_bytes``.

    Raises:
        DataError: The file is missing, damaged, or has an unknown format. An unreadable row is an error only if the
            rows after it cannot be found.
        SolarError: The package that reads such a file is not installed.
    """
    if kind is None:
        _kind(path)
    try:
        if is_parquet(path):
            require("reading a Parquet, .zst or .lz4 file")
            blocks = _parquet_blocks(path, wanted, span.start)
        else:
            blocks = _json_blocks(path)
        position = 0
        for block in blocks:
            if position in span:
                yield block
            position += block.read_bytes
            if position >= span.stop:
                return
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: damaged compressed file ({error}); download it again") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: truncated or damaged {error.encoding} ({error.reason}); download it again") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check the path (relative to the folder in which the "
            "command runs), or download the file"
        ) from None


def require_readable(path: str) -> None:
    """Check that a file exists and has a known extension.

    Raises:
        DataError: It does not.
        SolarError: The package that reads such a file is not installed.
    """
    if not path.endswith(".txt"):
        _kind(path)
    try:
        if not Path(path).is_file():
            raise FileNotFoundError(2, "not a file" if Path(path).exists() else "no such file")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); expected a file with rows. Check the path (relative to the "
            "folder in which the command runs), or download the file"
        ) from None


def _kind(path: str) -> str:
    name = path.lower()
    if name.endswith(PARQUET_NAMES):
        require("reading a Parquet, .zst or .lz4 file")
        return "parquet"
    compression = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    if name.removesuffix(compression).endswith(JSON_NAMES):
        return "json"
    raise DataError(
        f"{path}: unknown file format; expected the extension {', '.join((*JSON_NAMES, *PARQUET_NAMES[:1]))}; "
        f"the first {len(JSON_NAMES)} may be compressed ({', '.join(COMPRESSIONS)})"
    )


def is_parquet(path: str) -> bool:
    """Whether the content of a file is Parquet, whatever its name.

    Raises:
        DataError: The name says Parquet, but the content is neither Parquet nor JSON.
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as file:
        start = file.read(1000)
    if start.startswith(PARQUET_START):
        return True
    if path.lower().endswith(PARQUET_NAMES) and start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] not in (b"{", b"["):
        raise DataError(
            f"{path}: not a Parquet file, or a damaged one (it does not start with PAR1); download it again"
        )
    return False


class _Bytes(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Text:
    """Decodes a byte stream."""

    def __init__(self, stream: _Bytes, encoding: str, errors: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)

    def read(self, size: int) -> str:
        """Some text; empty at the end."""
        while chunk := self._stream.read(size):
            if text := self._decoder.decode(chunk):
                return text
        return self._decoder.decode(b"", final=True)


class _Utf8:
    """Recodes UTF-16 or UTF-32 to UTF-8. Unpaired surrogates stay undecodable, so their row is a bad one."""

    def __init__(self, stream: _Bytes, encoding: str) -> None:
        self._text = _Text(stream, encoding, "surrogatepass")

    def read(self, size: int) -> bytes:
        """Some bytes; none at the end."""
        return self._text.read(size).encode("utf-8", "surrogatepass")


@contextmanager
def _opened(path: str) -> Iterator[tuple[_Bytes, IO[bytes]]]:
    """The content of a JSON file as UTF-8 without a byte order mark, and the raw file, for its position."""
    with ExitStack() as stack:
        first = _decompressed(stack, path)[0].read(4)
        # json's own rule: by the mark at the start, or by where the first ASCII characters have zeros.
        encoding = json.detect_encoding(first) if any(first) else "utf-8"
        stream, raw = _decompressed(stack, path)
        if encoding == "utf-8-sig":
            stream.read(len(codecs.BOM_UTF8))
        yield (stream if encoding.startswith("utf-8") else _Utf8(stream, encoding)), raw


def _decompressed(stack: ExitStack, path: str) -> tuple[_Bytes, IO[bytes]]:
    raw = stack.enter_context(Path(path).open("rb"))  # noqa: SIM115 - the stack closes it
    start = raw.read(8)
    raw.seek(0)
    compression = next((ending for ending, magic in COMPRESSIONS.items() if start.startswith(magic)), None)
    match compression:
        case ".gz":
            return stack.enter_context(gzip.open(raw)), raw
        case ".bz2":
            return stack.enter_context(bz2.open(raw)), raw
        case ".xz":
            return stack.enter_context(lzma.open(raw)), raw
        case ".zst" | ".lz4":
            require("reading a Parquet, .zst or .lz4 file")
            import pyarrow

            name = {".zst": "zstd"}.get(compression, "lz4")
            return stack.enter_context(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), name)), raw
    if path.lower().endswith(tuple(COMPRESSIONS)):
        ending = Path(path).suffix
        raise DataError(f"{path}: damaged compressed file (no {ending} header); download it again")
    return raw, raw


def _json_blocks(path: str) -> Iterator[Block]:
    with _opened(path) as (stream, _):
        lines = _holds_lines(stream)
    with _opened(path) as (stream, raw):
        yield from _lines_blocks(path, stream, raw) if lines else _values_blocks(path, stream, raw)


def _holds_lines(stream: _Bytes) -> bool:
    """Whether a file is JSON Lines, rather than an array of rows or values that span several lines.

    The first value decides, not the name: JSON Lines are often named ``.json``, and arrays ``.jsonl``. A damaged first
    line still counts as a line.
    """
    start = b""
    while len(start) < SNIFF_BYTES and (chunk := stream.read(BLOCK_BYTES)):
        start += chunk
    text = start.decode("utf-8", "replace").lstrip()
    first, line_end, rest = text.partition("\n")
    try:
        value, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        if not line_end:
            return not text.startswith("[")
        # The error is in the first line: a damaged line. A value that spans several lines fails later, or at our cut.
        return not text[len(first) : error.pos].strip()
    except (ValueError, RecursionError):
        return not text.startswith("[")
    alone = not rest.strip()
    if end > len(first) or (alone and first[end:].lstrip()[:1] in ("{", "[")):
        return False
    return not (alone and isinstance(value, list))


def _lines_blocks(path: str, stream: _Bytes, raw: IO[bytes]) -> Iterator[Block]:
    rest, row, done = b"", 1, 0
    while chunk := stream.read(BLOCK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        if codecs.BOM_UTF8 in chunk:  # Concatenated files, each with its byte order mark.
            lines = [line.removeprefix(codecs.BOM_UTF8) for line in lines]
        if len(rest) > MAX_ROW_BYTES:
            raise _too_long(path, row + len(lines))
        if lines:
            yield Block(path, row, lines, raw.tell() - done)
            row, done = row + len(lines), raw.tell()
    if rest.strip():
        yield Block(path, row, [rest.removeprefix(codecs.BOM_UTF8)], raw.tell() - done)


def _too_long(path: str, row: int) -> DataError:
    return DataError(
        f"{path}: row {row} is longer than {MAX_ROW_BYTES // 1_000_000} MB; expected a JSON object for each row. The "
        "file may be damaged, or not have the format that its name says; download it again"
    )


def _values_blocks(path: str, stream: _Bytes, raw: IO[bytes]) -> Iterator[Block]:
    """Blocks from an array of rows, or from concatenated rows."""
    row, lines, size, done = 1, list[bytes](), 0, 0
    # Bytes that are not UTF-8 are passed through, so that their row is bad and the next can be read.
    for value in _JsonValues(path, _Text(stream, "utf-8", "surrogateescape")).values():
        lines.append(value.replace("\n", " ").replace("\r", " ").encode("utf-8", "surrogateescape"))
        size += len(lines[-1])
        if size > BLOCK_BYTES:
            position = raw.tell()
            yield Block(path, row, lines, position - done)
            row, lines, size, done = row + len(lines), [], 0, position
    if lines:
        yield Block(path, row, lines, raw.tell() - done)


class _JsonValues:
    """Splits a JSON array, or concatenated JSON values, into the texts of the values while the file is read."""

    def __init__(self, path: str, stream: _Text) -> None:
        self.path, self.stream = path, stream
        self.text, self.at, self.row = "", 0, 1

    def values(self) -> Iterator[str]:
        array = self._next_character() == "["
        self.at += array
        while (character := self._next_character()) and not (array and character == "]"):
            yield self._value()
            self.row += 1
            if array and self._next_character() not in (",", "]"):
                raise self._damaged("expected a comma or the end of the array after it", self.row - 1)
            self.at += array and self._next_character() == ","
        if array and not character:
            raise self._damaged("the file ends inside the array")
        self.at += array
        if self._next_character():
            raise self._damaged("extra characters after the end of the array")

    def _more(self) -> bool:
        chunk = self.stream.read(BLOCK_BYTES)
        self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)

    def _next_character(self) -> str:
        """Peek at the next character that is not white space; empty at the end of the file."""
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
            # A value that ends where the buffer ends, or is not readable yet, may continue in the next chunk.
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
            f"{self.path}: row {row or self.row} is not valid JSON ({problem}); expected an array of objects, or an "
            "object on each line. Fix the row, or download the file again"
        )


_DECODER = json.JSONDecoder()


def _parquet_blocks(path: str, wanted: Collection[str] | None, start: int) -> Iterator[Block]:
    """Blocks of a Parquet file. A row group that ends before byte ``start`` is one block without lines."""
    import pyarrow
    import pyarrow.parquet

    size, row, done = Path(path).stat().st_size, 1, 0
    try:
        # The defaults would end up holding the entire file in memory, and start threads, which makes fork unsafe.
        with pyarrow.parquet.ParquetFile(path, buffer_size=BLOCK_BYTES, pre_buffer=False) as file:
            left_out = _left_out(file.schema_arrow, wanted)
            columns = [name for name in file.schema_arrow.names if name not in left_out]
            total = max(file.metadata.num_rows, 1)
            for group in range(file.num_row_groups):
                rows = _rows_at_once(file.metadata.row_group(group))
                end = row + file.metadata.row_group(group).num_rows
                if (position := size * (end - 1) // total) <= start and start:
                    yield Block(path, row, [], position - done)
                    row, done = end, position
                    continue
                batches = file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)
                for batch in batches:
                    position = size * (row - 1 + batch.num_rows) // total
                    values = [_column_values(column) for column in batch.columns]
                    names = batch.schema.names
                    lines = [_as_line(dict(zip(names, one, strict=True))) for one in zip(*values, strict=True)]
                    yield Block(path, row, lines or [b"{}"] * batch.num_rows, position - done)
                    row, done = row + batch.num_rows, position
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: damaged Parquet file ({error}); download it again") from None


def _rows_at_once(group: Any) -> int:
    """As many rows as fit into `PARQUET_BYTES`; rows with images are large."""
    return max(1, min(PARQUET_ROWS, PARQUET_BYTES * int(group.num_rows) // max(int(group.total_byte_size), 1)))


def left_out_columns(path: str, wanted: Collection[str] | None) -> list[str]:
    """The columns of a file that `read_blocks` skips: unwanted binary columns, such as images.

    Args:
        path: A readable file.
        wanted: As in `read_blocks`.
    """
    if not is_parquet(path):
        return []
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        return _left_out(file.schema_arrow, wanted)


def _left_out(schema: Any, wanted: Collection[str] | None) -> list[str]:
    if wanted is None:
        return []
    return [field.name for field in schema if field.name not in wanted and _holds_bytes(field.type)]


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    kind = getattr(kind, "storage_type", kind)
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return (binary and not types.is_decimal(kind)) or any(
        _holds_bytes(kind.field(place).type) for place in range(kind.num_fields)
    )


def _column_values(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        # A string that is not UTF-8, or a time outside of Python's range: only that row should be affected.
        return [_scalar_value(scalar) for scalar in column]


def _scalar_value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return "\udcff"  # becomes a byte that is invalid in UTF-8
    except (ValueError, OverflowError):
        return None


def _as_line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=_as_json).encode("utf-8", "surrogateescape")


def _as_json(value: Any) -> Any:
    """Types that JSON lacks: times, decimals, bytes. Bytes that are not UTF-8 become an object, not a string."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"bytes": len(value)}
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)


class NumberedRow(NamedTuple):
    """A row and its origin.

    Args:
        file: The name of its file if the dataset has several, else empty.
        row_index: Its index in the file, or in a dataset without files.
        row: The row, or what is wrong with it.
    """

    file: str
    row_index: int
    row: AnyRow | RowError


def parsed_rows(path: str) -> Iterator[NumberedRow]:
    """The rows of a file, read while they are asked for."""
    for block in read_blocks(path):
        for index, line in enumerate(block.lines, start=block.first_row - 1):
            if line.strip():
                yield NumberedRow("", index, row_or_error(line))


def row_or_error(line: bytes) -> Row | RowError:
    """The row in a line, or what is wrong with it."""
    try:
        return parse_row(line)
    except RowError as error:
        return error
