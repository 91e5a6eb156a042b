"""``block_expansion``: LLaMA Pro's identity layers between groups of base layers. Pure."""

from __future__ import annotations

from pydantic import Field

from solar_plugins.errors import PlanError
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.strategies.base import Count, StrategyArgs


class BlockExpansionArgs(StrategyArgs):
    """Arguments of ``block_expansion``; either determines the other."""

    new_layers: Count | None = Field(None, description="layers to add, one after each group of n / new_layers")
    group_size: Count | None = Field(None, description="M: base layers per group; n / M layers are added")


def plan_block_expansion(num_layers: int, args: BlockExpansionArgs) -> LayerPlan:
    """The base in groups of M layers, each followed by an identity copy of its last (Wu et al. 2024, arXiv:2401.02415).

    Untrained, the new model computes the same function as the base. The method (sec. 3.2, with P = 1) trains only the
    new layers, at the positions M, 2M + 1, 3M + 2, ..

    Raises:
        PlanError: The groups would not have equal size, both arguments are given and disagree, or neither is given.

    Example:
        >>> plan = plan_block_expansion(32, BlockExpansionArgs(new_layers=8))
        >>> [position for position, layer in enumerate(plan.layers) if layer.initialization == "identity"]
        [4, 9, 14, 19, 24, 29, 34, 39]
    """
    group_size = _group_size(num_layers, args)
    layers = []
    for source in range(num_layers):
        layers.append(PlannedLayer(source))
        if (source + 1) % group_size == 0:
            layers.append(PlannedLayer(source, "identity"))
    return LayerPlan(num_layers, tuple(layers))


def _group_size(num_layers: int, args: BlockExpansionArgs) -> int:
    for key, value in (("new_layers", args.new_layers), ("group_size", args.group_size)):
        if value is not None and (value < 1 or num_layers % value):
            divisors = [number for number in range(1, num_layers + 1) if num_layers % number == 0]
            raise PlanError(
                f"{key}: {value} does not divide a base of {num_layers} layers into groups of equal size; expected one "
                f"of {', '.join(map(str, divisors))}"
            )
    if args.new_layers is None:
        if args.group_size is None:
            raise PlanError(
                "new_layers: missing; give new_layers or group_size (M); LLaMA Pro adds 8 layers to 32, so M = 4"
            )
        return args.group_size
    group_size = num_layers // args.new_layers
    if args.group_size not in (None, group_size):
        raise PlanError(
            f"group_size: {args.group_size} adds {num_layers // args.group_size} layers to a base of {num_layers}, but "
            f"new_layers is {args.new_layers}; give only one of them"
        )
    return group_size
