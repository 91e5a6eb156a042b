"""Mergekit recipes from layer plans. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solar_plugins.upscaling.architecture import architecture_of
from solar_plugins.upscaling.estimates import stored_dtype
from solar_plugins.upscaling.layer_plan import LayerPlan, LayerRange


def passthrough_merge(base_model: str, config: Mapping[str, Any], plan: LayerPlan) -> dict[str, Any]:
    """The plan as a mergekit ``passthrough`` merge, one slice for each range (mergekit 0.1.5, mergekit/config.py).

    Args:
        base_model: A directory or hub id, with ``@revision`` where one is wanted.
        config: The base's config; it names the dtype and what an identity layer scales to zero.
        plan: What to stack.

    Raises:
        CheckpointError: The architecture is not supported.
    """
    return {
        "slices": [{"sources": [_source(base_model, config, part)]} for part in plan.ranges()],
        "merge_method": "passthrough",
        "dtype": stored_dtype(config),
    }


def _source(base_model: str, config: Mapping[str, Any], part: LayerRange) -> dict[str, Any]:
    source: dict[str, Any] = {"model": base_model, "layer_range": [part.start, part.end]}
    if part.initialization == "identity":
        zeroed = [module.rpartition(".")[2] for module in architecture_of(config).residual_writers]
        scale = [{"filter": module, "value": 0.0} for module in zeroed]
        source["parameters"] = {"scale": [*scale, {"value": 1.0}]}
    return source
