"""The config.json of the deeper model. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.layer_fields import reordered_fields
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.quantization import reordered_quantizations


def upscale_config(decoder: Decoder, plan: LayerPlan, donors: Sequence[Decoder] = ()) -> dict[str, Any]:
    """The deeper model's config: the new depth, and all per-layer properties in the order of the plan.

    Args:
        decoder: The base's decoder.
        plan: The plan.
        donors: The decoders of the plan's donors.

    Raises:
        CheckpointError: The base's depth differs from the plan's, a per-layer property cannot follow the plan, or an
            unknown key could describe individual layers, so that neither copying nor reordering it is safe.
    """
    row, text = decoder.architecture, decoder.text_config
    if decoder.num_layers != plan.base_layers:
        raise CheckpointError(
            f"config.json: {row.depth_key} is {decoder.num_layers}, expected {plan.base_layers}, the plan's base depth"
        )
    decoder.refuse_unknown_layer_keys()
    changes = reordered_fields(text, decoder.fields, plan, [(one.text_config, one.num_layers) for one in donors])
    changes |= {key: len(plan) for key in (row.depth_key, *row.more_depth_keys) if type(text.get(key)) is int}
    upscaled = decoder.with_text_config({**text, **changes})
    if not plan.only_copies:
        from solar_plugins.upscaling.initializers import refuse_by_config  # Imported late: plans of copies need none.

        refuse_by_config((decoder, *donors), plan)  # Checked here, before the weights are downloaded.
    for place, said in reordered_quantizations(decoder, plan).items():
        *outer, key = place.split(".")
        if place not in decoder.side_files:
            (upscaled[outer[0]] if outer else upscaled)[key] = said
    upscaled.pop("transformers_weights", None)  # Refers to a file of the base; transformers also drops it on saving.
    return deepcopy(upscaled)
