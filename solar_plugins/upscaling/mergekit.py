"""Mergekit recipes from layer plans. Pure."""

from __future__ import annotations

from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan, LayerRange

MERGEKIT_TYPES = frozenset(
    {"apertus", "arcee", "gemma", "glm4", "gpt2", "gpt_bigcode", "granite", "llama"}
    | {"mamba", "mistral", "olmo2", "phi", "phi3", "stablelm", "starcoder2"}
)
"""What mergekit 0.1.5 stacks rightly: measured with tiny models against the real modules."""


def passthrough_merge(base_model: str, decoder: Decoder, plan: LayerPlan) -> dict[str, Any]:
    """The plan as a mergekit ``passthrough`` merge, one slice for each range (mergekit 0.1.5, mergekit/config.py).

    Args:
        base_model: A directory or hub id, with ``@revision`` where one is wanted.
        decoder: The base's; it names the dtype and what an identity layer scales to zero.
        plan: What to stack.

    Raises:
        CheckpointError: mergekit does not support the architecture, or nobody tested identity layers with it.
    """
    if decoder.model_type not in MERGEKIT_TYPES or decoder.quantization is not None:
        raise CheckpointError(
            f"config.json: mergekit 0.1.5 makes no right model of type {decoder.model_type!r} by stacking "
            "layers: it keeps the old depth in the config, drops tensors or stops half-way. Use `solar upscale`"
        )
    return {
        "slices": [{"sources": [_source(base_model, decoder, part)]} for part in plan.ranges()],
        "merge_method": "passthrough",
        "dtype": decoder.dtype,
    }


def _source(base_model: str, decoder: Decoder, part: LayerRange) -> dict[str, Any]:
    source: dict[str, Any] = {"model": base_model, "layer_range": [part.start, part.end]}
    if part.initialization == "identity":
        zeroed = dict.fromkeys(module.rpartition(".")[2] for module in decoder.residual_writers)
        scale = [{"filter": module, "value": 0.0} for module in zeroed]
        source["parameters"] = {"scale": [*scale, {"value": 1.0}]}
    return source
