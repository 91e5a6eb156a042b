"""Random checkpoints of a chosen size, written as bytes without building a model."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

LAYERS = 32
DROP_LAYERS = 8
VOCABULARY = 32_000
ELEMENT_BYTES = 2
BASE_SHARD_BYTES = 1_000_000_000

Shapes = dict[str, tuple[int, ...]]


def config(hidden: int) -> dict[str, object]:
    """Mistral 7B's config with another width."""
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": hidden,
        "intermediate_size": hidden * 7 // 2,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": hidden // 16,
        "num_key_value_heads": hidden // 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def layer_shapes(hidden: int) -> Shapes:
    inner, keys = hidden * 7 // 2, hidden // 4
    return {
        "input_layernorm.weight": (hidden,),
        "mlp.down_proj.weight": (hidden, inner),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
    }


def outer_shapes(hidden: int) -> Shapes:
    return {
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        "lm_head.weight": (VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
    }


def num_bytes(shapes: Shapes) -> int:
    total = 0
    for shape in shapes.values():
        elements = 1
        for size in shape:
            elements *= size
        total += elements * ELEMENT_BYTES
    return total


def result_bytes(hidden: int) -> int:
    """Bytes of the tensors after depth up-scaling by DROP_LAYERS."""
    return num_bytes(outer_shapes(hidden)) + 2 * (LAYERS - DROP_LAYERS) * num_bytes(layer_shapes(hidden))


def hidden_for(wanted_result_bytes: float) -> int:
    """The width, a multiple of 64, whose upscaled model is closest to this many bytes."""
    return min(range(64, 16_384, 64), key=lambda hidden: abs(result_bytes(hidden) - wanted_result_bytes))


def make_base(directory: Path, hidden: int) -> None:
    """Write a sharded bfloat16 checkpoint of random bytes with an index, flushed to disk."""
    directory.mkdir(parents=True)
    shapes = outer_shapes(hidden)
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in layer_shapes(hidden).items()}
    shards = list(_shards(shapes))
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        filename = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(directory / filename, shard)
        weight_map |= dict.fromkeys(shard, filename)
    index = {"metadata": {"total_size": num_bytes(shapes)}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(config(hidden)))


def make_many_tensors(directory: Path) -> int:
    """Write a checkpoint with the tensor names of DeepSeek-V3 in fp8, 8 bytes per tensor, and return their number.

    Our memory grows with the number of tensors, and models that store each expert separately have the most.
    """
    directory.mkdir(parents=True)
    attention = "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj q_a_layernorm kv_a_layernorm"
    layer = [f"self_attn.{part}.weight" for part in attention.split()]
    layer += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    parts = [f"{part}_proj.{kind}" for part in ("gate", "up", "down") for kind in ("weight", "weight_scale_inv")]
    dense = [f"mlp.{part}" for part in parts]
    sparse = [f"mlp.experts.{expert}.{part}" for expert in range(256) for part in parts]
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    for index in range(61):
        names += [f"model.layers.{index}.{rest}" for rest in (*layer, *(dense if index < 3 else sparse))]
    _write_shard(directory / "model.safetensors", dict.fromkeys(names, (2, 2)))
    described = {"model_type": "deepseek_v3", "num_hidden_layers": 61, "first_k_dense_replace": 3}
    described["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (directory / "config.json").write_text(json.dumps(described))
    return len(names)


def _shards(shapes: Shapes) -> Iterator[Shapes]:
    shard: Shapes = {}
    for name, shape in shapes.items():
        if shard and num_bytes(shard) + num_bytes({name: shape}) > BASE_SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def _write_shard(path: Path, shapes: Shapes) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + num_bytes({name: shape})
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while position:
            position -= file.write(os.urandom(min(position, 1 << 20)))
        os.fsync(file.fileno())


def differing_tensors(one: Path, other: Path) -> list[str]:
    """Names of tensors whose bytes, dtype or shape differ between two checkpoints, however they are sharded."""
    left, right = _stored(one), _stored(other)
    return sorted(name for name in left.keys() | right.keys() if not _equal(left.get(name), right.get(name)))


Stored = tuple[Path, int, int, str, list[int]]


def _stored(directory: Path) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            found[name] = (path, 8 + length + start, end - start, entry["dtype"], entry["shape"])
    return found


def _equal(one: Stored | None, other: Stored | None) -> bool:
    if one is None or other is None or one[2:] != other[2:]:
        return False
    left = right = one[2]
    with one[0].open("rb") as first, other[0].open("rb") as second:
        first.seek(one[1])
        second.seek(other[1])
        while left:
            size = min(left, 8 << 20)
            if first.read(size) != second.read(size):
                return False
            left = right = left - size
    return right == 0
