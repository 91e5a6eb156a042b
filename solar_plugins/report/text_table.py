"""A table as plain text, for answers that are also piped and copied into notes."""

from __future__ import annotations

from collections.abc import Sequence

MARK = "*"
"""May stand behind a number; the digits stay in line."""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns in line: the first to the left, the others to the right with room for a `MARK` behind them.

    >>> aligned([["model", "score"], ["a", "7.5"], ["long name", "12.5*"]])
    ['model      score', 'a            7.5', 'long name   12.5*']
    """
    marked = [[row[0], *(cell if cell.endswith(MARK) else f"{cell} " for cell in row[1:])] for row in rows]
    widths = [max(len(row[column]) for row in marked) for column in range(len(marked[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in marked
    ]
