"""Quantised bases: copied as they are, with the module names in ``quantization_config`` following the plan. Pure.

Quantised tensors of a layer carry the layer's name like all others, so copying them is nothing special. What is special
are lists of modules, such as those kept in full precision, which name layers by number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan

if TYPE_CHECKING:
    from solar_plugins.upscaling.architectures.table import Architecture

KNOWN_METHODS = frozenset({"bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "fbgemm_fp8", "mxfp4"})
"""Methods that store each module's tensors under the module's name, and nothing about layers elsewhere."""


def reordered_quantization(decoder: Decoder, plan: LayerPlan) -> dict[str, Any]:
    """The base's ``quantization_config`` whose module names follow the plan: a layer's name becomes one for each copy.

    Raises:
        CheckpointError: The method is unknown; the plan has identity layers, but zero bytes are not zero weights; or a
            pattern names layers in a way that cannot be followed.

    Example:
        >>> quantization = {"quant_method": "awq", "modules_to_not_convert": ["lm_head", "model.layers.1.mlp"]}
        >>> config = {"model_type": "llama", "num_hidden_layers": 3, "quantization_config": quantization}
        >>> plan = LayerPlan.from_sources(3, [0, 1, 1, 2])
        >>> reordered_quantization(Decoder.of(config), plan)["modules_to_not_convert"]
        ['lm_head', 'model.layers.1.mlp', 'model.layers.2.mlp']
    """
    quantization = decoder.quantization
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if not isinstance(method, str) or method not in KNOWN_METHODS:
        raise CheckpointError(
            f"config.json: quantization_config.quant_method is {method!r:.200}; up-scaling copies "
            f"{', '.join(sorted(KNOWN_METHODS))}. Use the unquantised base, and quantise after training"
        )
    if any(layer.initialization != "copy" for layer in plan.layers):
        raise CheckpointError(
            "config.json: quantization_config says that the weights are quantised, but the plan has identity layers, "
            "whose weights must be zero; use the unquantised base, or a strategy that only copies"
        )
    copies = partial(_copies, architecture=decoder.architecture, plan=plan)
    return {key: _reordered(value, copies) for key, value in quantization.items()}


def _reordered(value: Any, copies: Callable[[str], list[str]]) -> Any:
    if isinstance(value, Mapping):
        return {name: _reordered(inner, copies) for key, inner in value.items() for name in copies(key)}
    if isinstance(value, list):
        return [
            name
            for entry in value
            for name in (copies(entry) if isinstance(entry, str) else [_reordered(entry, copies)])
        ]
    return value


def _copies(name: str, architecture: Architecture, plan: LayerPlan) -> list[str]:
    """The names of all copies of the layer that a module name or pattern names; the name itself if it names none."""
    # Dots may be escaped, as patterns of compressed-tensors have them.
    match = re.search(rf"((?:\w+\\?\.)*\b{re.escape(architecture.stack)}\\?\.)(\d+)(?=$|\\?\.|\$)", name)
    if match and not architecture.is_prefix(match[1].replace("\\", "")):
        return [name]
    if match:
        old = int(match[2])
        new = [position for position, source in enumerate(plan.sources) if source == old]
        if old >= plan.base_layers:  # prediction layers past the last one
            new = [old - plan.base_layers + len(plan)]
        return [f"{name[: match.start(2)]}{position}{name[match.end(2) :]}" for position in new]
    if re.search(rf"\b{re.escape(architecture.stack)}\\?\.[\[({{]*\d", name):
        raise CheckpointError(
            f"config.json: quantization_config holds {name!r:.200}, which names several layers in one pattern; write "
            "one entry a layer"
        )
    return [name]
