"""The versions that a bug report needs."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from solar_plugins.plugins.manager import loaded_plugins

PACKAGES = (
    *("axolotl", "torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets", "bitsandbytes"),
    *("flash-attn", "mergekit", "safetensors", "tokenizers", "huggingface_hub", "pluggy", "pydantic", "click"),
    "filelock",
)
"""Their versions come from metadata; none is imported."""


def version_lines() -> Iterator[str]:
    """One line each for this package, Python and the system, the packages that matter, and the plugins."""
    yield f"solar_plugins {version('solar_plugins')}"
    yield f"Python {platform.python_version()}, {platform.platform()}, {platform.machine()}"
    for name in PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} not installed"
    manager, skipped = loaded_plugins()
    for name, _ in manager.list_name_plugin():
        if not name.startswith("solar_plugins."):
            yield f"plugin {name}"
    yield from skipped
