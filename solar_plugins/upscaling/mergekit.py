"""Mergekit recipes from layer plans. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.surgery import residual_writers
from solar_plugins.upscaling.estimates import stored_dtype
from solar_plugins.upscaling.layer_plan import LayerPlan, LayerRange

MERGEKIT_TYPES = frozenset(
    {"apertus", "arcee", "gemma", "glm4", "gpt2", "gpt_bigcode", "granite", "llama"}
    | {"mamba", "mistral", "olmo2", "phi", "phi3", "stablelm", "starcoder2"}
)
"""What mergekit 0.1.5 stacks rightly: measured with tiny models against the real modules."""


def passthrough_merge(base_model: str, config: Mapping[str, Any], plan: LayerPlan) -> dict[str, Any]:
    """The plan as a mergekit ``passthrough`` merge, one slice for each range (mergekit 0.1.5, mergekit/config.py).

    Args:
        base_model: A directory or hub id, with ``@revision`` where one is wanted.
        config: The base's config; it names the dtype and what an identity layer scales to zero.
        plan: What to stack.

    Raises:
        CheckpointError: The architecture is not supported, here or by mergekit, or not with identity layers.
    """
    if config.get("model_type") not in MERGEKIT_TYPES or config.get("quantization_config"):
        raise CheckpointError(
            f"config.json: mergekit 0.1.5 makes no right model of type {config.get('model_type')!r} by stacking "
            "layers: it keeps the old depth in the config, drops tensors or stops half-way. Use `solar upscale`"
        )
    return {
        "slices": [{"sources": [_source(base_model, config, part)]} for part in plan.ranges()],
        "merge_method": "passthrough",
        "dtype": stored_dtype(config),
    }


def _source(base_model: str, config: Mapping[str, Any], part: LayerRange) -> dict[str, Any]:
    source: dict[str, Any] = {"model": base_model, "layer_range": [part.start, part.end]}
    if part.initialization == "identity":
        zeroed = dict.fromkeys(module.rpartition(".")[2] for module in residual_writers(config))
        scale = [{"filter": module, "value": 0.0} for module in zeroed]
        source["parameters"] = {"scale": [*scale, {"value": 1.0}]}
    return source
