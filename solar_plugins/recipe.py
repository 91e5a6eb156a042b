"""An Axolotl recipe, parsed once: what this package reads of it, with Axolotl's own defaults.

`read_recipe` and `parse_recipe` are the only ways from YAML to a `Recipe`; plan, memory, report, checks, formatters and
the plugin take nothing else.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from solar_plugins.errors import ArgsError, PluginError
from solar_plugins.plugins.dpo_configs import DPOConfig, dpo_config, settings_for
from solar_plugins.solar_block import SolarArgs, parse_solar_block

TYPE_PREFIX = "solar_plugins."
"""What stands before a formatter's name in ``datasets[].type``."""
TEMPLATE_NAME = "solar"
"""``chat_template: solar``."""
REVISION_KEYS = ("revision_of_model", "model_revision")
"""Axolotl's key for the base's revision, and its other name (``axolotl/utils/schemas/deprecated.py``)."""
CONFIG_OVERRIDE_KEYS = ("overrides_of_model_config", "model_config")
"""Axolotl's key for changes of the base's config, and its other name."""

METHODS_WITH_REFERENCE = ("dpo", "ipo", "kto")
METHODS_WITHOUT_REFERENCE = ("orpo", "simpo")
PAIR_METHODS = (*METHODS_WITH_REFERENCE, *METHODS_WITHOUT_REFERENCE)
"""Values of ``rl`` that train on pairs (kto on single answers), against a frozen reference model or without one."""

type DatasetKey = Literal["datasets", "test_datasets", "pretraining_dataset"]

type Precision = Literal["bf16", "fp16", "fp32"]


class NamedBase(NamedTuple):
    """The base that a recipe names: a directory or a hub id, and the revision of a hub id."""

    name: str
    revision: str | None


class AxolotlKeys(BaseModel):
    """Keys of Axolotl that this package reads. Types and defaults are those of ``axolotl/utils/schemas`` (tested).

    Keys whose value Axolotl's own plugins define, or of which only the truth counts, are not typed.
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
    """What Axolotl's inference command sets."""


class Recipe(AxolotlKeys):
    """A recipe: Axolotl's keys, the ``solar:`` block, and the file that both were read from."""

    path: Path | None = None
    """Where the recipe lies; None where Axolotl handed its content over."""
    text: str = ""
    """The file's text, comments included; empty without a file."""
    solar: SolarArgs | None = None
    named_settings: DPOConfig | None = None
    """The settings that ``solar.dpo`` names."""
    filled_in: Mapping[str, Any] = Field(default_factory=dict)
    """What those settings gave to keys that the recipe does not set; these keys have the values already."""
    kept: Mapping[str, Any] = Field(default_factory=dict)
    """What the recipe sets otherwise than those settings."""

    @property
    def base(self) -> NamedBase:
        """The base model.

        Raises:
            ArgsError: The recipe names none.
        """
        if not self.base_model:
            where = f"{self.path}: " if self.path else ""
            raise ArgsError(
                f"{where}base_model: {self.base_model!r}; expected a model, a directory or a hub id. Only recipes for "
                "training name one; merges, mixtures and evaluations have no plan and no memory of training"
            )
        return NamedBase(self.base_model, self.revision_of_model or None)

    @property
    def sequence_tokens(self) -> int:
        """``sequence_len``, the tokens of the longest sequence.

        Raises:
            ArgsError: No token could be predicted from another.
        """
        if self.sequence_len < 2:
            raise ArgsError(
                f"sequence_len: {self.sequence_len}; expected a whole number of tokens, at least 2, such as 2048"
            )
        return self.sequence_len

    @property
    def grows(self) -> bool:
        """Whether the recipe upscales its base."""
        return self.solar is not None and self.solar.init_args is not None

    @property
    def trusts_code(self) -> bool:
        """Whether a base may bring code of its own."""
        return self.trust_remote_code is True

    @property
    def trusted_keys(self) -> tuple[str, ...]:
        """Keys of the base's config for which ``solar.init.trust_config_keys`` vouches."""
        return self.solar.init.trusted_keys if self.solar is not None and self.solar.init_args is not None else ()

    @property
    def output_directory(self) -> Path:
        """Where training writes."""
        return Path(self.output_dir).expanduser()

    @property
    def weight_precision(self) -> Precision:
        """In which precision Axolotl loads the weights; ``bf16: auto``, its default, counts as true: a recent GPU.

        Source: ``resolve_dtype`` in axolotl/utils/config.

        >>> parse_recipe({}).weight_precision, parse_recipe({"bf16": False}).weight_precision
        ('bf16', 'fp32')
        """
        if (not self.fp16 if self.bf16 == "auto" else self.bf16) or self.bfloat16:
            return "bf16"
        return "fp16" if self.load_in_8bit or self.fp16 or self.float16 else "fp32"

    def entries(self, key: DatasetKey) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The datasets under a key, each with its place in the list; what is no map is Axolotl's to refuse."""
        entries = getattr(self, key)
        for number, entry in enumerate(entries if isinstance(entries, list) else []):
            if isinstance(entry, Mapping):
                yield number, entry


def concerns_us(content: Mapping[str, Any]) -> bool:
    """Whether a recipe uses anything of this package, or lists its plugin. Every other recipe is left alone."""
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
    """The recipe in a map of keys: a YAML file's, or what Axolotl read, with its command-line overrides.

    Args:
        content: The keys. Unknown ones are Axolotl's business.
        path: The file.
        text: The file's text.

    Raises:
        ArgsError: A key has a value of the wrong kind, or the ``solar:`` block cannot be used.
        PluginError: ``solar.dpo`` names settings that nobody registered.
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
        raise ArgsError(_wrong_values(error)) from None


def _wrong_values(error: ValidationError) -> str:
    """A line for each key; a key of several types has an error for each of them."""
    keys: dict[str, tuple[Any, list[str]]] = {}
    for detail in error.errors(include_url=False):
        _, expected = keys.setdefault(str(detail["loc"][0]), (detail["input"], []))
        expected.append(detail["msg"].removeprefix("Input should be ").partition(",")[0])
    return "\n".join(
        f"{key}: {value!r:.200} is not allowed; expected {' or '.join(dict.fromkeys(expected))}"
        for key, (value, expected) in keys.items()
    )


def _named_settings(name: str) -> DPOConfig:
    try:
        return dpo_config(name)
    except PluginError as error:
        raise PluginError(f"solar.dpo: {error}") from None


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file.

    Raises:
        ArgsError: The file is missing, not YAML, or not a map; or as `parse_recipe`.
        PluginError: As `parse_recipe`.
    """
    text = _text(path)
    return parse_recipe(_mapping(path, text), path, text)


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The keys of a YAML file that is no Axolotl recipe, such as a mixture or a merge.

    Raises:
        ArgsError: The file is missing, not YAML, or not a map.
    """
    return _mapping(path, _text(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ArgsError(f"{path}: the recipe cannot be read ({error.strerror}); give the path of a YAML file") from None
    except ValueError as error:
        raise ArgsError(f"{path}: not valid YAML; {' '.join(str(error).split())}") from None


def _mapping(path: Path, text: str) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ArgsError(f"{path}: not valid YAML; {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise ArgsError(
            f"{path}: holds a {type(content).__name__}, expected a recipe (a map of keys such as base_model)"
        )
    return content
