"""How large the deeper model is: from config and plan alone, or from the tensors. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

from solar_plugins.errors import CheckpointError
from solar_plugins.storage.safetensors import DTYPE_BITS, Shard
from solar_plugins.upscaling.architectures.surgery import architecture_of, decoder_config
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.tensor_names import layer_tensors

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


class ModelSize(NamedTuple):
    """The size of a model."""

    parameters: int
    layer_parameters: int
    """Of them, in one decoder layer on average."""
    checkpoint_bytes: int
    """Tensor data, without file headers."""


COUNTED_TYPES = frozenset({"llama", "mistral"})
"""Model types whose parameters `shapes_from_config` knows without the weights."""


class DecoderWidths(NamedTuple):
    """The widths of a Llama-type decoder, in elements."""

    hidden: int
    intermediate: int
    """Of the gated MLP."""
    queries: int
    """Rows of the query projection: heads times width of a head."""
    keys: int
    """Rows of the key projection, and of the value projection."""
    heads: int
    vocabulary: int


Shape = tuple[int, ...]


def decoder_widths(config: Mapping[str, Any]) -> DecoderWidths:
    """The widths that a config states, of the decoder if the model has more parts.

    Raises:
        CheckpointError: One is missing, or no positive whole number.
    """
    text = decoder_config(config)
    hidden, heads = _width(text, "hidden_size"), _width(text, "num_attention_heads")
    head_dim = _width(text, "head_dim", default=hidden // heads)
    key_value_heads = _width(text, "num_key_value_heads", default=heads)
    return DecoderWidths(
        hidden=hidden,
        intermediate=_width(text, "intermediate_size"),
        queries=heads * head_dim,
        keys=key_value_heads * head_dim,
        heads=heads,
        vocabulary=_width(text, "vocab_size"),
    )


def shapes_from_config(config: Mapping[str, Any], num_layers: int) -> dict[str, Shape] | None:
    """The parameters of a Llama- or Mistral-type model with ``num_layers`` layers, by name.

    As in transformers' modeling_llama.py and modeling_mistral.py. None for other types and for quantised weights: only
    the tensors tell.

    Raises:
        CheckpointError: The architecture is not supported, or a width is missing.

    Example:
        >>> config = {"model_type": "llama", "vocab_size": 9, "hidden_size": 4, "intermediate_size": 6,
        ...           "num_attention_heads": 2, "num_key_value_heads": 1}
        >>> shapes_from_config(config, 1)["model.layers.0.self_attn.k_proj.weight"]
        (2, 4)
    """
    architecture_of(config)
    if config["model_type"] not in COUNTED_TYPES or config.get("quantization_config"):
        return None
    widths = decoder_widths(config)
    layer = dict(_layer_shapes(config, widths))
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (widths.vocabulary, widths.hidden)}
    for number in range(num_layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (widths.hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (widths.vocabulary, widths.hidden)
    return shapes


def _layer_shapes(config: Mapping[str, Any], widths: DecoderWidths) -> Iterator[tuple[str, Shape]]:
    hidden, intermediate, queries, keys, *_ = widths
    attention = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
    mlp = {"gate": (intermediate, hidden), "up": (intermediate, hidden), "down": (hidden, intermediate)}
    for block, projections, key in (("self_attn", attention, "attention_bias"), ("mlp", mlp, "mlp_bias")):
        for name, shape in projections.items():
            yield f"{block}.{name}_proj.weight", shape
            if config.get(key):
                yield f"{block}.{name}_proj.bias", shape[:1]
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)


def shapes_from_shards(shards: Iterable[Shard]) -> dict[str, Shape]:
    """The tensors of the checkpoint that the shards make up, by name."""
    return {tensor.name: tuple(tensor.source.shape) for shard in shards for tensor in shard.tensors}


def size_from_config(config: Mapping[str, Any], num_layers: int) -> ModelSize | None:
    """The size of a model whose parameters `shapes_from_config` knows, else None.

    Raises:
        CheckpointError: The architecture is not supported, or a width is missing.

    Example:
        >>> mistral = {"model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        ...            "num_attention_heads": 32, "num_key_value_heads": 8, "torch_dtype": "bfloat16"}
        >>> size_from_config(mistral, 48).parameters
        10731524096
    """
    shapes = shapes_from_config(config, num_layers)
    if shapes is None:
        return None
    parameters = sum(map(prod, shapes.values()))
    layer = sum(prod(shape) for name, shape in shapes.items() if name.startswith("model.layers.0."))
    return ModelSize(parameters, layer, parameters * DTYPE_BYTES.get(stored_dtype(config), 4))


def size_from_shards(shards: Iterable[Shard], config: Mapping[str, Any]) -> ModelSize:
    """The exact size of the checkpoint that the shards make up; quantised storage counts as stored."""
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    counts = {tensor.name: prod(tensor.source.shape) for tensor in tensors}
    layers = layer_tensors(counts, config).values()
    return ModelSize(
        sum(counts.values()),
        sum(counts[name] for layer in layers for name in layer) // max(1, len(layers)),
        sum(
            count * DTYPE_BITS[tensor.source.dtype] // 8 for count, tensor in zip(counts.values(), tensors, strict=True)
        ),
    )


def require_expected_parameters(shards: Iterable[Shard], config: Mapping[str, Any], plan: LayerPlan) -> None:
    """Refuse tensors that are not as many parameters as the config promises: loading would invent the missing ones.

    Raises:
        CheckpointError: The numbers differ, where `size_from_config` can tell. Not counted: the stored copy of a tied
            head, and rotary buffers, which old Llama checkpoints hold.
    """
    not_parameters = ("lm_head.",) if config.get("tie_word_embeddings") else ()
    found = sum(
        prod(tensor.source.shape)
        for shard in shards
        for tensor in shard.tensors
        if not tensor.name.startswith(not_parameters) and not tensor.name.endswith("rotary_emb.inv_freq")
    )
    size = size_from_config(config, len(plan))
    expected = size.parameters if size else found
    if found != expected:
        raise CheckpointError(
            f"the base's tensors would make {found:,} parameters with {len(plan)} layers, but its config.json makes "
            f"{expected:,}; a tensor is missing, or the config belongs to another model"
        )


def stored_dtype(config: Mapping[str, Any]) -> str:
    """The dtype of the weights as the config states it; transformers takes float32 where it says nothing."""
    stated = next(
        (part[key] for part in (config, decoder_config(config)) for key in ("dtype", "torch_dtype") if part.get(key)),
        None,
    )
    return str(stated or "float32")


def _width(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"config.json: {key} is {value!r}; expected a positive whole number")
    return value
