"""A check, on the loaded model, that exactly what ``solar.train`` says learns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from solar_plugins.errors import ArgsError
from solar_plugins.memory.parameters import unfrozen_pattern
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.trained_layers import Trained, layer_patterns, norm_patterns


def check_trained_parameters(model: Any, decoder: Decoder, trained: Trained) -> str:
    """Check on the loaded model, frozen or with its adapter, that exactly the layers of ``solar.train`` learn.

    Returns:
        What learns, in one line.

    Raises:
        ArgsError: Other layers do. The names of this model's parameters are not those that its type has.
    """
    parameters = dict(model.named_parameters())
    learning = [name for name, parameter in parameters.items() if parameter.requires_grad]
    norms = compiled(norm_patterns(decoder) if trained.norms else ())
    beyond_norms = [name for name in learning if not any(norm.match(name) for norm in norms)]
    found = [
        number
        for number in range(trained.num_layers)
        if any(layer.match(name) for layer in compiled(layer_patterns(decoder, [number])) for name in beyond_norms)
    ]
    if found != list(trained.layers):
        raise ArgsError(
            f"solar.train: layers {_listed(found)} of the loaded model would learn, not {_listed(trained.layers)}. An "
            "adapter that goes on (lora_model_dir) keeps its own layers, and PEFT adapts experts that one tensor holds "
            "in every layer: list lora_target_modules without their names, such as gate_proj and down_proj, instead of "
            "lora_target_linear. Else this model's parameters are not named as in others of its type; write "
            "unfrozen_parameters (with an adapter, peft_layers_to_transform) instead"
        )
    chosen = compiled(layer_patterns(decoder, trained.layers))
    beside = [name for name in learning if ".lora_" in name and not any(layer.match(name) for layer in chosen)]
    if beside and len(trained.layers) < trained.num_layers:
        raise ArgsError(
            f"solar.train: the adapter covers {beside[0]} too, which is in none of the layers that should learn; name "
            "only modules of layers in lora_target_modules"
        )
    # Under ZeRO-3 a parameter is empty between its uses, and knows its size.
    sizes = {name: getattr(parameter, "ds_numel", parameter.numel()) for name, parameter in parameters.items()}
    count, whole = (sum(sizes[name] for name in names) for names in (learning, sizes))
    return f"solar.train: {len(found)} of {trained.num_layers} layers are trained, {count:,} of {whole:,} parameters"


def compiled(patterns: Iterable[str]) -> list[re.Pattern[str]]:
    """Patterns as Axolotl reads ``unfrozen_parameters``."""
    return [unfrozen_pattern(pattern) for pattern in patterns]


def _listed(layers: Any) -> str:
    return ", ".join(map(str, layers)) or "none"
