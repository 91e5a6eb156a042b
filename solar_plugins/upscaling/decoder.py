"""The decoder that a config.json describes: architecture, depth, kinds of layers, widths. Pure.

Only `Decoder.of` looks up a model type. All other code takes a `Decoder`.
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
"""Config keys with the number of multi-token-prediction layers, which are stored after the last decoder layer."""

QUANTIZATION_KEYS = ("quantization_config", "compression_config", "quantization")
"""Config keys with the quantization: the standard one, that of old compressed-tensors versions, and MLX's."""

LANGUAGE_MODEL_CLASSES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "WithLMHead", "DoubleHeadsModel")
"""Suffixes of transformers' classes with a language-modeling head."""


_KEYS_BY_POSITION = POSITIONAL_KEYS.union(
    word for row in ARCHITECTURES.values() for field in row.fields for word in field.key.split()
)
"""Keys by which the layers of known model types differ. In custom code, a value of zero disables them."""


_SWITCHED = {"max_window_layers": "use_sliding_window", "cla_share_factor": "use_cla"}
"""Keys that have no effect while the other key is false."""


class DecoderWidths(NamedTuple):
    """The widths of a Llama-type decoder, in elements."""

    hidden: int
    intermediate: int
    """Intermediate size of the gated MLP."""
    queries: int
    """Rows of the query projection: number of heads times head dimension."""
    keys: int
    """Rows of the key projection, and of the value projection."""
    heads: int
    vocabulary: int


@dataclass(frozen=True)
class Decoder:
    """The decoder that a config describes, of a model type that depth up-scaling supports. Created by `Decoder.of`.

    Args:
        config: The complete config.json.
        text_config: The config of the decoder: all of ``config``, or its ``text_config`` for a multimodal model. Keys
            with several names have only one here.
        architecture: The row for its model type, with this model's spelling of the tensor names.
        num_layers: Its depth.
        trusted_keys: Config keys that the user declared not to describe individual layers.
        side_files: The quantization configs next to config.json, by file name.
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
        """The decoder that a config.json describes.

        Args:
            config: Its content.
            trusted_keys: As in the class.
            side_files: As in the class.

        Raises:
            CheckpointError: The model type is unsupported or unknown, the config uses a feature that copying layers
                would break, or the depth is missing, inconsistent or not a positive integer.

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
        """The complete config with another ``text_config``, with every name that the base uses for each key."""
        prefixes = _composite_prefixes(self.config)
        base = self.config["text_config"] if prefixes else self.config
        renamed = in_every_spelling(changed, base, self.architecture.spellings)
        if not prefixes:
            return renamed
        # transformers ignores a depth outside text_config, but other readers may not: update it too.
        depth = changed[self.architecture.depth_key]
        repeated = {key: depth for key in sorted(DEPTH_KEYS) if self.config.get(key) == self.num_layers}
        return {**self.config, **repeated, "text_config": renamed}

    @property
    def model_type(self) -> str:
        """The model type at the top level of the config."""
        return str(self.config["model_type"])

    @property
    def is_composite(self) -> bool:
        """Whether this is a multimodal model, whose ``text_config`` describes the decoder."""
        return bool(_composite_prefixes(self.config))

    @property
    def model_class(self) -> str:
        """The transformers class that the base was saved from, such as ``LlamaForCausalLM``; empty if unknown."""
        classes = self.config.get("architectures")
        return str(classes[0]) if isinstance(classes, list) and classes else ""

    @property
    def has_language_model_head(self) -> bool:
        """Whether the base has a language-modeling head, unlike an embedding model or a reward model.

        A config without a class is assumed to be that of a language model.
        """
        return not self.model_class or self.model_class.endswith(LANGUAGE_MODEL_CLASSES)

    @property
    def has_own_code(self) -> bool:
        """Whether only the checkpoint's custom code defines the model type, and so the names of its tensors."""
        return self.text_config.get("model_type") not in ARCHITECTURES

    @property
    def quantizations(self) -> dict[str, Any]:
        """All quantization configs, not validated, by their place: a key of the config, or a file."""
        found = {key: self.config.get(key) for key in QUANTIZATION_KEYS}
        if self.is_composite:
            found["text_config.quantization_config"] = self.text_config.get("quantization_config")
        return {place: value for place, value in {**found, **self.side_files}.items() if value}

    @property
    def quantization(self) -> Any:
        """The first of `quantizations`, which readers use; None if the weights are not declared as quantized."""
        return next(iter(self.quantizations.values()), None)

    @property
    def stated_dtype(self) -> str | None:
        """The dtype of the weights in the config; None if it has none."""
        parts = (self.config, self.text_config)
        return next((str(part[key]) for part in parts for key in ("dtype", "torch_dtype") if part.get(key)), None)

    @property
    def dtype(self) -> str:
        """The dtype of the weights in the config; float32, transformers' default, if it has none."""
        return self.stated_dtype or "float32"

    @property
    def num_prediction_layers(self) -> int:
        """The number of multi-token-prediction layers after the last decoder layer, from the config."""
        numbers = (self.text_config.get(key) for key in PREDICTION_LAYER_KEYS)
        return next((number for number in numbers if isinstance(number, int)), 0)

    @property
    def fields(self) -> tuple[LayerField, ...]:
        """The config fields that differ by layer."""
        own = self.architecture.fields
        # transformers writes layer_types for any type, if it was set.
        spare = () if any(field.key == "layer_types" for field in own) else (optional_list("layer_types"),)
        return (*own, *spare, layer_overrides())

    def refuse_unknown_layer_keys(self) -> None:
        """Check that no unknown config key could describe individual layers.

        Raises:
            CheckpointError: One could, and it is not in ``trusted_keys``.
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
        """The config keys that follow a plan: the depth, and the keys that differ by layer."""
        words = (word for field in self.fields for word in (*field.key.split(), *field.reads))
        by_position = (word for word in words if "_" in word)  # Fields that no key sets have a description instead.
        return frozenset((self.architecture.depth_key, *self.architecture.more_depth_keys, *by_position))

    @property
    def layer_keys(self) -> frozenset[str]:
        """All names of the config keys for the number of decoder layers and for how they differ."""
        nested = ("text_config",) if self.is_composite else ()
        spelled = (spelling.name for spelling in self.architecture.spellings)
        return POSITIONAL_KEYS | self.followed_keys | {*spelled, *nested}

    @cached_property
    def layer_kinds(self) -> list[tuple[str, ...]]:
        """For each layer, its values of the per-layer config fields. Layers of one kind have the same tensors.

        Raises:
            CheckpointError: A per-layer field is malformed.
        """
        columns = [[repr(value) for value in field.read(self.text_config, self.num_layers)] for field in self.fields]
        return list(zip(*columns, strict=True))

    @property
    def residual_writers(self) -> tuple[str, ...]:
        """The modules that are zero in an identity layer, such as ``self_attn.o_proj``.

        Raises:
            CheckpointError: They are not known for this model type.
        """
        modules = self.architecture.residual_writers
        if not modules:
            raise CheckpointError(
                f"identity and scaled layers are not tested for model_type {self.model_type!r}: which of its modules "
                "write to the residual stream is not known; use a plan of copies"
            )
        return modules

    @cached_property
    def widths(self) -> DecoderWidths:
        """The widths in the config.

        Raises:
            CheckpointError: One is missing, or not a positive integer.
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
    """The prefixes of the decoder layers in a multimodal model; empty for a text-only model."""
    model_type = config.get("model_type")
    return COMPOSITES.get(model_type, ()) if isinstance(model_type, str) else ()


