"""Per-layer config fields, and how they follow a layer plan. Pure.

Each `LayerField` reads one value per layer from a config, and writes such values back. `reordered_fields` reads the
base's values, reorders them by the plan, writes them, and reads them again. If they differ, the plan is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.layer_plan import LayerPlan

Config = Mapping[str, Any]


class LayerField(NamedTuple):
    """A property that differs by layer."""

    key: str
    """The config key, or keys, for messages."""
    read: Callable[[Config, int], Sequence[Any]]
    """``(config, num_layers)`` -> one value per layer. May raise `CheckpointError`."""
    write: Callable[[Config, Sequence[Any]], dict[str, Any]]
    """``(config, values)`` -> the keys to change so that ``read`` returns the values, if the keys can express them."""
    is_hint: bool = False
    """Another key decides; this one is updated for other readers if it can express the plan, and else unchanged."""
    reads: tuple[str, ...] = ()
    """Other keys that determine the values if the key is absent."""


def reordered_fields(
    config: Config, fields: Iterable[LayerField], plan: LayerPlan, donors: Sequence[tuple[Config, int]] = ()
) -> dict[str, Any]:
    """The keys to change in a base's config so that all per-layer properties follow the plan.

    Args:
        config: The base's config.
        fields: The fields of its model type.
        plan: The plan.
        donors: The config and depth of each donor.

    Raises:
        CheckpointError: A field is malformed, or the config of this model type cannot express the plan.
    """
    changes: dict[str, Any] = {}
    wanted = []
    for field in fields:
        columns = [field.read(*one) for one in ((config, plan.base_layers), *donors)]
        _refuse_missing_in_one(field, columns)
        values = [columns[layer.model][layer.source] for layer in plan.layers]
        wanted.append((field, values))
        changes |= field.write({**config, **changes}, values)
    for field, values in wanted:
        if field.is_hint:
            continue
        found = list(field.read({**config, **changes}, len(plan)))
        if found != values:
            position = next(i for i, (have, want) in enumerate(zip(found, values, strict=True)) if have != want)
            layer = plan.layers[position]
            raise CheckpointError(
                f"config.json: {field.key} cannot express this plan: new layer {position}, a copy of "
                f"{plan.model_words(layer.model)} layer {layer.source} ({values[position]!r}), would become "
                f"{found[position]!r}, because this model type derives it from the position. Use a plan that keeps the "
                "pattern"
            )
    return changes


def _refuse_missing_in_one(field: LayerField, columns: Sequence[Sequence[Any]]) -> None:
    """Refuse to combine models of which only some set the field."""
    missing = [all(value is None for value in column) for column in columns]
    if any(missing) and not all(missing):
        raise CheckpointError(
            f"config.json: {field.key} is absent in one model of the plan, but not in another; save both again: "
            "transformers.AutoConfig.from_pretrained(DIR).save_pretrained(DIR)"
        )


def listed(key: str, default: Callable[[Config, int], Sequence[Any]] | None = None) -> LayerField:
    """A list with one entry per layer.

    Args:
        key: Its config key.
        default: The model's default from config and depth, if the key is absent or null. Without a default, an absent
            list is an error, because a deeper model would derive other values from the new depth.
    """

    def read(config: Config, num_layers: int) -> Sequence[Any]:
        value = config.get(key)
        if value is None:
            if default is None:
                raise CheckpointError(
                    f"config.json: {key} is absent; expected a list of {num_layers}, one per layer. Save the config "
                    "again: transformers.AutoConfig.from_pretrained(DIR).save_pretrained(DIR)"
                )
            return list(default(config, num_layers))
        if not isinstance(value, list) or len(value) != num_layers:
            raise _not_per_layer(key, value, num_layers)
        return value

    def write(config: Config, values: Sequence[Any]) -> dict[str, Any]:
        absent = config.get(key) is None
        if absent and default is not None and list(default(config, len(values))) == list(values):
            return {}
        return {key: list(values)}

    return LayerField(key, read, write)


def _not_per_layer(key: str, value: Any, num_layers: int) -> CheckpointError:
    return CheckpointError(f"config.json: {key} is {value!r:.200}; expected a list of {num_layers}, one per layer")


def optional_list(key: str) -> LayerField:
    """A list with one entry per layer that may be absent, or a single value for all layers."""

    def read(config: Config, num_layers: int) -> Sequence[Any]:
        value = config.get(key)
        if isinstance(value, list) and len(value) != num_layers:
            raise _not_per_layer(key, value, num_layers)
        return value if isinstance(value, list) else [value] * num_layers

    def write(config: Config, values: Sequence[Any]) -> dict[str, Any]:
        return {key: list(values)} if isinstance(config.get(key), list) else {}

    return LayerField(key, read, write)


def restated(key: str, decides: LayerField) -> LayerField:
    """A per-layer list in published configs that transformers does not read, but other engines may.

    Args:
        key: The key of the list. Other values than lists do not describe individual layers.
        decides: The field that transformers reads. The list must distinguish the same layers.
    """

    def read(config: Config, num_layers: int) -> Sequence[Any]:
        value = config.get(key)
        if not isinstance(value, list):
            return [None] * num_layers
        kinds = list(decides.read(config, num_layers))
        pairs = {(repr(ours), repr(theirs)) for ours, theirs in zip(value, kinds, strict=False)}
        told = [len({pair[side] for pair in pairs}) for side in (0, 1)]
        if len(value) != num_layers or told != [len(pairs)] * 2:
            raise CheckpointError(
                f"config.json: {key} is {value!r:.200}, but transformers ignores it: by {decides.key} "
                f"({'from the config' if config.get(decides.key) else 'which is absent, so its default'}) the layers "
                f"are {kinds!r:.200}. Set {decides.key} to what the model was trained with, or remove {key}"
            )
        return value

    return LayerField(key, read, optional_list(key).write)


def indices(key: str) -> LayerField:
    """A list of special layers, 0-based; absent or null means none."""

    def read(config: Config, num_layers: int) -> Sequence[bool]:
        value = config.get(key) or []
        if not isinstance(value, list) or not all(type(i) is int and 0 <= i < num_layers for i in value):
            raise CheckpointError(f"config.json: {key} is {value!r:.200}; expected layer numbers below {num_layers}")
        return [index in set(value) for index in range(num_layers)]

    def write(config: Config, values: Sequence[bool]) -> dict[str, Any]:
        return {key: [index for index, special in enumerate(values) if special]} if config.get(key) else {}

    return LayerField(key, read, write)


def leading(key: str, default: int = 0) -> LayerField:
    """The number of special layers at the bottom. A plan that moves one of them up is refused."""

    def read(config: Config, num_layers: int) -> Sequence[bool]:
        return [index < whole_number(config, key, default) for index in range(num_layers)]

    def write(config: Config, values: Sequence[bool]) -> dict[str, Any]:
        count = next((index for index, special in enumerate(values) if not special), len(values))
        # If all layers are special, the number may exceed the depth; the new number is then the new depth.
        return {key: count} if config.get(key) is not None or count != default else {}

    return LayerField(key, read, write)


def leading_hint(key: str) -> LayerField:
    """As `leading`, for a key that transformers ignores in favor of a list, but other engines may read."""
    field = leading(key)

    def write(config: Config, values: Sequence[bool]) -> dict[str, Any]:
        expressible = all(above <= below for below, above in pairwise(values))
        return field.write(config, values) if config.get(key) is not None and expressible else {}

    return LayerField(key, field.read, write, is_hint=True)


def derived(key: str, value: Callable[[Config, int, int], Any]) -> LayerField:
    """A property that the model derives from ``(config, layer, num_layers)``; no key sets it for individual layers."""

    def read(config: Config, num_layers: int) -> Sequence[Any]:
        return [value(config, index, num_layers) for index in range(num_layers)]

    return LayerField(key, read, lambda config, values: {})


def recoded(
    key: str,
    decode: Callable[[Any, int], Sequence[Any]],
    encode: Callable[[Sequence[Any]], Any],
    *,
    required: bool = False,
) -> LayerField:
    """A key with its own notation for all layers; absent or null means None for each layer.

    Args:
        key: The config key.
        decode: ``(value, num_layers)`` -> one value per layer. `TypeError` and `ValueError` mean that it is malformed.
        encode: The inverse.
        required: Refuse a config without the key.
    """

    def read(config: Config, num_layers: int) -> Sequence[Any]:
        if config.get(key) is None and not required:
            return [None] * num_layers
        try:
            values = list(decode(config.get(key), num_layers))
        except (TypeError, ValueError, LookupError, AttributeError):
            values = []
        if len(values) != num_layers:
            raise CheckpointError(
                f"config.json: {key} is {config.get(key)!r:.200}; expected a value that describes {num_layers} layers"
            )
        return values

    def write(config: Config, values: Sequence[Any]) -> dict[str, Any]:
        return {} if config.get(key) is None else {key: encode(values)}

    return LayerField(key, read, write)


def whole_number(config: Config, key: str, default: int) -> int:
    """A count in a config; the model's default if it is absent or null.

    Raises:
        CheckpointError: It is not an integer.
    """
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not int:
        raise CheckpointError(f"config.json: {key} is {value!r:.200}; expected an integer")
    return value


def layer_overrides() -> LayerField:
    """``per_layer_config``: overrides by layer number, in any transformers config (integrations/heterogeneity)."""

    def decode(value: Mapping[str, Any], num_layers: int) -> Sequence[Any]:
        overrides = {int(index): override for index, override in value.items()}
        if not all(0 <= index < num_layers for index in overrides):
            raise ValueError
        return [overrides.get(index) for index in range(num_layers)]

    def encode(values: Sequence[Any]) -> dict[str, Any]:
        width = len(str(len(values) - 1))
        return {str(index).zfill(width): value for index, value in enumerate(values) if value is not None}

    return recoded("per_layer_config", decode, encode)
