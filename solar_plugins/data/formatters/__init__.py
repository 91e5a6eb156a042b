"""Formatters: from a row of a dataset to messages or to a preference pair."""

from __future__ import annotations

from solar_plugins.data.formatters.base import PreferenceFormatter, SFTFormatter, UnpairedFormatter
from solar_plugins.plugins.manager import registered


def sft_formatters() -> dict[str, SFTFormatter]:
    """Every registered formatter of instruction datasets by name."""
    return registered("register_sft_formatters", SFTFormatter)


def preference_formatters() -> dict[str, PreferenceFormatter]:
    """Every registered formatter of preference datasets by name."""
    return registered("register_preference_formatters", PreferenceFormatter)


def unpaired_formatters() -> dict[str, UnpairedFormatter]:
    """Every registered formatter of single labelled answers by name."""
    return registered("register_unpaired_formatters", UnpairedFormatter)
