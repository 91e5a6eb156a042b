"""From a recipe and its DeepSpeed file to a `TrainingSetup`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
NOT_ESTIMATED = (
    "tensor_parallel_size", "context_parallel_size", "expert_parallel_size", "fp8", "torch_compile", "relora",
    "selective_checkpointing", "activation_offloading", "precompute_ref_log_probs", "load_in_8bit",
    "lora_target_parameters", "peft_use_dora", "lora_fp32_gradients", "qat",
)  # fmt: skip
"""Keys whose effect on memory is not estimated; a report lists those that a recipe sets."""
NOT_ESTIMATED_IN_DEEPSPEED = {
    "zero_optimization": ("offload_optimizer", "offload_param"),
    "data_types": ("grad_accum_dtype",),
}


class Devices(NamedTuple):
    """The GPUs that a recipe is estimated for."""

    gpus: int
    gpus_from: str
    memory_bytes: int | None
    """Of each GPU; None if not known."""


def devices_of(gpus: int | None, gpu_gigabytes: float | None) -> Devices:
    """Number and memory of the GPUs: as given, else ``WORLD_SIZE`` of them, else one.

    Raises:
        ArgsError: ``WORLD_SIZE`` is not a positive integer.
    """
    memory_bytes = round(gpu_gigabytes * 1e9) if gpu_gigabytes else None
    world = os.environ.get("WORLD_SIZE")
    if gpus:
        return Devices(gpus, "--gpus", memory_bytes)
    if world:
        if not world.isdecimal() or int(world) < 1:
            raise ArgsError(
                f"WORLD_SIZE: {world!r} in the environment; expected a positive integer. Unset it, or use --gpus"
            )
        return Devices(int(world), "WORLD_SIZE", memory_bytes)
    return Devices(1, "the default; set yours with --gpus", memory_bytes)


def setup_of(recipe: Recipe, gpus: int) -> TrainingSetup:
    """How the recipe trains on ``gpus`` GPUs.

    Args:
        recipe: The recipe. Its DeepSpeed file is looked up in the working directory, then in the folders above the
            recipe.
        gpus: All GPUs of all nodes.

    Raises:
        ArgsError: A key has a value whose memory cannot be estimated, or a file is missing.
    """
    adapter, method = _adapter(recipe), _method(recipe)
    sharding, deepspeed = _sharding(recipe)
    compute_bits: Literal[16, 32] = 32 if recipe.weight_precision == "fp32" else 16
    attention = recipe.attn_implementation or ("flash" if recipe.flash_attention else None)
    return TrainingSetup(
        gpus=gpus,
        shards=_shards(recipe, sharding, gpus),
        sharding=sharding,
        compute_bits=compute_bits,
        fp32_embeddings_and_norms=compute_bits == 16
        and sharding == "none"
        and adapter is None
        and attention in (None, "sdpa", "eager")
        and not recipe.cut_cross_entropy,
        optimizer=_optimizer(recipe),
        micro_batch_size=_positive("micro_batch_size", recipe.micro_batch_size or 1),
        sequence_tokens=recipe.sequence_tokens,
        # For kto the second sequence is the row's answer to another prompt.
        sequences=2 if method in PAIR_METHODS else 1,
        checkpointing=bool(recipe.gradient_checkpointing or (recipe.fsdp_config or {}).get("activation_checkpointing")),
        full_logits=not any(getattr(recipe, key) for key in FUSED_LOSSES),
        adapter=adapter,
        unfrozen=tuple(recipe.unfrozen_parameters or ()),
        reference=method in METHODS_WITH_REFERENCE and adapter is None,
        buffers=_buffers(deepspeed),
    )


def not_estimated(recipe: Recipe) -> list[str]:
    """The settings of a recipe whose effect on memory is not estimated, such as ``fp8: True``.

    Raises:
        ArgsError: The DeepSpeed file is missing or not valid.
    """
    found = {key: value for key in NOT_ESTIMATED if _is_set(value := getattr(recipe, key))}
    if recipe.attn_implementation == "eager":
        found["attn_implementation"] = "eager"
    if str(recipe.gradient_checkpointing).startswith("offload"):
        found["gradient_checkpointing"] = recipe.gradient_checkpointing
    if (offload := (recipe.fsdp_config or {}).get("offload_params")) is True:
        found["fsdp_config.offload_params"] = offload
    _, deepspeed = _sharding(recipe)
    for block, keys in NOT_ESTIMATED_IN_DEEPSPEED.items():
        content: Any = deepspeed.get(block)
        for key in keys if isinstance(content, Mapping) else ():
            value = content.get(key)
            chosen = value.get("device") if isinstance(value, Mapping) else value
            if chosen not in (None, "none"):
                found[f"deepspeed: {block}.{key}"] = chosen
    return [f"{key}: {value!s:.80}" for key, value in found.items()]


def _is_set(value: Any) -> bool:
    """Whether a key has an effect; a degree of parallelism of 1 has none."""
    return bool(value) and (type(value) is not int or value > 1)


def _method(recipe: Recipe) -> str | None:
    method = recipe.rl
    if method is not None and method not in PAIR_METHODS:
        known = ", ".join(PAIR_METHODS)
        raise ArgsError(f"rl: {method!r}; memory is not estimated for this method, only without rl: and for {known}")
    return method


def _optimizer(recipe: Recipe) -> Optimizer:
    name = str(recipe.optimizer)
    if name not in OPTIMIZERS:
        raise ArgsError(
            f"optimizer: {name!r}; memory is not estimated for this optimizer. For an estimate, set one of "
            f"{', '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[name]


def _adapter(recipe: Recipe) -> Adapter | None:
    kind = recipe.adapter
    if not kind:
        return None
    if kind not in ("lora", "qlora"):
        raise ArgsError(f"adapter: {kind!r}; memory is not estimated for this adapter, only for lora and qlora")
    if kind == "qlora" and not recipe.load_in_4bit:
        raise ArgsError("load_in_4bit: missing; adapter: qlora needs load_in_4bit: true, or Axolotl rejects the recipe")
    targets = recipe.lora_target_modules
    if isinstance(targets, str):
        raise ArgsError(f"lora_target_modules: {targets!r:.200}; memory is estimated only for a list of module names")
    return Adapter(
        rank=_positive("lora_r", recipe.lora_r),
        targets=None if recipe.lora_target_linear or not targets else tuple(targets),
        dropout=recipe.lora_dropout or 0.0,
        bits=4 if recipe.load_in_4bit else 16,
        layers=tuple(recipe.peft_layers_to_transform) if recipe.peft_layers_to_transform else None,
        layers_pattern=tuple(recipe.peft_layers_pattern or ()),
        modules_to_save=tuple(recipe.lora_modules_to_save or ()),
    )


def _sharding(recipe: Recipe) -> tuple[Sharding, Mapping[str, Any]]:
    """What is sharded, and the content of the DeepSpeed file."""
    if recipe.fsdp_config:
        return "fsdp2", {}
    if not recipe.deepspeed:
        return "none", {}
    config = _deepspeed_config(recipe.deepspeed, recipe.path)
    stage = config.get("zero_optimization", {}).get("stage")
    stages: dict[Any, Sharding] = {1: "zero1", 2: "zero2", 3: "zero3"}
    if stage not in stages:
        raise ArgsError(f"deepspeed: zero_optimization.stage is {stage!r}; memory is estimated only for 1, 2 and 3")
    return stages[stage], config


def _deepspeed_config(value: str | Mapping[str, Any], recipe_path: Path | None) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    folders = recipe_path.absolute().parents if recipe_path else ()
    candidates = [Path(value), *(folder / value for folder in folders)]
    found = next((path for path in candidates if path.is_file()), None)
    fix = "set it to the path of a DeepSpeed JSON such as recipes/deepspeed/zero3_bf16.json"
    if found is None:
        raise ArgsError(
            f"deepspeed: {value} does not exist, neither in the working directory nor above {recipe_path}; {fix}"
        )
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
    return DeepSpeedBuffers(
        reduce_bucket=None if bucket == "auto" else elements("reduce_bucket_size", 500_000_000),
        max_live=elements("stage3_max_live_parameters", default.max_live),
        sub_group=elements("sub_group_size", default.sub_group),
        overlap=bool(zero.get("overlap_comm", zero.get("stage") == 3)),
    )


def _shards(recipe: Recipe, sharding: Sharding, gpus: int) -> int:
    if sharding != "fsdp2":
        return gpus if sharding != "none" else 1
    replicas = _positive("dp_replicate_size", recipe.dp_replicate_size or 1)
    return _positive("dp_shard_size", recipe.dp_shard_size or max(1, gpus // replicas))


def _positive(key: str, value: int | None) -> int:
    if value is None or value < 1:
        raise ArgsError(f"{key}: {value!r}; expected a positive integer")
    return value
