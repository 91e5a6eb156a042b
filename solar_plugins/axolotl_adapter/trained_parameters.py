"""Which parameters are trained, and at which learning rate: checks of the recipe and of the loaded model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from solar_plugins.errors import ArgsError
from solar_plugins.memory.parameters import unfrozen_pattern
from solar_plugins.recipe import Recipe
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.trained_layers import Trained, layer_patterns, norm_patterns

ROOTS = ("", "model.", "transformer.")
"""Prefixes that a loaded model may put before a tensor's name in the file, as GPT-2 does."""

GROUP_KEY = "solar_part"
"""A key of the optimizer's parameter groups: ``new`` or ``old``. It is saved with the optimizer's state."""

RATE_KEYS = ("lr", "max_lr")
"""The keys of a group that hold learning rates: AdamC divides by the second, the initial rate."""


def refuse_frozen_new_layers(recipe: Recipe, decoder: Decoder, plan: LayerPlan) -> None:
    """Reject ``unfrozen_parameters`` that leave an identity layer frozen: it would stay the identity forever.

    A layer with another initialization, scaled or with noise, has an effect while frozen; that may be intended.

    Args:
        recipe: The recipe.
        decoder: Of its base.
        plan: Its plan.

    Raises:
        ArgsError: A layer that starts as the identity, by any initializer, is not trained.
    """
    if recipe.unfrozen_parameters is None or recipe.adapter:
        return
    new = [place for place, layer in enumerate(plan.layers) if not layer.acts]
    prefix = decoder.architecture.layers_prefix
    patterns = compiled(recipe.unfrozen_parameters)
    # An identity layer is trained if one of the modules that write its output is trained.
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
            f"unfrozen_parameters: leaves layers {_listed(frozen)} frozen, which this plan adds as identity layers, so "
            f"they would have no effect forever ({plan}). Remove the key, and train the new layers with:\n"
            "solar:\n  train: {layers: new}"
        )


def check_trained_parameters(model: Any, decoder: Decoder, trained: Trained) -> str:
    """Check on the loaded model, frozen or with its adapter, that exactly the layers of ``solar.train`` are trained.

    Returns:
        A line on what is trained.

    Raises:
        ArgsError: Other layers are trained: this model's parameters do not have the names of its model type.
    """
    parameters = dict(model.named_parameters())
    trained_names = [name for name, parameter in parameters.items() if parameter.requires_grad]
    norms = compiled(norm_patterns(decoder) if trained.norms else ())
    without_norms = [name for name in trained_names if not any(norm.match(name) for norm in norms)]
    found = [
        number
        for number in range(trained.num_layers)
        if any(layer.match(name) for layer in compiled(layer_patterns(decoder, [number])) for name in without_norms)
    ]
    if found != list(trained.layers):
        raise ArgsError(
            f"solar.train: layers {_listed(found)} of the loaded model would be trained, not "
            f"{_listed(trained.layers)}. An adapter that is trained further (lora_model_dir) keeps its own layers, and "
            "PEFT adapts experts that share one tensor in every layer: list lora_target_modules without their names, "
            "such as gate_proj and down_proj, instead of lora_target_linear. Otherwise this model's parameters have "
            "other names than usual for its type; set unfrozen_parameters (with an adapter, peft_layers_to_transform) "
            "instead of solar.train"
        )
    chosen = compiled(layer_patterns(decoder, trained.layers))
    outside = [name for name in trained_names if ".lora_" in name and not any(layer.match(name) for layer in chosen)]
    if outside and len(trained.layers) < trained.num_layers:
        raise ArgsError(
            f"solar.train: the adapter covers {outside[0]} too, which is in none of the layers to train; name only "
            "modules of layers in lora_target_modules"
        )
    # Under ZeRO-3 a parameter is empty unless it is in use, but has its size.
    sizes = {name: getattr(parameter, "ds_numel", parameter.numel()) for name, parameter in parameters.items()}
    count, total = (sum(sizes[name] for name in names) for names in (trained_names, sizes))
    return f"solar.train: {len(found)} of {trained.num_layers} layers are trained, {count:,} of {total:,} parameters"


def compiled(patterns: Iterable[str]) -> list[re.Pattern[str]]:
    """Patterns as Axolotl reads ``unfrozen_parameters``."""
    return [unfrozen_pattern(pattern) for pattern in patterns]


def _listed(layers: Iterable[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def scale_old_rates(trainer: Any, is_new: Callable[[str], bool], scale: float) -> None:
    """Apply ``solar.train.lr_scale``: let the trainer's optimizer scale the learning rate of old parameters.

    Axolotl's own ``lr_groups`` cover no norms, biases or embeddings (core/trainers/mixins/optimizer.py). So every
    parameter group that the trainer made is split in two, whatever its rate. The schedule multiplies both.

    Args:
        trainer: Before its training, when the optimizer does not exist yet.
        is_new: Whether a parameter, by its name in the model, belongs to a layer that the plan added.
        scale: For all others.
    """
    create = trainer.create_optimizer

    def create_with_scale(model: Any = None) -> Any:
        create(model)
        named = (trainer.model if model is None else model).named_parameters()
        split_groups(trainer.optimizer, {id(parameter): is_new(name) for name, parameter in named}, scale)
        return trainer.optimizer

    trainer.create_optimizer = create_with_scale


def split_groups(optimizer: Any, is_new: dict[int, bool], scale: float) -> None:
    """Split each parameter group into new and old parameters, in place. Groups that are split already stay.

    Args:
        optimizer: A torch optimizer.
        is_new: For each parameter of the model, by its ``id``.
        scale: Old parameters' learning rate over the group's.

    Raises:
        ArgsError: The optimizer has no parameter groups, or has parameters that are not the model's.
    """
    groups = getattr(optimizer, "param_groups", None)
    if groups is None or any(
        group.get("lr") is None or any(id(parameter) not in is_new for parameter in group["params"]) for group in groups
    ):
        raise ArgsError(
            f"solar.train.lr_scale: {type(optimizer).__name__} has no groups of the model's parameters with a learning "
            "rate, so the rates cannot differ. Remove the optimizer from the DeepSpeed JSON, or use adamw_torch_fused"
        )
    split = []
    for group in groups:
        if GROUP_KEY in group:
            split.append(group)
            continue
        for part, factor in (("new", 1), ("old", scale)):
            members = [parameter for parameter in group["params"] if is_new[id(parameter)] == (part == "new")]
            if members:
                rates = {key: group[key] * factor for key in RATE_KEYS if group.get(key) is not None}
                split.append({**group, **rates, "params": members, GROUP_KEY: part})
    groups[:] = split
