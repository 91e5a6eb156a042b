"""Registers the built-in formatters, through the same hooks that other packages use.

The modules are imported inside the hooks, so that `solar plan` does not load them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from solar_plugins.plugins.markers import hookimpl

if TYPE_CHECKING:
    from solar_plugins.data.formatters.base import PreferenceFormatter, SFTFormatter, UnpairedFormatter


@hookimpl
def register_sft_formatters() -> list[SFTFormatter]:
    """For instruction datasets."""
    from solar_plugins.data.formatters.sft import built_in_sft_formatters

    return built_in_sft_formatters()


@hookimpl
def register_preference_formatters() -> list[PreferenceFormatter]:
    """For preference datasets."""
    from solar_plugins.data.formatters.preference import built_in_preference_formatters

    return built_in_preference_formatters()


@hookimpl
def register_unpaired_formatters() -> list[UnpairedFormatter]:
    """For single labeled answers (KTO)."""
    from solar_plugins.data.formatters.preference import built_in_unpaired_formatters

    return built_in_unpaired_formatters()
