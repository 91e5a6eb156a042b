"""Whether the base of a recipe came out of that recipe already. Pure."""

from __future__ import annotations

from solar_plugins.errors import ArgsError
from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.base_model import grown_plan
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.strategies import plan_of


def grown_by_recipe(decoder: Decoder, name: str, init: InitArgs) -> LayerPlan | None:
    """The recipe's plan, if this model was up-scaled by it already and is to be used as it is; None if it never was.

    As with ``axolotl inference recipe.yml --base-model=./trained``: to grow that once more is not what is meant.

    Args:
        decoder: Of the recipe's ``base_model``.
        name: What to call that model in an error.
        init: ``solar.init`` of the recipe.

    Raises:
        ArgsError: It was up-scaled by another plan, so that nobody can say what the recipe means; or it has not the
            depth that its record says.
        CheckpointError: The record of its up-scaling cannot be read.
    """
    plan = grown_plan(decoder.config)
    if plan is None:
        return None
    if plan_of(init, plan.base_layers) != plan:
        raise ArgsError(
            f"base_model: {name} was up-scaled already ({plan}), and solar.init asks for another plan. To train "
            "it as it is, remove the solar: block; to up-scale it once more, run `solar upscale` and name its result "
            "as base_model, without a solar: block"
        )
    if decoder.num_layers != len(plan):
        raise ArgsError(
            f"base_model: {name} has {decoder.num_layers} layers, but its own record says {plan}; restore its "
            "config.json"
        )
    return plan
