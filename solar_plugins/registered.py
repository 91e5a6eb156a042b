"""What is registered through each hook, as text for ``solar plugins``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from solar_plugins.data.formatters.base import PreferenceFormatter, SFTFormatter, UnpairedFormatter
from solar_plugins.plugins.dpo_configs import DPOConfig
from solar_plugins.plugins.manager import loaded_plugins, owned
from solar_plugins.plugins.recipe_packs import RecipePack
from solar_plugins.upscaling.initializers.base import LayerInitializer
from solar_plugins.upscaling.strategies.base import InitStrategy

KINDS: tuple[tuple[str, str, type[Any]], ...] = (
    ("strategies (solar.init.strategy)", "register_init_strategies", InitStrategy),
    ("initializers (solar.init.duplicates)", "register_layer_initializers", LayerInitializer),
    ("formatters of instruction datasets (type: solar_plugins.NAME)", "register_sft_formatters", SFTFormatter),
    ("formatters of preference pairs", "register_preference_formatters", PreferenceFormatter),
    ("formatters of labeled responses, for rl: kto", "register_unpaired_formatters", UnpairedFormatter),
    ("settings (solar.dpo)", "register_dpo_configs", DPOConfig),
    ("recipes (solar recipes)", "register_recipes", RecipePack),
)

ABOUT = ("summary", "source", "directory", "name")
"""Attributes that describe a registered object; the first non-empty one is shown."""


def registered_lines() -> Iterator[str]:
    """A heading for each kind, and a line for each object: name, description, and package unless it is built in."""
    for heading, hook, kind in KINDS:
        yield f"{heading}:"
        for name, (owner, thing) in sorted(owned(hook, kind).items()):
            by = "" if owner.startswith("solar_plugins.") else f"  [{owner}]"
            about = next(str(value) for key in ABOUT if (value := getattr(thing, key, None)))
            yield f"  {name:<24}{about}{by}"
    yield from loaded_plugins().skipped
