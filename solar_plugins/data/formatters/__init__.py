"""Formatters: they turn a row of a dataset into messages or a preference pair."""

from __future__ import annotations

from solar_plugins.data.formatters.base import PreferenceFormatter, SFTFormatter, UnpairedFormatter
from solar_plugins.plugins.manager import registered


def sft_formatters() -> dict[str, SFTFormatter]:
    """All registered formatters for instruction datasets, by name."""
    return registered("register_sft_formatters", SFTFormatter)


def preference_formatters() -> dict[str, PreferenceFormatter]:
    """All registered formatters for preference datasets, by name."""
    return registered("register_preference_formatters", PreferenceFormatter)


def unpaired_formatters() -> dict[str, UnpairedFormatter]:
    """All registered formatters for single labeled answers (KTO), by name."""
    return registered("register_unpaired_formatters", UnpairedFormatter)
