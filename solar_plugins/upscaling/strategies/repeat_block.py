"""``repeat_block``: blocks of layers repeated in place. Pure."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field

from solar_plugins.errors import PlanError
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.strategies.base import Count, LayerRanges, StrategyArgs, repeated, require_ranges


class RepeatBlockArgs(StrategyArgs):
    """Arguments of ``repeat_block``."""

    blocks: LayerRanges = Field(
        description="half-open ranges of base layers to repeat, bottom first: [[12, 28]]; on the command line 12:28"
    )
    times: Count = Field(2, description="number of copies of each block; default 2")


def plan_repeat_block(num_layers: int, args: RepeatBlockArgs) -> LayerPlan:
    """The base with some blocks of layers repeated in place.

    Published models:

    * Yi-9B, 32 layers to 48, ``[0..27] + [12..31]``: ``blocks: [[12, 28]]``.
    * iDUS-8, 32 layers to 48: ``blocks: [[8, 16], [16, 24]]``.
    * One step of MIDAS (Saunshi et al. 2024, arXiv:2409.19044), which repeats the middle block; with blocks of 8 layers
      in a base of 24: ``blocks: [[8, 16]]``.

    Raises:
        PlanError: No block is given, one is empty, reversed or outside the base, they overlap or are not sorted, or
            ``times`` is less than 1 or would make the result deeper than `MAX_LAYERS`.

    Example:
        >>> str(plan_repeat_block(32, RepeatBlockArgs(blocks=[[12, 28]])))
        '32 -> 48 layers: [0..27] + [12..31]'
    """
    if not args.blocks:
        raise PlanError("blocks: empty; expected ranges to repeat, such as [[12, 28]]")
    require_ranges("blocks", args.blocks, num_layers)
    for below, (start, end) in pairwise(args.blocks):
        if start < below[1]:
            raise PlanError(
                f"blocks: [{start}, {end}] starts below the end of {below}; expected blocks of a base of {num_layers} "
                "layers from bottom to top, without overlap. For anything else use the strategy slices"
            )
    return repeated(num_layers, args.blocks, args.times)
