"""The names under which transformers loads the tensors of a base. Pure.

A checkpoint that is saved from a wrapped model has the names of the training wrappers. They are stripped. A name that
still does not match the model is an error: transformers would load random weights instead.
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
"""Name parts that wrappers of individual modules insert, anywhere in a name."""

_MODEL_WRAPPERS = re.compile(r"(?:(?:module|_module|base_model\.model|base_model|model|pretrained_model)\.)*")
"""Prefixes that wrappers of the full model add: DDP and DeepSpeed, Opacus, PEFT, Lightning, TRL."""

_UNMERGED = re.compile(r"\.(?:lora_\w+|base_layer|modules_to_save|original_module|lora_magnitude_vector|ia3_l)\.")
_FLAT = re.compile(r"(?:^|\.)(?:_flat_param|flat_param_\d+)$")

_BUFFERS = re.compile(r"(?:rotary_emb\.inv_freq|rotary_emb\.(?:cos|sin)_cached|masked_bias|position_ids|attn\.bias)$")
"""Buffers that old checkpoints store but current models compute."""


class TensorNames(NamedTuple):
    """The names of a base's tensors in the transformers model."""

    stored: dict[str, str]
    """From the name in the model to the name in the file."""
    notes: tuple[str, ...]
    """Changes that the user should know of."""


def model_names(
    names: Iterable[str], decoder: Decoder, *, unlisted: frozenset[str] = frozenset(), absent: Iterable[str] = ()
) -> TensorNames:
    """The names under which transformers loads the tensors of a base.

    Args:
        names: The stored names.
        decoder: The base's decoder.
        unlisted: Stored names that are not in the index.
        absent: Names in the index that no file has.

    Raises:
        CheckpointError: transformers would not load the layers under their names, the weights contain an unmerged
            adapter, or a required tensor is missing.

    Example:
        >>> decoder = Decoder.of({"model_type": "llama", "num_hidden_layers": 1, "tie_word_embeddings": True})
        >>> names = ["embed_tokens.weight", "norm.weight", "layers.0.mlp._orig_mod.up_proj.weight"]
        >>> model_names([f"module.model.{name}" for name in names], decoder).stored["model.layers.0.mlp.up_proj.weight"]
        'module.model.layers.0.mlp._orig_mod.up_proj.weight'
    """
    names = list(names)
    _refuse_training_state(names)
    inner = {name: ".".join(part for part in name.split(".") if part not in WRAPPER_PARTS) for name in names}
    wrapper = _model_wrapper(inner.values(), decoder)
    own = {name: short.removeprefix(wrapper) for name, short in inner.items()}
    twice = [name for name, count in Counter(own.values()).items() if count > 1]
    if twice:
        both = [name for name, short in own.items() if short == twice[0]]
        raise CheckpointError(
            f"tensors {both[0]!r:.200} and {both[1]!r:.200} are both {twice[0]!r:.200} without the names of training "
            "wrappers; keep one of them"
        )
    dropped = {name for name in unlisted if _past_the_last_layer(own[name], decoder)}
    stored = {short: name for name, short in own.items() if name not in dropped}
    missing = [name for name in absent if _is_needed(name, stored, decoder)]
    if missing:
        raise CheckpointError(
            f"tensor {missing[0]!r:.200} is in the index but in no file, and the model needs it; download the files "
            "again"
        )
    headless = saved_without_head([*stored, *absent], decoder)
    _require_outer_tensors(stored, decoder, headless=headless)
    notes = [*_notes(own, wrapper, dropped, unlisted, list(absent))]
    if headless:
        notes.append(
            f"config.json has the class {decoder.model_class or '(none)'}, but the weights have no head, as in an "
            "embedding model. The upscaled model has none either. Loaded as a language model, as Axolotl does by "
            "default, it would have a random head"
        )
    if not decoder.has_language_model_head:
        notes.append(
            f"a {decoder.model_class} has no language-modeling head, and neither has the upscaled model: load it with "
            "this class. Loaded as a language model, as Axolotl does by default, it would have a random head"
        )
    return TensorNames(stored, tuple(notes))


