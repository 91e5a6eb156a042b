"""Tables for terminals and files, drawn by rich at their own width: no cell is wrapped or cut."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

OWN_WIDTH = 100_000
"""Of a console on which no table has to wrap."""


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Collection[int] = (0,),
    rules: Collection[int] = (),
    styles: Sequence[str] = (),
) -> Table:
    """A table of plain text; nothing in it is read as markup.

    Args:
        headings: Of the columns. A newline starts a second line.
        rows: Cells, as many in each row as there are headings.
        left: The columns that are aligned left; numbers are aligned right.
        rules: Rows before which a rule stands, counted from 0.
        styles: A style of rich for each row, for terminals that show colors.
    """
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    ruled = Box("    \n    \n -- \n    \n -- \n    \n    \n    \n", ascii=True)
    drawn = Table(box=ruled, show_edge=False, pad_edge=False, collapse_padding=True)
    for column, heading in enumerate(headings):
        drawn.add_column(Text(heading), justify="left" if column in left else "right", no_wrap=True)
    for place, row in enumerate(rows):
        style = styles[place] if styles else None
        drawn.add_row(*map(Text, row), style=style, end_section=place + 1 in rules)
    return drawn


def lines(drawn: Table) -> list[str]:
    """The lines of a table, without colors.

    >>> for line in lines(table(["model", "score"], [["a", "7.5"], ["long name", "12.25"]])):
    ...     print(line)
    model      score
    ----------------
    a            7.5
    long name  12.25
    """
    import io

    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=OWN_WIDTH, color_system=None, force_jupyter=False).print(drawn)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def show(drawn: Table, console: Console) -> None:
    """Print a table at its own width, however narrow the terminal is."""
    width, console.width = console.width, OWN_WIDTH
    console.print(drawn)
    console.width = width
