"""Mergekit recipes from layer plans. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan, LayerRange

MERGEKIT_TYPES = frozenset(
    {"apertus", "arcee", "gemma", "glm4", "gpt2", "gpt_bigcode", "granite", "llama"}
    | {"mamba", "mistral", "olmo2", "phi", "phi3", "stablelm", "starcoder2"}
)
"""What mergekit 0.1.5 stacks rightly: measured with tiny models against the real modules."""


FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
"""Mergekit's names for what safetensors calls the dtypes that mergekit can write."""

Reference = str | dict[str, Any]
"""A model as mergekit's YAML names it."""


def reference(path: str, revision: str | None = None) -> Reference:
    """How mergekit's YAML names a model (``ModelReference`` and ``ModelPath`` in mergekit 0.1.5, mergekit/common.py).

    In a string ``+`` begins a LoRA adapter and ``@`` a revision; a name that holds one of them itself is spelt out.

    Example:
        >>> reference("org/model", "main"), reference("/models/llama+de")
        ('org/model@main', {'model': {'path': '/models/llama+de'}})
    """
    if not {"+", "@"}.intersection(path + (revision or "")):
        return f"{path}@{revision}" if revision else path
    return {"model": {"path": path} | ({"revision": revision} if revision else {})}


def passthrough_merge(
    base_model: Reference, decoder: Decoder, plan: LayerPlan, dtypes: Iterable[str] | None = None
) -> dict[str, Any]:
    """The plan as a mergekit ``passthrough`` merge, one slice for each range (mergekit 0.1.5, mergekit/config.py).

    Args:
        base_model: See `reference`.
        decoder: The base's; it names what an identity layer scales to zero.
        plan: What to stack.
        dtypes: Of the base's tensors, as safetensors calls them. Without them the config's own word counts. Where that
            is missing too, or where there are several, the merge names no dtype: mergekit then keeps each tensor's.

    Raises:
        CheckpointError: mergekit does not support the architecture, or nobody tested identity layers with it.
    """
    if decoder.model_type not in MERGEKIT_TYPES or decoder.quantization is not None:
        raise CheckpointError(
            f"config.json: mergekit 0.1.5 makes no right model of type {decoder.model_type!r} by stacking "
            "layers: it keeps the old depth in the config, drops tensors or stops half-way. Use `solar upscale`"
        )
    merge: dict[str, Any] = {
        "slices": [{"sources": [_source(base_model, decoder, part)]} for part in plan.ranges()],
        "merge_method": "passthrough",
    }
    dtype = decoder.stated_dtype if dtypes is None else _only(FLOATS[name] for name in dtypes if name in FLOATS)
    return merge | ({"dtype": dtype} if dtype else {})


def _only(names: Iterable[str]) -> str | None:
    found = set(names)
    return found.pop() if len(found) == 1 else None


def _source(base_model: Reference, decoder: Decoder, part: LayerRange) -> dict[str, Any]:
    # A copy, or YAML would write an anchor and aliases.
    source: dict[str, Any] = {"model": deepcopy(base_model), "layer_range": [part.start, part.end]}
    if part.initialization == "identity":
        zeroed = dict.fromkeys(module.rpartition(".")[2] for module in decoder.residual_writers)
        scale = [{"filter": module, "value": 0.0} for module in zeroed]
        source["parameters"] = {"scale": [*scale, {"value": 1.0}]}
    return source
