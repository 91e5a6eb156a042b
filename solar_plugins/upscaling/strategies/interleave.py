"""``interleave``: each layer repeated several times in a row. Pure."""

from __future__ import annotations

from pydantic import Field

from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.strategies.base import Count, StrategyArgs, repeated


class InterleaveArgs(StrategyArgs):
    """Arguments of ``interleave``."""

    times: Count = Field(2, description="number of copies of each layer; default 2")


def plan_interleave(num_layers: int, args: InterleaveArgs) -> LayerPlan:
    """Each layer of the base repeated several times in a row: 0, 0, 1, 1, .. (common in community merges).

    Raises:
        PlanError: ``times`` is less than 1, or the result would be deeper than `MAX_LAYERS`.

    Example:
        >>> plan_interleave(3, InterleaveArgs()).sources
        (0, 0, 1, 1, 2, 2)
    """
    return repeated(num_layers, [(layer, layer + 1) for layer in range(num_layers)], args.times)
