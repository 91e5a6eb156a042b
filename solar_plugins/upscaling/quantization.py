"""Quantised bases: copied as they are, with the module names in ``quantization_config`` following the plan. Pure.

Quantised tensors of a layer carry the layer's name like all others, so copying them is nothing special. What is special
are lists of modules, such as those kept in full precision, which name layers by number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.table import Architecture
from solar_plugins.upscaling.layer_plan import LayerPlan

KNOWN_METHODS = frozenset({"bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "fbgemm_fp8", "mxfp4"})
"""Methods that store each module's tensors under the module's name, and nothing about layers elsewhere."""


def check_quantization(config: Mapping[str, Any], plan: LayerPlan) -> None:
    """Refuse what copying quantised tensors would get wrong.

    Raises:
        CheckpointError: The method is unknown, or the plan has identity layers: zero bytes are not zero weights.
    """
    quantization = config.get("quantization_config")
    if not quantization:
        return
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if method not in KNOWN_METHODS:
        raise CheckpointError(
            f"config.json: quantization_config.quant_method is {method!r:.200}; up-scaling copies "
            f"{', '.join(sorted(KNOWN_METHODS))}. Use the unquantised base, and quantise after training"
        )
    if any(layer.initialization != "copy" for layer in plan.layers):
        raise CheckpointError(
            "config.json: quantization_config says that the weights are quantised, but the plan has identity layers, "
            "whose weights must be zero; use the unquantised base, or a strategy that only copies"
        )


def reordered_quantization(quantization: Mapping[str, Any], row: Architecture, plan: LayerPlan) -> dict[str, Any]:
    """A ``quantization_config`` whose module names follow the plan: one name of a layer becomes one for each copy.

    Args:
        quantization: The base's.
        row: The architecture of the decoder, which tells its layers from a vision tower's.
        plan: What becomes of the layers.

    Raises:
        CheckpointError: A pattern names layers in a way that cannot be followed.

    Example:
        >>> from solar_plugins.upscaling.architectures.table import ARCHITECTURES
        >>> plan, llama = LayerPlan.from_sources(3, [0, 1, 1, 2]), ARCHITECTURES["llama"]
        >>> reordered_quantization({"modules_to_not_convert": ["lm_head", "model.layers.1.mlp"]}, llama, plan)
        {'modules_to_not_convert': ['lm_head', 'model.layers.1.mlp', 'model.layers.2.mlp']}
    """
    return {key: _reordered(value, row, plan) for key, value in quantization.items()}


def _reordered(value: Any, row: Architecture, plan: LayerPlan) -> Any:
    if isinstance(value, Mapping):
        return {name: _reordered(inner, row, plan) for key, inner in value.items() for name in _copies(key, row, plan)}
    if isinstance(value, list):
        return [
            name
            for entry in value
            for name in (_copies(entry, row, plan) if isinstance(entry, str) else [_reordered(entry, row, plan)])
        ]
    return value


def _copies(name: str, row: Architecture, plan: LayerPlan) -> list[str]:
    """The names of all copies of the layer that a module name or pattern names; the name itself if it names none."""
    # Dots may be escaped, as patterns of compressed-tensors have them.
    match = re.search(rf"((?:\w+\\?\.)*\b{re.escape(row.stack)}\\?\.)(\d+)(?=$|\\?\.|\$)", name)
    if match and not row.is_prefix(match[1].replace("\\", "")):
        return [name]
    if match:
        old = int(match[2])
        new = [position for position, source in enumerate(plan.sources) if source == old]
        if old >= plan.base_layers:  # prediction layers past the last one
            new = [old - plan.base_layers + len(plan)]
        return [f"{name[: match.start(2)]}{position}{name[match.end(2) :]}" for position in new]
    if re.search(rf"\b{re.escape(row.stack)}\\?\.[\[({{]*\d", name):
        raise CheckpointError(
            f"config.json: quantization_config holds {name!r:.200}, which names several layers in one pattern; write "
            "one entry a layer"
        )
    return [name]
