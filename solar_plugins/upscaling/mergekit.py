"""Mergekit recipes from layer plans. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.storage.safetensors import FLOATS
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan, LayerRange, start_words

MERGEKIT_TYPES = frozenset(
    {"apertus", "arcee", "gemma", "glm4", "gpt2", "gpt_bigcode", "granite", "llama"}
    | {"mamba", "mistral", "olmo2", "phi", "phi3", "stablelm", "starcoder2"}
)
"""What mergekit 0.1.5 stacks rightly: measured with tiny models against the real modules."""


KEEPS_BIASES = frozenset({"glm4", "gpt2", "gpt_bigcode", "granite", "mamba", "phi", "stablelm", "starcoder2"})
"""Types whose biases are in mergekit 0.1.5's list of tensors (its _data/architectures); of others they are left out."""

BIAS_KEYS = ("attention_bias", "mlp_bias")
"""Config keys by which models of other types have biases."""

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
    base_model: Reference,
    decoder: Decoder,
    plan: LayerPlan,
    dtypes: Iterable[str] | None = None,
    donors: Sequence[Reference] = (),
) -> dict[str, Any]:
    """The plan as a mergekit ``passthrough`` merge, one slice for each range (mergekit 0.1.5, mergekit/config.py).

    Args:
        base_model: See `reference`.
        decoder: The base's; it names what an identity or a scaled layer multiplies.
        plan: What to stack.
        dtypes: Of the base's tensors, as safetensors calls them. Without them the config's own word counts. Where that
            is missing too, or where there are several, the merge names no dtype: mergekit then keeps each tensor's.
        donors: Of the plan.

    Raises:
        CheckpointError: mergekit does not support the architecture or its biases, or cannot say how a layer starts.
    """
    if decoder.model_type not in MERGEKIT_TYPES or decoder.quantization is not None:
        raise CheckpointError(
            f"config.json: mergekit 0.1.5 makes no right model of type {decoder.model_type!r} by stacking "
            "layers: it keeps the old depth in the config, drops tensors or stops half-way. Use `solar upscale`"
        )
    biased = [key for key in BIAS_KEYS if decoder.text_config.get(key) and decoder.model_type not in KEEPS_BIASES]
    if biased:
        raise CheckpointError(
            f"config.json: {biased[0]} is true, and mergekit 0.1.5 leaves the biases of type {decoder.model_type!r} "
            "out without a word. Use `solar upscale`"
        )
    models, ranges = (base_model, *donors), plan.ranges()
    # mergekit takes the embeddings from the first slice's model, and the last norm and the head from the last one's.
    none = (LayerRange(0, 0),)
    ranges = (*(none if ranges[0].model else ()), *ranges, *(none if ranges[-1].model else ()))
    merge: dict[str, Any] = {
        "slices": [{"sources": [_source(models[part.model], decoder, part)]} for part in ranges],
        "merge_method": "passthrough",
    } | ({"base_model": deepcopy(base_model)} if plan.donors else {})
    dtype = decoder.stated_dtype if dtypes is None else _only(FLOATS[name] for name in dtypes if name in FLOATS)
    return merge | ({"dtype": dtype} if dtype else {})


def _only(names: Iterable[str]) -> str | None:
    found = set(names)
    return found.pop() if len(found) == 1 else None


def _source(model: Reference, decoder: Decoder, part: LayerRange) -> dict[str, Any]:
    # A copy, or YAML would write an anchor and aliases.
    source: dict[str, Any] = {"model": deepcopy(model), "layer_range": [part.start, part.end]}
    if part.initialization != "copy":
        factor = _factor(part)
        modules = dict.fromkeys(module.rpartition(".")[2] for module in decoder.residual_writers)
        scale = [{"filter": module, "value": factor} for module in modules]
        source["parameters"] = {"scale": [*scale, {"value": 1.0}]}
    return source


def _factor(part: LayerRange) -> float:
    """What mergekit multiplies weights and biases by that write to the residual stream; it can do nothing else."""
    factors = {"identity": 0.0, "scaled": dict(part.arguments).get("factor")}
    factor = factors.get(part.initialization)
    if factor is None:
        raise CheckpointError(
            f"layers that start as {start_words(part)} cannot be said in mergekit's YAML: its passthrough stacks "
            f"layers and multiplies tensors ({', '.join(factors)}). Use `solar upscale`"
        )
    return float(factor)
