"""Under which names transformers would load the tensors of a base, if it would. Pure.

Training wrappers leave their own names in a checkpoint that is saved from the wrapped model. They are stripped, and a
name that is still not the model's is refused: transformers would load random weights in its place.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, NoReturn

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.outer_tensors import HEADS, TIED_BY_DEFAULT, UNCHECKED, outer_modules
from solar_plugins.upscaling.decoder import Decoder

WRAPPER_PARTS = frozenset(
    {
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",  # FSDP1
        "_fpw_module",  # FSDP of torch 1.11 and FairScale
        "_checkpoint_wrapped_module",  # activation checkpointing
        "_forward_module",  # Lightning Fabric
    }
)
"""What wrappers of single modules insert, anywhere in a name."""

_WHOLE_MODEL_WRAPPERS = re.compile(r"(?:(?:module|_module|base_model\.model|base_model|model|pretrained_model)\.)*")
"""What wrappers of the whole model put before every name: DDP and DeepSpeed, Opacus, PEFT, Lightning, TRL."""

_UNMERGED = re.compile(r"\.(?:lora_\w+|base_layer|modules_to_save|original_module|lora_magnitude_vector|ia3_l)\.")
_FLAT = re.compile(r"(?:^|\.)(?:_flat_param|flat_param_\d+)$")

_BUFFERS = re.compile(r"(?:rotary_emb\.inv_freq|rotary_emb\.(?:cos|sin)_cached|masked_bias|position_ids|attn\.bias)$")
"""Buffers that old checkpoints store and today's models compute."""


class TensorNames(NamedTuple):
    """A base's tensors as its model names them."""

    stored: dict[str, str]
    """By the model's name: the name in the file."""
    notes: tuple[str, ...]
    """What was done that the user should know."""


def model_names(
    names: Iterable[str], decoder: Decoder, *, unlisted: frozenset[str] = frozenset(), absent: Iterable[str] = ()
) -> TensorNames:
    """The names under which transformers would load the tensors of a base.

    Args:
        names: As stored.
        decoder: The base's.
        unlisted: Those of ``names`` that the index leaves out.
        absent: Names in the index that no file holds.

    Raises:
        CheckpointError: The layers have names that transformers would not load for this model, they hold an adapter
            that is not merged, or a tensor is missing that the model needs.

    Example:
        >>> decoder = Decoder.of({"model_type": "llama", "num_hidden_layers": 1, "tie_word_embeddings": True})
        >>> names = ["embed_tokens.weight", "norm.weight", "layers.0.mlp._orig_mod.up_proj.weight"]
        >>> model_names([f"module.model.{name}" for name in names], decoder).stored["model.layers.0.mlp.up_proj.weight"]
        'module.model.layers.0.mlp._orig_mod.up_proj.weight'
    """
    names = list(names)
    _refuse_training_state(names)
    inner = {name: ".".join(part for part in name.split(".") if part not in WRAPPER_PARTS) for name in names}
    wrapper = _whole_model_wrapper(inner.values(), decoder)
    own = {name: short.removeprefix(wrapper) for name, short in inner.items()}
    twice = [name for name, count in Counter(own.values()).items() if count > 1]
    if twice:
        both = [name for name, short in own.items() if short == twice[0]]
        raise CheckpointError(
            f"tensors {both[0]!r:.200} and {both[1]!r:.200} are both {twice[0]!r:.200} without what training wrappers "
            "add to names; keep one of them"
        )
    dropped = {name for name in unlisted if _past_the_last_layer(own[name], decoder)}
    stored = {short: name for name, short in own.items() if name not in dropped}
    missing = [name for name in absent if _is_needed(name, stored, decoder)]
    if missing:
        raise CheckpointError(
            f"tensor {missing[0]!r:.200} is named by the index, but no file holds it, and the model needs it; download "
            "the files again"
        )
    headless = saved_without_head([*stored, *absent], decoder)
    _require_outer_tensors(stored, decoder, headless=headless)
    notes = [*_notes(own, wrapper, dropped, unlisted, list(absent))]
    if headless:
        notes.append(
            f"config.json names {decoder.model_class or 'no class'}, but the weights are those of the model without "
            "its head, as embedding models are saved, and so is the result. As a language model, as Axolotl loads it "
            "by default, it would begin with a random head"
        )
    if not decoder.has_language_model_head:
        notes.append(
            f"a {decoder.model_class} has no head for language modelling, and neither has the result: load it with its "
            "own class. As a language model, as Axolotl loads it by default, it would begin with a random head"
        )
    return TensorNames(stored, tuple(notes))


