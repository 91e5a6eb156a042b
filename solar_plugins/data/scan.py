"""Judging the rows of files in several processes, with the results in the order of the files."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self

from solar_plugins.data.ngrams import NgramIndex
from solar_plugins.data.row_checks import BlockVerdict, RowRules, check_block
from solar_plugins.data.row_files import Block
from solar_plugins.errors import DataError

MAX_PROCESSES = 8
"""One process reads the files for all; beyond this it is the slow one."""
SMALL_BYTES = 32_000_000
"""Below this the rows are judged before processes would have started."""

_index: NgramIndex | None = None
"""In a judging process: the index that it was started with, so that it is not sent with every block."""


class Scanner:
    """Judges blocks of rows; a context, because it may hold processes.

    The processes are forked, so that they share one index in memory, and before any progress bar starts a thread.

    Args:
        index: The benchmarks' n-grams, or None.
        processes: How many judge; 1 judges in this process.
    """

    def __init__(self, index: NgramIndex | None, processes: int) -> None:
        self._index, self._processes = index, processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Start the processes."""
        if self._processes > 1:
            self._pool = ProcessPoolExecutor(
                self._processes,
                mp_context=multiprocessing.get_context("fork"),
                initializer=_start_judging,
                initargs=(self._index,),
            )
            self._pool.submit(os.getpid).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def verdicts(self, blocks: Iterable[Block], rules: RowRules) -> Iterator[tuple[Block, BlockVerdict]]:
        """Each block with its verdict, in order. Few blocks are in memory at a time.

        Raises:
            DataError: A block cannot be read or judged, or a process was killed.
        """
        if self._pool is None:
            yield from ((block, check_block(block, rules, self._index)) for block in blocks)
            return
        waiting: deque[tuple[Block, Future[BlockVerdict]]] = deque()
        try:
            for block in blocks:
                waiting.append((block, self._pool.submit(_judge, block, rules)))
                if len(waiting) > 2 * self._processes:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for block, future in waiting:
                yield block, future.result()
        except BrokenProcessPool:
            raise DataError(
                "a process that judged rows was killed, probably because memory ran out; free memory, or use fewer "
                "with --processes 1"
            ) from None


def default_processes(total_bytes: int) -> int:
    """How many processes suit files of this size on this machine."""
    return 1 if total_bytes < SMALL_BYTES else min(len(os.sched_getaffinity(0)), MAX_PROCESSES)


def _start_judging(index: NgramIndex | None) -> None:
    global _index
    _index = index
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the pool.


def _judge(block: Block, rules: RowRules) -> BlockVerdict:
    return check_block(block, rules, _index)
