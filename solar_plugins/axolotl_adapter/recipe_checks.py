"""Checks of a recipe's formatters, chat template and preference training, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from solar_plugins.data.formatters import preference_formatters, sft_formatters, unpaired_formatters
from solar_plugins.data.formatters.base import Formatter, Messages
from solar_plugins.data.template import renders_as_solar, template_text
from solar_plugins.errors import ArgsError, PluginError
from solar_plugins.logs import logger
from solar_plugins.plugins.manager import not_registered
from solar_plugins.recipe import PAIR_METHODS, TEMPLATE_NAME, TYPE_PREFIX, DatasetKey, Recipe

LOG = logger("formatters")

TOKENIZERS_TEMPLATE = "tokenizer_default"
"""Prefix of the values of ``chat_template`` with which Axolotl uses the tokenizer's own template."""

SET_KEYS: tuple[DatasetKey, ...] = ("datasets", "test_datasets")
ENTRY_KEYS = {"path", "type", "split", "data_files", "revision", "ds_type"}
SFT_ENTRY_KEYS = ENTRY_KEYS | {"name", "trust_remote_code", "weight", "shards", "shards_idx", "preprocess_shards"}
"""Keys of a dataset that have an effect. Under ``rl`` Axolotl silently drops the others, and mostly ``ds_type`` too;
then the suffix of the file decides its format."""


class FormattedDataset(NamedTuple):
    """A dataset of a recipe with a formatter of ours."""

    key: str
    number: int
    entry: Mapping[str, Any]
    formatter: Formatter

    @property
    def where(self) -> str:
        """Its place in the recipe, and its files."""
        files = self.entry.get("data_files")
        listed = ", ".join([files] if isinstance(files, str) else files or [])
        parts = [str(self.entry.get("path")), str(self.entry.get("name") or ""), listed]
        return f"{self.key}[{self.number}] ({' '.join(part for part in parts if part)})"


def check_recipe(recipe: Recipe) -> list[FormattedDataset]:
    """Reject settings that cannot work.

    Returns:
        The datasets with a formatter of ours.

    Raises:
        SolarError: A formatter is not registered or is for another kind of training, or a key has no effect or a
            harmful one.
    """
    sets = list(formatted_datasets(recipe))
    for found in sets:
        _check_entry(found, recipe)
    if sets:
        _check_top_level(recipe, sets[0])
        _check_method_keys(recipe)
    return sets


def changes(recipe: Recipe) -> dict[str, Any]:
    """Keys that Axolotl must read instead: those from ``solar.dpo``, and the text of ``chat_template: solar``."""
    template = {"chat_template": "jinja", "chat_template_jinja": template_text()}
    return {**recipe.filled_in, **(template if recipe.chat_template == TEMPLATE_NAME else {})}


def log_named_settings(recipe: Recipe) -> None:
    """Log which keys ``solar.dpo`` set, and which keys of the recipe are kept."""
    config = recipe.named_settings
    if config is None:
        return
    LOG.info("solar.dpo: %s sets %s (%s)", config.name, _listed(recipe.filled_in) or "nothing", config.source)
    if recipe.kept:
        LOG.info("solar.dpo: the recipe overrides %s of %s", _listed(recipe.kept), config.name)
    LOG.info("solar.dpo: %s uses a global batch of %d pairs; no key sets it", config.name, config.global_batch)


def formatted_datasets(recipe: Recipe) -> Iterator[FormattedDataset]:
    """The datasets with a formatter of ours.

    Raises:
        PluginError: A formatter is not registered.
        ArgsError: A formatter is for another kind of training.
    """
    for key in SET_KEYS:
        for number, entry in recipe.entries(key):
            kind = entry.get("type")
            if isinstance(kind, str) and kind.startswith(TYPE_PREFIX):
                name = kind.removeprefix(TYPE_PREFIX)
                yield FormattedDataset(key, number, entry, _formatter(name, recipe.rl, f"{key}[{number}].type"))


def _formatter(name: str, method: Any, where: str) -> Formatter:
    conversations, pairs, labeled = sft_formatters(), preference_formatters(), unpaired_formatters()
    wanted: Mapping[str, Formatter] = conversations
    if method:
        wanted = {**pairs, **labeled} if method == "kto" else pairs
    if name in wanted:
        if method and method not in PAIR_METHODS:
            raise ArgsError(
                f"rl: {method} does not train on preference pairs, which {where}: {TYPE_PREFIX}{name} yields; expected "
                f"one of {', '.join(PAIR_METHODS)}"
            )
        return wanted[name]
    if name in conversations:
        raise ArgsError(
            f"{where}: {TYPE_PREFIX}{name} yields conversations, but rl: {method} trains on preference pairs. Remove "
            f"rl:, or use one of {', '.join(sorted(pairs))}"
        )
    if name in pairs:
        raise ArgsError(
            f"{where}: {TYPE_PREFIX}{name} yields preference pairs, but the recipe has no rl:, so it trains on "
            f"conversations. Add rl: dpo, or use one of {', '.join(sorted(conversations))}"
        )
    if name in labeled:
        raise ArgsError(
            f"{where}: {TYPE_PREFIX}{name} yields single answers with a label, which only rl: kto trains on. Set rl: "
            f"kto, or use one of {', '.join(sorted(wanted))}"
        )
    kind = "preference formatter" if method else "SFT formatter"
    raise PluginError(f"{where}: {not_registered(name, kind, wanted)}")