def layer_prefixes(decoder: Decoder) -> tuple[str, ...]:
    """How transformers accepts the prefix of the layers' names: whole, or without the name of the base model.

    Example:
        >>> layer_prefixes(Decoder.of({"model_type": "gpt2", "n_layer": 2}))
        ('transformer.h.', 'h.')
    """
    row = decoder.architecture
    root = row.layers_prefix.split(".")[0] + "."
    short = [prefix.removeprefix(root) for prefix in row.prefixes if prefix.startswith(root) and prefix.count(".") > 1]
    # Llama's and Qwen's models for question answering call their base model "transformer".
    answering = (
        [f"transformer.{prefix}" for prefix in short] if decoder.model_class.endswith("QuestionAnswering") else []
    )
    return tuple(dict.fromkeys((*row.prefixes, *short, *answering)))


def saved_without_head(names: Iterable[str], decoder: Decoder) -> bool:
    """Whether weights were saved from the model without its head, although the config names the class that has one.

    So are embedding models such as Qwen3-Embedding-8B: there is no head, and the names lack the base model's own.

    Args:
        names: Of all tensors.
        decoder: Of their config.
    """
    names = list(names)
    if not decoder.has_language_model_head or is_tied(decoder) or _has_head(names, decoder):
        return False
    matches = (layer_prefix_of(name, decoder) for name in names)
    found = {match[1] for match in matches if match and match[1] in layer_prefixes(decoder)}
    return bool(found) and found.isdisjoint(decoder.architecture.prefixes)


def _has_head(names: Iterable[str], decoder: Decoder) -> bool:
    model_type = str(decoder.text_config.get("model_type"))
    head = re.compile(rf"(?:.+\.)?(?:{'|'.join(map(re.escape, _heads(model_type)))})\.(?!bias$).+")
    return any(head.fullmatch(name) for name in names)


def layer_prefix_of(name: str, decoder: Decoder) -> re.Match[str] | None:
    """Groups of a name with a number after the stack's name: what is before the number, the number, the rest."""
    return re.fullmatch(rf"((?:[^.]+\.)*?{re.escape(decoder.architecture.stack)}\.)(0|[1-9][0-9]{{0,5}})\.(.+)", name)


def _refuse_training_state(names: list[str]) -> None:
    for name in names:
        if _UNMERGED.search(name):
            raise CheckpointError(
                f"tensor {name!r:.200} belongs to a PEFT adapter that is not merged into the weights; merge it "
                "(axolotl merge-lora RECIPE, or model.merge_and_unload()) and give the merged folder"
            )
        if _FLAT.search(name):
            raise CheckpointError(
                f"tensor {name!r:.200} is a flattened FSDP parameter, which holds many tensors in one; save the model "
                "with a full state dict (fsdp_state_dict_type: FULL_STATE_DICT), or merge the shards (axolotl "
                "merge-sharded-fsdp-weights RECIPE)"
            )


def _whole_model_wrapper(names: Iterable[str], decoder: Decoder) -> str:
    """What stands before the layers' known prefix: nothing, or what a training wrapper adds."""
    known = layer_prefixes(decoder)
    found: dict[str, str] = {}
    numbers: dict[str, set[str]] = {}
    for name in names:
        if match := layer_prefix_of(name, decoder):
            found.setdefault(match[1], name)
            numbers.setdefault(match[1], set()).add(match[2])
    if not found:
        return ""
    if here := [prefix for prefix in found if prefix in known]:
        # A model of more than text has other stacks beside the decoder's.
        ends = decoder.architecture.prefixes if decoder.text_config is decoder.config else ()
        others = [prefix for prefix in found if prefix not in known and prefix.endswith(ends)]
        if others or len(here) > 1:
            _refuse_several_prefixes({prefix: numbers[prefix] for prefix in (*here, *others)})
        return ""
    for prefix in found:
        for end in known:
            wrapper = prefix.removesuffix(end)
            if wrapper != prefix and _WHOLE_MODEL_WRAPPERS.fullmatch(wrapper):
                return wrapper
    if decoder.has_own_code:
        return ""
    prefix, example = next(iter(found.items()))
    raise CheckpointError(
        f"tensor {example!r:.200}: transformers would not load it for model_type {decoder.model_type!r}, whose layers "
        f"are called {' or '.join(f'{end}<number>....' for end in known)}; {prefix!r:.200} is none of these, nor with "
        "what a known training wrapper adds. Rename the tensors, or save the model again without its wrapper"
    )


