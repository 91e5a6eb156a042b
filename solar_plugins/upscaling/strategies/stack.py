"""``stack``: the entire base, repeated several times. Pure."""

from __future__ import annotations

from pydantic import Field

from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.strategies.base import Count, StrategyArgs, repeated


class StackArgs(StrategyArgs):
    """Arguments of ``stack``."""

    times: Count = Field(description="g: number of copies of the base; the upscaled model has g x n layers")


def plan_stack(num_layers: int, args: StackArgs) -> LayerPlan:
    """The entire base, g times (Du et al. 2024, arXiv:2405.15319, G_stack; the paper recommends g = 4).

    Raises:
        PlanError: g is less than 1, or the result would be deeper than `MAX_LAYERS`.

    Example:
        >>> str(plan_stack(12, StackArgs(times=4)))
        '12 -> 48 layers: [0..11] + [0..11] + [0..11] + [0..11]'
    """
    return repeated(num_layers, [(0, num_layers)], args.times)
