"""Which rows of prepared datasets are taken: a shard, a share, or those that are held out.

Several examples of a dataset may come from one conversation, and several conversations may begin alike: a dialogue and
its continuation, two answers to one question, one row in two datasets. What is trained on and what is held out must not
share them, so whole groups are taken: all examples whose conversation begins with the same text of the user.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from math import ceil
from typing import NamedTuple

from solar_plugins.errors import DataError


class Examples(NamedTuple):
    """Where the examples of a dataset come from, in their order.

    Args:
        rows: The index of each example's row.
        openings: A hash of how its conversation begins.
    """

    rows: Sequence[int]
    openings: Sequence[int]


def shard(examples: Examples, num_shards: int, index: int, seed: int) -> frozenset[int]:
    """The openings of one of several shards, which together have each opening once.

    >>> shards = [shard(Examples([0, 1, 2], [7, 8, 7]), 2, index, seed=1) for index in (0, 1)]
    >>> sorted(map(len, shards)), shards[0] | shards[1] == {7, 8}
    ([1, 1], True)
    """
    return frozenset(_ranked(examples.openings, f"shard {seed}")[index::num_shards])


def share(examples: Examples, weight: float, seed: int) -> frozenset[int]:
    """The openings of a random share of the rows, at least one row as in Axolotl.

    Args:
        examples: Of one dataset.
        weight: The share, between 0 and 1.
        seed: Random seed.
    """
    num_rows = len(set(examples.rows))
    return _drawn([examples], max(1, int(num_rows * weight)), f"share {seed}")


def held_out(datasets: Sequence[Examples], val_set_size: float, seed: int) -> frozenset[int]:
    """The openings of the rows that are held out from several datasets that are trained on together.

    Args:
        datasets: All that the recipe trains on.
        val_set_size: A share of the rows up to 1, or a number of rows, as in Axolotl.
        seed: Random seed.

    Raises:
        DataError: No row would be held out, or none would be left.
    """
    total = sum(len(set(dataset.rows)) for dataset in datasets)
    wanted = int(val_set_size) if val_set_size > 1 else ceil(val_set_size * total)
    if not 0 < wanted < total:
        raise DataError(
            f"val_set_size: {val_set_size:g} of {total} rows; expected a share between 0 and 1, or a number of rows "
            "below all. Name held-out rows with test_datasets, or take a smaller value"
        )
    found = _drawn(datasets, wanted, f"held out {seed}")
    if not found:
        raise DataError(
            f"val_set_size: {val_set_size:g} of {total} rows cannot be held out: rows that begin with the same text of "
            "the user stay together, and each group of them is larger. Name held-out rows with test_datasets"
        )
    return found


def _drawn(datasets: Sequence[Examples], wanted: int, salt: str) -> frozenset[int]:
    """Openings in random order, as long as they have no more rows than are wanted."""
    places = {
        (number, row, opening)
        for number, dataset in enumerate(datasets)
        for row, opening in zip(dataset.rows, dataset.openings, strict=True)
    }
    sizes = Counter(opening for _, _, opening in places)
    taken = list[int]()
    for opening in _ranked(sizes, salt):
        if sizes[opening] <= wanted:
            taken.append(opening)
            wanted -= sizes[opening]
    return frozenset(taken)


def _ranked(openings: Iterable[int], salt: str) -> list[int]:
    """Each opening once, in an order that depends on the openings and the salt alone."""
    return sorted(set(openings), key=lambda opening: hashlib.blake2b(f"{salt} {opening}".encode()).digest())
