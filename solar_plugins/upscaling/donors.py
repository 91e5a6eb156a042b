"""Donors: models beside the base that give layers to a plan. They are found here, and what their configs say compared.

Imported where a plan has donors, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from solar_plugins.errors import ArgsError, CheckpointError
from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.architectures.layer_fields import Config
from solar_plugins.upscaling.architectures.spellings import DEPTH_KEYS
from solar_plugins.upscaling.architectures.unknown_keys import PLACE, words
from solar_plugins.upscaling.base_model import BaseCheckpoint, FoundConfig
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import Donor, LayerPlan

MAY_DIFFER = words(
    """
    _name_or_path _commit_hash transformers_version transformers_weights transformers.js_config solar_plugins
    unsloth_fixed unsloth_version use_cache
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens
    min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
    remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
    """
)
"""Config keys that do not change what a layer computes: names and versions, ids of a tokenizer that is the same, and
what `generate` reads. Every other key must be equal, or say something of single layers."""

ABSENT = "absent"
COMMIT = re.compile("[0-9a-f]{40}")


def with_donors[ModelT: (BaseCheckpoint, FoundConfig)](
    base: ModelT, plan: LayerPlan, init: InitArgs | None, find: Callable[[Donor], ModelT]
) -> tuple[ModelT, LayerPlan]:
    """The base together with the donors of a plan, and the plan with what is known now of the donors.

    A donor that is the base itself, or one that has two names, counts once.

    Args:
        base: The base.
        plan: As a strategy made it: its donors have the names that the user wrote.
        init: What asked for the plan; None for a plan that was made before.
        find: Finds a donor.

    Raises:
        ArgsError: One model has two names, so that its second copies were not seen to start as ``init`` says.
        CheckpointError: A donor cannot be found, or its config is not that of the base.
        PlanError: A donor has not as many layers as the plan takes from it.
    """
    models, numbers = [base], [0]
    for donor in plan.donors:
        found = base if donor == Donor(base.name) else _found(donor, find)
        number = next((number for number, model in enumerate(models) if model.place == found.place), len(models))
        if number == len(models):
            refuse_other_config(base.decoder, found.decoder, found.name)
            models.append(found)
        numbers.append(number)
    layers = tuple(layer._replace(model=numbers[layer.model]) for layer in plan.layers)
    donors = tuple(Donor(model.public_name, model.place[1], model.decoder.num_layers) for model in models[1:])
    found_plan = LayerPlan(plan.base_layers, layers, donors)
    if init is not None and init.duplicates is not None and plan.duplicates() != found_plan.duplicates():
        raise ArgsError(
            f"slices: {', '.join(donor.name for donor in plan.donors)}: one of them is the base itself, or has two "
            "names, so that duplicates were taken for first copies; leave model: out for the base, and give a donor "
            "one name"
        )
    return replace(base, donors=tuple(models[1:])), found_plan


def _found[ModelT](donor: Donor, find: Callable[[Donor], ModelT]) -> ModelT:
    try:
        return find(donor)
    except CheckpointError as error:
        raise CheckpointError(f"donor {donor.name}: {str(error).removeprefix('base_model: ')}") from None


def refuse_other_config(base: Decoder, donor: Decoder, name: str) -> None:
    """Refuse a donor whose layers would be computed otherwise under the base's config.

    Args:
        base: The base's.
        donor: The donor's.
        name: What to call the donor in an error.

    Raises:
        CheckpointError: A key has another value, one of them is quantised, or code of their own computes them.
    """
    for which, decoder in (("the base", base), (f"donor {name}", donor)):
        if decoder.quantization is not None:
            raise CheckpointError(
                f"{which}: is quantised, and layers of several models are stacked only where none is; use the "
                "unquantised model, and quantise after training"
            )
        if decoder.config.get("auto_map"):
            raise CheckpointError(
                f"{which}: config.json: auto_map names code that comes with the model, and nobody here knows whether "
                "the code of several models computes the same; if transformers knows the model_type, remove auto_map"
            )
    difference = next(_differences(base, donor), None)
    if difference:
        key, ours, theirs = difference
        found = f"donor {name}: config.json: {key} is {_said(theirs)}, the base's is {_said(ours)}"
        if key.endswith("dtype") and ours is not ABSENT:
            raise CheckpointError(
                f"{found}; convert the donor's weights first: transformers.AutoModelForCausalLM.from_pretrained(DONOR, "
                f"dtype={ours!r}).save_pretrained(DIR)"
            )
        raise CheckpointError(
            f"{found}; under the base's config the donor's layers would be other ones. Take a donor with the same "
            "config. If one of them only leaves a default out, write both anew: "
            "transformers.AutoConfig.from_pretrained(DIR).save_pretrained(DIR)"
        )


def _differences(base: Decoder, donor: Decoder) -> Iterator[tuple[str, Any, Any]]:
    """Every key by which the configs differ that may not, with both values."""
    free, text = MAY_DIFFER | base.followed_keys, ""
    if base.model_type != donor.model_type:  # It explains all other differences.
        yield "model_type", base.model_type, donor.model_type
    if base.is_composite:
        text = "text_config."
        yield from _differing("", base.config, donor.config, free | DEPTH_KEYS | {"text_config"})
    yield from _differing(text, base.text_config, donor.text_config, free)


def _differing(where: str, ours: Config, theirs: Config, free: frozenset[str]) -> Iterator[tuple[str, Any, Any]]:
    ours, theirs = _one_dtype(ours), _one_dtype(theirs)
    for key in dict.fromkeys((*ours, *theirs)):
        values = own, other = ours.get(key, ABSENT), theirs.get(key, ABSENT)
        if key not in free and own != other:
            yield f"{where}{key}", *values
        elif key in free - MAY_DIFFER and isinstance(own, Mapping) and isinstance(other, Mapping):
            # Such as Kimi's linear_attn_config, where widths stand beside the lists that follow the plan.
            by_layer = {inner for inner in {*own, *other} if inner.isdecimal() or PLACE.search(inner)}
            yield from _differing(f"{where}{key}.", own, other, frozenset(by_layer))


def _one_dtype(config: Config) -> Config:
    """``torch_dtype`` under its new name."""
    old = {"dtype": config["torch_dtype"]} if "torch_dtype" in config and "dtype" not in config else {}
    return {**{key: value for key, value in config.items() if key != "torch_dtype"}, **old}


def _said(value: Any) -> str:
    return value if value is ABSENT else f"{value!r:.200}"


def is_recorded(plan: LayerPlan, recorded: LayerPlan, base: Donor) -> bool:
    """Whether a recipe's plan is the recorded one, though that calls its models by names fit for publication.

    Args:
        plan: As a strategy made it, with the names that the recipe has.
        recorded: From the config of the model that was made.
        base: Name and revision of the base in that record.
    """
    models = (base, *recorded.donors)
    return (plan.base_layers, len(plan)) == (recorded.base_layers, len(recorded)) and all(
        ours._replace(model=0) == theirs._replace(model=0)
        and (_is_called(plan.donors[ours.model - 1], models[theirs.model]) if ours.model else not theirs.model)
        for ours, theirs in zip(plan.layers, recorded.layers, strict=True)
    )


def _is_called(asked: Donor, recorded: Donor) -> bool:
    """Whether a recipe may mean a recorded model, of whose folder nothing but its name is known."""
    if recorded.revision is None:
        return Path(asked.name).expanduser().resolve().name == recorded.name
    other_commit = COMMIT.fullmatch(asked.revision or "") and asked.revision != recorded.revision
    return asked.name == recorded.name and not other_commit
