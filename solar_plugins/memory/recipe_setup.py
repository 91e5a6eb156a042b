"""From a recipe, its DeepSpeed file and its head comment to the training setup."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.errors import ArgsError
from solar_plugins.memory.training_setup import (
    OPTIMIZERS,
    Adapter,
    DeepSpeedBuffers,
    Optimizer,
    Sharding,
    TrainingSetup,
)
from solar_plugins.recipe import METHODS_WITH_REFERENCE, PAIR_METHODS, Recipe
from solar_plugins.storage.untrusted import read_json_object

FUSED_LOSSES = (
    "cut_cross_entropy",
    "liger_fused_linear_cross_entropy",
    "chunked_cross_entropy",
    "dpo_use_liger_kernel",
)
NOT_COUNTED = (
    "tensor_parallel_size", "context_parallel_size", "expert_parallel_size", "fp8", "torch_compile", "relora",
    "selective_checkpointing", "lora_target_parameters", "peft_use_dora", "lora_fp32_gradients", "qat",
)  # fmt: skip
"""Keys that change the memory in ways that are not counted here; a report names those that a recipe has."""


class Devices(NamedTuple):
    """The GPUs that a recipe is meant for."""

    gpus: int
    gpus_from: str
    memory_bytes: int | None
    """Of each; None where nobody says."""


def devices_of(recipe: Recipe, gpus: int | None, gpu_gigabytes: float | None) -> Devices:
    """How many GPUs, and how large: from the options, else from ``WORLD_SIZE`` and from the recipe's head.

    Raises:
        ArgsError: ``WORLD_SIZE`` is no positive whole number.
    """
    head = re.match(r"(?:#.*\n)*", recipe.text)
    said = re.search(r"^# needs: +(\d+) x (\d+) GB GPU", head[0] if head else "", re.MULTILINE)
    memory = gpu_gigabytes or (float(said[2]) if said else None)
    memory_bytes = round(memory * 1e9) if memory else None
    world = os.environ.get("WORLD_SIZE")
    if gpus:
        return Devices(gpus, "--gpus", memory_bytes)
    if world:
        if not world.isdecimal() or int(world) < 1:
            raise ArgsError(f"WORLD_SIZE: {world!r} in the environment; expected a positive whole number, or --gpus")
        return Devices(int(world), "WORLD_SIZE", memory_bytes)
    if said:
        return Devices(int(said[1]), "the recipe's head", memory_bytes)
    return Devices(1, "nothing said otherwise", memory_bytes)


def setup_of(recipe: Recipe, gpus: int) -> TrainingSetup:
    """How the recipe trains on so many GPUs.

    Args:
        recipe: The recipe. Its DeepSpeed file is looked for in the working directory, then above the recipe.
        gpus: All of them.

    Raises:
        ArgsError: A key has a value that cannot be counted, or a file is missing.
    """
    adapter, method = _adapter(recipe), _method(recipe)
    sharding, deepspeed = _sharding(recipe)
    half = recipe.weight_precision != "fp32"
    zero, fsdp = deepspeed.get("zero_optimization", {}), recipe.fsdp_config or {}
    attention = recipe.attn_implementation or ("flash" if recipe.flash_attention else None)
    return TrainingSetup(
        gpus=gpus,
        shards=_shards(recipe, sharding, gpus),
        sharding=sharding,
        half=half,
        wide_ends=half
        and sharding == "none"
        and adapter is None
        and attention in (None, "sdpa", "eager")
        and not recipe.cut_cross_entropy,
        optimizer=_optimizer(recipe),
        micro_batch_size=_positive("micro_batch_size", recipe.micro_batch_size or 1),
        sequence_tokens=recipe.sequence_tokens,
        # For kto the second is the row's answer to another prompt.
        sequences=2 if method in PAIR_METHODS else 1,
        checkpointing=bool(recipe.gradient_checkpointing or fsdp.get("activation_checkpointing")),
        offload_activations=bool(recipe.activation_offloading)
        or str(recipe.gradient_checkpointing).startswith("offload"),
        full_logits=not any(getattr(recipe, key) for key in FUSED_LOSSES),
        adapter=adapter,
        unfrozen=tuple(recipe.unfrozen_parameters or ()),
        reference=method in METHODS_WITH_REFERENCE and adapter is None and not recipe.precompute_ref_log_probs,
        offload_optimizer=_offloads(zero, "offload_optimizer"),
        offload_weights=_offloads(zero, "offload_param") or fsdp.get("offload_params") is True,
        buffers=_buffers(deepspeed),
    )


def not_counted(recipe: Recipe) -> list[str]:
    """Keys of the recipe whose effect on memory is not counted."""
    found = [key for key in NOT_COUNTED if _is_set(getattr(recipe, key))]
    return [*found, *(["attn_implementation"] if recipe.attn_implementation == "eager" else [])]


def _is_set(value: Any) -> bool:
    """Whether a key says something; a degree of parallelism of 1 does not."""
    return bool(value) and (type(value) is not int or value > 1)


def _method(recipe: Recipe) -> str | None:
    method = recipe.rl
    if method is not None and method not in PAIR_METHODS:
        known = ", ".join(PAIR_METHODS)
        raise ArgsError(f"rl: {method!r}; the memory of this training is not known here, only of {known}")
    return method


def _optimizer(recipe: Recipe) -> Optimizer:
    name = str(recipe.optimizer)
    if name not in OPTIMIZERS:
        raise ArgsError(
            f"optimizer: {name!r}; what it keeps for each parameter is not known here. Known: {', '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[name]


def _adapter(recipe: Recipe) -> Adapter | None:
    kind = recipe.adapter
    if not kind:
        return None
    if kind not in ("lora", "qlora"):
        raise ArgsError(f"adapter: {kind!r}; the memory of this adapter is not known here, only of lora and qlora")
    if kind == "qlora" and not recipe.load_in_4bit:
        raise ArgsError("load_in_4bit: missing; adapter: qlora needs load_in_4bit: true, or Axolotl refuses the recipe")
    targets = recipe.lora_target_modules
    if isinstance(targets, str):
        raise ArgsError(f"lora_target_modules: {targets!r:.200}; expected a list of names")
    return Adapter(
        rank=_positive("lora_r", recipe.lora_r),
        targets=None if recipe.lora_target_linear or not targets else tuple(targets),
        dropout=recipe.lora_dropout or 0.0,
        bits=4 if recipe.load_in_4bit else 8 if recipe.load_in_8bit else 16,
        layers=tuple(recipe.peft_layers_to_transform) if recipe.peft_layers_to_transform else None,
        stacks=tuple(recipe.peft_layers_pattern or ()),
        copied=tuple(recipe.lora_modules_to_save or ()),
    )


def _sharding(recipe: Recipe) -> tuple[Sharding, Mapping[str, Any]]:
    """What is divided, and the content of the DeepSpeed file."""
    if recipe.fsdp_config:
        return "fsdp2", {}
    if not recipe.deepspeed:
        return "none", {}
    config = _deepspeed_config(recipe.deepspeed, recipe.path)
    stage = config.get("zero_optimization", {}).get("stage")
    stages: dict[Any, Sharding] = {1: "zero1", 2: "zero2", 3: "zero3"}
    if stage not in stages:
        raise ArgsError(f"deepspeed: zero_optimization.stage is {stage!r}; expected 1, 2 or 3")
    return stages[stage], config


def _deepspeed_config(value: str | Mapping[str, Any], recipe_path: Path | None) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    above = recipe_path.absolute().parents if recipe_path else ()
    places = [Path(value), *(folder / value for folder in above)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ArgsError(
            f"deepspeed: {value} is no file here, nor above {recipe_path}; give the path of a DeepSpeed JSON"
        )
    fix = "give a DeepSpeed JSON such as recipes/deepspeed/zero3_bf16.json"
    config = read_json_object(found, error=lambda text: ArgsError(f"deepspeed: {text}"), fix=fix)
    if not isinstance(zero := config.get("zero_optimization", {}), Mapping):
        raise ArgsError(f"deepspeed: {found}: zero_optimization is {zero!r:.50}, expected an object; {fix}")
    return config


def _buffers(deepspeed: Mapping[str, Any]) -> DeepSpeedBuffers:
    zero, default = deepspeed.get("zero_optimization", {}), DeepSpeedBuffers()

    def elements(key: str, otherwise: int) -> int:
        value = zero.get(key, otherwise)
        return int(value) if isinstance(value, int | float) else otherwise

    bucket = zero.get("reduce_bucket_size")
    accumulated = deepspeed.get("data_types", {}).get("grad_accum_dtype")
    return DeepSpeedBuffers(
        reduce_bucket=None if bucket == "auto" else elements("reduce_bucket_size", 500_000_000),
        max_live=elements("stage3_max_live_parameters", default.max_live),
        sub_group=elements("sub_group_size", default.sub_group),
        overlap=bool(zero.get("overlap_comm", zero.get("stage") == 3)),
        gradient_bytes={"fp32": 4, "fp16": 2, "bf16": 2}.get(accumulated),
    )


def _offloads(zero: Mapping[str, Any], key: str) -> bool:
    block = zero.get(key)
    return isinstance(block, Mapping) and block.get("device", "none") != "none"


def _shards(recipe: Recipe, sharding: Sharding, gpus: int) -> int:
    if sharding != "fsdp2":
        return gpus if sharding != "none" else 1
    copies = _positive("dp_replicate_size", recipe.dp_replicate_size or 1)
    return _positive("dp_shard_size", recipe.dp_shard_size or max(1, gpus // copies))


def _positive(key: str, value: int | None) -> int:
    if value is None or value < 1:
        raise ArgsError(f"{key}: {value!r}; expected a positive whole number")
    return value
