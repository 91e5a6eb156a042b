"""``slices``: ranges of layers, stacked as mergekit stacks them. Pure."""

from __future__ import annotations

from pydantic import Field

from solar_plugins.errors import PlanError
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.strategies.base import LayerRanges, StrategyArgs, require_ranges


class SlicesArgs(StrategyArgs):
    """Arguments of ``slices``."""

    slices: LayerRanges = Field(
        description="half-open ranges of base layers, bottom first: [[0, 24], [8, 32]]; as an option 0:24,8:32"
    )


def plan_slices(num_layers: int, args: SlicesArgs) -> LayerPlan:
    """The given half-open ranges of base layers, stacked (mergekit's ``layer_range``, docs of its passthrough method).

    Raises:
        PlanError: No range is given, a range is empty or backwards, or it leaves the base.

    Example:
        >>> str(plan_slices(32, SlicesArgs(slices=[[0, 24], [8, 32]])))
        '32 -> 48 layers: [0..23] + [8..31]'
    """
    if not args.slices:
        raise PlanError("slices: empty, so the result would have no layer; give ranges such as [[0, 24], [8, 32]]")
    require_ranges("slices", args.slices, num_layers)
    return LayerPlan.from_sources(num_layers, (source for start, end in args.slices for source in range(start, end)))
