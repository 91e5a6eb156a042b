"""Memory of each GPU in set-ups that many use, for ``solar plan`` without a recipe's own settings. Pure."""

from __future__ import annotations

from typing import NamedTuple

from solar_plugins.memory.parameters import Model
from solar_plugins.memory.parts import memory_parts, peaks
from solar_plugins.memory.training_setup import Adapter, TrainingSetup

LORA_RANK = 16

NOTE = (
    f"one sequence at a time, gradient checkpointing, AdamW, LoRA of rank {LORA_RANK} on all maps of the layers; "
    "solar plan RECIPE --memory counts a recipe's own settings and prints the arithmetic"
)


class SetupMemory(NamedTuple):
    """What one GPU holds in one set-up, in bytes."""

    setup: str
    gpus: int
    state_bytes: int
    """Weights, gradients, master weights and optimizer states."""
    total_bytes: int
    """At the peak."""


def common_setups(model: Model, sequence_tokens: int) -> list[SetupMemory]:
    """The memory of a model in the common set-ups."""
    lora = Adapter(rank=LORA_RANK)
    setups = {
        **{
            f"full, ZeRO-3, {gpus} GPUs": TrainingSetup(
                gpus=gpus, shards=gpus, sharding="zero3", sequence_tokens=sequence_tokens
            )
            for gpus in (8, 64)
        },
        "full, FSDP2 in bf16 alone, 8 GPUs": TrainingSetup(
            gpus=8, shards=8, sharding="fsdp2", sequence_tokens=sequence_tokens
        ),
        "LoRA, bf16, 1 GPU": TrainingSetup(adapter=lora, sequence_tokens=sequence_tokens),
        "QLoRA, 4 bit, 1 GPU": TrainingSetup(adapter=Adapter(rank=LORA_RANK, bits=4), sequence_tokens=sequence_tokens),
        "full, fp32, 1 CPU": TrainingSetup(half=False, sequence_tokens=sequence_tokens),
    }
    return [_memory(name, model, setup) for name, setup in setups.items()]


STATES = ("weights", "gradients", "master weights", "optimizer states")


def _memory(name: str, model: Model, setup: TrainingSetup) -> SetupMemory:
    parts = memory_parts(model, setup)
    states = sum(part.num_bytes for part in parts if part.name in STATES)
    return SetupMemory(name, setup.gpus, states, max(peaks(parts).values()))
