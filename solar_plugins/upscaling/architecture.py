"""Where a model keeps its depth: in its config, and in the names of its tensors. Pure.

To add an architecture: one row in `ARCHITECTURES`, after its tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.layer_plan import MAX_LAYERS, LayerPlan, PlannedLayer


class Architecture(NamedTuple):
    """What depth surgery must know of a model type."""

    depth_key: str
    layers_prefix: str
    """Tensors of layer ``i`` are called ``<layers_prefix><i>.<rest>``."""
    residual_writers: tuple[str, ...]
    """The modules of a layer whose output is added to the residual stream; all zero makes the layer an identity."""


_LLAMA = Architecture("num_hidden_layers", "model.layers.", ("self_attn.o_proj", "mlp.down_proj"))

ARCHITECTURES: Mapping[str, Architecture] = {"llama": _LLAMA, "mistral": _LLAMA}
"""By ``model_type``. Only what the tests compare with the real modules; everything else is refused, never guessed."""


class TensorCopy(NamedTuple):
    """One tensor of the deeper model and the base tensor it is made from."""

    name: str
    source: str
    zeroed: bool = False
    """Same dtype and shape as the source, every byte zero."""


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The row of `ARCHITECTURES` for a model's config.

    Raises:
        CheckpointError: The model type is unknown, or the config holds something that copying layers would get wrong.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"config.json: model_type {model_type!r} is not supported; depth up-scaling is tested for "
            f"{', '.join(sorted(ARCHITECTURES))}. For another architecture a wrong per-layer field would give a wrong "
            "model in silence, so it is refused"
        )
    if config.get("auto_map"):
        raise CheckpointError(
            "config.json: auto_map names code that comes with the checkpoint; models with remote code are not "
            "supported. If the model is an ordinary one of its model_type, remove auto_map"
        )
    if config.get("quantization_config"):
        raise CheckpointError(
            "config.json: quantization_config says that the weights are quantised; use the unquantised base (quantise "
            "after training, or load it in 4 bit through the recipe)"
        )
    return ARCHITECTURES[model_type]


def base_depth(config: Mapping[str, Any]) -> int:
    """The number of decoder layers that a config states.

    Raises:
        CheckpointError: The architecture is not supported, or the depth is missing or no positive whole number.
    """
    key = architecture_of(config).depth_key
    depth = config.get(key)
    if not isinstance(depth, int) or isinstance(depth, bool) or not 1 <= depth <= MAX_LAYERS:
        raise CheckpointError(f"config.json: {key} is {depth!r}; expected the number of decoder layers, such as 32")
    return depth


def upscale_config(config: Mapping[str, Any], plan: LayerPlan) -> dict[str, Any]:
    """The deeper model's config: the new depth, and every per-layer list in the order of the plan.

    Raises:
        CheckpointError: The config's depth is not the plan's, or it holds a list as long as the base is deep under a
            key that is not known to be per-layer: copying it unchanged or re-ordering it might both be wrong.
    """
    architecture = architecture_of(config)
    if base_depth(config) != plan.base_layers:
        raise CheckpointError(
            f"config.json: {architecture.depth_key} is {base_depth(config)}, the plan is for {plan.base_layers}"
        )
    _check_per_layer_lists(config, plan.base_layers)
    upscaled = deepcopy(dict(config))
    upscaled[architecture.depth_key] = len(plan)
    for key, value in config.items():
        if key in PER_LAYER_LISTS and value is not None:
            upscaled[key] = [value[source] for source in plan.sources]
    return upscaled


def _check_per_layer_lists(config: Mapping[str, Any], num_layers: int) -> None:
    for key, value in config.items():
        if key in PER_LAYER_LISTS and value is not None and not (isinstance(value, list) and len(value) == num_layers):
            raise CheckpointError(f"config.json: {key} is {value!r:.200}; expected a list of {num_layers}, one a layer")
        if key not in PER_LAYER_LISTS | NOT_PER_LAYER and isinstance(value, list) and len(value) == num_layers > 1:
            raise CheckpointError(
                f"config.json: {key} has {len(value)} entries, as many as the base has layers, but is not known to be "
                "per layer. Refused: either guess could give a wrong model in silence"
            )


PER_LAYER_LISTS = frozenset({"layer_types"})
"""Config lists with one entry a layer, in the base's order."""

