"""What determines the memory of a training run besides the model: precision, sharding, optimizer, batch. Pure."""

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
    """Per element of a state; None: the width of the weight that the optimizer updates."""
    step_copies: int = 0
    """Temporary tensors of the parameters' shapes during the step: torch's foreach loops compute a square root."""


EIGHT_BIT = 1 + 4 / 256
"""Bytes per element in 8 bits with one fp32 scale per block of 256 (bitsandbytes, torchao)."""

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
        Optimizer("rmsprop", 1, step_copies=1),
        Optimizer("sgd", 0),
    )
}


@dataclass(frozen=True)
class Adapter:
    """LoRA on frozen weights.

    Args:
        rank: ``lora_r``.
        targets: Module names of the linear layers that get an adapter, such as ``q_proj``; None: all of the decoder's
            layers.
        dropout: ``lora_dropout``.
        bits: Of the frozen linear layers: 4 (NF4 with double quantization) or 16.
        layers: Indices of the layers that get an adapter; None: all.
        layers_pattern: ``peft_layers_pattern``: where these layers are in the model; empty: anywhere.
        modules_to_save: ``lora_modules_to_save``: modules of which a full copy is trained.
    """

    rank: int
    targets: tuple[str, ...] | None = None
    dropout: float = 0.0
    bits: Literal[4, 16] = 16
    layers: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()


@dataclass(frozen=True)
class DeepSpeedBuffers:
    """Buffer sizes in elements, as in a DeepSpeed file, with DeepSpeed's defaults.

    Args:
        reduce_bucket: ``reduce_bucket_size``; None: "auto".
        max_live: ``stage3_max_live_parameters``; 0: only the parameters of the module that runs.
        sub_group: ``sub_group_size``; 0: one parameter at a time.
        overlap: ``overlap_comm``.
    """

    reduce_bucket: int | None = 500_000_000
    max_live: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    overlap: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """How a recipe trains.

    Args:
        gpus: All GPUs of all nodes.
        shards: Number of parts that the sharded tensors are divided into.
        sharding: How they are sharded.
        compute_bits: Of weights and activations.
        fp32_embeddings_and_norms: Whether embeddings, head and norms stay in fp32 even so: Axolotl does this for full
            training with sdpa or eager attention and neither DeepSpeed nor FSDP.
        optimizer: What it keeps.
        micro_batch_size: Samples per GPU and forward pass.
        sequence_tokens: Tokens of a sequence.
        sequences: Per sample; 2 for a preference pair.
        checkpointing: Keep only each layer's input, and recompute the layer in the backward pass.
        full_logits: Whether the loss is computed from the full logits; else it is fused with the head.
        adapter: Trained instead of the weights.
        unfrozen: ``unfrozen_parameters``: the parameters that are trained; empty: all.
        reference: Whether a frozen reference model is kept as well.
        buffers: DeepSpeed's.
    """

    gpus: int = 1
    shards: int = 1
    sharding: Sharding = "none"
    compute_bits: Literal[16, 32] = 16
    fp32_embeddings_and_norms: bool = False
    optimizer: Optimizer = OPTIMIZERS["adamw_torch_fused"]
    micro_batch_size: int = 1
    sequence_tokens: int
    sequences: int = 1
    checkpointing: bool = True
    full_logits: bool = True
    adapter: Adapter | None = None
    unfrozen: tuple[str, ...] = ()
    reference: bool = False
    buffers: DeepSpeedBuffers = DeepSpeedBuffers()

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed trains."""
        return self.sharding in ("zero1", "zero2", "zero3")

    @property
    def has_master_weights(self) -> bool:
        """Whether the optimizer updates fp32 copies of 16-bit weights."""
        return self.deepspeed and self.compute_bits == 16

    @property
    def shards_weights(self) -> bool:
        """Whether each GPU holds only a part of the weights."""
        return self.sharding in ("zero3", "fsdp2")

    @property
    def tokens(self) -> int:
        """Tokens per GPU and forward pass."""
        return self.micro_batch_size * self.sequences * self.sequence_tokens

    @property
    def element_bytes(self) -> int:
        """Bytes per element of weights and activations."""
        return self.compute_bits // 8
