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


def package_versions() -> dict[str, str]:
    """The version of Python, of this package and of each package that is installed."""
    found = {"solar_plugins": version("solar_plugins"), "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def version_lines() -> Iterator[str]:
    """One line each for this package, Python and the system, the packages that matter, and the plugins."""
    found = package_versions()
    yield f"solar_plugins {found['solar_plugins']}"
    yield f"Python {found['Python']}, {platform.platform()}, {platform.machine()}"
    yield from (f"{name} {found.get(name, 'not installed')}" for name in PACKAGES)
    manager, skipped = loaded_plugins()
    for name, _ in manager.list_name_plugin():
        if not name.startswith("solar_plugins."):
            yield f"plugin {name}"
    yield from skipped
