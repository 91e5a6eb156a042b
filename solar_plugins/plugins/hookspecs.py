"""The hooks that other packages can implement.

A plugin is a module (or object) with functions marked ``@hookimpl``. It imports everything it needs from
`solar_plugins.api`.

* **Entry point.** List the module in the group ``solar_plugins`` of your ``pyproject.toml``::

      [project.entry-points.solar_plugins]
      reverse = "solar_reverse"

* **Arguments.** An implementation may take fewer arguments than the specification, but not more.
* **Loading.** Each process loads the plugins when it first looks something up. A plugin that fails to load is skipped
  with a warning that names it. If the recipe needs something from it, that is an error.
  ``SOLAR_PLUGINS_DISABLE=name,...`` (distribution names) disables plugins.
* **Debugging.** With ``SOLAR_PLUGINS_DEBUG=1`` every error comes with its traceback, that of a skipped plugin too, and
  the first exception in a formatter ends the command instead of counting a bad row.

The built-in strategies, initializers, formatters, settings and recipes are registered through the same hooks.
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
    """Add upscaling strategies: ways to build a deeper model from a base.

    A recipe selects a strategy with ``solar.init.strategy``. The strategy's ``args`` model validates the other keys of
    ``solar.init``. On the command line each field of that model is an option (``drop_layers`` is ``--drop-layers``).

    Returns:
        Strategies. ``plan(num_layers, args)`` must be pure: the same arguments give the same plan.

    Example::

        from solar_plugins.api import InitStrategy, LayerPlan, StrategyArgs, hookimpl

        class ReverseArgs(StrategyArgs):
            pass

        def plan_reverse(num_layers: int, args: ReverseArgs) -> LayerPlan:
            return LayerPlan.from_sources(num_layers, [*range(num_layers), *reversed(range(num_layers))])

        @hookimpl
        def register_init_strategies():
            return [InitStrategy("reverse", ReverseArgs, plan_reverse, summary="the base, then its layers reversed")]
    """


@hookspec
def register_layer_initializers() -> list[LayerInitializer[Any]]:
    """Add initializers: ways to initialize a layer of the deeper model other than a plain copy of a base layer.

    A recipe selects an initializer for the second and later copies of a base layer with ``solar.init.duplicates``, as
    ``fading`` or ``{initializer: fading, share: 0.5}``. A strategy can select one for any layer in its `PlannedLayer`.

    Returns:
        Initializers. ``starts(layer, args)`` must be pure and must not import torch. ``compute(tensor, args)`` must be
        deterministic to the bit, whatever was computed before and on however many threads. It reads base tensors one
        at a time; tensors that are not computed are copied as bytes. If you change a function, rename the initializer;
        otherwise existing checkpoints are reused.

    Example::

        from pydantic import Field
        from solar_plugins.api import LayerInitializer, StrategyArgs, hookimpl

        class FadingArgs(StrategyArgs):
            share: float = Field(0.5, description="factor on a layer's output for each position from its source")

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
                    summary="copies whose output shrinks with the distance from their source",
                )
            ]
    """


@hookspec
def register_sft_formatters() -> list[SFTFormatter]:
    """Add formatters for instruction datasets: ways to read a row as a conversation.

    A recipe without ``rl:`` selects one with ``datasets[].type: solar_plugins.<name>``. A formatter returns the
    messages and their roles; this package applies the chat template, tokenizes and masks labels.

    Returns:
        Formatters. ``to_messages(row)`` must be pure. It may raise `solar_plugins.api.RowError`, which names the field;
        such rows are counted and reported. It is called in several processes. Increase ``version`` whenever the result
        for any row changes; otherwise cached datasets are reused.

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
    """Add formatters for preference datasets: ways to read a row as a prompt with a chosen and a rejected response.

    A recipe with ``rl:`` (dpo, ipo, orpo, simpo, kto) selects one with ``datasets[].type: solar_plugins.<name>``.

    Returns:
        Formatters. ``to_pair(row, rng)`` must be pure, and may raise `solar_plugins.api.RowError`. ``rng`` is a
        `random.Random` seeded with the recipe's seed and the row's number only. Increase ``version`` whenever the
        result for any row changes; otherwise cached datasets are reused.

    Example::

        from solar_plugins.api import PreferenceFormatter, PreferencePair, hookimpl, question, text

        def read_duel(row, rng):
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
    """Add formatters for unpaired preference datasets: single responses labeled good or bad, as KTO trains on.

    A recipe with ``rl: kto`` selects one with ``datasets[].type: solar_plugins.<name>``.

    Returns:
        Formatters. ``to_answer(row)`` must be pure, and may raise `solar_plugins.api.RowError`. Increase ``version``
        whenever the result for any row changes; otherwise cached datasets are reused.

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

    A recipe selects them with ``solar.dpo: <name>``. The recipe's own keys take precedence, and the log lists what was
    filled in.

    Returns:
        Settings, as Axolotl keys.

    Example::

        from solar_plugins.api import DPOConfig, hookimpl

        @hookimpl
        def register_dpo_configs():
            return [
                DPOConfig(
                    name="my_lab",
                    values={"rl": "dpo", "rl_beta": 0.05, "learning_rate": 1e-6},
                    global_batch=64,
                    source="lab notebook, entry 7",
                )
            ]
    """


@hookspec
def register_recipes() -> list[RecipePack]:
    """Add recipes: directories of Axolotl and mergekit YAML files that ``solar recipes`` lists and copies.

    Returns:
        Recipe packs. Each has an existing directory; its files are listed as ``<pack name>/<path in the directory>``.

    Example::

        from pathlib import Path
        from solar_plugins.api import RecipePack, hookimpl

        @hookimpl
        def register_recipes():
            return [RecipePack("my-lab", Path(__file__).parent / "recipes")]
    """


@hookspec
def checkpoint_written(path: Path, plan: LayerPlan, base: BaseCheckpoint) -> None:
    """Called once for each upscaled checkpoint that is written, after the complete directory is at its final path.

    Called only in the process that wrote it, and never when an existing checkpoint is reused. If an implementation
    raises an exception, it is logged with the plugin's name, and the other implementations and the run continue.

    Args:
        path: The directory of the checkpoint.
        plan: The layer plan it was upscaled by.
        base: The base model.

    Example::

        from solar_plugins.api import hookimpl

        @hookimpl
        def checkpoint_written(path, plan):
            print(f"{path} has {len(plan)} layers")
    """
