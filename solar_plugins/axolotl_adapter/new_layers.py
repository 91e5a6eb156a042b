"""New layers that a recipe's own ``unfrozen_parameters`` would leave frozen."""

from __future__ import annotations

from solar_plugins.errors import ArgsError
from solar_plugins.memory.parameters import unfrozen_pattern
from solar_plugins.recipe import Recipe
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan

ROOTS = ("", "model.", "transformer.")
"""What a loaded model may have before a tensor's name in the file, as GPT-2 has."""


def refuse_frozen_new_layers(recipe: Recipe, decoder: Decoder, plan: LayerPlan) -> None:
    """Refuse ``unfrozen_parameters`` that leave an identity layer frozen: it would stay the identity for ever.

    A layer that starts otherwise, scaled or with noise, acts while it is frozen; that may be meant.

    Args:
        recipe: The recipe.
        decoder: Of its base.
        plan: Its plan.

    Raises:
        ArgsError: A layer that starts as identity, by whatever initializer, is not trained.
    """
    if recipe.unfrozen_parameters is None or recipe.adapter:
        return
    new = [place for place, layer in enumerate(plan.layers) if not layer.acts]
    prefix = decoder.architecture.layers_prefix
    patterns = [unfrozen_pattern(line) for line in recipe.unfrozen_parameters]
    # A layer that starts as identity learns if one of the modules that write its output learns.
    frozen = [
        place
        for place in new
        if not any(
            pattern.match(f"{root}{prefix}{place}.{module}.weight")
            for pattern in patterns
            for root in ROOTS
            for module in decoder.residual_writers
        )
    ]
    if frozen:
        raise ArgsError(
            f"unfrozen_parameters: leaves layers {', '.join(map(str, frozen))} frozen, which this plan adds as "
            f"identity, so that they would never learn ({plan}). Remove the key, and let the plan say which they are:\n"
            "solar:\n  train: {layers: new}"
        )
