"""Sizes of the GPU check and of its rehearsal on a CPU, and the recipes of both.

Every path in a recipe is relative to the work folder, in which Axolotl runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from gpu_random_base import MISTRAL_7B

from solar_plugins.plugins.recipe_packs import recipe_directory

Recipe = dict[str, Any]

LARGE, LARGE_UPSCALED, DATA, CACHE, PREPARED = "large", "large-upscaled", "data", "cache", "prepared"
RECOVERY_CACHE = "cache-recovery"
"""Apart, because throughput takes the one checkpoint in `CACHE`."""
METRICS_PLUGIN = "gpu_metrics.MetricsPlugin"
SOLAR_PLUGIN = "solar_plugins.SolarPlugin"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What differs between a GPU and the rehearsal.

    Args:
        tiny: The rehearsal on a CPU.
        large_config: Config of the random base to upscale.
        large_drop_layers: m for it.
        small_base: The checkpoint to train; None: a random one of ``large_config``.
        small_drop_layers: m for that.
        numbers: Recipe keys for number format and kernels of the bfloat16 setups.
        exact_numbers: The same for comparing models: fp32 weights, because bfloat16 loses updates smaller than 1/256
            of a weight (Axolotl trains pure bfloat16 weights). gpu_metrics then asks for mixed precision, which is
            faster and uses less memory: torch has no fused attention for fp32 with fewer key than query heads.
        adapter_changes: Additional recipe keys for LoRA and QLoRA.
        adapter_tokens: Sequence length with adapters.
        memory_tokens: Sequence lengths of the memory step.
        memory_batch: Sequences per step in it.
        batch: Sequences per step with the small model.
        sequence_tokens: Their length.
        memory_steps: Optimizer steps of a memory run.
        throughput_steps: Steps of a throughput run, of which the first `warm_up_steps` are not counted.
        throughput_rounds: Runs with, and without, the plugin.
        recovery_batch: Sequences per step of a recovery run. Two runs at once fit in 80 GB.
        recovery_steps: Its steps, at equal tokens.
        eval_every: Steps between two evaluations in it.
        probed: Where the repeated block of the probe's best plan begins.
        learning_rates: Where every weight is trained, the most likely one first.
        some_layers_rates: The same where only some layers are.
        seeds: The first for every learning rate, the others for each arm's best.
    """

    tiny: bool = False
    large_config: Mapping[str, Any]
    large_drop_layers: int
    small_base: Path | None
    small_drop_layers: int
    numbers: Mapping[str, Any]
    exact_numbers: Mapping[str, Any]
    adapter_changes: Mapping[str, Any]
    adapter_tokens: int
    memory_tokens: tuple[int, ...]
    memory_batch: int
    batch: int
    sequence_tokens: int
    memory_steps: int = 3
    throughput_steps: int
    warm_up_steps: int
    throughput_rounds: int
    recovery_batch: int
    recovery_steps: int
    eval_every: int
    probed: int
    learning_rates: tuple[float, ...]
    some_layers_rates: tuple[float, ...]
    seeds: tuple[int, ...]


FP32 = {"bf16": False, "fp16": False, "tf32": False}

GPU = Settings(
    large_config=MISTRAL_7B,
    large_drop_layers=8,
    small_base=Path("runs/smollm2/SmolLM2-135M"),
    small_drop_layers=6,
    numbers={"bf16": True, "tf32": True},
    exact_numbers=FP32 | {"tf32": True},
    adapter_changes={},
    adapter_tokens=2_048,
    memory_tokens=(1_024, 4_096),
    memory_batch=4,
    batch=16,
    sequence_tokens=1_024,
    throughput_steps=60,
    warm_up_steps=10,
    throughput_rounds=3,
    recovery_batch=8,
    recovery_steps=480,
    eval_every=60,
    probed=2,
    learning_rates=(3.0e-4, 1.0e-3, 1.0e-4),
    some_layers_rates=(1.0e-3, 3.0e-3, 3.0e-4),
    seeds=(42, 43),
)

TINY = Settings(
    tiny=True,
    large_config=MISTRAL_7B
    | {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    large_drop_layers=2,
    small_base=None,
    small_drop_layers=2,
    numbers=FP32,
    exact_numbers=FP32,
    # Triton kernels and paged optimizers need a GPU.
    adapter_changes={
        "optimizer": "adamw_torch",
        **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"), False),
    },
    adapter_tokens=64,
    memory_tokens=(64,),
    memory_batch=1,
    batch=2,
    sequence_tokens=64,
    memory_steps=1,
    throughput_steps=3,
    warm_up_steps=1,
    throughput_rounds=1,
    recovery_batch=2,
    recovery_steps=4,
    eval_every=2,
    probed=1,
    learning_rates=(1.0e-3,),
    some_layers_rates=(1.0e-3,),
    seeds=(42,),
)


def small_recipe(settings: Settings, folder: Path, *, grown: bool, **changes: Any) -> Recipe:
    """recipes/smollm2/solar_dus.yml with other sizes, with or without its upscaling.

    Args:
        settings: The sizes.
        folder: The work folder.
        grown: With the ``solar:`` block; without it, the base itself is trained.
        **changes: Additional keys.
    """
    base = settings.small_base
    recipe = _shipped("smollm2/solar_dus.yml") | {
        "base_model": os.path.relpath(base, folder) if base else LARGE,
        "plugins": [METRICS_PLUGIN, *([SOLAR_PLUGIN] if grown else [])],
        "solar": {"init": {"strategy": "dus", "drop_layers": settings.small_drop_layers}, "cache_dir": CACHE},
        "sequence_len": settings.sequence_tokens,
        "micro_batch_size": settings.batch,
        **settings.numbers,
        **_data(),
    }
    for key in ("test_datasets", "eval_steps", "save_steps", "save_only_model", *(() if grown else ("solar",))):
        del recipe[key]
    return recipe | changes


def adapter_recipe(settings: Settings, name: str, **changes: Any) -> Recipe:
    """A shipped adapter recipe for instruction tuning, changed to the large upscaled checkpoint and to plain text.

    Its ``solar.init`` is the plan of that checkpoint, so the plugin has to detect that it is already upscaled.
    """
    recipe = _shipped(name) | {
        "base_model": LARGE_UPSCALED,
        "plugins": [METRICS_PLUGIN, SOLAR_PLUGIN],
        "solar": {"init": {"strategy": "dus", "drop_layers": settings.large_drop_layers}, "cache_dir": CACHE},
        "attn_implementation": "sdpa",  # needs no additional package
        "sample_packing": False,  # sdpa does not separate packed rows
        "sequence_len": settings.adapter_tokens,
        "max_steps": 2,
        **settings.numbers,
        **settings.adapter_changes,
        **_data(),
    }
    for key in ("num_epochs", "save_total_limit"):
        del recipe[key]
    return recipe | changes


def _shipped(name: str) -> Recipe:
    return yaml.safe_load((recipe_directory() / name).read_text(encoding="utf-8"))


def _data() -> Recipe:
    """The training data; the metrics plugin evaluates on the held-out data."""
    return {
        "datasets": [{"path": f"{DATA}/train.jsonl", "ds_type": "json", "type": "completion"}],
        "dataset_prepared_path": PREPARED,
        "save_strategy": "no",
        "logging_steps": 1,
    }
