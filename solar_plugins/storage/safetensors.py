"""Safetensors files as bytes: read and validate headers, lay out new shards, copy byte ranges. Tensors stay encoded.

The format (README of safetensors, "Format"): header length as 8 bytes, little-endian; a JSON header; the data without
gaps. Memory use is bounded by the headers and one buffer per thread, whatever the model's size.
"""

from __future__ import annotations

import json
import os
import reprlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.errors import CheckpointError
from solar_plugins.storage.reflink import clone_range
from solar_plugins.storage.untrusted import MAX_JSON_BYTES, MAX_NAME_LENGTH, parse_json_object, require_file

DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}

FLOATS: Mapping[str, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
"""torch's names of the floating-point dtypes that it can compute with."""

COPY_THREADS = 2
BUFFER_BYTES = 1 << 20
PIECE_BYTES = 64 << 20


class StoredTensor(NamedTuple):
    """The location of a tensor's bytes: ``[start, end)`` from the beginning of ``file``."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Length in bytes."""
        return self.end - self.start


class PlannedTensor(NamedTuple):
    """A tensor to write: the bytes of ``source`` under a new name, or other bytes of the same dtype and shape."""

    name: str
    source: StoredTensor
    zeroed: bool = False
    """Write zeros."""
    compute: Callable[[], memoryview] | None = None
    """Write the bytes that this returns; the result must not depend on when it is called."""


class Shard(NamedTuple):
    """A file to write."""

    filename: str
    tensors: tuple[PlannedTensor, ...]
    block: int = 0
    """The size of the blocks to share with the source files where possible; 0: copy all bytes."""
    residue: int = 0
    """With ``block``: where in a block the data begins."""

    @property
    def data_bytes(self) -> int:
        """Size of the tensor data in bytes, without the header."""
        return sum(tensor.source.num_bytes for tensor in self.tensors)

    def whole_blocks(self) -> Iterator[tuple[Path, int]]:
        """The source file and the length in bytes of each range of whole blocks that can be shared."""
        for piece in _runs(self, self.residue):
            middle = _whole_blocks(piece, self.block) if self.block else None
            if middle is not None and piece.source is not None:
                yield piece.source, middle.num_bytes


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, in the order of their data.

    Raises:
        CheckpointError: The file is not a complete, well-formed safetensors file. Only the header is read.
    """
    file_bytes = require_file(path)
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= header_bytes <= file_bytes - 8:
            raise CheckpointError(
                f"{path}: not a complete safetensors file: its header should have {header_bytes} bytes, but the file "
                f"has {file_bytes}. Download it again"
            )
        if header_bytes > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path}: the safetensors header has {header_bytes:,} bytes, expected at most {MAX_JSON_BYTES:,}, far "
                "more than that of any known model. Split the file, or download it again"
            )
        text = file.read(header_bytes)
    header = parse_json_object(path, text, strict=True)
    _check_metadata(path, text, header.pop("__metadata__", {}))
    data_start = 8 + header_bytes
    tensors = {name: _stored_tensor(path, name, entry, data_start) for name, entry in header.items()}
    _check_layout(path, tensors, data_start, file_bytes)
    return dict(sorted(tensors.items(), key=lambda item: item[1].start))


def _check_metadata(path: Path, text: bytes, metadata: Any) -> None:
    if not text.startswith(b"{"):
        raise CheckpointError(f"{path}: the safetensors header does not start with an object; download it again")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(
            f"{path}: __metadata__ is {reprlib.repr(metadata)}; expected a map of strings. Download it again"
        )


def _stored_tensor(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    if len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise CheckpointError(
            f"{path}: tensor name {name!r:.200} has {len(name)} characters; expected at most {MAX_NAME_LENGTH}, all "
            "printable. Download it again"
        )
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        integers = all(type(number) is int and 0 <= number < 1 << 62 for number in (*shape, start, end))
        if not integers or len(shape) > 64 or prod(shape) * DTYPE_BITS[dtype] != 8 * (end - start):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path}: tensor {name!r:.200} has an invalid entry {reprlib.repr(entry)}; expected a known dtype, "
            "a shape, and data_offsets that span exactly the bytes that these need. Download it again"
        ) from None
    return StoredTensor(path, dtype, shape, data_start + start, data_start + end)


def _check_layout(path: Path, tensors: Mapping[str, StoredTensor], data_start: int, file_bytes: int) -> None:
    position = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != position:
            raise CheckpointError(
                f"{path}: the data of tensor {name!r:.200} starts at byte {tensor.start}, expected {position}; tensors "
                "must not overlap or leave gaps. Download it again"
            )
        position = tensor.end
    if position != file_bytes:
        raise CheckpointError(
            f"{path}: the file has {file_bytes} bytes, but its header describes {position}; it is "
            f"{'truncated' if file_bytes < position else 'longer than it should be'}. Download it again"
        )


def plan_shards(tensors: Iterable[PlannedTensor], max_bytes: int) -> list[Shard]:
    """Split tensors into files of at most ``max_bytes`` of data, in order. A larger tensor gets its own file.

    Names follow the hub's convention: ``model.safetensors``, or ``model-00001-of-00003.safetensors`` and so on.
    """
    groups: list[list[PlannedTensor]] = [[]]
    used = 0
    for tensor in tensors:
        if groups[-1] and used + tensor.source.num_bytes > max_bytes:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += tensor.source.num_bytes
    # Widest dtype first, as the reference writer does, so that all tensors are aligned to their dtype.
    return [
        Shard(name, tuple(sorted(group, key=lambda tensor: -DTYPE_BITS[tensor.source.dtype])))
        for name, group in zip(shard_names(len(groups)), groups, strict=True)
    ]


def shard_names(count: int) -> list[str]:
    """The hub's file names for so many shards."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def shard_index(shards: Sequence[Shard]) -> dict[str, Any]:
    """The content of ``model.safetensors.index.json``."""
    weight_map = {tensor.name: shard.filename for shard in shards for tensor in shard.tensors}
    return {
        "metadata": {"total_size": sum(shard.data_bytes for shard in shards)},
        "weight_map": dict(sorted(weight_map.items())),
    }


def shard_header(shard: Shard) -> bytes:
    """The length prefix and the JSON header of a new file, padded so that the data is aligned to 8 bytes.

    With ``shard.block``, it is padded so that the data begins at ``shard.residue`` within a block.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in shard.tensors:
        end = position + tensor.source.num_bytes
        entry = {"dtype": tensor.source.dtype, "shape": tensor.source.shape, "data_offsets": [position, end]}
        header[tensor.name], position = entry, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * ((shard.residue - 8 - len(text)) % (shard.block or 8))
    return struct.pack("<Q", len(text)) + text


class _Piece(NamedTuple):
    source: Path | None
    """None writes zeros."""
    source_start: int
    target_start: int
    num_bytes: int

    def part(self, start: int, end: int) -> _Piece:
        """The bytes ``[start, end)`` of it."""
        return self._replace(
            source_start=self.source_start + start, target_start=self.target_start + start, num_bytes=end - start
        )


def _runs(shard: Shard, data_start: int) -> list[_Piece]:
    """The copies that fill a shard; ranges adjacent in both files are joined."""
    runs: list[_Piece] = []
    target = data_start
    for tensor in shard.tensors:
        size = tensor.source.num_bytes
        run = _Piece(None if tensor.zeroed else tensor.source.file, tensor.source.start, target, size)
        target += size
        if tensor.compute:
            continue  # `_write_computed` writes it.
        if runs and _is_adjacent(runs[-1], run):
            runs[-1] = runs[-1]._replace(num_bytes=runs[-1].num_bytes + size)
        else:
            runs.append(run)
    return runs


def _is_adjacent(run: _Piece, following: _Piece) -> bool:
    """Whether a run ends where another starts, in both files."""
    if run.source != following.source or run.target_start + run.num_bytes != following.target_start:
        return False
    return run.source is None or run.source_start + run.num_bytes == following.source_start


def _whole_blocks(run: _Piece, block: int) -> _Piece | None:
    """The part of a run that consists of whole blocks in both files; None if there is none."""
    start = -run.source_start % block
    end = run.num_bytes - (run.source_start + run.num_bytes) % block
    fits = run.source is not None and run.source_start % block == run.target_start % block and start < end
    return run.part(start, end) if fits else None


def _split(runs: Iterable[_Piece]) -> Iterator[_Piece]:
    """Pieces for several threads."""
    for run in runs:
        for start in range(0, run.num_bytes, PIECE_BYTES):
            yield run.part(start, min(start + PIECE_BYTES, run.num_bytes))


def _share(
    runs: Iterable[_Piece], block: int, sources: Mapping[Path, int], target: int, advance: Callable[[int], object]
) -> Iterator[_Piece]:
    """Share the whole blocks of runs as far as the file system can; yields what is left to copy."""
    for run in runs:
        middle = _whole_blocks(run, block)
        if middle is None or middle.source is None:
            yield run
            continue
        shared = clone_range(sources[middle.source], middle.source_start, target, middle.target_start, middle.num_bytes)
        if not shared:
            yield run
            continue
        advance(middle.num_bytes)
        start = middle.source_start - run.source_start
        ends = (run.part(0, start), run.part(start + middle.num_bytes, run.num_bytes))
        yield from (end for end in ends if end.num_bytes)


def write_shard(shard: Shard, directory: Path, advance: Callable[[int], object]) -> int:
    """Write a file, header and data, and flush it to disk.

    Args:
        shard: The file.
        directory: Its directory. The file must not exist.
        advance: Called with the number of bytes written or shared, from several threads.

    Returns:
        The number of bytes that were copied or computed; the others share their blocks with a source file.

    Raises:
        CheckpointError: A source file was truncated while it was read.
        OSError: From the file system.
    """
    header = shard_header(shard)
    with ExitStack() as stack, futures.ThreadPoolExecutor(COPY_THREADS) as threads:
        target = stack.enter_context((directory / shard.filename).open("xb", buffering=0)).fileno()
        sources = {
            path: stack.enter_context(path.open("rb", buffering=0)).fileno()
            for path in {tensor.source.file for tensor in shard.tensors}
        }
        _write_all(target, memoryview(header), 0)
        runs = _runs(shard, len(header))
        copied = list(_share(runs, shard.block, sources, target, advance)) if shard.block else runs
        moves = [
            threads.submit(_move, piece, sources.get(piece.source) if piece.source else None, target, advance)
            for piece in _split(copied)
        ]
        try:
            _write_computed(shard, target, len(header), advance)
            for move in moves:
                move.result()
                os.fdatasync(target)  # Keeps the disk busy while other threads copy the next pieces.
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
        os.fsync(target)
    computed = sum(tensor.source.num_bytes for tensor in shard.tensors if tensor.compute)
    return computed + sum(piece.num_bytes for piece in copied)


def _write_computed(shard: Shard, target: int, position: int, advance: Callable[[int], object]) -> None:
    """One at a time, to hold only one in memory."""
    for tensor in shard.tensors:
        if tensor.compute:
            data = tensor.compute()
            _write_all(target, data, position)
            advance(len(data))
        position += tensor.source.num_bytes


def _move(piece: _Piece, source: int | None, target: int, advance: Callable[[int], object]) -> None:
    buffer = memoryview(bytearray(min(BUFFER_BYTES, piece.num_bytes)))
    done = 0
    while done < piece.num_bytes:
        part = buffer[: piece.num_bytes - done]
        if source is not None:
            try:
                count = os.preadv(source, [part], piece.source_start + done)
            except OSError as error:
                error.filename = str(piece.source)  # `preadv` only has the descriptor.
                raise
            if count == 0:
                raise CheckpointError(
                    f"{piece.source}: truncated while it was copied; do not write to the base, and run again"
                )
            part = part[:count]
        _write_all(target, part, piece.target_start + done)
        done += len(part)
        advance(len(part))


def _write_all(file: int, data: memoryview, position: int) -> None:
    while data:
        count = os.pwrite(file, data, position)
        data, position = data[count:], position + count
