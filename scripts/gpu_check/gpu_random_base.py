"""Write a random bfloat16 Mistral checkpoint, one layer per shard, without building a model.

    python gpu_random_base.py DIRECTORY CONFIG.json

Weights are normal with the standard deviation of Mistral's initialization, norms are one, so that a forward pass is
finite. ``DIRECTORY.checksums.json`` gets an exact checksum per layer, and one for everything else.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file

from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.estimates import shapes_from_config

DEVIATION = 0.02
OUTER = "outer"

MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 32_000,
    "hidden_size": 4_096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 4_096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
"""The widths of Mistral-7B-v0.1. Its sliding window of 4,096 is left out: 4,096 positions never exceed it."""


def checksum(tensor: torch.Tensor) -> int:
    """The sum of the bit patterns of a bfloat16 tensor: exact, and independent of order and device."""
    return int(tensor.detach().contiguous().view(torch.int16).sum(dtype=torch.int64))


def group_of(name: str) -> str:
    """The index of the layer that a tensor belongs to, or `OUTER`."""
    _, found, rest = name.partition("model.layers.")
    return rest.split(".")[0] if found else OUTER


def make_random_base(directory: Path, config: dict[str, object], seed: int = 0) -> dict[str, int]:
    """Write config, tokenizer and weights, and return the checksum of each group of tensors."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    decoder = Decoder.of(config)
    shapes = shapes_from_config(decoder, decoder.num_layers)
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        groups.setdefault(group_of(name), {})[name] = shape
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    sums, weight_map = {}, {}
    for number, (group, members) in enumerate(groups.items(), 1):
        tensors = {name: _tensor(shape, generator) for name, shape in members.items()}
        sums[group] = sum(map(checksum, tensors.values()))
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(members, file)
    total = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(directory)
    return sums


def _tensor(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16, device=generator.device)
    return torch.randn(shape, generator=generator, dtype=torch.bfloat16, device=generator.device) * DEVIATION


def _write_tokenizer(directory: Path) -> None:
    """Write Mistral 7B's SentencePiece tokenizer of 32,000 pieces, from the package mistral_common (Apache-2.0)."""
    from transformers import LlamaTokenizer

    shutil.copy(str(files("mistral_common") / "data" / "tokenizer.model.v1"), directory / "tokenizer.model")
    LlamaTokenizer.from_pretrained(directory, add_bos_token=True).save_pretrained(directory)


if __name__ == "__main__":
    target, config_file = map(Path, sys.argv[1:])
    found = make_random_base(target, json.loads(config_file.read_text()))
    target.with_name(target.name + ".checksums.json").write_text(json.dumps(found))
