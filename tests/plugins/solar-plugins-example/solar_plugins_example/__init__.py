"""The smallest useful plugin: one strategy, one recipe, and a listener."""

from pathlib import Path

from pydantic import Field

from solar_plugins import hookimpl
from solar_plugins.recipes import RecipePack
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.strategies import InitStrategy, StrategyArgs


class RepeatTopArgs(StrategyArgs):
    """Arguments of ``repeat_top``."""

    repeated_layers: int = Field(ge=1, description="layers at the top of the base that come twice")


def plan_repeat_top(num_layers: int, args: RepeatTopArgs) -> LayerPlan:
    """The whole base, then its last layers once more."""
    return LayerPlan.from_sources(
        num_layers, [*range(num_layers), *range(num_layers - args.repeated_layers, num_layers)]
    )


@hookimpl
def register_init_strategies() -> list[InitStrategy[RepeatTopArgs]]:
    """One strategy."""
    return [InitStrategy("repeat_top", RepeatTopArgs, plan_repeat_top, summary="the base, then its top once more")]


@hookimpl
def register_recipes() -> list[RecipePack]:
    """One pack."""
    return [RecipePack("example", Path(__file__).parent / "recipes")]


@hookimpl
def checkpoint_written(path: Path, plan: LayerPlan) -> None:
    """Say what was made."""
    print(f"solar-plugins-example heard of {path.name} with {len(plan)} layers")