def _nested_config(config: Config) -> Config:
    text = config.get("text_config")
    if not isinstance(text, Mapping) or _composite_prefixes(text):
        raise CheckpointError(
            f"config.json: text_config is {text!r:.200}; expected the config of the decoder, as in every "
            f"{config['model_type']} model. Download the config again"
        )
    return text


def _architecture(text_config: Config) -> Architecture:
    model_type = text_config.get("model_type")
    if isinstance(model_type, str) and model_type in REFUSED:
        raise CheckpointError(f"config.json: model_type {model_type!r} cannot be upscaled: {REFUSED[model_type]}")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        if isinstance(model_type, str) and text_config.get("auto_map"):
            return Architecture()  # The usual layout; `upscale_config` checks the keys.
        if model_type is None:
            raise CheckpointError(_without_model_type(text_config))
        raise CheckpointError(
            f"config.json: model_type {model_type!r} is not supported; expected one of the {len(ARCHITECTURES)} types "
            "in docs/architectures.md. Untested per-layer fields could silently give a wrong model, so it is refused"
        )
    row = ARCHITECTURES[model_type]
    for key, reason in row.must_be_unset.items():
        if text_config.get(key):
            raise CheckpointError(f"config.json: {key} is {text_config[key]!r:.200}, which is not supported: {reason}")
    return row


def _without_model_type(config: Config) -> str:
    parts = ((key, value.get("model_type")) for key, value in config.items() if isinstance(value, Mapping))
    hints = [f". Its {key!r:.80} has one, {kind!r:.80}" for key, kind in parts if isinstance(kind, str)]
    hint = f"{hints[0]}, but transformers reads the top level" if hints else ""
    return f"config.json: model_type is missing; expected the model's type, such as llama{hint}"


def _depth(text_config: Config, row: Architecture) -> int:
    depths = {
        key: len(value) if key in row.more_depth_keys and isinstance(value, (list, str)) else value
        for key in (row.depth_key, *row.more_depth_keys)
        if (value := text_config.get(key)) is not None
    }
    depth = next(iter(depths.values()), None)
    if type(depth) is not int or not 1 <= depth <= MAX_LAYERS:
        raise CheckpointError(
            f"config.json: {row.depth_key} is {text_config.get(row.depth_key)!r:.200}; expected the number of decoder "
            "layers, such as 32"
        )
    if len(set(depths.values())) > 1:
        raise CheckpointError(f"config.json: the depth is ambiguous: {depths}; make these keys agree")
    return depth


def _width(config: Config, key: str, default: int | None = None) -> int:
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"config.json: {key} is {value!r}; expected a positive integer")
    return value
