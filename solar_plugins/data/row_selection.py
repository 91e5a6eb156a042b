"""Selects rows of prepared datasets: a shard, a random share, or the held-out rows.

Several examples may come from one conversation, and several conversations may start the same: a dialogue and its
continuation, two answers to one question, one row in two datasets. Training and held-out data must not share them, so
examples are selected in groups: all examples whose conversations start with the same user message (the opening).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from math import ceil
from typing import NamedTuple

from solar_plugins.errors import DataError


class Examples(NamedTuple):
    """The origin of the examples of a dataset, in order.

    Args:
        rows: The index of each example's row.
        openings: A hash of the first user message of its conversation.
    """

    rows: Sequence[int]
    openings: Sequence[int]


def shard(examples: Examples, num_shards: int, index: int, seed: int) -> frozenset[int]:
    """The openings of one of several shards. Each opening is in exactly one shard.

    >>> shards = [shard(Examples([0, 1, 2], [7, 8, 7]), 2, index, seed=1) for index in (0, 1)]
    >>> sorted(map(len, shards)), shards[0] | shards[1] == {7, 8}
    ([1, 1], True)
    """
    return frozenset(_ranked(examples.openings, f"shard {seed}")[index::num_shards])


def share(examples: Examples, weight: float, seed: int) -> frozenset[int]:
    """The openings of a random share of the rows; at least one row, as in Axolotl.

    Args:
        examples: The examples of one dataset.
        weight: The share, between 0 and 1.
        seed: Random seed.
    """
    num_rows = len(set(examples.rows))
    return _drawn([examples], max(1, int(num_rows * weight)), f"share {seed}")


def held_out(datasets: Sequence[Examples], val_set_size: float, seed: int) -> frozenset[int]:
    """The openings of the held-out rows of all datasets that are trained on together.

    Args:
        datasets: All training datasets of the recipe.
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
            "smaller than that. Lower it, or list held-out rows under test_datasets"
        )
    found = _drawn(datasets, wanted, f"held out {seed}")
    if not found:
        raise DataError(
            f"val_set_size: {val_set_size:g} of {total} rows cannot be held out: rows that start with the same user "
            "message stay together, and every such group is larger. List held-out rows under test_datasets"
        )
    return found


def _drawn(datasets: Sequence[Examples], wanted: int, salt: str) -> frozenset[int]:
    """Openings in random order, skipping those that would exceed the wanted number of rows."""
    distinct = {
        (number, row, opening)
        for number, dataset in enumerate(datasets)
        for row, opening in zip(dataset.rows, dataset.openings, strict=True)
    }
    sizes = Counter(opening for _, _, opening in distinct)
    taken = list[int]()
    for opening in _ranked(sizes, salt):
        if sizes[opening] <= wanted:
            taken.append(opening)
            wanted -= sizes[opening]
    return frozenset(taken)


def _ranked(openings: Iterable[int], salt: str) -> list[int]:
    """Each opening once, in an order that depends only on the openings and the salt."""
    return sorted(set(openings), key=lambda opening: hashlib.blake2b(f"{salt} {opening}".encode()).digest())
