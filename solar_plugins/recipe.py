"""An Axolotl recipe, parsed once: the keys that this package reads, with Axolotl's defaults.

Only `read_recipe` and `parse_recipe` create a `Recipe`. All other modules take a `Recipe`, never raw YAML.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from solar_plugins.errors import ArgsError, PluginError
from solar_plugins.plugins.dpo_configs import DPOConfig, dpo_config, settings_for
from solar_plugins.solar_block import SolarArgs, invalid, parse_solar_block
from solar_plugins.storage.untrusted import parse_yaml, read_text

TYPE_PREFIX = "solar_plugins."
"""Precedes a formatter's name in ``datasets[].type``."""
TEMPLATE_NAME = "solar"
"""``chat_template: solar``."""
REVISION_KEYS = ("revision_of_model", "model_revision")
"""Axolotl's key for the base's revision, and its deprecated name (``axolotl/utils/schemas/deprecated.py``)."""
CONFIG_OVERRIDE_KEYS = ("overrides_of_model_config", "model_config")
"""Axolotl's key for overrides of the base's config.json, and its deprecated name."""

METHODS_WITH_REFERENCE = ("dpo", "ipo", "kto")
METHODS_WITHOUT_REFERENCE = ("orpo", "simpo")
PAIR_METHODS = (*METHODS_WITH_REFERENCE, *METHODS_WITHOUT_REFERENCE)
"""Values of ``rl`` that train on pairs (kto: on single responses), with or without a frozen reference model."""

type DatasetKey = Literal["datasets", "test_datasets", "pretraining_dataset"]

type Precision = Literal["bf16", "fp16", "fp32"]


class NamedBase(NamedTuple):
    """The base in a recipe: a directory or a hub id, with the hub id's revision."""

    name: str
    revision: str | None


class AxolotlKeys(BaseModel):
    """The Axolotl keys that this package reads. Types and defaults match ``axolotl/utils/schemas`` (tested).

    Keys that are defined by Axolotl's plugins, or only tested for truth, are not typed.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    base_model: str | None = None
    base_model_config: str | None = None
    revision_of_model: str | None = None
    overrides_of_model_config: Any = None
    trust_remote_code: bool | None = None
    tokenizer_config: str | None = None
    unfrozen_parameters: list[str] | None = None

    datasets: Any = None
    test_datasets: Any = None
    pretraining_dataset: Any = None
    dataset_prepared_path: str | None = None
    val_set_size: float | None = 0.0
    dataset_num_proc: int | None = None
    hf_use_auth_token: bool | None = None
    chat_template: str | None = None
    chat_template_jinja: str | None = None
    sequence_len: int = 512
    eval_sequence_len: int | None = None
    excess_length_strategy: str | None = None
    sample_packing: bool | None = None
    eval_sample_packing: bool | None = None
    skip_prepare_dataset: bool | None = False
    streaming: bool | None = None
    train_on_inputs: bool | None = False
    processor_type: str | None = None
    remove_unused_columns: bool | None = None

    rl: str | None = None
    simpo_gamma: Any = None
    dpo_loss_type: Any = None
    dpo_loss_weights: Any = None
    dpo_use_weighting: bool | None = None
    precompute_ref_log_probs: bool | None = None

    adapter: str | None = None
    lora_r: int | None = None
    lora_dropout: float | None = 0.0
    lora_target_modules: str | list[str] | None = None
    lora_target_linear: bool | None = None
    lora_modules_to_save: list[str] | None = None
    lora_model_dir: str | None = None
    peft_layers_to_transform: list[int] | None = None
    peft_layers_pattern: list[str] | None = None
    peft_ensure_weight_tying: bool | None = None
    load_in_4bit: bool | None = False
    load_in_8bit: bool | None = False

    seed: int | None = None
    optimizer: str | None = "adamw_torch_fused"
    lr_scheduler: str | None = "cosine"
    optim_args: str | dict[str, Any] | None = None
    warmup_ratio: float | None = None
    micro_batch_size: int | None = 1
    gradient_checkpointing: Literal["offload", "offload_disk"] | bool | None = False
    activation_offloading: Any = False
    load_best_model_at_end: bool | None = False
    early_stopping_patience: int | None = None

    bf16: Literal["auto"] | bool | None = "auto"
    fp16: bool | None = None
    bfloat16: bool | None = None
    float16: bool | None = None
    attn_implementation: str | None = None
    flash_attention: bool | None = None
    cut_cross_entropy: Any = None
    liger_fused_linear_cross_entropy: Any = None
    chunked_cross_entropy: bool | None = None
    dpo_use_liger_kernel: bool | None = None

    deepspeed: str | dict[str, Any] | None = None
    fsdp_config: dict[str, Any] | None = None
    dp_shard_size: int | None = None
    dp_replicate_size: int | None = None
    tensor_parallel_size: int | None = None
    context_parallel_size: int | None = None
    expert_parallel_size: Any = None
    fp8: bool | None = None
    torch_compile: Any = None
    relora: bool | None = None
    selective_checkpointing: Any = None
    lora_target_parameters: Any = None
    peft_use_dora: bool | None = None
    lora_fp32_gradients: bool = False
    qat: Any = None

    resume_from_checkpoint: str | None = None
    auto_resume_from_checkpoints: bool | None = None
    output_dir: str = "./model-out"
    inference: Any = None
    """Set by Axolotl's inference command."""


