"""The built-in initializers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.initializers.base import BaseLayer, LayerInitializer, NewTensor, Positive, Start
from solar_plugins.upscaling.strategies.base import Count, StrategyArgs

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 20
"""Elements per chunk when noise is added."""


class NoArgs(StrategyArgs):
    """An initializer without arguments."""


class ScaledArgs(StrategyArgs):
    """Arguments of ``scaled``."""

    factor: Positive = Field(0.5, description="factor on the weights and biases; default 0.5")


class NoiseArgs(StrategyArgs):
    """Arguments of ``noise``."""

    relative: Positive = Field(0.01, description="standard deviation, relative to each matrix's RMS; default 0.01")
    seed: Count = Field(0, description="random seed; default 0")


def copied(layer: BaseLayer, args: NoArgs) -> Mapping[str, Start]:
    """All tensors are copies."""
    return {}


def zero_writers(layer: BaseLayer, args: NoArgs) -> Mapping[str, Start]:
    """The tensors that write to the residual stream are zero (Wu et al. 2024, arXiv:2401.02415 sec. 3.2)."""
    return dict.fromkeys(layer.residual_writers, "zero")


def changed_writers(layer: BaseLayer, args: ScaledArgs) -> Mapping[str, Start]:
    """The tensors that write to the residual stream, weights and biases, are computed."""
    return dict.fromkeys(layer.residual_writers, "computed")


def scaled(tensor: NewTensor, args: ScaledArgs) -> Tensor:
    """The source's tensor times the factor, in float32 or better, then rounded once."""
    base = tensor.base()
    return (_widened(base) * args.factor).to(base.dtype)


def changed_matrices(layer: BaseLayer, args: NoiseArgs) -> Mapping[str, Start]:
    """Matrices, stacked matrices (experts) and convolutions are computed; norms and biases are copies.

    Norms and biases have few values, each of which matters, and noise on the matrices is enough to break the symmetry.
    """
    return {name: "computed" for name, shape in layer.shapes.items() if len(shape) in (2, 3)}


def noisy(tensor: NewTensor, args: NoiseArgs) -> Tensor:
    """The source's tensor plus Gaussian noise.

    Computed in float64, so that after rounding the result does not depend on threads or vector instructions.
    """
    import torch

    result = tensor.base()
    blocks = torch.split(result.view(-1), BLOCK)
    squares = sum(float(block.double().square().numpy().sum()) for block in blocks)  # numpy sums in one thread.
    std = args.relative * (squares / max(1, result.numel())) ** 0.5
    generator = tensor.generator(args.seed)
    for block in blocks:
        noise = torch.randn(block.numel(), generator=generator, dtype=torch.float64)
        block.copy_(block.double() + std * noise)
    return result


def all_averaged(layer: BaseLayer, args: NoArgs) -> Mapping[str, Start]:
    """All floating-point tensors are computed; the neighboring layer must be of the same kind."""
    layer.require_alike(_neighbor(layer.index, layer.num_layers))
    return dict.fromkeys(layer.shapes, "computed")


def averaged(tensor: NewTensor, args: NoArgs) -> Tensor:
    """The mean of the source and the base layer above it; of the last layer, the one below it."""
    base, other = tensor.base(), tensor.base(_neighbor(tensor.source, tensor.num_layers))
    return ((_widened(base) + _widened(other)) / 2).to(base.dtype)


def _neighbor(layer: int, num_layers: int) -> int:
    if num_layers == 1:
        raise CheckpointError("average needs a base of at least 2 layers, found 1; use another initializer")
    return layer + 1 if layer + 1 < num_layers else layer - 1


def _widened(tensor: Tensor) -> Tensor:
    import torch

    return tensor if tensor.dtype == torch.float64 else tensor.float()


BUILT_IN: list[LayerInitializer[Any]] = [
    LayerInitializer(name="copy", args=NoArgs, starts=copied, summary="the base layer as it is"),
    LayerInitializer(
        name="identity",
        args=NoArgs,
        starts=zero_writers,
        passes_through=True,
        summary="a copy whose projections to the residual stream are zero: it outputs its input until it is trained",
        source="LLaMA Pro, arXiv:2401.02415 sec. 3.2",
    ),
    LayerInitializer(
        name="scaled",
        args=ScaledArgs,
        starts=changed_writers,
        compute=scaled,
        summary="a copy whose projections to the residual stream are multiplied by a factor",
        source="mergekit, parameters.scale",
    ),
    LayerInitializer(
        name="noise",
        args=NoiseArgs,
        starts=changed_matrices,
        compute=noisy,
        summary="a copy with Gaussian noise on its matrices, so that it and its source can diverge in training",
    ),
    LayerInitializer(
        name="average",
        args=NoArgs,
        starts=all_averaged,
        compute=averaged,
        summary="the mean of the base layer and the next one (for the last layer: the previous one)",
    ),
]
