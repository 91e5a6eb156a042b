"""Strategies that keep the whole base and repeat parts of it in place. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pydantic import Field

from solar_plugins.errors import PlanError
from solar_plugins.upscaling.layer_plan import MAX_LAYERS, LayerPlan, PlannedLayer
from solar_plugins.upscaling.strategies.base import Count, LayerRanges, StrategyArgs, require_ranges


class BlockExpansionArgs(StrategyArgs):
    """Arguments of ``block_expansion``; one follows from the other."""

    new_layers: Count | None = Field(None, description="layers that are added, one on each group of n / new_layers")
    group_size: Count | None = Field(None, description="M: base layers below each new one; n / M layers are added")


def plan_block_expansion(num_layers: int, args: BlockExpansionArgs) -> LayerPlan:
    """The base in groups of M layers, on each group an identity copy of its last (Wu et al. 2024, arXiv:2401.02415).

    Untrained, the result computes what the base computes. The method (sec. 3.2, with P = 1) trains the new layers
    alone; their positions are M, 2M + 1, 3M + 2, ..

    Raises:
        PlanError: The groups would not be of equal size, both arguments are given and disagree, or neither is given.

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
                f"{key}: {value} does not divide a base of {num_layers} layers into groups of equal size; allowed are "
                f"{', '.join(map(str, divisors))}"
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
            f"new_layers says {args.new_layers}; give one of the two"
        )
    return group_size


class StackArgs(StrategyArgs):
    """Arguments of ``stack``."""

    times: Count = Field(description="g: how often the whole base is stacked; the result has g x n layers")


def plan_stack(num_layers: int, args: StackArgs) -> LayerPlan:
    """The whole base, g times (Du et al. 2024, arXiv:2405.15319, G_stack; the paper settles on g = 4).

    Raises:
        PlanError: g is less than 1, or the result would be deeper than `MAX_LAYERS`.

    Example:
        >>> str(plan_stack(12, StackArgs(times=4)))
        '12 -> 48 layers: [0..11] + [0..11] + [0..11] + [0..11]'
    """
    return _repeated(num_layers, [(0, num_layers)], args.times)


class InterleaveArgs(StrategyArgs):
    """Arguments of ``interleave``."""

    times: Count = Field(2, description="how often each layer stands in a row; default 2")


def plan_interleave(num_layers: int, args: InterleaveArgs) -> LayerPlan:
    """Each layer of the base several times in a row: 0, 0, 1, 1, .. (common in community merges).

    Raises:
        PlanError: A layer would stand there less than once, or the result would be deeper than `MAX_LAYERS`.

    Example:
        >>> plan_interleave(3, InterleaveArgs()).sources
        (0, 0, 1, 1, 2, 2)
    """
    return _repeated(num_layers, [(layer, layer + 1) for layer in range(num_layers)], args.times)


class RepeatBlockArgs(StrategyArgs):
    """Arguments of ``repeat_block``."""

    blocks: LayerRanges = Field(
        description="half-open ranges of base layers to repeat, bottom first: [[12, 28]]; as an option 12:28"
    )
    times: Count = Field(2, description="how often each block stands in a row; default 2")


def plan_repeat_block(num_layers: int, args: RepeatBlockArgs) -> LayerPlan:
    """The base with some blocks of its layers repeated where they stand.

    How published models are spelt:

    * Yi-9B, 32 layers to 48, ``[0..27] + [12..31]``: ``blocks: [[12, 28]]``.
    * iDUS-8, 32 layers to 48: ``blocks: [[8, 16], [16, 24]]``.
    * One step of MIDAS (Saunshi et al. 2024, arXiv:2409.19044), which repeats the middle block; with blocks of 8 layers
      in a base of 24: ``blocks: [[8, 16]]``.

    Raises:
        PlanError: No block is given, one is empty or backwards or leaves the base, they overlap or are out of order, or
            ``times`` is less than 1 or would make the result deeper than `MAX_LAYERS`.

    Example:
        >>> str(plan_repeat_block(32, RepeatBlockArgs(blocks=[[12, 28]])))
        '32 -> 48 layers: [0..27] + [12..31]'
    """
    if not args.blocks:
        raise PlanError("blocks: empty, so nothing would be repeated; give ranges such as [[12, 28]]")
    require_ranges("blocks", args.blocks, num_layers)
    for below, (start, end) in pairwise(args.blocks):
        if start < below[1]:
            raise PlanError(
                f"blocks: [{start}, {end}] begins below the end of {below}; in a base of {num_layers} layers blocks go "
                "from bottom to top and do not overlap. For anything else use the strategy slices"
            )
    return _repeated(num_layers, args.blocks, args.times)


def _repeated(num_layers: int, blocks: Sequence[Sequence[int]], times: int) -> LayerPlan:
    """The base with each of its ``blocks``, which are in order and do not overlap, ``times`` in a row."""
    most = 1 + (MAX_LAYERS - num_layers) // sum(end - start for start, end in blocks)
    if not 1 <= times <= most:
        raise PlanError(
            f"times: {times} is impossible for a base of {num_layers} layers; allowed are 1 (the base as it is) to "
            f"{most:,} (no more than {MAX_LAYERS:,} layers in all)"
        )
    sources: list[int] = []
    done = 0
    for start, end in blocks:
        sources += [*range(done, start), *(list(range(start, end)) * times)]
        done = end
    return LayerPlan.from_sources(num_layers, [*sources, *range(done, num_layers)])
