"""What each command needs beyond the core, and the line that installs it. No other module words a missing package."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from solar_plugins.errors import SolarError

EXTRA_OF: Mapping[str, str] = {
    "solar plan --plot": "plot",
    "solar probe": "probe",
    "solar report": "report",
    "solar report on test_datasets of type solar_plugins.*": "axolotl",
    "solar sdpo-order": "torch",
    "a layer that starts with computed weights": "torch",
    "reading a Parquet, .zst or .lz4 file": "parquet",
    "recipes/smollm2/prepare.py": "smollm2",
}
"""The extra of each command, or part of a command, that needs one. What is not listed needs the core alone."""

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "axolotl": ("axolotl",),
    "parquet": ("pyarrow",),
    "plot": ("matplotlib",),
    "probe": ("matplotlib", "jinja2", "torch", "transformers", "accelerate"),
    "report": ("matplotlib", "jinja2", "torch", "transformers", "accelerate"),
    "smollm2": ("gguf", "torch", "transformers", "accelerate"),
    "torch": ("torch", "transformers", "accelerate"),
}
"""What an extra brings, as pyproject.toml says it. Each package is imported by its own name."""


def require(command: str) -> None:
    """Check that the packages of a command are installed, without importing them.

    Args:
        command: A key of `EXTRA_OF`.

    Raises:
        SolarError: One is not. The text is one sentence with the line that installs it.
    """
    extra = EXTRA_OF[command]
    missing = [package for package in PACKAGES[extra] if find_spec(package) is None]
    if missing:
        raise SolarError(
            f"{command} needs {', '.join(missing)}, not installed here; run pip install 'solar_plugins[{extra}]'"
        )