def _check_entry(found: FormattedDataset, recipe: Recipe) -> None:
    allowed = ENTRY_KEYS if recipe.rl else SFT_ENTRY_KEYS
    for key, value in found.entry.items():
        if key not in allowed and value not in (None, False):
            raise ArgsError(
                f"{found.key}[{found.number}].{key}: has no effect on type: {TYPE_PREFIX}{found.formatter.name}"
                f"{' under rl' if recipe.rl and key in SFT_ENTRY_KEYS else ''}; expected only "
                f"{', '.join(sorted(allowed))}. Remove it"
            )
    if not isinstance(found.entry.get("path"), str):
        raise ArgsError(f"{found.key}[{found.number}].path: missing; expected a file, a directory or a hub id")


def _check_top_level(recipe: Recipe, found: FormattedDataset) -> None:
    used = f"{found.key}[{found.number}].type: {TYPE_PREFIX}{found.formatter.name}"
    for key, why in (
        ("skip_prepare_dataset", "hands the raw rows to the trainer"),
        ("streaming", "gives no chance to count bad rows before the training"),
        ("train_on_inputs", "trains on prompts, but with SOLAR's format the loss covers only answers"),
        ("processor_type", "is for images, which SOLAR's format does not have"),
    ):
        if value := getattr(recipe, key):
            raise ArgsError(f"{key}: {value!r} {why}, so it cannot be used with {used}; remove the key")
    entries = [entry for _, entry in recipe.entries("datasets")]
    if recipe.val_set_size and not all(str(entry.get("type")).startswith(TYPE_PREFIX) for entry in entries):
        raise ArgsError(
            f"val_set_size: {recipe.val_set_size:g} cannot be used with {used} and datasets of other types: Axolotl "
            "would split examples, and one conversation gives several. List held-out rows under test_datasets"
        )
    other = recipe.chat_template
    by_the_tokenizer = str(other).startswith(TOKENIZERS_TEMPLATE)  # Checked when the tokenizer is loaded.
    if (
        other not in (None, "", TEMPLATE_NAME)
        and not by_the_tokenizer
        and not (other == "jinja" and _is_our_template(recipe.chat_template_jinja))
    ):
        raise ArgsError(
            f"chat_template: {other} is not SOLAR's template, which {used} uses; set chat_template: {TEMPLATE_NAME}, "
            "or read the dataset with Axolotl's own type: chat_template"
        )


def _check_method_keys(recipe: Recipe) -> None:
    """Require the keys that a method needs; without them Axolotl fails with a traceback."""
    method = recipe.rl
    if method and (recipe.sample_packing or recipe.eval_sample_packing):
        key = "sample_packing" if recipe.sample_packing else "eval_sample_packing"
        raise ArgsError(f"{key}: True; rl: {method} compares single pairs, so it cannot pack them; remove the key")
    if method == "kto" and recipe.remove_unused_columns is not False:
        raise ArgsError(
            f"remove_unused_columns: {recipe.remove_unused_columns!r}; rl: kto needs the label column. Set "
            "remove_unused_columns: false"
        )
    if method == "simpo":
        _check_simpo_keys(recipe)


def _check_simpo_keys(recipe: Recipe) -> None:
    gamma = recipe.simpo_gamma
    if isinstance(gamma, bool) or not isinstance(gamma, int | float):
        raise ArgsError(
            f"simpo_gamma: {gamma!r}; rl: simpo needs the margin between chosen and rejected answers. Set simpo_gamma "
            "to a number such as 0.5"
        )
    if recipe.warmup_ratio:
        raise ArgsError(
            f"warmup_ratio: {recipe.warmup_ratio}; Axolotl's SimPO does not support it. Set warmup_steps instead, to a "
            "number of optimizer steps"
        )


def _is_our_template(text_or_path: Any) -> bool:
    """Whether a Jinja template, or the file of that name, renders as SOLAR's template."""
    try:
        text = Path(text_or_path).read_text(encoding="utf-8")
    except (OSError, TypeError, ValueError):
        text = str(text_or_path)
    if text.strip() == template_text().strip():
        return True
    from transformers.utils.chat_template_utils import render_jinja_template

    def apply(messages: Messages) -> str:
        chats: Any = [messages]
        texts, _ = cast("Any", render_jinja_template(chats, chat_template=text, add_generation_prompt=True))
        return str(texts[0])

    return renders_as_solar(apply)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())
