"""Config fields whose value depends on a layer's position, and how they follow a layer plan. Pure.

Each `LayerField` reads a config as one value a layer, and writes such values back. `reordered_fields` reads the base,
puts the values in the plan's order, writes them, and reads the result again: what does not come back is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.layer_plan import LayerPlan

Config = Mapping[str, Any]


class LayerField(NamedTuple):
    """One property that layers have by their position."""

    key: str
    """The config key, or keys, for messages."""
    read: Callable[[Config, int], Sequence[Any]]
    """``(config, num_layers)`` -> one value a layer. May raise `CheckpointError`."""
    write: Callable[[Config, Sequence[Any]], dict[str, Any]]
    """``(config, values)`` -> the keys to change so that ``read`` gives the values, as far as the keys can say it."""
    is_hint: bool = False
    """Another key decides; this one is kept in step for other readers where it can say the plan, and else left."""
    reads: tuple[str, ...] = ()
    """Other keys from which the values follow where the key is absent."""


def reordered_fields(
    config: Config, fields: Iterable[LayerField], plan: LayerPlan, donors: Sequence[tuple[Config, int]] = ()
) -> dict[str, Any]:
    """The keys to change in a base's config so that every per-layer property follows the plan.

    Args:
        config: The base's.
        fields: Of its model type.
        plan: What becomes of its layers.
        donors: Of the plan: each one's config and depth.

    Raises:
        CheckpointError: A field is malformed, or the config of this model type cannot say what the plan needs.
    """
    changes: dict[str, Any] = {}
    wanted = []
    for field in fields:
        columns = [field.read(*one) for one in ((config, plan.base_layers), *donors)]
        _refuse_half_said(field, columns)
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
                f"{found[position]!r}, because this model type derives it from the position. Choose a plan that keeps "
                "the pattern"
            )
    return changes


def _refuse_half_said(field: LayerField, columns: Sequence[Sequence[Any]]) -> None:
    """Refuse layers of a model whose config says nothing among those of one whose config does."""
    silent = [all(value is None for value in column) for column in columns]
    if any(silent) and not all(silent):
        raise CheckpointError(
            f"config.json: {field.key} is absent in one model of the plan, and not in another one; write both anew: "
            "transformers.AutoConfig.from_pretrained(DIR).save_pretrained(DIR)"
        )


def listed(key: str, default: Callable[[Config, int], Sequence[Any]] | None = None) -> LayerField:
    """A list with one entry a layer.

    Args:
        key: Of the list.
        default: What the model takes where the key is absent or null, by config and depth. Without it an absent list is
            refused, because a deeper model would derive other values from the new depth.
    """

    def read(config: Config, num_layers: int) -> Sequence[Any]:
        value = config.get(key)
        if value is None:
            if default is None:
                raise CheckpointError(
                    f"config.json: {key} is absent; expected a list of {num_layers}, one a layer. Write it once: "
                    "transformers.AutoConfig.from_pretrained(DIR).save_pretrained(DIR)"
                )
            return list(default(config, num_layers))
        if not isinstance(value, list) or len(value) != num_layers:
            raise CheckpointError(f"config.json: {key} is {value!r:.200}; expected a list of {num_layers}, one a layer")
        return value

    def write(config: Config, values: Sequence[Any]) -> dict[str, Any]:
        absent = config.get(key) is None
        if absent and default is not None and list(default(config, len(values))) == list(values):
            return {}
        return {key: list(values)}

    return LayerField(key, read, write)


def optional_list(key: str) -> LayerField:
    """A list with one entry a layer that may be absent or one value for all layers."""

    def read(config: Config, num_layers: int) -> Sequence[Any]:
        value = config.get(key)
        if isinstance(value, list) and len(value) != num_layers:
            raise CheckpointError(f"config.json: {key} is {value!r:.200}; expected a list of {num_layers}, one a layer")
        return value if isinstance(value, list) else [value] * num_layers

    def write(config: Config, values: Sequence[Any]) -> dict[str, Any]:
        return {key: list(values)} if isinstance(config.get(key), list) else {}

    return LayerField(key, read, write)


def restated(key: str, decides: LayerField) -> LayerField:
    """A list with one entry a layer that transformers does not read, as published configs have it; other engines may.

    Args:
        key: Of the list; anything but a list says nothing of single layers.
        decides: The field that transformers reads. The list must tell the same layers apart.
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
                f"config.json: {key} is {value!r:.200}, but transformers does not read it: by {decides.key} "
                f"({'as it stands there' if config.get(decides.key) else 'which is absent, so by its default'}) the "
                f"layers are {kinds!r:.200}. Set {decides.key} to what the model was trained with, or remove {key}"
            )
        return value

    return LayerField(key, read, optional_list(key).write)


def indices(key: str) -> LayerField:
    """A list of the layers that are special, 0-based; absent or null: none."""

    def read(config: Config, num_layers: int) -> Sequence[bool]:
        value = config.get(key) or []
        if not isinstance(value, list) or not all(type(i) is int and 0 <= i < num_layers for i in value):
            raise CheckpointError(f"config.json: {key} is {value!r:.200}; expected layer numbers below {num_layers}")
        return [index in set(value) for index in range(num_layers)]

    def write(config: Config, values: Sequence[bool]) -> dict[str, Any]:
        return {key: [index for index, special in enumerate(values) if special]} if config.get(key) else {}

    return LayerField(key, read, write)


def leading(key: str, default: int = 0) -> LayerField:
    """The number of layers at the bottom that are special; a plan that puts one higher up is refused."""

    def read(config: Config, num_layers: int) -> Sequence[bool]:
        return [index < whole_number(config, key, default) for index in range(num_layers)]

    def write(config: Config, values: Sequence[bool]) -> dict[str, Any]:
        count = next((index for index, special in enumerate(values) if not special), len(values))
        # Where all are special the number may lie above the depth; it then grows with the depth.
        return {key: count} if config.get(key) is not None or count != default else {}

    return LayerField(key, read, write)


def leading_hint(key: str) -> LayerField:
    """As `leading`, for a key that transformers does not ask where a list says more; other engines may."""
    field = leading(key)

    def write(config: Config, values: Sequence[bool]) -> dict[str, Any]:
        expressible = all(above <= below for below, above in pairwise(values))
        return field.write(config, values) if config.get(key) is not None and expressible else {}

    return LayerField(key, field.read, write, is_hint=True)


def derived(key: str, value: Callable[[Config, int, int], Any]) -> LayerField:
    """A property that the model computes from ``(config, layer, num_layers)``; no key sets it layer by layer."""

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
    """A key that says the layers in a notation of its own; absent or null: nothing is said.

    Args:
        key: Of the field.
        decode: ``(value, num_layers)`` -> one value a layer. A `TypeError` or `ValueError` means that it is malformed.
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
                f"config.json: {key} is {config.get(key)!r:.200}, which does not describe {num_layers} layers"
            )
        return values

    def write(config: Config, values: Sequence[Any]) -> dict[str, Any]:
        return {} if config.get(key) is None else {key: encode(values)}

    return LayerField(key, read, write)


def whole_number(config: Config, key: str, default: int) -> int:
    """A count in a config; absent or null: the model's default.

    Raises:
        CheckpointError: It is something else.
    """
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not int:
        raise CheckpointError(f"config.json: {key} is {value!r:.200}; expected a whole number")
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
