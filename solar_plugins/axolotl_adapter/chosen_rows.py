"""Which rows ``shards``, ``weight`` and ``val_set_size`` choose.

Axolotl goes by examples. Several of them come from one conversation here, so that a part of it would be trained on and
another held out; these keys are therefore honoured before Axolotl sees the examples, and by conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from solar_plugins.axolotl_adapter.recipe_checks import FormattedSet
from solar_plugins.data.prepared_datasets import PreparedSet, examples_of, selected_set
from solar_plugins.data.row_selection import held_out, shard, share
from solar_plugins.errors import DataError


class ReadySet(NamedTuple):
    """A set of the recipe, of one configuration, and its ready form."""

    source: FormattedSet
    prepared: PreparedSet


def chosen_rows(ready: Sequence[ReadySet], val_set_size: float | None, seed: int) -> tuple[list[ReadySet], list[str]]:
    """The sets with the rows that their entries and the recipe choose.

    Args:
        ready: The sets with all rows.
        val_set_size: The recipe's.
        seed: The recipe's.

    Returns:
        The sets; those that are held out are ``test_datasets``, and a set without rows is left out. And a line on each
        choice.

    Raises:
        DataError: A choice leaves nothing.
    """
    lines = list[str]()
    taken = [_of_entry(one, seed, lines) for one in ready]
    if not val_set_size:
        return taken, lines
    names = " ".join(sorted(one.prepared.path.name for one in taken))
    openings = held_out([examples_of(one.prepared) for one in taken], val_set_size, seed)
    split = list[ReadySet]()
    for one in taken:
        others = frozenset(examples_of(one.prepared).openings) - openings
        test = one._replace(source=one.source._replace(key="test_datasets"))
        for part, which, verb in ((one, others, "trained on"), (test, openings, "held out")):
            chosen, line = _taken(part, which, f"{verb} (val_set_size: {val_set_size:g}, seed {seed})", names)
            split.append(chosen)
        lines.append(f"{one.source.where}: {line}")
    return [one for one in split if examples_of(one.prepared).rows], lines


def _of_entry(one: ReadySet, seed: int, lines: list[str]) -> ReadySet:
    """The part of a set that its own keys choose."""
    where, entry = one.source.where, one.source.entry
    shards, weight = entry.get("shards"), entry.get("weight")
    if shards:
        index = entry.get("shards_idx") or 0
        openings = shard(examples_of(one.prepared), shards, index, seed)
        one, line = _taken(one, openings, f"taken (shards: {shards}, shards_idx: {index}, seed {seed})")
        lines.append(f"{where}: {line}")
    if weight is not None and weight < 1:
        openings = share(examples_of(one.prepared), weight, seed)
        one, line = _taken(one, openings, f"taken (weight: {weight:g}, seed {seed})")
        lines.append(f"{where}: {line}")
    if (shards or weight is not None) and not examples_of(one.prepared).rows:
        raise DataError(
            f"{where}: shards and weight leave none of its rows. Rows that begin with the same text of the user stay "
            "together; take fewer shards, or a larger weight"
        )
    return one


def _taken(one: ReadySet, openings: frozenset[int], why: str, others: str = "") -> tuple[ReadySet, str]:
    """The part of a set that begins in one of these ways, and how large it is."""
    examples = examples_of(one.prepared)
    places = [place for place, opening in enumerate(examples.openings) if opening in openings]
    rows, all_rows = len({examples.rows[place] for place in places}), len(set(examples.rows))
    chosen = one._replace(prepared=selected_set(one.prepared, places, f"{why} {others}"))
    return chosen, f"{rows} of {all_rows} rows, {len(places)} of {len(examples.rows)} examples, {why}"
