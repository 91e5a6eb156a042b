"""How large the deeper model is, and what training it needs: from config and plan alone, or from the tensors. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, NamedTuple

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architecture import architecture_of, decoder_config
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.safetensors_io import DTYPE_BITS, Shard
from solar_plugins.upscaling.tensor_names import layer_tensors

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


class ModelSize(NamedTuple):
    """The size of a model."""

    parameters: int
    layer_parameters: int
    """Of them, in one decoder layer on average."""
    checkpoint_bytes: int
    """Tensor data, without file headers."""


class MemoryEstimate(NamedTuple):
    """What one device holds in one training set-up, in bytes."""

    setup: str
    devices: int
    model_state_bytes: int
    activation_bytes: int

    @property
    def total_bytes(self) -> int:
        """Model states and activations."""
        return self.model_state_bytes + self.activation_bytes


COUNTED_TYPES = frozenset({"llama", "mistral"})
"""Model types whose parameters `size_from_config` can count without the weights."""


def size_from_config(config: Mapping[str, Any], num_layers: int) -> ModelSize | None:
    """The size of a Llama- or Mistral-type model with ``num_layers`` layers (modeling_llama.py, modeling_mistral.py).

    None for other types and for quantised weights: only the tensors tell.

    Raises:
        CheckpointError: The architecture is not supported, or a width is missing.

    Example:
        >>> mistral = {"model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        ...            "num_attention_heads": 32, "num_key_value_heads": 8, "torch_dtype": "bfloat16"}
        >>> size_from_config(mistral, 48).parameters
        10731524096
    """
    architecture_of(config)
    if config["model_type"] not in COUNTED_TYPES or config.get("quantization_config"):
        return None
    hidden, intermediate = _width(config, "hidden_size"), _width(config, "intermediate_size")
    queries, keys = _attention_widths(config)
    attention = hidden * (2 * queries + 2 * keys)
    attention_biases = queries + 2 * keys + hidden if config.get("attention_bias") else 0
    mlp_biases = 2 * intermediate + hidden if config.get("mlp_bias") else 0
    layer = attention + attention_biases + 3 * hidden * intermediate + mlp_biases + 2 * hidden
    embeddings = _width(config, "vocab_size") * hidden * (1 if config.get("tie_word_embeddings") else 2)
    parameters = embeddings + num_layers * layer + hidden
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


def format_bytes(num_bytes: float) -> str:
    """A size in decimal units with three figures, such as ``21.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def _attention_widths(config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows of the query projection, and of the key and the value projection."""
    heads = _width(config, "num_attention_heads")
    key_value_heads = _width(config, "num_key_value_heads", default=heads)
    head_dim = _width(config, "head_dim", default=_width(config, "hidden_size") // heads)
    return heads * head_dim, key_value_heads * head_dim


def _width(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"config.json: {key} is {value!r}; expected a positive whole number")
    return value


LORA_RANK = 16

MEMORY_ASSUMPTIONS = (
    "bf16 mixed precision with AdamW holds 16 bytes a parameter: weights 2, gradients 2, fp32 master 4, moments 8 "
    "(Rajbhandari et al. 2020, sec. 3.1); ZeRO-3 and FSDP2 divide all of it by the devices",
    f"LoRA (rank {LORA_RANK}, all linear layers) holds the frozen weights in 2 bytes, QLoRA those of the layers in "
    "0.53 bytes (4 bit and scales), and 16 bytes for each new parameter",
    "activations: micro batch 1, gradient checkpointing, attention without a stored score matrix: 2 L h bytes a "
    "layer, 34 L h for the layer in work (Korthikanti et al. 2022, eq. 2), 10 L V for the logits; L tokens, h "
    "hidden, V vocabulary",
    "not counted: the CUDA context, communication buffers, gathered layers of ZeRO-3, fragmentation; leave 10 to 20 "
    "% free",
)


def training_memory(
    size: ModelSize, config: Mapping[str, Any], num_layers: int, sequence_tokens: int
) -> list[MemoryEstimate]:
    """Memory of each device in the common set-ups, by the formulas of `MEMORY_ASSUMPTIONS`.

    Adapters are counted for the types of `COUNTED_TYPES` only. Empty where the config calls its widths otherwise.

    Args:
        size: Of the deeper model.
        config: The base's config, for its widths.
        num_layers: Depth of the deeper model.
        sequence_tokens: Length of a training sequence.
    """
    text = decoder_config(config)
    if not (text.get("hidden_size") and text.get("vocab_size")) or config.get("quantization_config"):
        return []
    hidden, vocabulary = _width(text, "hidden_size"), _width(text, "vocab_size")
    activations = sequence_tokens * (2 * hidden * num_layers + 34 * hidden + 10 * vocabulary)
    full = 16 * size.parameters
    return [
        MemoryEstimate("full, bf16 mixed, AdamW", 1, full, activations),
        *(MemoryEstimate(f"full, ZeRO-3 or FSDP2, {n} devices", n, full // n, activations) for n in (8, 64)),
        *(_adapter_memory(size, config, num_layers, activations) if config["model_type"] in COUNTED_TYPES else []),
        MemoryEstimate("full, fp32, AdamW (CPU)", 1, full, 2 * activations),
    ]


def _adapter_memory(
    size: ModelSize, config: Mapping[str, Any], num_layers: int, activations: int
) -> list[MemoryEstimate]:
    lora_states = 16 * num_layers * _lora_layer_parameters(config)
    in_layers = num_layers * size.layer_parameters
    qlora_frozen = 0.53 * in_layers + 2 * (size.parameters - in_layers)
    return [
        MemoryEstimate("LoRA, bf16", 1, 2 * size.parameters + lora_states, activations),
        MemoryEstimate("QLoRA, 4 bit", 1, round(qlora_frozen) + lora_states, activations),
    ]


def _lora_layer_parameters(config: Mapping[str, Any]) -> int:
    hidden, intermediate = _width(config, "hidden_size"), _width(config, "intermediate_size")
    queries, keys = _attention_widths(config)
    ends = 2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + intermediate)
    return LORA_RANK * ends
