"""The interface of initializers: the base layer that they see, what they decide, and what they compute from. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from solar_plugins.errors import CheckpointError
from solar_plugins.solar_block import NoTruthValue
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.strategies.base import StrategyArgs, require_args

if TYPE_CHECKING:
    from torch import Generator, Tensor

Positive = Annotated[float, NoTruthValue, Field(gt=0, allow_inf_nan=False)]
"""A number above 0, or a string from the command line."""

type Start = Literal["zero", "computed"]
"""How a tensor that is not a copy is initialized."""


@dataclass(frozen=True, slots=True)
class BaseLayer:
    """The source layer of a new layer, from the config and the headers of the weights.

    Args:
        index: 0-based.
        decoder: The base's decoder.
        names: Its tensor names inside the layer, such as ``self_attn.o_proj.weight``. Empty if only the config is
        known. shapes: The shapes of its floating-point tensors. Others, such as masks, cannot be computed.
    """

    index: int
    decoder: Decoder
    names: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})

    @property
    def num_layers(self) -> int:
        """Depth of the base."""
        return self.decoder.num_layers

    @property
    def residual_writers(self) -> tuple[str, ...]:
        """The weights and biases of the modules whose output is added to the residual stream.

        Raises:
            CheckpointError: They are not known for this model type, or the layer lacks one.
        """
        modules = self.decoder.residual_writers
        missing = [module for module in modules if f"{module}.weight" not in self.names]
        if self.names and missing:
            raise CheckpointError(
                f"layer {self.index} has no {missing[0]}.weight, expected for its model_type, so it can only be "
                "copied; use a plan of copies"
            )
        return tuple(name for name in self.names if name.rpartition(".")[0] in modules)

    def require_alike(self, other: int) -> None:
        """Refuse to mix this layer with another one of a different kind.

        Raises:
            CheckpointError: They differ in a per-layer field of the config.
        """
        pairs = zip(*(self.decoder.layer_kinds[index] for index in (self.index, other)), strict=True)
        for field, (ours, theirs) in zip(self.decoder.fields, pairs, strict=True):
            if ours != theirs:
                raise CheckpointError(
                    f"base layers {self.index} and {other} differ in {field.key} ({ours} and {theirs}), so their "
                    "weights cannot be mixed; use an initializer that reads one layer only"
                )


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor of the deeper model to compute.

    Args:
        name: Its name inside the layer, such as ``self_attn.o_proj.weight``.
        source: The base layer in the plan.
        position: The position of its layer in the deeper model.
        num_layers: Depth of the base.
        read: Reads a tensor from disk by its name inside a layer and the base layer: in the stored dtype, on the CPU.
    """

    name: str
    source: int
    position: int
    num_layers: int
    read: Callable[[str, int], Tensor]

    def base(self, layer: int | None = None) -> Tensor:
        """The tensor of this name in the source layer, or in another base layer."""
        return self.read(self.name, self.source if layer is None else layer)

    def generator(self, seed: int) -> Generator:
        """A generator that depends only on the seed and the tensor, not on what was computed before."""
        import torch

        digest = hashlib.sha256(f"{seed}/{self.position}/{self.name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerInitializer[ArgsT: StrategyArgs]:
    """A named way to initialize a new layer.

    Args:
        name: The value of ``solar.init.duplicates``.
        args: Validates its arguments. Values from the command line are strings.
        starts: Returns how the tensors of a layer are initialized, by name; all others are copies. Pure, and without
            torch, because plans need it. It is called first with the config only, and again with the tensor names. It
            raises `CheckpointError` for a base that it does not support.
        compute: Pure function that computes the tensors that ``starts`` marks as computed, with the shape and dtype of
            the source's tensor. It must be deterministic to the bit on any machine: `solar verify` computes them again.
        passes_through: Whether such a layer outputs its input; all of `BaseLayer.residual_writers` must then be zero.
        summary: A one-line description.
        source: Where it was published.
    """

    name: str
    args: type[ArgsT]
    starts: Callable[[BaseLayer, ArgsT], Mapping[str, Start]]
    summary: str
    compute: Callable[[NewTensor, ArgsT], Tensor] | None = None
    passes_through: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        require_args(self.name, self.args)
