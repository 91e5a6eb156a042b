"""Which rows ``shards``, ``weight`` and ``val_set_size`` choose.

Axolotl chooses examples. With our formatters one conversation gives several examples, so it would be trained on in part
and held out in part. So these keys are applied to conversations, before Axolotl sees the examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from solar_plugins.axolotl_adapter.recipe_checks import FormattedDataset
from solar_plugins.data.prepared_datasets import PreparedSet, examples_of, selected_set
from solar_plugins.data.row_selection import held_out, shard, share
from solar_plugins.errors import DataError


class PreparedSource(NamedTuple):
    """A dataset of the recipe, in one configuration, and its prepared form."""

    source: FormattedDataset
    prepared: PreparedSet


def chosen_rows(
    sources: Sequence[PreparedSource], val_set_size: float | None, seed: int
) -> tuple[list[PreparedSource], list[str]]:
    """The datasets with the rows that their entries and the recipe choose.

    Args:
        sources: The datasets with all rows.
        val_set_size: The recipe's.
        seed: The recipe's.

    Returns:
        The datasets: held-out ones are ``test_datasets``, and those without rows are left out. And a line on each
        choice.

    Raises:
        DataError: A choice leaves no rows.
    """
    lines = list[str]()
    taken = [_chosen_by_entry(one, seed, lines) for one in sources]
    if not val_set_size:
        return taken, lines
    names = " ".join(sorted(one.prepared.path.name for one in taken))
    openings = held_out([examples_of(one.prepared) for one in taken], val_set_size, seed)
    split = list[PreparedSource]()
    for one in taken:
        others = frozenset(examples_of(one.prepared).openings) - openings
        test = one._replace(source=one.source._replace(key="test_datasets"))
        for part, which, verb in ((one, others, "trained on"), (test, openings, "held out")):
            chosen, line = _taken(part, which, f"{verb} (val_set_size: {val_set_size:g}, seed {seed})", names)
            split.append(chosen)
        lines.append(f"{one.source.where}: {line}")
    return [one for one in split if examples_of(one.prepared).rows], lines


def _chosen_by_entry(one: PreparedSource, seed: int, lines: list[str]) -> PreparedSource:
    """The part of a dataset that the keys of its entry choose."""
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
        chosen = ", ".join(f"{key}: {value}" for key, value in (("shards", shards), ("weight", weight)) if value)
        raise DataError(
            f"{where}: {chosen} leaves no rows. Rows with the same first user message stay "
            "together; set fewer shards or a larger weight"
        )
    return one


def _taken(one: PreparedSource, openings: frozenset[int], why: str, others: str = "") -> tuple[PreparedSource, str]:
    """The part of a dataset with one of these openings, and its size in words."""
    examples = examples_of(one.prepared)
    places = [place for place, opening in enumerate(examples.openings) if opening in openings]
    rows, all_rows = len({examples.rows[place] for place in places}), len(set(examples.rows))
    chosen = one._replace(prepared=selected_set(one.prepared, places, f"{why} {others}"))
    return chosen, f"{rows} of {all_rows} rows, {len(places)} of {len(examples.rows)} examples, {why}"