NOT_PER_LAYER = frozenset({"architectures", "eos_token_id"})
"""Config lists that are not per layer, whatever their length."""


def layer_names(names: Iterable[str], architecture: Architecture, num_layers: int) -> dict[int, list[str]]:
    """The tensor names of each base layer.

    Raises:
        CheckpointError: A layer has no tensors or other ones than the first layer, or tensors exist for a layer past
            the last (such as multi-token-prediction layers, whose place in a deeper model is not defined).
    """
    pattern = re.compile(re.escape(architecture.layers_prefix) + r"(0|[1-9][0-9]{0,5})\.(.+)")
    layers: dict[int, list[str]] = {index: [] for index in range(num_layers)}
    parts: dict[int, set[str]] = {index: set() for index in range(num_layers)}
    for name in names:
        match = pattern.fullmatch(name)
        if not match:
            continue
        index = int(match[1])
        if index >= num_layers:
            raise CheckpointError(
                f"tensor {name!r} belongs to layer {index}, but the config says {architecture.depth_key}: "
                f"{num_layers}; extra layers past the last one are not supported"
            )
        layers[index].append(name)
        parts[index].add(match[2])
    for index in range(num_layers):
        if not parts[index] or parts[index] != parts[0]:
            odd = sorted(parts[index] ^ parts[0])
            raise CheckpointError(
                f"layer {index} does not hold the same tensors as layer 0: "
                f"{'it has none' if not parts[index] else 'they differ in ' + ', '.join(odd[:3])}; the checkpoint is "
                f"incomplete, or it is not {architecture.depth_key}: {num_layers}"
            )
    return layers


def tensor_copies(names: Iterable[str], config: Mapping[str, Any], plan: LayerPlan) -> list[TensorCopy]:
    """Every tensor of the deeper model: those outside the layers once, then the layers in the plan's order.

    Args:
        names: The base's tensor names, in the order they are stored, which is kept inside each layer.
        config: The base's config.
        plan: What becomes of its layers.

    Raises:
        CheckpointError: The names do not fit the config.

    Example:
        >>> names = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
        >>> config = {"model_type": "llama", "num_hidden_layers": 2}
        >>> [copy.source for copy in tensor_copies(names, config, LayerPlan.from_sources(2, [0, 1, 1]))][2:]
        ['model.layers.1.mlp.up_proj.weight', 'model.layers.1.mlp.up_proj.weight']
    """
    architecture, names = architecture_of(config), list(names)
    layers = layer_names(names, architecture, plan.base_layers)
    in_layers = {name for group in layers.values() for name in group}
    copies = [TensorCopy(name, name) for name in names if name not in in_layers]
    for position, layer in enumerate(plan.layers):
        prefix = f"{architecture.layers_prefix}{layer.source}."
        rests = [name.removeprefix(prefix) for name in layers[layer.source]]
        _check_residual_writers(layer, rests, architecture)
        copies += [
            TensorCopy(
                f"{architecture.layers_prefix}{position}.{rest}", prefix + rest, _is_zeroed(layer, rest, architecture)
            )
            for rest in rests
        ]
    return copies


def _is_zeroed(layer: PlannedLayer, rest: str, architecture: Architecture) -> bool:
    return layer.initialization == "identity" and rest.rpartition(".")[0] in architecture.residual_writers


def _check_residual_writers(layer: PlannedLayer, rests: list[str], architecture: Architecture) -> None:
    if layer.initialization != "identity":
        return
    missing = [module for module in architecture.residual_writers if f"{module}.weight" not in rests]
    if missing:
        raise CheckpointError(
            f"layer {layer.source} has no {missing[0]}.weight, so it cannot be initialised as identity; the checkpoint "
            "does not follow its model_type"
        )