def layer_prefixes(decoder: Decoder) -> tuple[str, ...]:
    """The prefixes of layer names that transformers accepts: with or without the name of the base model.

    Example:
        >>> layer_prefixes(Decoder.of({"model_type": "gpt2", "n_layer": 2}))
        ('transformer.h.', 'h.')
    """
    row = decoder.architecture
    root = row.layers_prefix.split(".")[0] + "."
    short = [prefix.removeprefix(root) for prefix in row.prefixes if prefix.startswith(root) and prefix.count(".") > 1]
    # In Llama's and Qwen's question-answering models the base model is called "transformer".
    answering = (
        [f"transformer.{prefix}" for prefix in short] if decoder.model_class.endswith("QuestionAnswering") else []
    )
    return tuple(dict.fromkeys((*row.prefixes, *short, *answering)))


def saved_without_head(names: Iterable[str], decoder: Decoder) -> bool:
    """Whether weights were saved without the head, although the class in the config has one.

    For example Qwen3-Embedding-8B: there is no head, and the names lack the prefix of the base model.

    Args:
        names: The names of all tensors.
        decoder: The decoder of their config.
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
    """Match the name of a tensor in a numbered layer. Groups: the prefix, the layer's number, the rest."""
    return re.fullmatch(rf"((?:[^.]+\.)*?{re.escape(decoder.architecture.stack)}\.)(0|[1-9][0-9]{{0,5}})\.(.+)", name)


def _refuse_training_state(names: list[str]) -> None:
    for name in names:
        if _UNMERGED.search(name):
            raise CheckpointError(
                f"tensor {name!r:.200} belongs to a PEFT adapter that is not merged into the weights; merge it "
                "(axolotl merge-lora RECIPE, or model.merge_and_unload()) and give the merged model"
            )
        if _FLAT.search(name):
            raise CheckpointError(
                f"tensor {name!r:.200} is a flattened FSDP parameter that combines many tensors; save the model with a "
                "full state dict (fsdp_state_dict_type: FULL_STATE_DICT), or merge the shards (axolotl "
                "merge-sharded-fsdp-weights RECIPE)"
            )


def _model_wrapper(names: Iterable[str], decoder: Decoder) -> str:
    """The prefix that a training wrapper has added; empty if there is none."""
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
        # Multimodal models have other stacks of layers, too.
        ends = decoder.architecture.prefixes if decoder.text_config is decoder.config else ()
        others = [prefix for prefix in found if prefix not in known and prefix.endswith(ends)]
        if others or len(here) > 1:
            _refuse_several_prefixes({prefix: numbers[prefix] for prefix in (*here, *others)})
        return ""
    for prefix in found:
        for end in known:
            wrapper = prefix.removesuffix(end)
            if wrapper != prefix and _MODEL_WRAPPERS.fullmatch(wrapper):
                return wrapper
    if decoder.has_own_code:
        return ""
    prefix, example = next(iter(found.items()))
    raise CheckpointError(
        f"tensor {example!r:.200}: transformers would not load it for model_type {decoder.model_type!r}; expected "
        f"{' or '.join(f'{end}<number>....' for end in known)}, possibly after the prefix of a known training wrapper, "
        f"not {prefix!r:.200}. Rename the tensors, or save the model again without its wrapper"
    )


def _refuse_several_prefixes(numbers: Mapping[str, set[str]]) -> NoReturn:
    """Refuse layers with several prefixes.

    Args:
        numbers: The numbers of the layers with each prefix.
    """
    if len(set().union(*numbers.values())) < sum(map(len, numbers.values())):
        raise CheckpointError(
            f"the layers are stored more than once, as {' and '.join(numbers)}; keep the tensors of one model"
        )
    names = " and others ".join(f"{prefix}{min(of_prefix, key=int)}" for prefix, of_prefix in numbers.items())
    raise CheckpointError(
        f"some layers are called {names}, as if the shards came from different saves; transformers would load only "
        "those with one of these prefixes. Use all files from one save, or rename the tensors"
    )


