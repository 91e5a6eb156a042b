"""What a config.json says of the decoder: architecture, depth, kinds of layers, widths. Pure.

`Decoder.of` is the one place where a config is looked up. Whatever needs one of these facts takes the `Decoder`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.layer_fields import Config, LayerField, layer_overrides, optional_list
from solar_plugins.upscaling.architectures.spellings import DEPTH_KEYS, in_every_spelling, in_one_spelling
from solar_plugins.upscaling.architectures.table import (
    ARCHITECTURES,
    COMPOSITES,
    POSITIONAL_KEYS,
    REFUSED,
    Architecture,
)
from solar_plugins.upscaling.architectures.unknown_keys import refuse_layer_keys
from solar_plugins.upscaling.layer_plan import MAX_LAYERS

PREDICTION_LAYER_KEYS = ("num_nextn_predict_layers", "num_mtp_layers")
"""Config keys that announce prediction layers stored past the last decoder layer."""

QUANTIZATION_KEYS = ("quantization_config", "compression_config", "quantization")
"""Where a config says how its weights are quantised: today, by old versions of compressed-tensors, and by MLX."""

LANGUAGE_MODEL_CLASSES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "WithLMHead", "DoubleHeadsModel")
"""How the names of transformers' classes with a head for language modelling end."""


_KEYS_BY_POSITION = POSITIONAL_KEYS.union(
    word for row in ARCHITECTURES.values() for field in row.fields for word in field.key.split()
)
"""Keys by which the layers of known model types differ. In code that nobody here knows, zero switches them off."""


_SWITCHED = {"max_window_layers": "use_sliding_window", "cla_share_factor": "use_cla"}
"""Keys that mean nothing while the other key is false."""


class DecoderWidths(NamedTuple):
    """The widths of a Llama-type decoder, in elements."""

    hidden: int
    intermediate: int
    """Of the gated MLP."""
    queries: int
    """Rows of the query projection: heads times width of a head."""
    keys: int
    """Rows of the key projection, and of the value projection."""
    heads: int
    vocabulary: int


