"""What would make a recipe fit: changes of its keys, each on top of those before it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from solar_plugins.memory.parameters import Model
from solar_plugins.memory.parts import memory_parts, peaks
from solar_plugins.memory.training_setup import OPTIMIZERS, Adapter, TrainingSetup

LORA_RANK = 16


class Change(NamedTuple):
    """A change of a recipe, made after those before it.

    Args:
        keys: As they are written in the recipe.
        peak_bytes: What a GPU then holds at most.
    """

    keys: str
    peak_bytes: int


def smaller_setups(model: Model, setup: TrainingSetup, peak_bytes: int) -> Iterator[Change]:
    """Changes that lower a GPU's peak, what costs least first.

    Recomputing and smaller batches leave the result as it is, and sharding too; optimizer states in 8 bits change it a
    little; adapters train something else.

    Args:
        model: The model that is trained.
        setup: How the recipe trains.
        peak_bytes: What a GPU holds at most now.
    """
    while True:
        for keys, changed in _changes(setup):
            peak = max(peaks(memory_parts(model, changed)).values())
            if peak < peak_bytes:
                setup, peak_bytes = changed, peak
                yield Change(keys, peak)
                break
        else:
            return


def _changes(setup: TrainingSetup) -> Iterator[tuple[str, TrainingSetup]]:
    """Every single change that can be made, in order."""
    if not setup.checkpointing:
        yield "gradient_checkpointing: true", replace(setup, checkpointing=True)
    if setup.micro_batch_size > 1:
        yield "micro_batch_size: 1, and more gradient_accumulation_steps", replace(setup, micro_batch_size=1)
    if setup.gpus > 1 and setup.adapter is None and not setup.shards_weights:
        keys = "deepspeed: recipes/deepspeed/zero3_bf16.json"
        yield keys, replace(setup, sharding="zero3", shards=setup.gpus, wide_ends=False)
    if not setup.deepspeed and setup.optimizer.state_bytes is None and setup.optimizer.states == 2:
        yield "optimizer: adamw_bnb_8bit", replace(setup, optimizer=OPTIMIZERS["adamw_bnb_8bit"])
    if setup.adapter is None and not setup.unfrozen:
        keys = f"adapter: lora, lora_r: {LORA_RANK}, lora_target_linear: true"
        yield keys, replace(setup, adapter=Adapter(LORA_RANK), wide_ends=False, reference=False)
    if setup.adapter is not None and setup.adapter.bits == 16:
        alone = "" if setup.sharding == "none" else ", no deepspeed or fsdp_config"
        yield (
            f"adapter: qlora, load_in_4bit: true{alone}",
            replace(setup, adapter=replace(setup.adapter, bits=4), sharding="none", shards=1),
        )
