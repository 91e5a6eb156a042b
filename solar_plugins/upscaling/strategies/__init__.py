"""Upscaling strategies: from the depth of the base and a few arguments to a `LayerPlan`.

To add a built-in strategy, write a module with a `StrategyArgs` model and a plan function, and add it to
`register_init_strategies`.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from solar_plugins.errors import ArgsError, PlanError, PluginError
from solar_plugins.plugins.manager import known, registered
from solar_plugins.plugins.markers import hookimpl
from solar_plugins.solar_block import InitArgs, invalid
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.strategies import block_expansion, dus, interleave, repeat_block, slices, stack
from solar_plugins.upscaling.strategies.base import InitStrategy


def init_strategies() -> dict[str, InitStrategy[Any]]:
    """All registered upscaling strategies by name."""
    return registered("register_init_strategies", InitStrategy)


def init_strategy(name: str) -> InitStrategy[Any]:
    """The strategy called ``name``.

    Raises:
        PluginError: It is not registered. The message lists the known names, and the skipped plugins with the reason.
    """
    return known(init_strategies(), name, "strategy")


def plan_of(init: InitArgs, num_layers: int, where: str = "solar.init.") -> LayerPlan:
    """The plan of ``solar.init`` for a base of ``num_layers`` layers.

    Args:
        init: The strategy's name and arguments, and the initializer of duplicates.
        num_layers: Depth of the base.
        where: Prefix of keys in error messages.

    Raises:
        ArgsError: An argument of the strategy or of an initializer is unknown or invalid.
        PluginError: The strategy or an initializer is not registered, or a plugin's strategy is broken.
    """
    try:
        strategy = init_strategy(init.strategy)
    except PluginError as error:
        raise PluginError(f"{where}strategy: {error}") from None
    try:
        plan = strategy.plan(num_layers, strategy.args.model_validate(init.model_extra or {}))
    except ValidationError as error:
        raise ArgsError(invalid(error, where, strategy.args.model_fields)) from None
    except PlanError as error:
        raise ArgsError(f"{where}{error}") from None
    except Exception as error:
        raise PluginError(
            f"{where}strategy: {init.strategy!r} failed on {num_layers} layers with {type(error).__name__}: "
            f"{error}; this is a bug in the package that registered it"
        ) from error
    if not isinstance(plan, LayerPlan) or plan.base_layers != num_layers:
        raise PluginError(
            f"{where}strategy: {init.strategy!r} returned {plan!r:.200}, expected a LayerPlan for {num_layers} "
            "base layers; this is a bug in the package that registered it"
        )
    if init.duplicates is None and plan.only_copies:
        return plan
    from solar_plugins.upscaling.initializers import initialized  # Imported late: plans of copies need none.

    return initialized(plan, init.duplicates, where)


def strategy_arguments(init: InitArgs) -> dict[str, Any]:
    """The strategy's arguments in ``solar.init``, as JSON-ready values of their declared types.

    Values from the command line are converted: ``--drop-layers 8`` becomes ``{"drop_layers": 8}``.
    """
    args = init_strategy(init.strategy).args.model_validate(init.model_extra or {})
    return dict(args.model_dump(mode="json", exclude_unset=True))


@hookimpl
def register_init_strategies() -> list[InitStrategy[Any]]:
    """The built-in strategies."""
    return [
        InitStrategy(
            "dus",
            dus.DepthUpScalingArgs,
            dus.plan_depth_up_scaling,
            summary="depth up-scaling: the base without its last m layers, then the base without its first m",
            source="SOLAR 10.7B, arXiv:2312.15166 sec. 2",
        ),
        InitStrategy(
            "slices",
            slices.SlicesArgs,
            slices.plan_slices,
            summary="any half-open ranges of base layers, stacked as mergekit's passthrough stacks them",
            source="mergekit, layer_range",
        ),
        InitStrategy(
            "block_expansion",
            block_expansion.BlockExpansionArgs,
            block_expansion.plan_block_expansion,
            summary="an identity copy after each group of layers; meant to be trained with the base frozen",
            source="LLaMA Pro, arXiv:2401.02415 sec. 3.2",
        ),
        InitStrategy(
            "stack",
            stack.StackArgs,
            stack.plan_stack,
            summary="the entire base, repeated several times",
            source="G_stack, arXiv:2405.15319",
        ),
        InitStrategy(
            "interleave",
            interleave.InterleaveArgs,
            interleave.plan_interleave,
            summary="each layer repeated several times in a row",
            source="community merges",
        ),
        InitStrategy(
            "repeat_block",
            repeat_block.RepeatBlockArgs,
            repeat_block.plan_repeat_block,
            summary="blocks of layers repeated in place: Yi-9B, iDUS, a step of MIDAS",
            source="Yi-9B; MIDAS, arXiv:2409.19044",
        ),
    ]