@dataclass(frozen=True)
class Decoder:
    """The decoder that a config describes, of a model type that depth up-scaling supports. Made by `Decoder.of`.

    Args:
        config: The whole config.json.
        text_config: What of it describes the decoder: the whole, or ``text_config`` for a model of more than text. What
            a config may say under several names stands there under one.
        architecture: The row for its model type, with this model's spelling of the tensor names.
        num_layers: Its depth.
        trusted_keys: Config keys for which the user vouches that they say nothing about single layers.
        side_files: Files beside config.json that say how the weights are quantised, by name.
    """

    config: Config
    text_config: Config
    architecture: Architecture
    num_layers: int
    trusted_keys: tuple[str, ...] = ()
    side_files: Mapping[str, Config] = MappingProxyType({})

    @classmethod
    def of(
        cls,
        config: Config,
        trusted_keys: Iterable[str] = (),
        side_files: Mapping[str, Config] = MappingProxyType({}),
    ) -> Self:
        """The decoder of a config.json.

        Args:
            config: Its content.
            trusted_keys: Config keys for which the user vouches that they say nothing about single layers.
            side_files: See the class.

        Raises:
            CheckpointError: The model type is refused or unknown, the config holds something that copying layers would
                get wrong, or the depth is missing, contradictory or not a positive whole number.

        Example:
            >>> decoder = Decoder.of({"model_type": "llama", "num_hidden_layers": 32})
            >>> decoder.num_layers, decoder.architecture.layers_prefix
            (32, 'model.layers.')
        """
        prefixes = _composite_prefixes(config)
        text_config = _nested_config(config) if prefixes else config
        architecture = _architecture(text_config)
        if prefixes:
            architecture = architecture._replace(layers_prefix=prefixes[0], other_prefixes=prefixes[1:])
        text_config = in_one_spelling(text_config, architecture.spellings)
        depth = _depth(text_config, architecture)
        return cls(config, text_config, architecture, depth, tuple(sorted(set(trusted_keys))), side_files)

    def with_text_config(self, changed: Config) -> dict[str, Any]:
        """The whole config with another ``text_config``, under every name that the base has for its values."""
        prefixes = _composite_prefixes(self.config)
        base = self.config["text_config"] if prefixes else self.config
        whole = in_every_spelling(changed, base, self.architecture.spellings)
        if not prefixes:
            return whole
        # transformers does not read a depth beside the text_config; what repeats it there is kept true for others.
        depth = changed[self.architecture.depth_key]
        repeated = {key: depth for key in sorted(DEPTH_KEYS) if self.config.get(key) == self.num_layers}
        return {**self.config, **repeated, "text_config": whole}

    @property
    def model_type(self) -> str:
        """The model type of the whole model."""
        return str(self.config["model_type"])

    @property
    def is_composite(self) -> bool:
        """Whether this is a model of more than text, whose ``text_config`` describes the decoder."""
        return bool(_composite_prefixes(self.config))

    @property
    def model_class(self) -> str:
        """The class of transformers that the base was saved from, such as ``LlamaForCausalLM``; empty if not said."""
        said = self.config.get("architectures")
        return str(said[0]) if isinstance(said, list) and said else ""

    @property
    def has_language_model_head(self) -> bool:
        """Whether the base has a head that predicts tokens, unlike an embedding or a reward model.

        A config that names no class is taken for a language model's.
        """
        return not self.model_class or self.model_class.endswith(LANGUAGE_MODEL_CLASSES)

    @property
    def has_own_code(self) -> bool:
        """Whether only the checkpoint's own code knows the model type, and with it the names of its tensors."""
        return self.text_config.get("model_type") not in ARCHITECTURES

    @property
    def quantizations(self) -> dict[str, Any]:
        """All that says how the weights are quantised, not checked, by its place: a key of the config, or a file."""
        said = {key: self.config.get(key) for key in QUANTIZATION_KEYS}
        if self.is_composite:
            said["text_config.quantization_config"] = self.text_config.get("quantization_config")
        return {place: value for place, value in {**said, **self.side_files}.items() if value}

    @property
    def quantization(self) -> Any:
        """The first of `quantizations`, which readers believe; None if nothing says that the weights are quantised."""
        return next(iter(self.quantizations.values()), None)

    @property
    def stated_dtype(self) -> str | None:
        """The dtype of the weights as the config states it, if it does."""
        parts = (self.config, self.text_config)
        return next((str(part[key]) for part in parts for key in ("dtype", "torch_dtype") if part.get(key)), None)

    @property
    def dtype(self) -> str:
        """The dtype of the weights as the config states it; transformers takes float32 where it says nothing."""
        return self.stated_dtype or "float32"

    @property
    def num_prediction_layers(self) -> int:
        """How many prediction layers the config announces past the last decoder layer."""
        said = (self.text_config.get(key) for key in PREDICTION_LAYER_KEYS)
        return next((number for number in said if isinstance(number, int)), 0)

    @property
    def fields(self) -> tuple[LayerField, ...]:
        """The config fields whose value depends on a layer's position."""
        own = self.architecture.fields
        # transformers writes layer_types for any type that has been given some.
        spare = () if any(field.key == "layer_types" for field in own) else (optional_list("layer_types"),)
        return (*own, *spare, layer_overrides())

    def refuse_unknown_layer_keys(self) -> None:
        """Check that no config key could say something about single layers that nobody here follows.

        Raises:
            CheckpointError: One could, and the user does not vouch for it.
        """
        row, text = self.architecture, self.text_config
        off = {key for key in _KEYS_BY_POSITION if text.get(key) == 0}
        off |= {key for key, switch in _SWITCHED.items() if text.get(switch) is False}
        refuse_layer_keys(
            text,
            self.num_layers,
            num_prediction_layers=self.num_prediction_layers,
            known={*row.must_be_unset, *self.followed_keys, *off},
            trusted=self.trusted_keys,
            own_code=bool(self.config.get("auto_map") or text.get("auto_map")),
        )

    @property
    def followed_keys(self) -> frozenset[str]:
        """The config keys that follow a plan: the depth, and what differs from layer to layer."""
        words = (word for field in self.fields for word in (*field.key.split(), *field.reads))
        by_position = (word for word in words if "_" in word)  # What no key sets is named in plain words.
        return frozenset((self.architecture.depth_key, *self.architecture.more_depth_keys, *by_position))

    @property
    def layer_keys(self) -> frozenset[str]:
        """The config keys that say how many decoder layers there are, or how they differ, under any of their names."""
        nested = ("text_config",) if self.is_composite else ()
        spelled = (spelling.name for spelling in self.architecture.spellings)
        return POSITIONAL_KEYS | self.followed_keys | {*spelled, *nested}

    @cached_property
    def layer_kinds(self) -> list[tuple[str, ...]]:
        """For each layer, what its config says of it: layers of one kind have the same tensors.

        Raises:
            CheckpointError: A per-layer field is malformed.
        """
        columns = [[repr(value) for value in field.read(self.text_config, self.num_layers)] for field in self.fields]
        return list(zip(*columns, strict=True))

    @property
    def residual_writers(self) -> tuple[str, ...]:
        """The modules of a layer that an identity layer has as zero, such as ``self_attn.o_proj``.

        Raises:
            CheckpointError: Which they are is not tested for this model type.
        """
        modules = self.architecture.residual_writers
        if not modules:
            raise CheckpointError(
                f"identity layers are not tested for model_type {self.model_type!r}, nor is what else changes the "
                "modules that write to the residual stream (scaled); use a plan of copies"
            )
        return modules

    @cached_property
    def widths(self) -> DecoderWidths:
        """The widths that the config states.

        Raises:
            CheckpointError: One is missing, or not a positive whole number.
        """
        text = self.text_config
        hidden, heads = _width(text, "hidden_size"), _width(text, "num_attention_heads")
        head_dim = _width(text, "head_dim", default=hidden // heads)
        key_value_heads = _width(text, "num_key_value_heads", default=heads)
        return DecoderWidths(
            hidden=hidden,
            intermediate=_width(text, "intermediate_size"),
            queries=heads * head_dim,
            keys=key_value_heads * head_dim,
            heads=heads,
            vocabulary=_width(text, "vocab_size"),
        )


def _composite_prefixes(config: Config) -> tuple[str, ...]:
    """How a model of more than text spells its decoder's layers; empty for a model of text alone."""
    model_type = config.get("model_type")
    return COMPOSITES.get(model_type, ()) if isinstance(model_type, str) else ()


def _nested_config(config: Config) -> Config:
    text = config.get("text_config")
    if not isinstance(text, Mapping) or _composite_prefixes(text):
        raise CheckpointError(
            f"config.json: text_config is {text!r:.200}; a {config['model_type']} model has its decoder's config there"
        )
    return text


def _architecture(text_config: Config) -> Architecture:
    model_type = text_config.get("model_type")
    if isinstance(model_type, str) and model_type in REFUSED:
        raise CheckpointError(f"config.json: model_type {model_type!r} cannot be upscaled: {REFUSED[model_type]}")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        if isinstance(model_type, str) and text_config.get("auto_map"):
            return Architecture()  # The usual layout; `upscale_config` judges the keys.
        if model_type is None:
            raise CheckpointError(_without_model_type(text_config))
        raise CheckpointError(
            f"config.json: model_type {model_type!r} is not known here; {len(ARCHITECTURES)} types are, "
            "docs/architectures.md lists them. A per-layer field that nobody tested could give a wrong model in "
            "silence, so it is refused"
        )
    row = ARCHITECTURES[model_type]
    for key, reason in row.must_be_unset.items():
        if text_config.get(key):
            raise CheckpointError(f"config.json: {key} is {text_config[key]!r:.200}; such a model is refused: {reason}")
    return row


def _without_model_type(config: Config) -> str:
    parts = ((key, value.get("model_type")) for key, value in config.items() if isinstance(value, Mapping))
    hints = [f". Its part {key!r:.80} has one, {said!r:.80}" for key, said in parts if isinstance(said, str)]
    hint = f"{hints[0]}, but transformers reads the top level" if hints else ""
    return f"config.json: model_type is missing; expected the type of the model, such as llama{hint}"


def _depth(text_config: Config, row: Architecture) -> int:
    said = {key: text_config[key] for key in (row.depth_key, *row.more_depth_keys) if text_config.get(key) is not None}
    depths = {
        key: len(value) if key in row.more_depth_keys and isinstance(value, (list, str)) else value
        for key, value in said.items()
    }
    depth = next(iter(depths.values()), None)
    if type(depth) is not int or not 1 <= depth <= MAX_LAYERS:
        raise CheckpointError(
            f"config.json: {row.depth_key} is {said.get(row.depth_key)!r:.200}; expected the number of decoder layers, "
            "such as 32"
        )
    if len(set(depths.values())) > 1:
        raise CheckpointError(f"config.json: the depth is not clear: {depths}; make these keys agree")
    return depth


def _width(config: Config, key: str, default: int | None = None) -> int:
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"config.json: {key} is {value!r}; expected a positive whole number")
    return value
