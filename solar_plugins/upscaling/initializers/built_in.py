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
"""Elements of a tensor that are given noise at once."""


class NoArgs(StrategyArgs):
    """An initializer without arguments."""


class ScaledArgs(StrategyArgs):
    """Arguments of ``scaled``."""

    factor: Positive = Field(0.5, description="what the weights and biases are multiplied by; default 0.5")


class NoiseArgs(StrategyArgs):
    """Arguments of ``noise``."""

    relative: Positive = Field(0.01, description="standard deviation, in units of each matrix's own RMS; default 0.01")
    seed: Count = Field(0, description="of the random numbers; default 0")


def copied(layer: BaseLayer, args: NoArgs) -> Mapping[str, Start]:
    """All as it is."""
    return {}


def zero_writers(layer: BaseLayer, args: NoArgs) -> Mapping[str, Start]:
    """Zeros for what writes to the residual stream (Wu et al. 2024, arXiv:2401.02415 sec. 3.2)."""
    return dict.fromkeys(layer.residual_writers, "zero")


def changed_writers(layer: BaseLayer, args: ScaledArgs) -> Mapping[str, Start]:
    """Other values for what writes to the residual stream, weights and biases."""
    return dict.fromkeys(layer.residual_writers, "computed")


def scaled(tensor: NewTensor, args: ScaledArgs) -> Tensor:
    """The source's tensor times the factor, in float32 or better, then rounded once."""
    base = tensor.base()
    return (_widened(base) * args.factor).to(base.dtype)


def changed_matrices(layer: BaseLayer, args: NoiseArgs) -> Mapping[str, Start]:
    """Other values for matrices, stacks of them (experts) and convolutions; norms and biases stay.

    Those are few, their values matter one by one, and what makes two copies of a layer differ is in the matrices.
    """
    return {name: "computed" for name, shape in layer.shapes.items() if len(shape) in (2, 3)}


def noisy(tensor: NewTensor, args: NoiseArgs) -> Tensor:
    """The source's tensor plus Gaussian noise.

    In float64, so that neither the number of threads nor the machine's vector units show after rounding.
    """
    import torch

    result = tensor.base()
    blocks = torch.split(result.view(-1), BLOCK)
    squares = sum(float(block.double().square().numpy().sum()) for block in blocks)  # numpy adds in one thread.
    std = args.relative * (squares / max(1, result.numel())) ** 0.5
    generator = tensor.generator(args.seed)
    for block in blocks:
        noise = torch.randn(block.numel(), generator=generator, dtype=torch.float64)
        block.copy_(block.double() + std * noise)
    return result


def all_averaged(layer: BaseLayer, args: NoArgs) -> Mapping[str, Start]:
    """Other values for every tensor of a layer that has a neighbour of its kind."""
    layer.require_alike(_neighbour(layer.index, layer.num_layers))
    return dict.fromkeys(layer.shapes, "computed")


def averaged(tensor: NewTensor, args: NoArgs) -> Tensor:
    """The mean of the source and the base layer above it; of the last layer, the one below it."""
    base, other = tensor.base(), tensor.base(_neighbour(tensor.source, tensor.num_layers))
    return ((_widened(base) + _widened(other)) / 2).to(base.dtype)


def _neighbour(layer: int, num_layers: int) -> int:
    if num_layers == 1:
        raise CheckpointError("a base of 1 layer has no neighbours to average; use another initializer")
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
        summary="a copy whose projections to the residual stream are zero: it gives back its input until it is trained",
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
        summary="a copy with Gaussian noise on its matrices, so that it and its source learn different things",
    ),
    LayerInitializer(
        name="average",
        args=NoArgs,
        starts=all_averaged,
        compute=averaged,
        summary="the mean of the base layer and the one above it (of the last: the one below it)",
    ),
]