class Recipe(AxolotlKeys):
    """A recipe: Axolotl's keys, the ``solar:`` block, and the file that contains them."""

    path: Path | None = None
    """The recipe's file; None if Axolotl passed the content."""
    text: str = ""
    """The text of the file, with comments; empty without a file."""
    solar: SolarArgs | None = None
    named_settings: DPOConfig | None = None
    """The settings that ``solar.dpo`` names."""
    filled_in: Mapping[str, Any] = Field(default_factory=dict)
    """Keys that the recipe does not set, with their values from those settings. The recipe's fields have them too."""
    kept: Mapping[str, Any] = Field(default_factory=dict)
    """Keys that the recipe itself sets to other values than those settings."""

    @property
    def base(self) -> NamedBase:
        """The base model.

        Raises:
            ArgsError: The recipe has none.
        """
        if not self.base_model:
            where = f"{self.path}: " if self.path else ""
            raise ArgsError(
                f"{where}base_model: {self.base_model!r}; expected a directory or a hub id. Give a recipe for "
                "training: merges, mixtures and evaluations have neither a layer plan nor training memory"
            )
        return NamedBase(self.base_model, self.revision_of_model or None)

    @property
    def sequence_tokens(self) -> int:
        """``sequence_len``, the maximum number of tokens per sequence.

        Raises:
            ArgsError: It is less than 2, so there is no next token to predict.
        """
        if self.sequence_len < 2:
            raise ArgsError(f"sequence_len: {self.sequence_len}; expected at least 2 tokens, such as 2048")
        return self.sequence_len

    @property
    def upscales(self) -> bool:
        """Whether the recipe upscales its base."""
        return self.solar is not None and self.solar.init_args is not None

    @property
    def trusts_code(self) -> bool:
        """Whether the base may ship custom modeling code."""
        return self.trust_remote_code is True

    @property
    def trusted_keys(self) -> tuple[str, ...]:
        """Keys of the base's config.json that ``solar.init.trust_config_keys`` lists."""
        return self.solar.init.trusted_keys if self.solar is not None and self.solar.init_args is not None else ()

    @property
    def output_directory(self) -> Path:
        """The directory that training writes to."""
        return Path(os.path.expanduser(self.output_dir))

    @property
    def weight_precision(self) -> Precision:
        """The precision in which Axolotl loads the weights. ``bf16: auto``, the default, counts as true (a recent GPU).

        Source: ``resolve_dtype`` in axolotl/utils/config.

        >>> parse_recipe({}).weight_precision, parse_recipe({"bf16": False}).weight_precision
        ('bf16', 'fp32')
        """
        if (not self.fp16 if self.bf16 == "auto" else self.bf16) or self.bfloat16:
            return "bf16"
        return "fp16" if self.load_in_8bit or self.fp16 or self.float16 else "fp32"

    def entries(self, key: DatasetKey) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The datasets under a key, each with its index. Entries that are not maps are left for Axolotl to reject."""
        entries = getattr(self, key)
        for number, entry in enumerate(entries if isinstance(entries, list) else []):
            if isinstance(entry, Mapping):
                yield number, entry


def concerns_us(content: Mapping[str, Any]) -> bool:
    """Whether a recipe uses any feature of this package or lists its plugin. All other recipes are left unchanged."""
    entries = [content.get(key) for key in ("datasets", "test_datasets")]
    kinds = [entry.get("type") for some in entries if isinstance(some, list) for entry in some if _is_map(entry)]
    return (
        any(str(key).startswith("solar") for key in content)
        or content.get("chat_template") == TEMPLATE_NAME
        or any(isinstance(kind, str) and kind.startswith(TYPE_PREFIX) for kind in kinds)
        or "solar_plugins." in str(content.get("plugins"))
    )


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


def parse_recipe(content: Mapping[str, Any], path: Path | None = None, text: str = "") -> Recipe:
    """Parse a recipe's keys, from a YAML file or from Axolotl, which has applied command-line overrides.

    Args:
        content: The keys. Unknown ones are ignored; Axolotl handles them.
        path: The file.
        text: The file's text.

    Raises:
        ArgsError: A key has a value of the wrong type, or the ``solar:`` block is invalid.
        PluginError: ``solar.dpo`` names settings that are not registered.
    """
    solar = parse_solar_block(content)
    keys = {str(key): value.value if isinstance(value, Enum) else value for key, value in content.items()}
    revision = next((str(keys[key]) for key in REVISION_KEYS if keys.get(key)), None)
    overrides = dict(ChainMap(*(keys[key] for key in CONFIG_OVERRIDE_KEYS if _is_map(keys.get(key)))))
    config = _named_settings(solar.dpo) if solar is not None and solar.dpo is not None else None
    filled_in, kept = settings_for(content, config) if config else ({}, {})
    renamed = {"revision_of_model": revision, "overrides_of_model_config": overrides or None}
    ours = {"path": path, "text": text, "solar": solar, "named_settings": config, "kept": kept, "filled_in": filled_in}
    try:
        return Recipe.model_validate(keys | filled_in | renamed | ours)
    except ValidationError as error:
        raise ArgsError(invalid(error, nested=False)) from None


def _named_settings(name: str) -> DPOConfig:
    try:
        return dpo_config(name)
    except PluginError as error:
        raise PluginError(f"solar.dpo: {error}") from None


def read_recipe(path: Path, overrides: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
    """Read and parse a recipe file.

    Args:
        path: The file.
        overrides: Keys with other values than in the file.

    Raises:
        ArgsError: The file is missing, not YAML, or not a map; or as `parse_recipe`.
        PluginError: As `parse_recipe`.
    """
    text = read_text(path)
    return parse_recipe({**_mapping(path, text), **overrides}, path, text)


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The keys of a YAML file that is not an Axolotl recipe, such as a mixture or a merge.

    Raises:
        ArgsError: The file is missing, not YAML, or not a map.
    """
    return _mapping(path, read_text(path))


def _mapping(path: Path, text: str) -> Mapping[str, Any]:
    content = parse_yaml(text, str(path))
    if not isinstance(content, Mapping):
        raise ArgsError(f"{path}: holds a {type(content).__name__}, expected a map of keys; give a recipe in YAML")
    return content