def _refuse_several_prefixes(numbers: Mapping[str, set[str]]) -> NoReturn:
    """Refuse layers under several prefixes.

    Args:
        numbers: By prefix: the numbers of the layers that have it.
    """
    if len(set().union(*numbers.values())) < sum(map(len, numbers.values())):
        raise CheckpointError(
            f"the layers stand there more than once, as {' and '.join(numbers)}; keep the tensors of one model"
        )
    names = " and others ".join(f"{prefix}{min(of_prefix, key=int)}" for prefix, of_prefix in numbers.items())
    raise CheckpointError(
        f"some layers are called {names}, as in shards of different saves, and transformers would load only those of "
        "one name. Take all files from one save, or rename the tensors"
    )


def _past_the_last_layer(name: str, decoder: Decoder) -> bool:
    match = layer_prefix_of(name, decoder)
    end = decoder.num_layers + decoder.num_prediction_layers
    return bool(match and match[1] in layer_prefixes(decoder) and int(match[2]) >= end)


def _is_needed(name: str, stored: Mapping[str, str], decoder: Decoder) -> bool:
    """Whether the model cannot do without a tensor, as far as names tell."""
    if _BUFFERS.search(name):
        return False
    match = layer_prefix_of(name, decoder)
    if match and match[1] in layer_prefixes(decoder):
        return not _past_the_last_layer(name, decoder)
    if decoder.has_own_code or decoder.model_type in UNCHECKED:
        return name not in stored
    return False  # The others that are needed have a check of their own.


def _require_outer_tensors(stored: Mapping[str, str], decoder: Decoder, *, headless: bool) -> None:
    """Refuse a base without its embeddings, last norm or head: transformers would invent them."""
    model_type = str(decoder.text_config.get("model_type"))
    matches = (layer_prefix_of(name, decoder) for name in stored)
    prefix = next((match[1] for match in matches if match and match[1] in layer_prefixes(decoder)), None)
    if prefix is None or decoder.has_own_code or model_type in UNCHECKED:
        return
    root = decoder.architecture.layers_prefix.split(".")[0] + "."
    parent = prefix.removesuffix(f"{decoder.architecture.stack}.")
    parents = (parent, parent.removeprefix(root), f"{root}{parent}")
    has_head = _has_head(stored, decoder)
    tied = is_tied(decoder)
    # A tied head may be stored in the place of the embeddings, which always stand first.
    required = outer_modules(model_type)[tied and has_head :]
    starts = {
        names.split("|")[0]: tuple(f"{before}{name}." for before in parents for name in names.split("|"))
        for names in required
    }
    missing = [module for module, start in starts.items() if not any(name.startswith(start) for name in stored)]
    if missing:
        raise CheckpointError(
            f"tensor {parent}{missing[0]}.weight is missing, which a model of type {decoder.model_type!r} has beside "
            f"its layers {prefix}<number>....; transformers would load random weights there. The checkpoint is "
            "incomplete, or its tensors are misnamed"
        )
    if not has_head and not tied and decoder.has_language_model_head and not headless:
        raise CheckpointError(
            f"tensor {_heads(model_type)[0]}.weight is missing, the head for language modelling, which config.json "
            f"promises (architectures: {decoder.model_class or 'not said'}, and tie_word_embeddings is not set); "
            "transformers would load a random one. If the base is an embedding model, architectures should name its "
            "class, such as MistralModel; if the head is the embedding matrix, set tie_word_embeddings: true"
        )


def _heads(model_type: str) -> tuple[str, ...]:
    return HEADS.get(model_type, ("lm_head",))


def is_tied(decoder: Decoder) -> bool:
    """Whether the head for language modelling is the embedding matrix, by the config or the model type's default."""
    said = [
        part["tie_word_embeddings"] for part in (decoder.config, decoder.text_config) if "tie_word_embeddings" in part
    ]
    types = {decoder.model_type, str(decoder.text_config.get("model_type"))}
    return any(said) if said else bool(types & TIED_BY_DEFAULT)


def _notes(
    own: Mapping[str, str], wrapper: str, dropped: set[str], unlisted: frozenset[str], absent: list[str]
) -> Iterator[str]:
    """What was done, one line each."""
    stripped = {part for name in own for part in name.split(".") if part in WRAPPER_PARTS} | (
        {wrapper.rstrip(".")} - {""}
    )
    if stripped:
        yield f"stripped from the tensors' names what training wrappers added: {', '.join(sorted(stripped))}"
    if dropped:
        yield (
            f"left out {_some(dropped)}: not in the index, and past the last layer that config.json names, so "
            "transformers does not load them either"
        )
    if kept := unlisted - dropped:
        yield f"the index leaves out {_some(kept)}; transformers reads whole shards, so nothing was left out"
    if absent:
        yield f"the index names {_some(absent)}, which no file holds; the model does not need them"


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first!r:.200}" + (f" and {len(others)} more tensors" if others else "")
