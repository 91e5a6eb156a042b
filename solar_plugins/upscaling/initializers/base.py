"""What an initializer is made of: what it is told of a base layer, what it decides, and what it computes from. Pure."""

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
"""A number above 0, or its text on a command line."""

type Start = Literal["zero", "computed"]
"""How a tensor starts that is not a copy."""


@dataclass(frozen=True, slots=True)
class BaseLayer:
    """A base layer that a new layer starts from, as the config and the headers of the weights tell.

    Args:
        index: 0-based.
        decoder: The base's.
        names: Of its tensors, inside the layer: ``self_attn.o_proj.weight``. Empty while only the config is known.
        shapes: Of its floating-point tensors. Others, such as masks, cannot be computed.
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
        """The weights and biases of its modules whose output is added to the residual stream.

        Raises:
            CheckpointError: Which they are is not tested for this model type, or the layer lacks one.
        """
        modules = self.decoder.residual_writers
        missing = [module for module in modules if f"{module}.weight" not in self.names]
        if self.names and missing:
            raise CheckpointError(
                f"layer {self.index} has no {missing[0]}.weight, so it cannot be initialised as anything but a copy; "
                "the checkpoint does not follow its model_type"
            )
        return tuple(name for name in self.names if name.rpartition(".")[0] in modules)

    def require_alike(self, other: int) -> None:
        """Refuse to mix this layer with another one that its config describes otherwise.

        Raises:
            CheckpointError: They differ in a per-layer field of the config.
        """
        pairs = zip(*(self.decoder.layer_kinds[index] for index in (self.index, other)), strict=True)
        for field, (ours, theirs) in zip(self.decoder.fields, pairs, strict=True):
            if ours != theirs:
                raise CheckpointError(
                    f"base layers {self.index} and {other} differ in {field.key} ({ours} and {theirs}), so their "
                    "weights cannot be mixed; use an initializer that reads one layer"
                )


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor of the deeper model that is to be computed.

    Args:
        name: Inside its layer: ``self_attn.o_proj.weight``.
        source: The base layer that the plan names.
        position: Of its layer in the deeper model.
        num_layers: Depth of the base.
        read: The tensor of a name inside a base layer, read anew from the disk: as it is stored, on the CPU.
    """

    name: str
    source: int
    position: int
    num_layers: int
    read: Callable[[str, int], Tensor]

    def base(self, layer: int | None = None) -> Tensor:
        """The tensor of this name in the source, or in another base layer."""
        return self.read(self.name, self.source if layer is None else layer)

    def generator(self, seed: int) -> Generator:
        """Random numbers that depend on the seed and the tensor alone, not on what was computed before."""
        import torch

        digest = hashlib.sha256(f"{seed}/{self.position}/{self.name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerInitializer[ArgsT: StrategyArgs]:
    """A named way for a new layer to start.

    Args:
        name: What ``solar.init.duplicates`` says.
        args: Validates its arguments. Values from a command line arrive as text.
        starts: How the tensors of a layer start, by name; what is not named is a copy. Pure, and without torch: plans
            are made from it. It is called with the config alone first, and then once more with the tensors' names; it
            raises `CheckpointError` for a base that it cannot treat.
        compute: Pure function that makes each tensor which ``starts`` calls computed, of the shape and dtype that the
            source's tensor has. The same input must give the same bits on any machine: `solar verify` computes it anew.
        passes_through: Whether a layer that starts so gives back its input: all of `BaseLayer.residual_writers` must be
            zero then.
        summary: One line for people.
        source: Where it is published.
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
