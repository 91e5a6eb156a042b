"""Config keys with several names: read all of them, require that they agree, write all of them. Pure.

transformers applies a config class's ``attribute_map`` and property setters last, so if two names disagree, the alias
wins: a config in which only one name was changed may load with the value of the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.layer_fields import Config

DEPTH_KEYS = frozenset({"num_hidden_layers", "num_layers", "n_layer", "n_layers"})
"""Names of the depth. A config may have any of them, regardless of its model type."""


class Spelling(NamedTuple):
    """Another name of a config key that follows the plan."""

    name: str
    key: str
    """The name that the rest of this package uses."""
    factor: int = 1
    """The value of ``name`` is that of ``key`` times this factor."""


def depth_spellings(depth_key: str) -> list[Spelling]:
    """The other names of the depth, for a model type that calls it ``depth_key``."""
    return [Spelling(name, depth_key) for name in sorted(DEPTH_KEYS - {depth_key})]


def in_one_spelling(config: Config, spellings: Iterable[Spelling]) -> Config:
    """The config without other names: each value only under its key. Null counts as absent.

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
                f"config.json: the depth or kind of the layers is ambiguous: {name} is {value!r:.200}, {means}, which "
                f"is {config.get(key)!r:.200}; make these keys agree"
            )
    return merged


def in_every_spelling(written: Config, base: Config, spellings: Iterable[Spelling]) -> dict[str, Any]:
    """``written``, which has only one name per key, with all other names that ``base`` uses.

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
