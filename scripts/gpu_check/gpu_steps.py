"""The first four steps of the GPU check: upscaling, QLoRA, memory, throughput. Each adds its runs to its results."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gpu_recovery import recovery
from gpu_runs import HERE, SOLAR, Check, attempt, attempt_all, estimated_memory, make_base, run_limited, train
from gpu_settings import CACHE, LARGE, LARGE_UPSCALED, SOLAR_PLUGIN, Recipe, Settings, adapter_recipe, small_recipe

QLORA, LORA = "solar_sft_qlora.yml", "solar_sft_lora.yml"
HIDDEN_PLUGIN = "solar_plugins"
LINEARS_PER_LAYER = 7
"""Linear modules in a Mistral layer: four in the attention, three in the MLP."""
WITH, WITHOUT = "with", "without"


def make_upscaled(check: Check) -> dict[str, Any]:
    """Upscale the random checkpoint with ``solar upscale``, replacing the result of an earlier call."""
    make_base(check)
    target = check.folder / LARGE_UPSCALED
    shutil.rmtree(target, ignore_errors=True)
    drop = str(check.settings.large_drop_layers)
    command = [*SOLAR, "upscale", check.folder / LARGE, target, "--drop-layers", drop]
    usage = run_limited(command, check.folder, "upscale", check.clock)
    written = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    return {
        "seconds": usage.seconds,
        "bytes": written,
        "bytes_per_second": written / usage.seconds,
        "host_peak_bytes": usage.peak_bytes,
    }


def upscale(check: Check) -> None:
    """Time, and a check of the loaded model: no missing keys, every layer as planned, finite logits."""
    attempt(check, "upscale", lambda: make_upscaled(check))
    attempt(check, "load", lambda: load(check))


def load(check: Check) -> dict[str, Any]:
    _require_upscaled(check)
    result = check.folder / "load.json"
    command = [sys.executable, HERE / "gpu_load_check.py", check.folder / LARGE_UPSCALED,
               check.folder / f"{LARGE}.checksums.json", str(check.settings.large_drop_layers), result]  # fmt: skip
    run_limited(command, check.folder, "load", check.clock)
    metrics = json.loads(result.read_text())
    problems = [
        problem
        for problem, seen in {
            f"keys {metrics['missing_or_unexpected'][:3]} missing or unexpected": metrics["missing_or_unexpected"],
            f"layers {metrics['wrong_layers'][:3]} do not have the weights of the plan": metrics["wrong_layers"],
            "two layers of the base have the same checksum": not metrics["distinct_base_sums"],
            "the logits are not finite": not metrics["logits_finite"],
        }.items()
        if seen
    ]
    if problems:
        raise RuntimeError("; ".join(problems))
    return metrics


def _require_upscaled(check: Check) -> None:
    """Write the upscaled checkpoint if it is missing, for example because it was measured on another machine."""
    if not (check.folder / LARGE_UPSCALED / "config.json").is_file():
        make_upscaled(check)


def qlora(check: Check) -> None:
    """Two steps of QLoRA on the large checkpoint, with the memory estimate."""
    _require_upscaled(check)
    attempt(check, "QLoRA", lambda: _train_qlora(check))


def _train_qlora(check: Check) -> dict[str, Any]:
    metrics = _against_estimate(check, "qlora", adapter_recipe(check.settings, QLORA))
    layers = 2 * (check.settings.large_config["num_hidden_layers"] - check.settings.large_drop_layers)
    found = (metrics["num_layers"], metrics["four_bit_tensors"])
    if found != (layers, LINEARS_PER_LAYER * layers):
        raise RuntimeError(
            f"{found[0]} layers and {found[1]} tensors in 4 bits, expected {layers} and "
            f"{LINEARS_PER_LAYER * layers}: the checkpoint was upscaled again, or not quantized"
        )
    return metrics


def memory(check: Check) -> None:
    """Peak memory of several setups against ``solar plan --memory``."""
    if check.settings.small_base is None:
        make_base(check)
    attempt_all(check, (
        (name, partial(_memory_of, check, f"memory-{_file_name(name)}", recipe))
        for name, recipe in memory_setups(check.settings, check.folder)
    ))  # fmt: skip


def _memory_of(check: Check, name: str, recipe: Recipe) -> dict[str, Any]:
    if recipe["base_model"] == LARGE_UPSCALED:
        _require_upscaled(check)
    return _against_estimate(check, name, recipe)


def memory_setups(settings: Settings, folder: Path) -> Iterator[tuple[str, Recipe]]:
    """Full training of the small model, then LoRA on the large one."""
    for tokens in settings.memory_tokens:
        for checkpointing in (False, True):
            name = f"full, {tokens} tokens" + (", gradient checkpointing" if checkpointing else "")
            yield name, small_recipe(
                settings, folder, grown=True, sequence_len=tokens, micro_batch_size=settings.memory_batch,
                max_steps=settings.memory_steps, gradient_checkpointing=checkpointing,
            )  # fmt: skip
    yield (
        f"LoRA, {settings.adapter_tokens} tokens",
        adapter_recipe(settings, LORA, micro_batch_size=1, gradient_accumulation_steps=1),
    )


def _file_name(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def as_trained(recipe: Recipe) -> Recipe:
    """The recipe for ``solar plan --memory``, without ``solar`` if its checkpoint is already upscaled."""
    return {key: value for key, value in recipe.items() if key != "solar" or recipe["base_model"] != LARGE_UPSCALED}


def _against_estimate(check: Check, name: str, recipe: Recipe) -> dict[str, Any]:
    """Train for a few steps, and return losses, peak memory and the estimate."""
    estimate = estimated_memory(check.folder, name, as_trained(recipe))
    metrics = train(check.folder, name, recipe, check.clock)
    if estimate["num_layers"] != metrics["num_layers"]:
        raise RuntimeError(
            f"{name}: solar plan --memory counts {estimate['num_layers']} layers, training {metrics['num_layers']}"
        )
    if not all(map(math.isfinite, metrics["losses"])):
        raise RuntimeError(f"{name}: the losses are {metrics['losses']}, expected finite values")
    measured = (metrics["train_peak"] or {}).get("allocated")
    return metrics | {"estimate": estimate, "measured_over_estimated": measured and measured / estimate["peak_bytes"]}


def throughput(check: Check) -> None:
    """Tokens per second with and without the plugin, alternating, after a first run that fills the caches."""
    settings, folder = check.settings, check.folder
    if settings.small_base is None:
        make_base(check)
    recipe = small_recipe(settings, folder, grown=True, max_steps=settings.throughput_steps)
    if not any((folder / CACHE).glob("upscaled-*")):
        check.results.runs.pop("first", None)  # It was measured, but its checkpoint is not on this machine.
    if attempt(check, "first", lambda: train(folder, "throughput-first", recipe, check.clock)) is None:
        return
    (cached,) = (folder / CACHE).glob("upscaled-*")
    plain = {key: value for key, value in recipe.items() if key != "solar"} | {
        "base_model": str(cached.relative_to(folder)),
        "plugins": [name for name in recipe["plugins"] if name != SOLAR_PLUGIN],
    }
    for number in range(1, settings.throughput_rounds + 1):
        for way, chosen, hidden in ((WITH, recipe, "-"), (WITHOUT, plain, HIDDEN_PLUGIN)):
            attempt(check, f"{way} {number}", partial(_speed, check, way, chosen, hidden))


def _speed(check: Check, way: str, recipe: Recipe, hidden: str) -> dict[str, Any]:
    metrics = train(check.folder, f"throughput-{way}", recipe, check.clock, hidden=hidden)
    if metrics["plugin_loaded"] != (way == WITH):
        raise RuntimeError(f"the plugin was {'' if metrics['plugin_loaded'] else 'not '}loaded in the run {way} it")
    rate = tokens_per_second(metrics["step_seconds"], metrics["step_tokens"], check.settings.warm_up_steps)
    return metrics | {"tokens_per_second": rate}


def tokens_per_second(seconds: list[float], tokens: list[int], warm_up: int) -> float:
    """The rate without the first steps, which compile and allocate.

    Args:
        seconds: Of each step.
        tokens: Training tokens up to the end of each step.
        warm_up: Number of steps that are not counted.

    Example:
        >>> tokens_per_second([9.0, 1.0, 1.0], [10, 20, 30], warm_up=1)
        10.0
    """
    return (tokens[-1] - tokens[warm_up - 1]) / math.fsum(seconds[warm_up:])


STEPS = {"upscale": upscale, "qlora": qlora, "memory": memory, "throughput": throughput, "recovery": recovery}
