"""Rows of JSON lines, JSON and Parquet files, read a few megabytes at a time.

The one reader of local files for training, ``solar mix``, ``solar sdpo-order`` and ``solar report``. Rows travel as
JSON text, one a line, so that no type is guessed for a column: dates stay texts, and a column may begin at any row.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from solar_plugins.data.formatters.base import RowError
from solar_plugins.errors import DataError
from solar_plugins.extras import require

BLOCK_BYTES = 2_000_000
"""Read at once, and sent to a process at once."""
MAX_ROW_BYTES = 64_000_000
"""A row this long is no row; the file is of another kind, or damaged."""
PARQUET_ROWS, PARQUET_BYTES = 2000, 50_000_000
"""Read at once of a Parquet file, whichever is less."""
SNIFF_BYTES = 1_000_000
"""From so much of a file's start its layout is told."""

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
"""By the ending of a name, how such a file begins. The content decides; a name only says that a file may be read."""


class Block(NamedTuple):
    """Some rows of a file, one after another."""

    path: str
    first_row: int
    """Number of the first, counted from 1: its line in JSON lines (blank lines count), its place in the others."""
    lines: list[bytes]
    """Each row as JSON on one line; `parse_row` reads it. Blank lines of a file are blank here, so that numbers stay
    right."""
    read_bytes: int
    """How much of the file was read for it, as it lies on the disk."""


class Row(dict[str, Any]):
    """A row of a file. What it lacks is None, because a row need not have every column of its dataset."""

    def __missing__(self, key: str) -> None:
        return None


def parse_row(line: bytes) -> Row:
    """The row on a line.

    Raises:
        RowError: It is not UTF-8, not JSON, or no object. The words are the same for all rows with the same fault.
    """
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        raise RowError("the row", "is not UTF-8 (convert the file)") from None
    except (ValueError, RecursionError) as error:
        why = str(getattr(error, "msg", error)).replace("Extra data", "something follows the object, such as a comma")
        raise RowError("the row", f"is not JSON ({why})") from None
    if not isinstance(row, dict):
        raise RowError("the row", f"is a {type(row).__name__}, expected an object")
    return Row(row)


def read_blocks(path: str, *, kind: str | None = None, wanted: Collection[str] | None = None) -> Iterator[Block]:
    """The rows of a file in order.

    Args:
        path: The file.
        kind: ``json`` or ``parquet``, for a file that has no name of a known kind. What it holds decides which it is.
        wanted: Columns that are needed; None for all. Others of a Parquet file that hold bytes, such as pictures, are
            not read.

    Raises:
        DataError: The file is missing, damaged, or of a kind that is not known. A row that cannot be read is no error
            here, unless nothing after it can be found.
        SolarError: What reads such a file is not installed.
    """
    if kind is None:
        _kind(path)
    try:
        if is_parquet(path):
            require("reading a Parquet, .zst or .lz4 file")
            yield from _parquet_blocks(path, wanted)
        else:
            yield from _json_blocks(path)
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: damaged compressed file ({error}); fetch it again") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not whole as {error.encoding} ({error.reason}); fetch it again") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check the path (it is taken from the folder in which "
            "the command runs), or fetch the file to this place"
        ) from None


def require_readable(path: str) -> None:
    """Nothing, if a file is there and of a known kind.

    Raises:
        DataError: It is missing, or of no known kind.
        SolarError: What reads such a file is not installed.
    """
    if not path.endswith(".txt"):
        _kind(path)
    try:
        if not Path(path).is_file():
            raise FileNotFoundError(2, "it is no file" if Path(path).exists() else "no such file")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); expected a file of rows. Check the path (it is taken from the "
            "folder in which the command runs), or fetch the file to this place"
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
        f"{path}: unknown kind of file; expected a name that ends in {', '.join((*JSON_NAMES, *PARQUET_NAMES[:1]))}; "
        f"the first {len(JSON_NAMES)} may be compressed ({', '.join(COMPRESSIONS)})"
    )


