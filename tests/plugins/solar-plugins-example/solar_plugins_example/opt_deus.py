"""New layers between neighbors, aligned before they are averaged: a part of OpT-DeUS (arXiv:2508.08011).

A neuron of an MLP has no fixed place: any order of them computes the same. The mean of two layers is therefore a mean
of unlike neurons, unless one layer's are put in the other's order first. OpT-DeUS does so by optimal transport, for a
new layer between each pair of neighbors in the top half of the model, and zeroes what the new layer writes to the
residual stream, so that the deeper model computes what its base does. The new layers alone are trained then.

What is simpler here than in the paper: transport is exact and one to one (an assignment) instead of Sinkhorn's soft
plan; a neuron's rows of the gate and the up projection move together, where the paper moves each matrix for itself; and
attention and norms are averaged as they stand. Finding the assignment takes time with the cube of the MLP's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from solar_plugins.api import (
    BaseLayer,
    CheckpointError,
    InitStrategy,
    LayerInitializer,
    LayerPlan,
    NewTensor,
    PlannedLayer,
    StrategyArgs,
    hookimpl,
)

if TYPE_CHECKING:
    from torch import Tensor

PAPER = "OpT-DeUS, arXiv:2508.08011"
NEURONS = ("mlp.gate_proj", "mlp.up_proj")
"""Each row of these is a neuron."""


class NoArgs(StrategyArgs):
    """No arguments."""


def plan_opt_deus(num_layers: int, args: NoArgs) -> LayerPlan:
    """A new layer between each two neighbors of the top half: 32 layers become 48."""
    layers = [PlannedLayer(source) for source in range(num_layers)]
    for source in reversed(range(max(0, num_layers // 2 - 1), num_layers - 1)):
        layers.insert(source + 1, PlannedLayer(source, "transport"))
    return LayerPlan(num_layers, tuple(layers))


def start_transport(layer: BaseLayer, args: NoArgs) -> Mapping[str, Literal["zero", "computed"]]:
    """What writes to the residual stream is zero, everything else the mean of the layer and the one above it."""
    if layer.index + 1 == layer.num_layers:
        raise CheckpointError(f"layer {layer.index} is the last one; `transport` needs a layer above it")
    layer.require_alike(layer.index + 1)
    if layer.names and not all(f"{module}.weight" in layer.names for module in NEURONS):
        raise CheckpointError(f"layer {layer.index} has no {' or '.join(NEURONS)}, whose neurons `transport` aligns")
    return dict.fromkeys(layer.shapes, "computed") | dict.fromkeys(layer.residual_writers, "zero")


def transport(tensor: NewTensor, args: NoArgs) -> Tensor:
    """The mean of the layer below, its neurons in the order of those above, and the layer above."""
    below, above = tensor.base(), tensor.base(tensor.source + 1)
    if tensor.name.startswith(NEURONS):
        below = below[_order(tensor)]
    return ((below.double() + above.double()) / 2).to(below.dtype)


def _order(tensor: NewTensor) -> list[int]:
    """For each neuron above the one below that takes its place, so that the distances' squares have the least sum."""
    from scipy.optimize import linear_sum_assignment

    below, above = (_neurons(tensor, layer) for layer in (tensor.source, tensor.source + 1))
    # The least sum of squared distances is the greatest of inner products: the norms do not depend on the order.
    _, order = linear_sum_assignment((above @ below.T).numpy(), maximize=True)
    return [int(place) for place in order]


def _neurons(tensor: NewTensor, layer: int) -> Tensor:
    import torch

    return torch.cat([tensor.read(f"{module}.weight", layer) for module in NEURONS], dim=1).double()


@hookimpl
def register_init_strategies() -> list[InitStrategy[NoArgs]]:
    """The places of the new layers."""
    summary = "a layer between each two layers of the top half, aligned from both; train it with the base frozen"
    return [InitStrategy("opt_deus", NoArgs, plan_opt_deus, summary=summary, source=PAPER)]


@hookimpl
def register_layer_initializers() -> list[LayerInitializer[NoArgs]]:
    """How they start."""
    return [
        LayerInitializer(
            name="transport",
            args=NoArgs,
            starts=start_transport,
            compute=transport,
            passes_through=True,
            summary="the mean of a layer and the one above it, neurons aligned; an identity until it is trained",
            source=PAPER,
        )
    ]
