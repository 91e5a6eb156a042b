"""Donors: models other than the base that a plan takes layers from. Finds them, and checks that they are compatible.

Imported only if a plan has donors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from solar_plugins.errors import ArgsError, CheckpointError
from solar_plugins.solar_block import InitArgs
from solar_plugins.storage.untrusted import read_json_object, require_inside
from solar_plugins.upscaling.architectures.layer_fields import Config
from solar_plugins.upscaling.architectures.spellings import DEPTH_KEYS
from solar_plugins.upscaling.architectures.unknown_keys import PLACE, words
from solar_plugins.upscaling.base_model import BaseCheckpoint, FoundConfig
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import Donor, LayerPlan
from solar_plugins.upscaling.upscaled_tensors import layer_names

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
"""Config keys that do not change what a layer computes: names and versions, token ids (the tokenizers are compared),
and generation settings. All other keys must be equal, unless they describe individual layers."""

TOKENIZER = "tokenizer.json"
OTHER_TOKENIZERS = (
    ("tokenizer.model", "added_tokens.json"),
    ("spiece.model", "added_tokens.json"),
    ("sentencepiece.bpe.model", "added_tokens.json"),
    ("vocab.json", "merges.txt", "added_tokens.json"),
    ("vocab.txt", "added_tokens.json"),
    ("tekken.json",),
    ("tokenizer.tiktoken",),
    ("qwen.tiktoken",),
    ("rwkv_vocab_v20230424.txt",),
)
"""The files of a tokenizer without a tokenizer.json. A model has at least the first file of one line."""

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""The dtype and shape of each tensor in a layer, by name."""

ABSENT = "absent"
COMMIT = re.compile("[0-9a-f]{40}")


def with_donors[ModelT: (BaseCheckpoint, FoundConfig)](
    base: ModelT, plan: LayerPlan, init: InitArgs | None, find: Callable[[Donor], ModelT]
) -> tuple[ModelT, LayerPlan]:
    """Find the donors of a plan. Returns the base with its donors, and the plan with their public names and depths.

    A donor that is the base itself, or that appears under two names, is used once.

    Args:
        base: The base.
        plan: From a strategy: its donors have the names that the user wrote.
        init: The ``solar.init`` it comes from; None for a recorded plan.
        find: Finds a donor.

    Raises:
        ArgsError: One model has two names, so ``solar.init.duplicates`` was not applied to its second copies.
        CheckpointError: A donor cannot be found, or its config does not match the base's.
        PlanError: The plan takes layers that a donor does not have.
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
            f"slices: {', '.join(donor.name for donor in plan.donors)}: one of these is the base, or two are the same "
            "model, so some duplicates looked like first copies; omit model: for the base, and always use the same "
            "name for a donor"
        )
    return replace(base, donors=tuple(models[1:])), found_plan


def _found[ModelT](donor: Donor, find: Callable[[Donor], ModelT]) -> ModelT:
    try:
        return find(donor)
    except CheckpointError as error:
        raise CheckpointError(f"donor {donor.name}: {str(error).removeprefix('base_model: ')}") from None


def refuse_other_config(base: Decoder, donor: Decoder, name: str) -> None:
    """Refuse a donor whose layers would compute something else under the base's config.

    Args:
        base: The base's decoder.
        donor: The donor's decoder.
        name: The donor's name in an error.

    Raises:
        CheckpointError: A key has another value, or one of the models is quantized or has custom code.
    """
    for which, decoder in (("the base", base), (f"donor {name}", donor)):
        if decoder.quantization is not None:
            raise CheckpointError(
                f"{which}: is quantized, and layers of several models can be stacked only if none is quantized; use "
                "the unquantized model, and quantize after training"
            )
        if decoder.config.get("auto_map"):
            raise CheckpointError(
                f"{which}: config.json: auto_map refers to custom code, and whether the code of several models "
                "computes the same is not known; if transformers itself supports the model_type, remove auto_map"
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
            f"{found}; under the base's config the donor's layers would compute something else. Use a donor with the "
            "same config. If one config only omits a default, save both again: "
            "transformers.AutoConfig.from_pretrained(DIR).save_pretrained(DIR)"
        )


def _differences(base: Decoder, donor: Decoder) -> Iterator[tuple[str, Any, Any]]:
    """The keys that must be equal but differ, with both values."""
    free, text = MAY_DIFFER | base.followed_keys, ""
    if base.model_type != donor.model_type:  # Explains all other differences, so it comes first.
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
            # For example Kimi's linear_attn_config, with widths as well as lists that follow the plan.
            by_layer = {inner for inner in {*own, *other} if inner.isdecimal() or PLACE.search(inner)}
            yield from _differing(f"{where}{key}.", own, other, frozenset(by_layer))


def _one_dtype(config: Config) -> Config:
    """The config with ``torch_dtype`` renamed to ``dtype``."""
    old = {"dtype": config["torch_dtype"]} if "torch_dtype" in config and "dtype" not in config else {}
    return {**{key: value for key, value in config.items() if key != "torch_dtype"}, **old}


def _said(value: Any) -> str:
    return value if value is ABSENT else f"{value!r:.200}"


def is_recorded(plan: LayerPlan, recorded: LayerPlan, base: Donor) -> bool:
    """Whether a recipe's plan equals a recorded plan, which has public names for its models.

    Args:
        plan: From a strategy, with the names in the recipe.
        recorded: From the config of the upscaled model.
        base: Name and revision of the base in that record.
    """
    models = (base, *recorded.donors)
    return (plan.base_layers, len(plan)) == (recorded.base_layers, len(recorded)) and all(
        ours._replace(model=0) == theirs._replace(model=0)
        and (_is_called(plan.donors[ours.model - 1], models[theirs.model]) if ours.model else not theirs.model)
        for ours, theirs in zip(plan.layers, recorded.layers, strict=True)
    )


def _is_called(asked: Donor, recorded: Donor) -> bool:
    """Whether a recipe's donor may be a recorded model. Of a recorded local directory only the name is known."""
    if recorded.revision is None:
        return Path(asked.name).expanduser().resolve().name == recorded.name
    other_commit = COMMIT.fullmatch(asked.revision or "") and asked.revision != recorded.revision
    return asked.name == recorded.name and not other_commit