def _past_the_last_layer(name: str, decoder: Decoder) -> bool:
    match = layer_prefix_of(name, decoder)
    end = decoder.num_layers + decoder.num_prediction_layers
    return bool(match and match[1] in layer_prefixes(decoder) and int(match[2]) >= end)


def _is_needed(name: str, stored: Mapping[str, str], decoder: Decoder) -> bool:
    """Whether the model needs a tensor, judged by its name."""
    if _BUFFERS.search(name):
        return False
    match = layer_prefix_of(name, decoder)
    if match and match[1] in layer_prefixes(decoder):
        return not _past_the_last_layer(name, decoder)
    if decoder.has_own_code or decoder.model_type in UNCHECKED:
        return name not in stored
    return False  # `_require_outer_tensors` checks the others.


def _require_outer_tensors(stored: Mapping[str, str], decoder: Decoder, *, headless: bool) -> None:
    """Refuse a base without its embeddings, final norm or head: transformers would initialize them randomly."""
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
    # A tied head may be stored instead of the embeddings, which are always the first module.
    required = outer_modules(model_type)[tied and has_head :]
    starts = {
        names.split("|")[0]: tuple(f"{before}{name}." for before in parents for name in names.split("|"))
        for names in required
    }
    missing = [module for module, start in starts.items() if not any(name.startswith(start) for name in stored)]
    if missing:
        raise CheckpointError(
            f"tensor {parent}{missing[0]}.weight is missing, expected in a model of type {decoder.model_type!r} with "
            f"layers {prefix}<number>....; transformers would load random weights instead. The checkpoint is "
            "incomplete, or its tensors are misnamed: download it again"
        )
    if not has_head and not tied and decoder.has_language_model_head and not headless:
        raise CheckpointError(
            f"tensor {_heads(model_type)[0]}.weight is missing, but by config.json the model has a language-modeling "
            f"head (architectures: {decoder.model_class or 'not set'}, and tie_word_embeddings is not set); "
            "transformers would load a random one. For an embedding model, set architectures to its class, such as "
            "MistralModel; if the head is tied to the embeddings, set tie_word_embeddings: true"
        )


def _heads(model_type: str) -> tuple[str, ...]:
    return HEADS.get(model_type, ("lm_head",))


def is_tied(decoder: Decoder) -> bool:
    """Whether the language-modeling head is the embedding matrix, by the config or the model type's default."""
    values = [
        part["tie_word_embeddings"] for part in (decoder.config, decoder.text_config) if "tie_word_embeddings" in part
    ]
    types = {decoder.model_type, str(decoder.text_config.get("model_type"))}
    return any(values) if values else bool(types & TIED_BY_DEFAULT)


def _notes(
    own: Mapping[str, str], wrapper: str, dropped: set[str], unlisted: frozenset[str], absent: list[str]
) -> Iterator[str]:
    """A line for each change."""
    stripped = {part for name in own for part in name.split(".") if part in WRAPPER_PARTS} | (
        {wrapper.rstrip(".")} - {""}
    )
    if stripped:
        yield f"stripped the prefixes of training wrappers from the tensor names: {', '.join(sorted(stripped))}"
    if dropped:
        yield (
            f"left out {_some(dropped)}: not in the index, and after the last layer in config.json, so transformers "
            "does not load them either"
        )
    if kept := unlisted - dropped:
        yield f"kept {_some(kept)}, not in the index, because transformers loads entire shards"
    if absent:
        yield f"the index lists {_some(absent)}, which are in no file; the model does not need them"


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first!r:.200}" + (f" and {len(others)} more tensors" if others else "")
