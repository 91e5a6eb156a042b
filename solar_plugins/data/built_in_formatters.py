"""The built-in formatters, through the hooks that other packages use too.

Their modules are imported when somebody asks for formatters: `solar plan` does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from solar_plugins.plugins.markers import hookimpl

if TYPE_CHECKING:
    from solar_plugins.data.formatters.base import PreferenceFormatter, SFTFormatter, UnpairedFormatter


@hookimpl
def register_sft_formatters() -> list[SFTFormatter]:
    """Those of instruction datasets."""
    from solar_plugins.data.formatters.sft import built_in_sft_formatters

    return built_in_sft_formatters()


@hookimpl
def register_preference_formatters() -> list[PreferenceFormatter]:
    """Those of preference datasets."""
    from solar_plugins.data.formatters.preference import built_in_preference_formatters

    return built_in_preference_formatters()


@hookimpl
def register_unpaired_formatters() -> list[UnpairedFormatter]:
    """Those of single labelled answers."""
    from solar_plugins.data.formatters.preference import built_in_unpaired_formatters

    return built_in_unpaired_formatters()
