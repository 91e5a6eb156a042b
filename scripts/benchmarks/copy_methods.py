"""How fast can bytes be moved between files? Prints the tables of docs/copy-methods.md.

    .venv/bin/python scripts/benchmarks/copy_methods.py

Every method copies one file of random bytes behind a header of odd length, as the checkpoint writer does, and then
fsyncs it. "cold": the source was fsynced and dropped from the page cache (POSIX_FADV_DONTNEED) before each run. Methods
run in turn, in random order, so that a slow minute of the machine affects all of them.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import platform
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import NamedTuple

HEADER_BYTES = 12_345
"""Odd, so that source and target blocks are never aligned with each other."""
PIECE_BYTES = 64 << 20
BLOCK_BYTES = 4096


class Result(NamedTuple):
    """Seconds of one run: until the last byte was handed to the kernel, and until fsync returned."""

    copied: float
    synced: float


Move = Callable[[int, int, int, int, int], None]
"""``move(source, target, source_start, target_start, num_bytes)``"""


class Method(NamedTuple):
    """How a piece is copied, with how many threads, and what starts write-back."""

    move: Move
    threads: int = 1
    direct: bool = False
    """Open the target with O_DIRECT, and cut pieces at its blocks."""
    early: Callable[[int, int, int], object] | None = None
    """``early(target, start, num_bytes)``: called by a copying thread after each piece."""
    waiter_syncs: bool = False
    """The thread that waits for the copying threads calls fdatasync after each piece."""


def read_write(buffer_bytes: int) -> Move:
    """Read and write through a buffer of this size."""

    def move(source: int, target: int, source_start: int, target_start: int, num_bytes: int) -> None:
        with mmap.mmap(-1, buffer_bytes) as memory, memoryview(memory) as buffer:  # mmap: aligned, for O_DIRECT
            done = 0
            while done < num_bytes:
                with buffer[: num_bytes - done] as part:
                    count = os.preadv(source, [part], source_start + done)
                    with part[:count] as got:
                        os.pwrite(target, got, target_start + done)
                done += count

    return move


def mapped(window_bytes: int) -> Move:
    """Write from a memory mapping of the source, which saves one copy."""

    def move(source: int, target: int, source_start: int, target_start: int, num_bytes: int) -> None:
        done = 0
        while done < num_bytes:
            skip = (source_start + done) % BLOCK_BYTES
            size = min(window_bytes, num_bytes - done)
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            start = source_start + done - skip
            with (
                mmap.mmap(source, skip + size, flags=flags, prot=mmap.PROT_READ, offset=start) as window,
                memoryview(window) as view,
                view[skip:] as part,
            ):
                done += os.pwrite(target, part, target_start + done)

    return move


def copy_file_range(source: int, target: int, source_start: int, target_start: int, num_bytes: int) -> None:
    """In the kernel, with copy_file_range."""
    done = 0
    while done < num_bytes:
        done += os.copy_file_range(source, target, num_bytes - done, source_start + done, target_start + done)


def sendfile(source: int, target: int, source_start: int, target_start: int, num_bytes: int) -> None:
    """In the kernel, with sendfile; it writes at the file's position, so each piece opens the target again."""
    own = os.open(f"/proc/self/fd/{target}", os.O_WRONLY)
    try:
        os.lseek(own, target_start, os.SEEK_SET)
        done = 0
        while done < num_bytes:
            done += os.sendfile(own, source, source_start + done, num_bytes - done)
    finally:
        os.close(own)


def start_by_sync_file_range(target: int, start: int, num_bytes: int) -> None:
    ctypes.CDLL(None).sync_file_range(target, ctypes.c_int64(start), ctypes.c_int64(num_bytes), 2)


def start_by_fadvise(target: int, start: int, num_bytes: int) -> None:
    """Linux starts to write back dirty pages that are declared unneeded, and drops only clean ones."""
    os.posix_fadvise(target, start, num_bytes, os.POSIX_FADV_DONTNEED)


METHODS: dict[str, Method | None] = {
    "cp, then sync": None,
    "read/write 256 KiB": Method(read_write(256 << 10)),
    "read/write 1 MiB": Method(read_write(1 << 20)),
    "read/write 8 MiB": Method(read_write(8 << 20)),
    "read/write 1 MiB, 2 threads": Method(read_write(1 << 20), threads=2),
    "read/write 1 MiB, 4 threads": Method(read_write(1 << 20), threads=4),
    "the same, 2 threads, waiter calls fdatasync": Method(read_write(1 << 20), threads=2, waiter_syncs=True),
    "the same, 2 threads, sync_file_range": Method(read_write(1 << 20), threads=2, early=start_by_sync_file_range),
    "the same, 2 threads, fadvise(DONTNEED)": Method(read_write(1 << 20), threads=2, early=start_by_fadvise),
    "mmap/write 8 MiB, 2 threads": Method(mapped(8 << 20), threads=2),
    "copy_file_range": Method(copy_file_range),
    "copy_file_range, 2 threads": Method(copy_file_range, threads=2),
    "sendfile": Method(sendfile),
    "sendfile, 2 threads": Method(sendfile, threads=2),
    "read/O_DIRECT write 4 MiB, 2 threads": Method(read_write(4 << 20), threads=2, direct=True),
}


