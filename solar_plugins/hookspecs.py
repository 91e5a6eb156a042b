"""What other packages can add, and when each hook is called.

A plugin is a module (or object) with functions marked ``@hookimpl``. Three facts for its author:

* **Entry point.** Name the module in the group ``solar_plugins`` of your ``pyproject.toml``::

      [project.entry-points.solar_plugins]
      reverse = "solar_reverse"

* **Arguments.** An implementation may take fewer arguments than the specification, never more.
* **When.** Plugins are loaded on the first look-up, in every process. A plugin that cannot be loaded is named in a
  warning and skipped, unless the recipe asks for what it would have registered: then it is an error.
  ``SOLAR_PLUGINS_DISABLE=name,...`` (distribution names) skips plugins on purpose.

The built-in strategies and recipes come through these same hooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from solar_plugins.recipes import RecipePack
    from solar_plugins.upscaling.base_model import BaseCheckpoint
    from solar_plugins.upscaling.layer_plan import LayerPlan
    from solar_plugins.upscaling.strategies import InitStrategy

PROJECT_NAME = "solar_plugins"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec
def register_init_strategies() -> list[InitStrategy[Any]]:
    """Add initialisation strategies: ways to build a deeper model from a base.

    Selected in a recipe by ``solar.init.strategy``; the other keys of ``solar.init`` are validated by the strategy's
    ``args`` model. On the command line each field of that model is an option (``drop_layers`` is ``--drop-layers``).

    Returns:
        Strategies. ``plan(num_layers, args)`` must be pure: same arguments, same plan.

    Example::

        from solar_plugins import hookimpl
        from solar_plugins.upscaling.layer_plan import LayerPlan
        from solar_plugins.upscaling.strategies import InitStrategy, StrategyArgs

        class ReverseArgs(StrategyArgs):
            pass

        def plan_reverse(num_layers: int, args: ReverseArgs) -> LayerPlan:
            return LayerPlan.from_sources(num_layers, [*range(num_layers), *reversed(range(num_layers))])

        @hookimpl
        def register_init_strategies():
            return [InitStrategy("reverse", ReverseArgs, plan_reverse, summary="the base, then upside down")]
    """


@hookspec
def register_recipes() -> list[RecipePack]:
    """Add recipes: directories of Axolotl and mergekit YAML that ``solar recipes`` lists and copies.

    Returns:
        Packs. Each names an existing directory; its files are listed as ``<pack name>/<path in the directory>``.

    Example::

        from pathlib import Path
        from solar_plugins import hookimpl
        from solar_plugins.recipes import RecipePack

        @hookimpl
        def register_recipes():
            return [RecipePack("my-lab", Path(__file__).parent / "recipes")]
    """


@hookspec
def checkpoint_written(path: Path, plan: LayerPlan, base: BaseCheckpoint) -> None:
    """Called once for each up-scaled checkpoint that was written, after it stands whole at its final path.

    Called on the process that wrote it, never when a finished checkpoint is reused. An exception in one implementation
    is logged with the plugin's name and does not stop the others or the run.

    Args:
        path: The finished checkpoint directory.
        plan: What was done.
        base: What it was done to.

    Example::

        from solar_plugins import hookimpl

        @hookimpl
        def checkpoint_written(path, plan):
            print(f"{path} has {len(plan)} layers")
    """
