"""The size of the deeper model: from config and plan, or from the tensors. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import NamedTuple

from solar_plugins.storage.safetensors import DTYPE_BITS, Shard
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.tensor_names import is_tied
from solar_plugins.upscaling.upscaled_tensors import layer_tensors

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


class ModelSize(NamedTuple):
    """The size of a model."""

    parameters: int
    layer_parameters: int
    """Average parameters per decoder layer."""
    checkpoint_bytes: int
    """Size of the tensor data, without file headers."""


COUNTED_TYPES = frozenset({"llama", "mistral"})
"""Model types whose parameters `shapes_from_config` can derive from the config."""


Shape = tuple[int, ...]


def shapes_from_config(decoder: Decoder, num_layers: int) -> dict[str, Shape] | None:
    """The shape of each parameter of a Llama- or Mistral-type model with ``num_layers`` layers, by name.

    As in transformers' modeling_llama.py and modeling_mistral.py. None for other types and for quantized weights, which
    need the tensors.

    Raises:
        CheckpointError: A width is missing.

    Example:
        >>> config = {"model_type": "llama", "vocab_size": 9, "hidden_size": 4, "intermediate_size": 6,
        ...           "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        >>> shapes_from_config(Decoder.of(config), 1)["model.layers.0.self_attn.k_proj.weight"]
        (2, 4)
    """
    if decoder.model_type not in COUNTED_TYPES or decoder.quantization is not None:
        return None
    widths = decoder.widths
    layer = dict(_layer_shapes(decoder))
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (widths.vocabulary, widths.hidden)}
    for number in range(num_layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (widths.hidden,)
    if decoder.has_language_model_head and not is_tied(decoder):
        shapes["lm_head.weight"] = (widths.vocabulary, widths.hidden)
    return shapes


def _layer_shapes(decoder: Decoder) -> Iterator[tuple[str, Shape]]:
    hidden, intermediate, queries, keys, *_ = decoder.widths
    attention = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
    mlp = {"gate": (intermediate, hidden), "up": (intermediate, hidden), "down": (hidden, intermediate)}
    for block, projections, key in (("self_attn", attention, "attention_bias"), ("mlp", mlp, "mlp_bias")):
        for name, shape in projections.items():
            yield f"{block}.{name}_proj.weight", shape
            if decoder.config.get(key):
                yield f"{block}.{name}_proj.bias", shape[:1]
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)


def shapes_from_shards(shards: Iterable[Shard]) -> dict[str, Shape]:
    """The shape of each tensor in a checkpoint's shards, by name."""
    return {tensor.name: tuple(tensor.source.shape) for shard in shards for tensor in shard.tensors}


def size_from_config(decoder: Decoder, num_layers: int) -> ModelSize | None:
    """The size of a model from its config; None if `shapes_from_config` does not support it.

    Raises:
        CheckpointError: A width is missing.

    Example:
        >>> mistral = {"model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        ...            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        ...            "torch_dtype": "bfloat16"}
        >>> size_from_config(Decoder.of(mistral), 48).parameters
        10731524096
    """
    shapes = shapes_from_config(decoder, num_layers)
    if shapes is None:
        return None
    parameters = sum(map(prod, shapes.values()))
    layer = sum(prod(shape) for name, shape in shapes.items() if name.startswith("model.layers.0."))
    return ModelSize(parameters, layer, parameters * DTYPE_BYTES.get(decoder.dtype, 4))


def size_from_shards(shards: Iterable[Shard], decoder: Decoder) -> ModelSize:
    """The exact size of a checkpoint from its shards; quantized weights count as stored."""
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    counts = {tensor.name: prod(tensor.source.shape) for tensor in tensors}
    layers = layer_tensors(counts, decoder).values()
    return ModelSize(
        sum(counts.values()),
        sum(counts[name] for layer in layers for name in layer) // max(1, len(layers)),
        sum(
            count * DTYPE_BITS[tensor.source.dtype] // 8 for count, tensor in zip(counts.values(), tensors, strict=True)
        ),
    )