def is_parquet(path: str) -> bool:
    """Whether a file holds Parquet, whatever its name says.

    Raises:
        DataError: Its name says so, and it holds neither Parquet nor text.
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as file:
        start = file.read(1000)
    if start.startswith(PARQUET_START):
        return True
    if path.lower().endswith(PARQUET_NAMES) and start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] not in (b"{", b"["):
        raise DataError(f"{path}: not a whole Parquet file (it does not begin as one); fetch it again")
    return False


class _Bytes(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Text:
    """A stream of bytes as text."""

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
    """A stream of UTF-16 or UTF-32 as UTF-8. Half a character stays what no decoder takes, so its row is a bad one."""

    def __init__(self, stream: _Bytes, encoding: str) -> None:
        self._text = _Text(stream, encoding, "surrogatepass")

    def read(self, size: int) -> bytes:
        """Some bytes; none at the end."""
        return self._text.read(size).encode("utf-8", "surrogatepass")


@contextmanager
def _opened(path: str) -> Iterator[tuple[_Bytes, IO[bytes]]]:
    """The content of a JSON file as UTF-8 without a byte order mark; and the file itself, which knows its position."""
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
        raise DataError(f"{path}: damaged compressed file (it does not begin as {ending} files do); fetch it again")
    return raw, raw


def _json_blocks(path: str) -> Iterator[Block]:
    with _opened(path) as (stream, _):
        lines = _holds_lines(stream)
    with _opened(path) as (stream, raw):
        yield from _lines_blocks(path, stream, raw) if lines else _values_blocks(path, stream, raw)


def _holds_lines(stream: _Bytes) -> bool:
    """Whether a file holds a value on each line, and not an array of rows, or values over several lines.

    Decided by the first value and not by the name: JSON lines are often named ``.json``, and arrays ``.jsonl``. A
    first line that is damaged is a line all the same.
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
        # A value that breaks off in its line; one over several lines breaks off later, at the latest where we stopped.
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
        if codecs.BOM_UTF8 in chunk:  # Files that were put one after another, each with its mark.
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
        f"{path}: row {row} is longer than {MAX_ROW_BYTES // 1_000_000} MB; expected a JSON object for each row. Is "
        "the file of another kind than its name says, or damaged?"
    )


def _values_blocks(path: str, stream: _Bytes, raw: IO[bytes]) -> Iterator[Block]:
    """Blocks of an array of rows, or of rows one after another."""
    row, lines, size, done = 1, list[bytes](), 0, 0
    # What is not UTF-8 comes out as it went in, so that its row is a bad one and the next can be read.
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
    """The texts of the values in a JSON array, or one after another, found while the file is read."""

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
            "object on each line. Fix the row, or fetch the file again"
        )


_DECODER = json.JSONDecoder()


def _parquet_blocks(path: str, wanted: Collection[str] | None) -> Iterator[Block]:
    import pyarrow
    import pyarrow.parquet

    size, row, done = Path(path).stat().st_size, 1, 0
    try:
        # Defaults would hold the whole file in memory by its end, and start threads, after which a fork is not safe.
        with pyarrow.parquet.ParquetFile(path, buffer_size=BLOCK_BYTES, pre_buffer=False) as file:
            left_out = _left_out(file.schema_arrow, wanted)
            columns = [name for name in file.schema_arrow.names if name not in left_out]
            total = max(file.metadata.num_rows, 1)
            for group in range(file.num_row_groups):
                rows = _rows_at_once(file.metadata.row_group(group))
                batches = file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)
                for batch in batches:
                    position = size * (row - 1 + batch.num_rows) // total
                    values = [_column_values(column) for column in batch.columns]
                    names = batch.schema.names
                    lines = [_as_line(dict(zip(names, one, strict=True))) for one in zip(*values, strict=True)]
                    yield Block(path, row, lines or [b"{}"] * batch.num_rows, position - done)
                    row, done = row + batch.num_rows, position
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a whole Parquet file ({error}); fetch it again") from None


def _rows_at_once(group: Any) -> int:
    """As many rows as fit into `PARQUET_BYTES`: those with pictures are long."""
    return max(1, min(PARQUET_ROWS, PARQUET_BYTES * int(group.num_rows) // max(int(group.total_byte_size), 1)))


def left_out_columns(path: str, wanted: Collection[str] | None) -> list[str]:
    """The columns of a file that `read_blocks` leaves out: nobody wants them and they hold bytes, such as pictures.

    Args:
        path: A file that was found readable.
        wanted: As for `read_blocks`.
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
        # A text that is not UTF-8, or a time that Python's do not reach. Only its own row shall suffer.
        return [_scalar_value(scalar) for scalar in column]


def _scalar_value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return "\udcff"  # becomes a byte that no UTF-8 has
    except (ValueError, OverflowError):
        return None


def _as_line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=_as_json).encode("utf-8", "surrogateescape")


def _as_json(value: Any) -> Any:
    """What JSON has no form for: times, decimals, bytes. Those that are no text stay something that is no text."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"bytes": len(value)}
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)
