"""Layer plans as mergekit recipes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.errors import CheckpointError
from solar_plugins.storage.safetensors import FLOATS
from solar_plugins.upscaling.base_model import BaseCheckpoint, find_base
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan, LayerRange, start_words
from solar_plugins.upscaling.weight_files import read_weights

MERGEKIT_TYPES = frozenset(
    {"apertus", "arcee", "gemma", "glm4", "gpt2", "gpt_bigcode", "granite", "llama"}
    | {"mamba", "mistral", "olmo2", "phi", "phi3", "stablelm", "starcoder2"}
)
"""Model types that mergekit 0.1.5 stacks correctly, measured with tiny models."""


KEEPS_BIASES = frozenset({"glm4", "gpt2", "gpt_bigcode", "granite", "mamba", "phi", "stablelm", "starcoder2"})
"""Types whose biases mergekit 0.1.5 keeps (its _data/architectures list them); it drops the biases of other types."""

BIAS_KEYS = ("attention_bias", "mlp_bias")
"""Config keys that give models of other types biases."""

Reference = str | dict[str, Any]
"""A model as in mergekit's YAML."""


def reference(path: str, revision: str | None = None) -> Reference:
    """A model as in mergekit's YAML (``ModelReference`` and ``ModelPath`` in mergekit 0.1.5, mergekit/common.py).

    In a string, ``+`` starts a LoRA adapter and ``@`` a revision; a name that contains one of them needs a map.

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
    """The plan as a mergekit ``passthrough`` merge, one slice per range (mergekit 0.1.5, mergekit/config.py). Pure.

    Args:
        base_model: See `reference`.
        decoder: The base's decoder. It has the names of the modules that identity and scaled layers multiply.
        plan: The plan.
        dtypes: The safetensors dtypes of the base's tensors; default: the dtype in the config. With no dtype or
            several, the merge has none, and mergekit keeps that of each tensor.
        donors: The plan's donors.

    Raises:
        CheckpointError: mergekit does not support the architecture, its biases, or how a layer is initialized.
    """
    if decoder.model_type not in MERGEKIT_TYPES or decoder.quantization is not None:
        raise CheckpointError(
            f"config.json: model_type {decoder.model_type!r}: mergekit 0.1.5 cannot stack it correctly: it keeps the "
            "old depth in the config, drops tensors, or fails. Use `solar upscale`"
        )
    biased = [key for key in BIAS_KEYS if decoder.text_config.get(key) and decoder.model_type not in KEEPS_BIASES]
    if biased:
        raise CheckpointError(
            f"config.json: {biased[0]} is true, and mergekit 0.1.5 silently drops the biases of type "
            f"{decoder.model_type!r}. Use `solar upscale`"
        )
    models, ranges = (base_model, *donors), plan.ranges()
    # mergekit takes the embeddings from the first slice's model, and the final norm and head from the last slice's.
    none = (LayerRange(0, 0),)
    ranges = (*(none if ranges[0].model else ()), *ranges, *(none if ranges[-1].model else ()))
    merge: dict[str, Any] = {
        "slices": [{"sources": [_source(models[part.model], decoder, part)]} for part in ranges],
        "merge_method": "passthrough",
    } | ({"base_model": deepcopy(base_model)} if plan.donors else {})
    found = {decoder.stated_dtype} if dtypes is None else {FLOATS[name] for name in dtypes if name in FLOATS}
    dtype = found.pop() if len(found) == 1 else None
    return merge | ({"dtype": dtype} if dtype else {})


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
    """The factor on weights and biases that write to the residual stream. mergekit supports nothing else."""
    factors = {"identity": 0.0, "scaled": dict(part.arguments).get("factor")}
    factor = factors.get(part.initialization)
    if factor is None:
        raise CheckpointError(
            f"{start_words(part)} layers cannot be written in mergekit's YAML: its passthrough method stacks layers "
            f"and multiplies tensors only ({', '.join(factors)}). Use `solar upscale`"
        )
    return float(factor)


class Weights(NamedTuple):
    """The location and the dtypes of a model's weights, for mergekit."""

    model: Reference
    dtypes: frozenset[str] | None
    """The safetensors dtypes of its tensors; None if the weights are not on this machine."""


def weights_of(
    base: str, revision: str | None, *, trust_remote_code: bool = False, trusted_keys: tuple[str, ...] = ()
) -> Weights:
    """What a mergekit recipe needs to know of a model. Local paths are absolute, so the YAML works in any directory.

    Args:
        base: A directory, a config.json or a hub id.
        revision: Of a hub id.
        trust_remote_code: As for `find_base`.
        trusted_keys: As for `find_base`.

    Raises:
        CheckpointError: The model cannot be found; or it is a local directory whose weights are damaged or have the
            tensor names of a training wrapper.
    """
    path = Path(os.path.expanduser(base))
    name = str(path.parent) if path.is_file() else base
    found = find_base(name, revision, trust_remote_code=trust_remote_code, trusted_keys=trusted_keys)
    model = reference(base, revision) if found.revision else reference(str(found.directory))
    return Weights(model, _dtypes(found))


def _dtypes(found: BaseCheckpoint) -> frozenset[str] | None:
    tensors = found.tensors_here
    if tensors and not tensors.keys() <= read_weights(found.directory).tensors.keys():
        raise CheckpointError(
            f"{found.name}: its tensor names come from a training wrapper, and mergekit does not strip them; use "
            "`solar upscale`, which does"
        )
    return None if tensors is None else frozenset(tensor.dtype for tensor in tensors.values())
