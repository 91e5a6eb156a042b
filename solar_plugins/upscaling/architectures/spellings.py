"""Config keys that say one thing under several names: read all, require that they agree, write all. Pure.

transformers applies a config class's ``attribute_map`` and property setters after everything else, so where two names
disagree, the alias wins: a config that was changed under one name only loads with the value under the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.layer_fields import Config

DEPTH_KEYS = frozenset({"num_hidden_layers", "num_layers", "n_layer", "n_layers"})
"""Names for the depth. A config may give any of them, whichever its model type reads."""


class Spelling(NamedTuple):
    """Another name for a config key that follows the plan."""

    name: str
    key: str
    """The name that the rest of this package reads and writes."""
    factor: int = 1
    """What the number under ``key`` is multiplied by under ``name``."""


def depth_spellings(depth_key: str) -> list[Spelling]:
    """The other names for the depth of a model type that calls it ``depth_key``."""
    return [Spelling(name, depth_key) for name in sorted(DEPTH_KEYS - {depth_key})]


def in_one_spelling(config: Config, spellings: Iterable[Spelling]) -> Config:
    """The config with each value under its key alone; the config itself where it has no other name.

    Null counts as absent.

    Raises:
        CheckpointError: Two names disagree.

    Example:
        >>> in_one_spelling({"num_hidden_layers": 8}, [Spelling("num_hidden_layers", "n_layer")])
        {'n_layer': 8}
    """
    present = [spelling for spelling in spellings if spelling.name in config]
    if not present:
        return config
    names = {name for name, _, _ in present}
    merged = {key: value for key, value in config.items() if key not in names}
    for name, key, factor in present:
        value = config[name]
        if value is None:
            continue
        if merged.get(key) is None:
            merged[key] = value // factor if factor > 1 and isinstance(value, int) else value
        if value != (merged[key] if factor == 1 else merged[key] * factor):
            means = f"another name for {key}" if factor == 1 else f"{factor} times {key}"
            raise CheckpointError(
                f"config.json: the depth or kind of the layers is not clear: {name} is {value!r:.200}, {means}, which "
                f"is {config.get(key)!r:.200}; make these keys agree"
            )
    return merged


def in_every_spelling(written: Config, base: Config, spellings: Iterable[Spelling]) -> dict[str, Any]:
    """``written``, whose keys are in one spelling, with every other name that ``base`` has too.

    Example:
        >>> spellings = [Spelling("num_hidden_layers", "n_layer")]
        >>> in_every_spelling({"n_layer": 12}, {"n_layer": 8, "num_hidden_layers": 8}, spellings)
        {'n_layer': 12, 'num_hidden_layers': 12}
    """
    others = {
        name: written[key] if factor == 1 else written[key] * factor
        for name, key, factor in spellings
        if name in base and written.get(key) is not None
    }
    return {**written, **others}
