"""``solar.train`` as keys of an Axolotl recipe: what it freezes, or which layers its adapter covers. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from solar_plugins.errors import ArgsError
from solar_plugins.recipe import Recipe
from solar_plugins.solar_block import TrainArgs
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.tensor_names import is_tied
from solar_plugins.upscaling.trained_layers import (
    Trained,
    adapter_patterns,
    embedding_modules,
    head_modules,
    trained_parts,
    unfrozen_patterns,
)

ABSOLUTE_SCHEDULES = ("one_cycle", "rex")
"""Schedules for which Axolotl gives all parameters one and the same maximum (core/trainers/mixins/scheduler.py)."""


def training_keys(recipe: Recipe, args: TrainArgs, decoder: Decoder, plan: LayerPlan | None) -> dict[str, Any]:
    """The keys of Axolotl that train what ``solar.train`` says.

    Args:
        recipe: The recipe.
        args: Its ``solar.train``.
        decoder: Of its base, upscaled or not.
        plan: By which that was or will be upscaled; None where it has no record of a plan.

    Raises:
        ArgsError: The plan does not have what is asked for, another key of the recipe contradicts it, or Axolotl cannot
            do it.
    """
    trained = trained_parts(args, decoder, plan)
    if args.lr_scale:
        _check_lr_scale(recipe, args, trained)
    if recipe.adapter:
        keys = _adapter_keys(recipe, args, decoder, trained)
    else:
        keys = {} if trained.everything else {"unfrozen_parameters": unfrozen_patterns(decoder, trained)}
    for key, value in keys.items():
        said = getattr(recipe, key)
        if said not in (None, value):
            raise ArgsError(f"{key}: {said!r:.200} and solar.train both say what is trained; remove one of them")
    copied = list(recipe.lora_modules_to_save or ())
    missing = [name for name in _copied_modules(recipe, args, decoder) if name not in copied]
    return keys | ({"lora_modules_to_save": copied + missing} if missing else {})


def _adapter_keys(recipe: Recipe, args: TrainArgs, decoder: Decoder, trained: Trained) -> dict[str, Any]:
    if args.norms:
        raise ArgsError("solar.train.norms: an adapter trains no norms; remove this key, or adapter")
    # Else PEFT trains a copy of the embeddings beside the head, and the merged model has only one of them.
    tied = {"peft_ensure_weight_tying": True} if is_tied(decoder) and (args.embeddings or args.lm_head) else {}
    if tied and recipe.fsdp_config:
        asked = "embeddings" if args.embeddings else "lm_head"
        raise ArgsError(
            f"fsdp_config: with adapter: {recipe.adapter}, FSDP2 cannot shard a head that is the embeddings, which "
            f"solar.train.{asked} trains as PEFT's copy (tie_word_embeddings). Use deepspeed or DDP, or leave "
            f"{asked} out"
        )
    if len(trained.layers) == trained.num_layers:
        return tied
    if recipe.lora_target_parameters:
        raise ArgsError(
            f"lora_target_parameters: {recipe.lora_target_parameters!r:.200}; PEFT adapts such parameters in every "
            f"layer, and solar.train.layers: {args.layers} chooses some. Remove the key, set layers: all, or remove "
            "adapter"
        )
    if isinstance(recipe.lora_target_modules, str):
        raise ArgsError(
            f"lora_target_modules: {recipe.lora_target_modules!r:.200} is a pattern, and PEFT chooses no layers then; "
            "with solar.train give a list of names, or lora_target_linear: true"
        )
    chosen = {"peft_layers_to_transform": list(trained.layers), "peft_layers_pattern": adapter_patterns(decoder)}
    return chosen | tied


def _copied_modules(recipe: Recipe, args: TrainArgs, decoder: Decoder) -> Iterator[str]:
    """Beside an adapter, embeddings and head are trained whole, as PEFT's copies."""
    if not recipe.adapter:
        return
    tied = is_tied(decoder)
    if args.embeddings or (tied and args.lm_head):
        yield from embedding_modules(decoder)
    if args.lm_head and not tied:
        yield from head_modules(decoder)


def _check_lr_scale(recipe: Recipe, args: TrainArgs, trained: Trained) -> None:
    if recipe.lr_scheduler in ABSOLUTE_SCHEDULES:
        raise ArgsError(
            f"solar.train.lr_scale: lr_scheduler: {recipe.lr_scheduler} gives all parameters one learning rate; use "
            "another schedule, such as cosine"
        )
    beside = (args.embeddings, args.lm_head) if recipe.adapter else (trained.embeddings, trained.norms, trained.lm_head)
    if set(trained.layers) <= set(trained.new) and not any(beside):
        raise ArgsError(
            f"solar.train.lr_scale: with layers: {args.layers} nothing learns that the base had, so that the scale has "
            "no effect; remove it, or set layers: all"
        )


def refuse_frozen_identity_layers(args: TrainArgs, decoder: Decoder, plan: LayerPlan) -> None:
    """Refuse to leave a layer frozen that this recipe adds as identity: it would stay the identity for ever.

    Raises:
        ArgsError: There is one.
    """
    identity = {place for place, layer in enumerate(plan.layers) if not layer.acts}
    frozen = sorted(identity.difference(trained_parts(args, decoder, plan).layers))
    if frozen:
        raise ArgsError(
            f"solar.train.layers: {args.layers} leaves layers {', '.join(map(str, frozen))} frozen, which this plan "
            f"adds as identity, so that they would never learn ({plan}); set layers: new or all"
        )
