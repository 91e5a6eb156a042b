"""What every hook has collected, in lines for people."""

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
    ("formatters of labelled answers, for rl: kto", "register_unpaired_formatters", UnpairedFormatter),
    ("settings (solar.dpo)", "register_dpo_configs", DPOConfig),
    ("recipes (solar recipes)", "register_recipes", RecipePack),
)

ABOUT = ("summary", "source", "directory", "name")
"""What a thing says of itself, the first that it has."""


def registered_lines() -> Iterator[str]:
    """For each kind a heading and a line for each thing: its name, what it is, and the package if that is not ours."""
    for heading, hook, kind in KINDS:
        yield f"{heading}:"
        for name, (owner, thing) in sorted(owned(hook, kind).items()):
            by = "" if owner.startswith("solar_plugins.") else f"  [{owner}]"
            about = next(str(value) for key in ABOUT if (value := getattr(thing, key, None)))
            yield f"  {name:<24}{about}{by}"
    yield from loaded_plugins().skipped
