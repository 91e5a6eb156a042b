"""Initialisation strategies: from the depth of the base and a few arguments to a `LayerPlan`. Pure.

To add one: a `StrategyArgs` model, a plan function, one line in `register_init_strategies` at the foot. Those that
repeat parts of the base in place have a module of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from solar_plugins.errors import PlanError
from solar_plugins.plugins.hookspecs import hookimpl
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.strategies import repeating
from solar_plugins.upscaling.strategies.base import Count, LayerRanges, StrategyArgs, require_ranges

__all__ = ["InitStrategy", "StrategyArgs"]  # What another package's strategy is made of.


@dataclass(frozen=True, slots=True)
class InitStrategy[ArgsT: StrategyArgs]:
    """A named way to build a deeper model.

    Args:
        name: What ``solar.init.strategy`` says.
        args: Validates the strategy's arguments. Values from a command line arrive as text.
        plan: Pure function from the base's depth and the arguments to the plan. It raises `PlanError`, whose text
            starts with the name of the argument, for arguments that are impossible at this depth.
        summary: One line for people.
        source: Where it is published.
    """

    name: str
    args: type[ArgsT]
    plan: Callable[[int, ArgsT], LayerPlan]
    summary: str
    source: str = ""


class DepthUpScalingArgs(StrategyArgs):
    """Arguments of ``dus``; one follows from the other."""

    drop_layers: Count | None = Field(None, description="m: layers dropped from each copy; the result has 2(n - m)")
    target_layers: Count | None = Field(None, description="s: layers of the result; m = n - s/2")


def plan_depth_up_scaling(num_layers: int, args: DepthUpScalingArgs) -> LayerPlan:
    """The first n - m layers of the base, then its last n - m (Kim et al. 2023, arXiv:2312.15166 sec. 2).

    Raises:
        PlanError: m is not in 0 .. n - 1, s is odd or not in 2 .. 2n, both are given and disagree, or neither is given.

    Example:
        >>> str(plan_depth_up_scaling(32, DepthUpScalingArgs(drop_layers=8)))
        '32 -> 48 layers: [0..23] + [8..31]'
    """
    drop = _drop_from_target(num_layers, args.target_layers) if args.target_layers is not None else args.drop_layers
    if drop is None:
        raise PlanError(
            "drop_layers: missing; give drop_layers (m) or target_layers (s); SOLAR uses 32 layers, m = 8, s = 48"
        )
    if args.drop_layers not in (None, drop):
        raise PlanError(
            f"drop_layers: {args.drop_layers} gives {2 * (num_layers - args.drop_layers)} layers from a base of "
            f"{num_layers}, but target_layers says {args.target_layers}; give one of the two"
        )
    if not 0 <= drop < num_layers:
        raise PlanError(
            f"drop_layers: {drop} is impossible for a base of {num_layers} layers; allowed are 0 (plain repetition) to "
            f"{num_layers - 1}"
        )
    return LayerPlan.from_sources(num_layers, [*range(num_layers - drop), *range(drop, num_layers)])


def _drop_from_target(num_layers: int, target: int) -> int:
    if target % 2:
        raise PlanError(
            f"target_layers: {target} is odd; the two copies have equal depth, so try {target - 1} or {target + 1}"
        )
    if not 2 <= target <= 2 * num_layers:
        raise PlanError(
            f"target_layers: {target} is impossible for a base of {num_layers} layers; allowed are even numbers from 2 "
            f"to {2 * num_layers}"
        )
    return num_layers - target // 2


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


@hookimpl
def register_init_strategies() -> list[InitStrategy[Any]]:
    """The built-in strategies."""
    return [
        InitStrategy(
            "dus",
            DepthUpScalingArgs,
            plan_depth_up_scaling,
            summary="depth up-scaling: the base without its last m layers, then the base without its first m",
            source="SOLAR 10.7B, arXiv:2312.15166 sec. 2",
        ),
        InitStrategy(
            "slices",
            SlicesArgs,
            plan_slices,
            summary="any half-open ranges of base layers, stacked as mergekit's passthrough stacks them",
            source="mergekit, layer_range",
        ),
        InitStrategy(
            "block_expansion",
            repeating.BlockExpansionArgs,
            repeating.plan_block_expansion,
            summary="after each group of layers a copy of its last that starts as identity; made to be trained alone",
            source="LLaMA Pro, arXiv:2401.02415 sec. 3.2",
        ),
        InitStrategy(
            "stack",
            repeating.StackArgs,
            repeating.plan_stack,
            summary="the whole base several times",
            source="G_stack, arXiv:2405.15319",
        ),
        InitStrategy(
            "interleave",
            repeating.InterleaveArgs,
            repeating.plan_interleave,
            summary="each layer several times in a row",
            source="community merges",
        ),
        InitStrategy(
            "repeat_block",
            repeating.RepeatBlockArgs,
            repeating.plan_repeat_block,
            summary="some blocks of layers several times in a row: Yi-9B, iDUS, a step of MIDAS",
            source="Yi-9B; MIDAS, arXiv:2409.19044",
        ),
    ]
