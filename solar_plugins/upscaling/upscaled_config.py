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
    """The deeper model's config: the new depth, and every per-layer property in the order of the plan.

    Args:
        decoder: The base's.
        plan: What becomes of its layers.
        donors: Those of the plan.

    Raises:
        CheckpointError: The base's depth is not the plan's, a per-layer property cannot follow the plan, or a key that
            is not known here could say something about single layers: copying it unchanged or reordering it might
            both be wrong.
    """
    row, text = decoder.architecture, decoder.text_config
    if decoder.num_layers != plan.base_layers:
        raise CheckpointError(
            f"config.json: {row.depth_key} is {decoder.num_layers}, the plan is for {plan.base_layers}"
        )
    decoder.refuse_unknown_layer_keys()
    changes = reordered_fields(text, decoder.fields, plan, [(one.text_config, one.num_layers) for one in donors])
    changes |= {key: len(plan) for key in (row.depth_key, *row.more_depth_keys) if type(text.get(key)) is int}
    upscaled = decoder.with_text_config({**text, **changes})
    if not plan.only_copies:
        from solar_plugins.upscaling.initializers import refuse_by_config  # Late: a plan of copies needs none.

        refuse_by_config((decoder, *donors), plan)  # Here already, and not first when the weights are there.
    for place, said in reordered_quantizations(decoder, plan).items():
        *outer, key = place.split(".")
        if place not in decoder.side_files:
            (upscaled[outer[0]] if outer else upscaled)[key] = said
    upscaled.pop("transformers_weights", None)  # Names a file of the base; transformers drops it when it saves, too.
    return deepcopy(upscaled)
