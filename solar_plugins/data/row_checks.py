"""Checks the rows of a mixture, in several processes.

A row is dropped if it is unreadable, has no text, belongs to an excluded task, or overlaps with a benchmark.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from solar_plugins.data.formatters.base import RowError
from solar_plugins.data.formatters.conversations import joined_parts
from solar_plugins.data.mixture_args import BenchmarkArgs, DecontaminateArgs
from solar_plugins.data.ngrams import Match, NgramIndex, Place, Searched
from solar_plugins.data.row_files import Block, parse_row, read_blocks
from solar_plugins.errors import DataError
from solar_plugins.text import half_character


class Reason(StrEnum):
    """Why a row is dropped, in the order of the checks."""

    UNREADABLE = "unreadable"
    MISSING_TEXT = "missing_text"
    EXCLUDED_TASK = "excluded_task"
    BENCHMARK_OVERLAP = "benchmark_overlap"
    SIMILAR = "similar"


class RowRules(NamedTuple):
    """The rules for the rows of a dataset."""

    text_columns: tuple[str, ...]
    task_column: str | None = None
    excluded_tasks: frozenset[str] = frozenset()


class Dropped(NamedTuple):
    """A dropped row."""

    path: str
    row: int
    """Counted from 1."""
    reason: Reason
    column: str
    """The column with the problem; empty if the row cannot be read."""
    value: str
    """The excluded task, the n-gram, the value that is not text, or what is wrong with the row."""
    match: Match | None = None


class BlockResult(NamedTuple):
    """The result for the rows of a block."""

    kept: bytes
    """For each line: 1 if the row is kept, else 0."""
    rows: int
    """Lines that are not blank."""
    dropped: list[Dropped]
    rows_with_task: int
    columns: tuple[str, ...]
    """The columns of the first row, for messages."""


def check_block(block: Block, rules: RowRules, index: NgramIndex | None) -> BlockResult:
    """Check each row of a block."""
    kept, dropped, columns = bytearray(len(block.lines)), list[Dropped](), tuple[str, ...]()
    rows = rows_with_task = 0
    for at, line in enumerate(block.lines):
        if not line.strip():
            continue
        number = block.first_row + at
        rows += 1
        try:
            row = parse_row(line)
        except RowError as error:
            dropped.append(Dropped(block.path, number, Reason.UNREADABLE, "", str(error)))
            continue
        columns = columns or tuple(row)
        rows_with_task += _task_of(row, rules) is not None
        why = check_row(row, rules, index)
        if why is None:
            kept[at] = 1
        else:
            reason, column, value, match = why
            dropped.append(Dropped(block.path, number, reason, column, value, match))
    return BlockResult(bytes(kept), rows, dropped, rows_with_task, columns)


def check_row(
    row: Mapping[str, Any], rules: RowRules, index: NgramIndex | None
) -> tuple[Reason, str, str, Match | None] | None:
    """The reason to drop a row, the column, its value, and the match with a benchmark; None if the row is kept.

    Example:
        >>> rules = RowRules(("question", "response"), "task", frozenset({"cot_gsm8k"}))
        >>> check_row({"question": "?", "response": "!", "task": "cot_gsm8k"}, rules, None)
        (<Reason.EXCLUDED_TASK: 'excluded_task'>, 'task', 'cot_gsm8k', None)
    """
    for column in rules.text_columns:
        if half := next(filter(None, map(half_character, texts_in(row.get(column)))), None):
            return Reason.UNREADABLE, column, f"contains {half}", None
    for column in rules.text_columns:
        if next(texts_in(row.get(column)), None) is None:
            return Reason.MISSING_TEXT, column, _described(row, column), None
    task = _task_of(row, rules)
    if task is not None and task in rules.excluded_tasks:
        return Reason.EXCLUDED_TASK, str(rules.task_column), task, None
    if index is not None:
        for column in rules.text_columns:
            for text in texts_in(row[column]):
                match = index.match(text)
                if match is not None:
                    return Reason.BENCHMARK_OVERLAP, column, match.ngram, match
    return None


def texts_in(value: Any) -> Iterator[str]:
    """The string in a column, or all strings in its lists and maps, such as lists of messages.

    The content parts of a message are joined, as in training.

    Example:
        >>> list(texts_in([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": ""}]))
        ['user', 'Hello', 'assistant', '']
        >>> list(texts_in({"content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}))
        ['Hello']
    """
    if isinstance(value, str):
        yield value
    elif (joined := joined_parts(value)) is not None:
        yield joined
    elif isinstance(value, list):
        for one in value:
            yield from texts_in(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from texts_in(one)


def _task_of(row: Mapping[str, Any], rules: RowRules) -> str | None:
    task = row.get(rules.task_column) if rules.task_column is not None else None
    return task.strip() if isinstance(task, str) and task.strip() else None


def _described(row: Mapping[str, Any], column: str) -> str:
    return f"{row[column]!r:.80}" if column in row else "the column is missing"


def benchmark_index(args: DecontaminateArgs) -> NgramIndex:
    """The n-grams of all benchmark files.

    Raises:
        DataError: A file or row cannot be read, a row lacks a column, or a file has no text. Nothing is skipped,
            because a partly read benchmark would silently let contaminated rows through.
    """
    return NgramIndex(args.ngram, (found for one in args.against for found in benchmark_texts(one)))


def rows_by_search(args: DecontaminateArgs, index: NgramIndex) -> dict[str, dict[str, int]]:
    """For each benchmark file, the number of rows per `Searched`."""
    found = {one.path: index.rows(one.path) for one in args.against}
    return {path: {how.name.lower(): rows[how] for how in Searched} for path, rows in found.items()}


def benchmark_texts(args: BenchmarkArgs) -> Iterator[tuple[str, Place]]:
    """The texts of a benchmark file and their locations.

    Raises:
        DataError: As for `benchmark_index`.
    """
    found = False
    for number, text in _lines(args.path) if args.columns is None else _columns(args.path, args.columns):
        found = found or bool(text.strip())
        yield text, Place(args.path, number)
    if not found:
        raise DataError(f"{args.path}: no text found; name the file of the benchmark and its text columns")


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
        raise DataError(f"{path}: row {number}: {error}. It starts with {line[:80]!r}. Fix or remove the row") from None
    for column in columns:
        texts = list(texts_in(row.get(column)))
        if not texts:
            raise DataError(
                f"{path}: row {number} has no text in the column {column!r}; its columns are {', '.join(row)}. Fix "
                "columns: of this file under decontaminate.against"
            )
        yield from texts


MAX_PROCESSES = 8
"""One process reads the files for all workers; with more of them it becomes the bottleneck."""
SMALL_BYTES = 32_000_000
"""Smaller files are finished before worker processes would have started."""

_index: NgramIndex | None = None
"""In a worker process: the index, inherited at the fork, so that it is not sent with every block."""


class Scanner:
    """Checks blocks of rows, in worker processes if there are several; a context manager.

    The workers are forked, so that they share the index in memory, and before any progress bar starts a thread.

    Args:
        index: The benchmarks' n-grams, or None.
        processes: Number of worker processes; 1 means this process.
    """

    def __init__(self, index: NgramIndex | None, processes: int) -> None:
        self._index, self._processes = index, processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Start the workers."""
        if self._processes > 1:
            self._pool = ProcessPoolExecutor(
                self._processes,
                mp_context=multiprocessing.get_context("fork"),
                initializer=_start_worker,
                initargs=(self._index,),
            )
            self._pool.submit(os.getpid).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the workers."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def results(self, blocks: Iterable[Block], rules: RowRules) -> Iterator[tuple[Block, BlockResult]]:
        """Each block with its result, in order, with few blocks in memory at a time.

        Raises:
            DataError: A block cannot be read or checked, or a worker was killed.
        """
        if self._pool is None:
            yield from ((block, check_block(block, rules, self._index)) for block in blocks)
            return
        waiting: deque[tuple[Block, Future[BlockResult]]] = deque()
        try:
            for block in blocks:
                waiting.append((block, self._pool.submit(_check, block, rules)))
                if len(waiting) > 2 * self._processes:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for block, future in waiting:
                yield block, future.result()
        except BrokenProcessPool:
            raise DataError(
                "--processes: a worker process was killed, probably because memory ran out; free memory, or use "
                "--processes 1"
            ) from None


def default_processes(total_bytes: int) -> int:
    """The number of workers for files of this size on this machine."""
    return 1 if total_bytes < SMALL_BYTES else min(len(os.sched_getaffinity(0)), MAX_PROCESSES)


def _start_worker(index: NgramIndex | None) -> None:
    global _index
    _index = index
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops the pool.


def _check(block: Block, rules: RowRules) -> BlockResult:
    return check_block(block, rules, _index)
