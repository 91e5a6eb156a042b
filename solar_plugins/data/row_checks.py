"""Why a row is dropped: unreadable, without a text, of an excluded task, or with words of a benchmark. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from solar_plugins.data.formatters.base import RowError
from solar_plugins.data.formatters.conversations import joined_parts
from solar_plugins.data.ngrams import Match, NgramIndex
from solar_plugins.data.row_files import Block, parse_row
from solar_plugins.text import half_character


class Reason(StrEnum):
    """Why a row is dropped, in the order in which it is asked."""

    UNREADABLE = "unreadable"
    MISSING_TEXT = "missing_text"
    EXCLUDED_TASK = "excluded_task"
    BENCHMARK_OVERLAP = "benchmark_overlap"


class RowRules(NamedTuple):
    """What is asked of the rows of a set."""

    text_columns: tuple[str, ...]
    task_column: str | None = None
    excluded_tasks: frozenset[str] = frozenset()


class Dropped(NamedTuple):
    """A row that is left out."""

    path: str
    row: int
    """Counted from 1."""
    reason: Reason
    column: str
    """Where the reason was found; empty if the row has no columns that could be read."""
    value: str
    """The excluded task, the n-gram, what stands in place of a text, or what is wrong with the row."""
    match: Match | None = None


class BlockVerdict(NamedTuple):
    """What became of the rows of a block."""

    kept: bytes
    """For each line: 1 if the row passed, else 0."""
    rows: int
    """Lines that are not blank."""
    dropped: list[Dropped]
    rows_with_task: int
    columns: tuple[str, ...]
    """Of the block's first row, for messages."""


def check_block(block: Block, rules: RowRules, index: NgramIndex | None) -> BlockVerdict:
    """Judge each row of a block."""
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
    return BlockVerdict(bytes(kept), rows, dropped, rows_with_task, columns)


def check_row(
    row: Mapping[str, Any], rules: RowRules, index: NgramIndex | None
) -> tuple[Reason, str, str, Match | None] | None:
    """The reason to drop a row, its column, what stands there, and the match with a benchmark; None if it may stay.

    Example:
        >>> rules = RowRules(("question", "response"), "task", frozenset({"cot_gsm8k"}))
        >>> check_row({"question": "?", "response": "!", "task": "cot_gsm8k"}, rules, None)
        (<Reason.EXCLUDED_TASK: 'excluded_task'>, 'task', 'cot_gsm8k', None)
    """
    for column in rules.text_columns:
        if half := next(filter(None, map(half_character, texts_in(row.get(column)))), None):
            return Reason.UNREADABLE, column, f"holds {half}", None
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
    """The text of a column, or every text in its lists and maps, so that lists of messages are texts too.

    Parts of one message's content are one text, as training reads them.

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
    return f"{row[column]!r:.80}" if column in row else "no such column"
