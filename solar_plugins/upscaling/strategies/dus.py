"""``dus``: SOLAR's depth up-scaling. Pure."""

from __future__ import annotations

from pydantic import Field

from solar_plugins.errors import PlanError
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.strategies.base import Count, StrategyArgs


class DepthUpScalingArgs(StrategyArgs):
    """Arguments of ``dus``; either determines the other."""

    drop_layers: Count | None = Field(None, description="m: layers to drop from each copy; s = 2(n - m)")
    target_layers: Count | None = Field(None, description="s: layers of the upscaled model; m = n - s/2")


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
            f"{num_layers}, but target_layers is {args.target_layers}; give only one of them"
        )
    if not 0 <= drop < num_layers:
        raise PlanError(
            f"drop_layers: {drop} is impossible for a base of {num_layers} layers; expected 0 (plain repetition) to "
            f"{num_layers - 1}"
        )
    return LayerPlan.from_sources(num_layers, [*range(num_layers - drop), *range(drop, num_layers)])


def _drop_from_target(num_layers: int, target: int) -> int:
    if target % 2:
        raise PlanError(
            f"target_layers: {target} is odd; the two copies have the same depth, so use {target - 1} or {target + 1}"
        )
    if not 2 <= target <= 2 * num_layers:
        raise PlanError(
            f"target_layers: {target} is impossible for a base of {num_layers} layers; expected an even number from 2 "
            f"to {2 * num_layers}"
        )
    return num_layers - target // 2
