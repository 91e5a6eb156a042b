"""What decides the memory of a training run, apart from the model: precision, sharding, optimizer, batch. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Sharding = Literal["none", "zero1", "zero2", "zero3", "fsdp2"]

SHARDING_NAMES: dict[Sharding, str] = {
    "none": "no sharding",
    "zero1": "DeepSpeed ZeRO-1",
    "zero2": "DeepSpeed ZeRO-2",
    "zero3": "DeepSpeed ZeRO-3",
    "fsdp2": "FSDP2",
}


class Optimizer(NamedTuple):
    """What an optimizer keeps for each trained parameter."""

    name: str
    states: int
    """Tensors of the parameter's shape."""
    state_bytes: float | None = None
    """Of an element of a state; None: as wide as the weight that the optimizer updates."""
    step_copies: int = 0
    """Tensors of the parameters' shapes that exist during the step only: torch's foreach loops take a square root."""


EIGHT_BIT = 1 + 4 / 256
"""Bytes of an element in 8 bits with one fp32 scale for a block of 256 (bitsandbytes, torchao)."""

OPTIMIZERS = {
    optimizer.name: optimizer
    for optimizer in (
        Optimizer("adamw_torch", 2, step_copies=1),
        Optimizer("adamw_torch_fused", 2),
        Optimizer("adamw_bnb_8bit", 2, EIGHT_BIT),
        Optimizer("adamw_8bit", 2, EIGHT_BIT),
        Optimizer("adamw_torch_8bit", 2, EIGHT_BIT),
        Optimizer("paged_adamw_8bit", 2, EIGHT_BIT),
        Optimizer("paged_adamw_32bit", 2, 4.0),
        Optimizer("lion_32bit", 1, 4.0),
        Optimizer("lion_8bit", 1, EIGHT_BIT),
        Optimizer("rmsprop", 1, step_copies=1),
        Optimizer("sgd", 0),
    )
}


@dataclass(frozen=True)
class Adapter:
    """LoRA over frozen weights.

    Args:
        rank: ``lora_r``.
        targets: Last parts of the names of the linear maps that get one; None: all of the decoder's layers.
        dropout: ``lora_dropout``.
        bits: Of the frozen linear maps: 4 (NF4 with doubly quantised scales), 8, or 16.
        layers: The numbers of the layers that get one; None: all.
        stacks: Where these layers stand, as ``peft_layers_pattern``; empty: anywhere.
        copied: ``lora_modules_to_save``: modules that are trained as a whole, as copies.
    """

    rank: int
    targets: tuple[str, ...] | None = None
    dropout: float = 0.0
    bits: int = 16
    layers: tuple[int, ...] | None = None
    stacks: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()


@dataclass(frozen=True)
class DeepSpeedBuffers:
    """Sizes in elements, as a DeepSpeed file states them, with DeepSpeed's defaults; None: "auto"."""

    reduce_bucket: int | None = 500_000_000
    max_live: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    overlap: bool = False
    gradient_bytes: int | None = None
    """Of ``data_types.grad_accum_dtype``; None: as the weights."""


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """How a recipe trains.

    Args:
        gpus: All of them, over all nodes.
        shards: Into how many parts what is sharded is divided.
        sharding: What is divided.
        half: Weights and activations in 16 bits, else in 32.
        wide_ends: Embeddings, head and norms in 32 bits all the same: Axolotl does so for full training with sdpa or
            eager attention and neither DeepSpeed nor FSDP.
        optimizer: What it keeps.
        micro_batch_size: Sequences, or pairs of them, that a GPU takes at once.
        sequence_tokens: Length of a sequence.
        sequences: In a sample: 2 for a pair.
        checkpointing: Keep each layer's input only, and compute the layer again in the backward pass.
        offload_activations: Keep those inputs in the host's memory.
        full_logits: The loss is taken from a whole matrix of logits.
        adapter: What is trained instead of the weights.
        unfrozen: ``unfrozen_parameters``: what is trained, if not everything.
        reference: A second, frozen model is kept beside the first.
        offload_optimizer: Gradients, master weights and optimizer states stay in the host's memory.
        offload_weights: So do the sharded weights.
        buffers: DeepSpeed's.
    """

    gpus: int = 1
    shards: int = 1
    sharding: Sharding = "none"
    half: bool = True
    wide_ends: bool = False
    optimizer: Optimizer = OPTIMIZERS["adamw_torch_fused"]
    micro_batch_size: int = 1
    sequence_tokens: int
    sequences: int = 1
    checkpointing: bool = True
    offload_activations: bool = False
    full_logits: bool = True
    adapter: Adapter | None = None
    unfrozen: tuple[str, ...] = ()
    reference: bool = False
    offload_optimizer: bool = False
    offload_weights: bool = False
    buffers: DeepSpeedBuffers = DeepSpeedBuffers()

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed trains."""
        return self.sharding in ("zero1", "zero2", "zero3")

    @property
    def shards_weights(self) -> bool:
        """Whether a GPU holds a part of the weights only."""
        return self.sharding in ("zero3", "fsdp2")

    @property
    def tokens(self) -> int:
        """That a GPU takes at once."""
        return self.micro_batch_size * self.sequences * self.sequence_tokens

    @property
    def element_bytes(self) -> int:
        """Of weights and activations."""
        return 2 if self.half else 4