def pieces(start: int, end: int, aligned: bool) -> Iterator[tuple[int, int]]:
    while start < end:
        stop = min(end, start + PIECE_BYTES)
        if aligned and stop < end:
            stop -= stop % BLOCK_BYTES
        yield start, stop
        start = stop


def copy(method: Method | None, source_path: Path, target_path: Path) -> Result:
    begin = time.perf_counter()
    if method is None:
        subprocess.run(["cp", source_path, target_path], check=True)
        copied = time.perf_counter() - begin
        subprocess.run(["sync", target_path], check=True)
        return Result(copied, time.perf_counter() - begin)
    source = os.open(source_path, os.O_RDONLY)
    target = os.open(target_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.pwrite(target, bytes(HEADER_BYTES), 0)
    first, last = HEADER_BYTES, HEADER_BYTES + source_path.stat().st_size
    if method.direct:  # whole blocks go past the page cache, the two ends through it
        whole_first, whole_last = first + -first % BLOCK_BYTES, last - last % BLOCK_BYTES
        for start, end in ((first, whole_first), (whole_last, last)):
            read_write(BLOCK_BYTES)(source, target, start - HEADER_BYTES, start, end - start)
        first, last = whole_first, whole_last
    bulk = os.open(target_path, os.O_WRONLY | os.O_DIRECT) if method.direct else target
    _move_pieces(method, source, target, bulk, first, last)
    copied = time.perf_counter() - begin
    os.fsync(target)
    synced = time.perf_counter() - begin
    for file in {source, target, bulk}:
        os.close(file)
    return Result(copied, synced)


def _move_pieces(method: Method, source: int, target: int, bulk: int, first: int, last: int) -> None:
    def move(start: int, end: int) -> None:
        method.move(source, bulk, start - HEADER_BYTES, start, end - start)
        if method.early:
            method.early(target, start, end - start)

    with ThreadPoolExecutor(method.threads) as threads:
        for done in [threads.submit(move, start, end) for start, end in pieces(first, last, method.direct)]:
            done.result()
            if method.waiter_syncs:
                os.fdatasync(target)


def make_source(path: Path, num_bytes: int) -> None:
    block = os.urandom(8 << 20)
    with path.open("wb") as file:
        for start in range(0, num_bytes, len(block)):
            file.write(block[: num_bytes - start])
        file.flush()
        os.fsync(file.fileno())


def prepare_cache(path: Path, cold: bool) -> None:
    with path.open("rb", buffering=0) as file:
        if cold:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while file.read(8 << 20):
                pass


def remove(path: Path) -> None:
    """Remove the file and wait until its blocks are freed; otherwise the next run pays for that."""
    path.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    ctypes.CDLL(None).syncfs(folder)
    os.close(folder)


def measure(folder: Path, num_bytes: int, cold: bool, rounds: int) -> dict[str, list[Result]]:
    source, target = folder / "source", folder / "target"
    if not source.exists() or source.stat().st_size != num_bytes:
        make_source(source, num_bytes)
    results: dict[str, list[Result]] = {name: [] for name in METHODS}
    for _ in range(rounds):
        for name in random.sample(list(METHODS), len(METHODS)):
            prepare_cache(source, cold)
            results[name].append(copy(METHODS[name], source, target))
            remove(target)
    return results


def table(megabytes: Sequence[int], results: dict[tuple[int, bool], dict[str, list[Result]]], cold: bool) -> str:
    """Median GB/s until fsync returned, and in brackets until the last byte was handed to the kernel."""
    lines = [
        f"| {'cold' if cold else 'warm'} cache, GB/s | " + " | ".join(f"{size:,} MB" for size in megabytes) + " |",
        "|---|" + "---|" * len(megabytes),
    ]
    for name in METHODS:
        cells = []
        for size in megabytes:
            runs = results[size, cold][name]
            synced, copied = (size / 1000 / median(run[i] for run in runs) for i in (1, 0))
            cells.append(f"{synced:.2f} ({copied:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[64, 500, 2000, 4600])
    parser.add_argument("--rounds", type=int, nargs="+", default=[9, 7, 3, 3], help="one per size")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="a folder on the disk to measure"
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="copy-methods-", dir=options.folder))
    results = {}
    try:
        for size, rounds in zip(options.megabytes, options.rounds, strict=True):
            for cold in (False, True):
                results[size, cold] = measure(folder, size * 10**6, cold, rounds)
    finally:
        shutil.rmtree(folder)
    find = ["findmnt", "-no", "FSTYPE", "--target", options.folder]
    kind = subprocess.run(find, capture_output=True, text=True, check=False).stdout.strip()
    print(f"{os.cpu_count()} CPUs, Linux {platform.release()}, {kind}; rounds: {options.rounds}; ", end="")
    print(f"load at the end {os.getloadavg()[0]:.1f}\n")
    for cold in (False, True):
        print(table(options.megabytes, results, cold), end="\n\n")


if __name__ == "__main__":
    main()
