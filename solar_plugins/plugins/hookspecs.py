"""What other packages can add, and when each hook is called.

A plugin is a module (or object) with functions marked ``@hookimpl``. What it needs of this package it imports from
`solar_plugins.api`. Three facts for its author:

* **Entry point.** Name the module in the group ``solar_plugins`` of your ``pyproject.toml``::

      [project.entry-points.solar_plugins]
      reverse = "solar_reverse"

* **Arguments.** An implementation may take fewer arguments than the specification, never more.
* **When.** Plugins are loaded on the first look-up, in every process. A plugin that cannot be loaded is named in a
  warning and skipped, unless the recipe asks for what it would have registered: then it is an error.
  ``SOLAR_PLUGINS_DISABLE=name,...`` (distribution names) skips plugins on purpose.

The built-in strategies, initializers, formatters, settings and recipes come through these same hooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from solar_plugins.plugins.markers import hookspec

if TYPE_CHECKING:
    from pathlib import Path

    from solar_plugins.data.formatters.base import PreferenceFormatter, SFTFormatter, UnpairedFormatter
    from solar_plugins.plugins.dpo_configs import DPOConfig
    from solar_plugins.plugins.recipe_packs import RecipePack
    from solar_plugins.upscaling.base_model import BaseCheckpoint
    from solar_plugins.upscaling.initializers.base import LayerInitializer
    from solar_plugins.upscaling.layer_plan import LayerPlan
    from solar_plugins.upscaling.strategies.base import InitStrategy


@hookspec
def register_init_strategies() -> list[InitStrategy[Any]]:
    """Add initialisation strategies: ways to build a deeper model from a base.

    Selected in a recipe by ``solar.init.strategy``; the other keys of ``solar.init`` are validated by the strategy's
    ``args`` model. On the command line each field of that model is an option (``drop_layers`` is ``--drop-layers``).

    Returns:
        Strategies. ``plan(num_layers, args)`` must be pure; the same arguments give the same plan.

    Example::

        from solar_plugins.api import InitStrategy, LayerPlan, StrategyArgs, hookimpl

        class ReverseArgs(StrategyArgs):
            pass

        def plan_reverse(num_layers: int, args: ReverseArgs) -> LayerPlan:
            return LayerPlan.from_sources(num_layers, [*range(num_layers), *reversed(range(num_layers))])

        @hookimpl
        def register_init_strategies():
            return [InitStrategy("reverse", ReverseArgs, plan_reverse, summary="the base, then upside down")]
    """


@hookspec
def register_layer_initializers() -> list[LayerInitializer[Any]]:
    """Add initializers: ways for a layer of the deeper model to start that is no plain copy of a base layer.

    Selected in a recipe by ``solar.init.duplicates``, as ``fading`` or ``{initializer: fading, share: 0.5}``, for the
    second and later occurrences of a base layer; or by a strategy, for any layer, in its `PlannedLayer`.

    Returns:
        Initializers. ``starts(layer, args)`` must be pure and do without torch; ``compute(tensor, args)`` must give the
        same bits for the same input, whatever was computed before and on how many threads. It reads base tensors one by
        one; tensors that are not computed are moved as bytes. A changed function needs another name, or checkpoints
        made before stay in use.

    Example::

        from pydantic import Field
        from solar_plugins.api import LayerInitializer, StrategyArgs, hookimpl

        class FadingArgs(StrategyArgs):
            share: float = Field(0.5, description="how much of each layer's output is left at the next")

        def start_fading(layer, args):
            return dict.fromkeys(layer.residual_writers, "computed")

        def fade(tensor, args):
            base = tensor.base()
            return (base.float() * args.share ** (tensor.position - tensor.source)).to(base.dtype)

        @hookimpl
        def register_layer_initializers():
            return [
                LayerInitializer(
                    name="fading",
                    args=FadingArgs,
                    starts=start_fading,
                    compute=fade,
                    summary="copies that write the less, the further they stand from their source",
                )
            ]
    """


@hookspec
def register_sft_formatters() -> list[SFTFormatter]:
    """Add formatters for instruction sets: ways to read a row as a conversation.

    Selected in a recipe without ``rl:`` by ``datasets[].type: solar_plugins.<name>``. Rendering, tokens and label masks
    are the package's; a formatter only says which texts are whose.

    Returns:
        Formatters. ``to_messages(row)`` must be pure, and may raise `solar_plugins.api.RowError`,
        which names the field: the row is then counted and reported. It is called in several processes. Raise
        ``version`` with each change that gives another result for some row, or rows prepared before stay in use.

    Example::

        from solar_plugins.api import SFTFormatter, hookimpl, single_turn, text

        def read_quiz(row):
            return single_turn(text(row.get("riddle"), "riddle"), text(row.get("solution"), "solution"))

        @hookimpl
        def register_sft_formatters():
            return [
                SFTFormatter(
                    name="quiz", columns=("riddle", "solution"), to_messages=read_quiz, summary="riddle, solution"
                )
            ]
    """


@hookspec
def register_preference_formatters() -> list[PreferenceFormatter]:
    """Add formatters for preference sets: ways to read a row as a prompt with a chosen and a rejected answer.

    Selected in a recipe with ``rl:`` (dpo, ipo, orpo, simpo, kto) by ``datasets[].type: solar_plugins.<name>``.

    Returns:
        Formatters. ``to_pair(row, chance)`` must be pure, and may raise `solar_plugins.api.RowError`.
        ``chance`` is a `random.Random` that depends on the recipe's seed and the row's number alone. Raise ``version``
        with each change that gives another result for some row, or rows prepared before stay in use.

    Example::

        from solar_plugins.api import PreferenceFormatter, PreferencePair, hookimpl, question, text

        def read_duel(row, chance):
            prompt = question(text(row.get("prompt"), "prompt"))
            return PreferencePair(prompt, text(row.get("winner"), "winner"), text(row.get("loser"), "loser"))

        @hookimpl
        def register_preference_formatters():
            return [
                PreferenceFormatter(
                    name="duel",
                    columns=("prompt", "winner", "loser"),
                    to_pair=read_duel,
                    summary="prompt, winner, loser",
                )
            ]
    """


@hookspec
def register_unpaired_formatters() -> list[UnpairedFormatter]:
    """Add formatters for sets of single answers, each wanted or not: what KTO trains on.

    Selected in a recipe with ``rl: kto`` by ``datasets[].type: solar_plugins.<name>``.

    Returns:
        Formatters. ``to_answer(row)`` must be pure, and may raise `solar_plugins.api.RowError`. Raise ``version`` with
        each change that gives another result for some row, or rows prepared before stay in use.

    Example::

        from solar_plugins.api import LabelledAnswer, UnpairedFormatter, hookimpl, question, text

        def read_vote(row):
            prompt = question(text(row.get("prompt"), "prompt"))
            return LabelledAnswer(prompt, text(row.get("reply"), "reply"), row["votes"] > 0)

        @hookimpl
        def register_unpaired_formatters():
            return [
                UnpairedFormatter(
                    name="votes", columns=("prompt", "reply", "votes"), to_answer=read_vote, summary="reply, votes"
                )
            ]
    """


@hookspec
def register_dpo_configs() -> list[DPOConfig]:
    """Add named settings for preference training.

    Selected in a recipe by ``solar.dpo: <name>``. The recipe's own keys win; the log says what was filled in.

    Returns:
        Settings, in Axolotl's own keys.

    Example::

        from solar_plugins.api import DPOConfig, hookimpl

        @hookimpl
        def register_dpo_configs():
            return [
                DPOConfig(
                    name="my_lab",
                    values={"rl": "dpo", "rl_beta": 0.05, "learning_rate": 1e-6},
                    global_batch=64,
                    source="our note 7",
                )
            ]
    """


@hookspec
def register_recipes() -> list[RecipePack]:
    """Add recipes: directories of Axolotl and mergekit YAML that ``solar recipes`` lists and copies.

    Returns:
        Packs. Each names an existing directory; its files are listed as ``<pack name>/<path in the directory>``.

    Example::

        from pathlib import Path
        from solar_plugins.api import RecipePack, hookimpl

        @hookimpl
        def register_recipes():
            return [RecipePack("my-lab", Path(__file__).parent / "recipes")]
    """


@hookspec
def checkpoint_written(path: Path, plan: LayerPlan, base: BaseCheckpoint) -> None:
    """Called once for each upscaled checkpoint that was written, after it stands whole at its final path.

    Called on the process that wrote it, never when a finished checkpoint is reused. An exception in one implementation
    is logged with the plugin's name and does not stop the others or the run.

    Args:
        path: The finished checkpoint directory.
        plan: What was done.
        base: What it was done to.

    Example::

        from solar_plugins.api import hookimpl

        @hookimpl
        def checkpoint_written(path, plan):
            print(f"{path} has {len(plan)} layers")
    """
