"""Depth surgery on a model's config. Pure.

To add an architecture: one row in `architecture_table.ARCHITECTURES`, and a tiny model in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.layer_fields import (
    LayerField,
    layer_overrides,
    optional_list,
    reordered_fields,
)
from solar_plugins.upscaling.architectures.table import ARCHITECTURES, COMPOSITES, REFUSED, Architecture
from solar_plugins.upscaling.layer_plan import MAX_LAYERS, LayerPlan
from solar_plugins.upscaling.quantization import check_quantization, reordered_quantization


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The row of `ARCHITECTURES` for a model's config; for a model of more than text, that of its decoder.

    Raises:
        CheckpointError: The model type is refused or unknown, or the config holds something that copying layers would
            get wrong.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in COMPOSITES:
        first, *others = COMPOSITES[model_type]
        return architecture_of(decoder_config(config))._replace(layers_prefix=first, other_prefixes=tuple(others))
    if isinstance(model_type, str) and model_type in REFUSED:
        raise CheckpointError(f"config.json: model_type {model_type!r} cannot be up-scaled: {REFUSED[model_type]}")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        if isinstance(model_type, str) and config.get("auto_map"):
            return _own_code_architecture(config)
        raise CheckpointError(
            f"config.json: model_type {model_type!r} is not known here; {len(ARCHITECTURES)} types are, "
            "docs/architectures.md lists them. A per-layer field that nobody tested could give a wrong model in "
            "silence, so it is refused"
        )
    row = ARCHITECTURES[model_type]
    for key, reason in row.must_be_unset.items():
        if config.get(key):
            raise CheckpointError(f"config.json: {key} is {config[key]!r:.200}; such a model is refused: {reason}")
    return row


def _own_code_architecture(config: Mapping[str, Any]) -> Architecture:
    """The usual layout, for a model type that only the checkpoint's own, trusted code knows.

    Raises:
        CheckpointError: The config holds a key that other types use for what differs by layer.
    """
    said = (field.key.split() for row in ARCHITECTURES.values() for field in row.fields)
    by_position = {word for words in said for word in words} | POSITIONAL_KEYS
    odd = sorted(key for key in by_position & config.keys() if config[key] not in (None, [], 0))
    if odd:
        raise CheckpointError(
            f"config.json: model_type {config['model_type']!r} is known only to the checkpoint's own code, and "
            f"{odd[0]} ({config[odd[0]]!r:.80}) makes its layers differ; how is not known here, so it is refused"
        )
    return Architecture()


def decoder_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the decoder: itself, or ``text_config`` for a model of more than text.

    Raises:
        CheckpointError: That part is missing.
    """
    if config.get("model_type") not in COMPOSITES:
        return config
    text = config.get("text_config")
    if not isinstance(text, Mapping) or text.get("model_type") in COMPOSITES:
        raise CheckpointError(
            f"config.json: text_config is {text!r:.200}; a {config['model_type']} model has its decoder's config there"
        )
    return text


def base_depth(config: Mapping[str, Any]) -> int:
    """The number of decoder layers that a config states.

    Raises:
        CheckpointError: The architecture is not supported, or the depth is missing or no positive whole number.
    """
    row, text = architecture_of(config), decoder_config(config)
    said = {key: text[key] for key in (row.depth_key, *row.more_depth_keys) if text.get(key) is not None}
    depths = {
        key: len(value) if key in row.more_depth_keys and isinstance(value, (list, str)) else value
        for key, value in said.items()
    }
    depth = next(iter(depths.values()), None)
    if type(depth) is not int or not 1 <= depth <= MAX_LAYERS:
        raise CheckpointError(
            f"config.json: {row.depth_key} is {said.get(row.depth_key)!r:.200}; expected the number of decoder layers, "
            "such as 32"
        )
    if len(set(depths.values())) > 1:
        raise CheckpointError(f"config.json: the depth is not clear: {depths}; make these keys agree")
    return depth


def upscale_config(config: Mapping[str, Any], plan: LayerPlan) -> dict[str, Any]:
    """The deeper model's config: the new depth, and every per-layer property in the order of the plan.

    Raises:
        CheckpointError: The config's depth is not the plan's, a per-layer property cannot follow the plan, or there is
            a list as long as the base is deep under a key that is not known to be per-layer: copying it unchanged or
            re-ordering it might both be wrong.
    """
    row, text = architecture_of(config), decoder_config(config)
    if base_depth(config) != plan.base_layers:
        raise CheckpointError(
            f"config.json: {row.depth_key} is {base_depth(config)}, the plan is for {plan.base_layers}"
        )
    fields = _fields_of(config)
    _check_unknown_lists(text, {word for field in fields for word in field.key.split()}, plan.base_layers)
    changes = reordered_fields(text, fields, plan)
    changes |= {key: len(plan) for key in (row.depth_key, *row.more_depth_keys) if type(text.get(key)) is int}
    upscaled = {**text, **changes} if text is config else {**config, "text_config": {**text, **changes}}
    if any(layer.initialization == "identity" for layer in plan.layers):
        residual_writers(config)  # Refuses here already, and not first when the weights are there.
    check_quantization(config, plan)
    if config.get("quantization_config"):
        upscaled["quantization_config"] = reordered_quantization(config["quantization_config"], row, plan)
    return deepcopy(upscaled)


def residual_writers(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules of a layer that an identity layer has as zero, such as ``self_attn.o_proj``.

    Raises:
        CheckpointError: Which they are is not tested for this model type.
    """
    modules = architecture_of(config).residual_writers
    if not modules:
        raise CheckpointError(
            f"identity layers are not tested for model_type {config['model_type']!r}; use a strategy that only copies"
        )
    return modules


def _fields_of(config: Mapping[str, Any]) -> tuple[LayerField, ...]:
    own = architecture_of(config).fields
    # transformers writes layer_types for any type that has been given some.
    spare = () if any(field.key == "layer_types" for field in own) else (optional_list("layer_types"),)
    return (*own, *spare, layer_overrides())


def layer_kinds(config: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """For each layer, what its config says of it: layers of one kind have the same tensors."""
    depth, text = base_depth(config), decoder_config(config)
    columns = [[repr(value) for value in field.read(text, depth)] for field in _fields_of(config)]
    return list(zip(*columns, strict=True))


def _check_unknown_lists(config: Mapping[str, Any], known: set[str], num_layers: int) -> None:
    for key, value in config.items():
        if key not in known | NOT_PER_LAYER and isinstance(value, list) and len(value) == num_layers > 1:
            raise CheckpointError(
                f"config.json: {key} has {len(value)} entries, as many as the base has layers, but is not known to be "
                "per layer. Refused: either guess could give a wrong model in silence"
            )


NOT_PER_LAYER = frozenset({"architectures", "eos_token_id", "time_step_limit", "mlp_multipliers", "ssm_multipliers"})
"""Config lists that are not per layer, whatever their length."""


POSITIONAL_KEYS = frozenset(
    {
        "attn_layer_period",
        "cross_attention_layers",
        "expert_layer_period",
        "full_attention_interval",
        "interleave_moe_layer_step",
        "moe_layer_freq",
        "moe_layer_start_index",
        "no_rope_layer_interval",
        "num_kv_shared_layers",
        "sliding_window_pattern",
    }
)
"""Keys by which known types make layers differ, beyond those that `ARCHITECTURES` names one by one."""