def refuse_other_files(base: BaseCheckpoint, donor: BaseCheckpoint) -> None:
    """Refuse a donor with another tokenizer, or with other tensors in its layers.

    Raises:
        CheckpointError: They differ; the message names the first difference.
    """
    refuse_other_tokenizer(base.fetched, donor.fetched, donor.name)
    firsts: dict[tuple[str, ...], tuple[int, Tensors]] = {}
    for index, kind, tensors in _layers(base):
        firsts.setdefault(kind, (index, tensors))
    for layer, kind, tensors in _layers(donor):
        # For a kind of layer that the base lacks, compare only dtypes, with those of the base's first layer.
        index, own = firsts.get(kind) or next(iter(firsts.values()))
        if kind not in firsts:
            common = own.keys() & tensors.keys()
            own, tensors = ({name: (one[name][0], ()) for name in sorted(common)} for one in (own, tensors))
        _require_alike(donor.name, (layer, tensors), (index, own))


def _require_alike(name: str, of_donor: tuple[int, Tensors], of_base: tuple[int, Tensors]) -> None:
    (layer, theirs), (index, ours) = of_donor, of_base
    wrong = next((tensor for tensor in {**ours, **theirs} if ours.get(tensor) != theirs.get(tensor)), None)
    if wrong is not None:
        said = [f"{one[wrong][0]} {list(one[wrong][1])}" if wrong in one else "absent" for one in (theirs, ours)]
        raise CheckpointError(
            f"donor {name}: {wrong} of layer {layer} is {said[0]}, but {said[1]} in the base's layer {index}; expected "
            "the same tensors in both. Save both models in the same way, with the same dtype"
        )


def _layers(model: BaseCheckpoint) -> Iterator[tuple[int, tuple[str, ...], Tensors]]:
    """The index, kind and tensors of each layer."""
    found = layer_names(model.tensors, model.decoder)
    for index, names in enumerate(found.layers):
        tensors = {name.removeprefix(f"{found.prefix}{index}."): model.tensors[name] for name in names}
        described = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        yield index, model.decoder.layer_kinds[index], described


def refuse_other_tokenizer(base: Path, donor: Path, name: str) -> None:
    """Refuse a donor that tokenizes text differently from the base.

    Args:
        base: The base's directory.
        donor: The donor's directory.
        name: The donor's name in an error.

    Raises:
        CheckpointError: It does, or that cannot be determined; the message names the first difference.
    """
    if all((folder / TOKENIZER).is_file() for folder in (base, donor)):
        ours, theirs = (_tokens(folder) for folder in (base, donor))
        difference = next(_json_differences(ours, theirs), None)
        if difference:
            key, own, other = difference
            raise CheckpointError(
                f"donor {name}: {TOKENIZER}: {key} is {other!r:.200}, the base's is {own!r:.200}; a donor must have "
                "exactly the base's tokenizer. Use another donor"
            )
        return
    for files in OTHER_TOKENIZERS:
        if all((folder / files[0]).is_file() for folder in (base, donor)):
            if other := next((file for file in files if _content(base, file) != _content(donor, file)), None):
                raise CheckpointError(
                    f"donor {name}: {other} differs from the base's; a donor must have exactly the base's tokenizer. "
                    "Use another donor"
                )
            return
    raise CheckpointError(
        f"donor {name}: cannot compare its tokenizer with the base's: {donor} and {base} have no tokenizer file in "
        f"common, such as {TOKENIZER} or tokenizer.model. Copy the tokenizer of each model into its directory"
    )


def _content(folder: Path, name: str) -> bytes | None:
    path = folder / name
    if not path.is_file():
        return None
    require_inside(path, folder)
    return path.read_bytes()


def _tokens(folder: Path) -> dict[str, Any]:
    """The parts of a tokenizer.json that decide which tokens a text becomes, without truncation and post-processing."""
    path = folder / TOKENIZER
    require_inside(path, folder)
    said = read_json_object(path)
    model = said.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{path}: model is {model!r:.80}; expected a map with the vocabulary. Download it again")
    merges = model.get("merges")
    if isinstance(merges, list):  # A merge was one string before tokenizers 0.20.
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
    model = {key: value for key, value in {**model, "merges": merges}.items() if value not in (None, False, "")}
    return {"model": model} | {key: said.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer")}


def _json_differences(ours: Any, theirs: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The paths at which two JSON values differ, with both values."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys((*ours, *theirs)):
            yield from _json_differences(
                ours.get(key, "absent"), theirs.get(key, "absent"), f"{where}.{key}".lstrip(".")
            )
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from _json_differences(*pair, f"{where}[{number}]")
    elif ours != theirs:
        yield where, ours, theirs
