"""Which rows of a set stay when it is capped, and how caps follow from shares. Pure.

Every row draws one number from a generator that starts at the seed, in the order of the file and whether or not the row
is kept. Of the rows that passed the filters the N with the smallest numbers stay, in the order of the file. A reservoir
would do with one pass as well, but its choice depends on how many rows came through before. Here a row's number depends
on seed and position alone, so that

* chunks, processes and the order in which they finish change nothing;
* a filter that drops k rows more replaces just those that were chosen, and leaves the other choices as they are;
* a smaller N chooses a part of what a larger N chooses, and two mixtures with one seed the same rows.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping
from fractions import Fraction


def choose_rows(kept: bytes | bytearray, rows: int | None, seed: int) -> bytearray:
    """Cap a set.

    Args:
        kept: A byte for each row of the set, not 0 for those to choose from.
        rows: How many may stay; None for all.
        seed: Of the draw.

    Returns:
        A byte for each row: 1 for those that stay.

    Example:
        >>> sum(choose_rows(bytes([1, 1, 0, 1]), 2, seed=1))
        2
    """
    candidates = len(kept) - kept.count(0)
    if rows is None or rows >= candidates:
        return bytearray(1 if keep else 0 for keep in kept)
    draw = random.Random(seed).getrandbits
    numbers = ((draw(64), row) for row in range(len(kept)))
    chosen = bytearray(len(kept))
    for _, row in heapq.nsmallest(rows, (pair for pair in numbers if kept[pair[1]])):
        chosen[row] = 1
    return chosen


def rows_with_shares(wanted: Mapping[str, int], available: Mapping[str, int]) -> dict[str, int]:
    """The largest numbers of rows that every set has and that stand to each other as ``wanted`` does, rounded down.

    Args:
        wanted: Rows of each set by name, in the mixture as it was meant.
        available: Rows of each set that are left to choose from.

    Example:
        >>> rows_with_shares({"a": 100, "b": 50}, {"a": 80, "b": 200})
        {'a': 80, 'b': 40}
    """
    scale = min(Fraction(min(available[name], rows), rows) for name, rows in wanted.items())
    return {name: int(rows * scale) for name, rows in wanted.items()}
