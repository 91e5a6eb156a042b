"""What each command needs beyond the core, and how to install it. All errors about missing packages come from here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from solar_plugins.errors import SolarError

EXTRA_OF: Mapping[str, str] = {
    "solar plan --plot": "plot",
    "solar probe": "probe",
    "solar report": "report",
    "solar report on test_datasets of type solar_plugins.*": "axolotl",
    "solar recipes gallery": "gallery",
    "solar maths": "maths",
    "decontaminate.similar": "torch",
    "decontaminate.similar with an endpoint or a judge": "endpoint",
    "solar preview": "torch",
    "solar sdpo-order": "torch",
    "a layer with computed weights": "torch",
    "reading a Parquet, .zst or .lz4 file": "parquet",
    "recipes/smollm2/prepare.py": "smollm2",
}
"""The extra that each command, or part of a command, needs. Everything else needs only the core."""

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "axolotl": ("axolotl",),
    "endpoint": ("openai", "numpy"),
    "gallery": ("jinja2",),
    "maths": ("openai", "math-verify"),
    "parquet": ("pyarrow",),
    "plot": ("matplotlib",),
    "probe": ("matplotlib", "jinja2", "torch", "transformers", "accelerate"),
    "report": ("matplotlib", "jinja2", "torch", "transformers", "accelerate"),
    "smollm2": ("gguf", "torch", "transformers", "accelerate"),
    "torch": ("torch", "transformers", "accelerate"),
}
"""The packages of each extra, as in pyproject.toml. Import names have _ for -."""


def require(command: str) -> None:
    """Check that the packages that a command needs are installed, without importing them.

    Args:
        command: A key of `EXTRA_OF`.

    Raises:
        SolarError: A package is missing. The message has the pip command that installs it.
    """
    extra = EXTRA_OF[command]
    missing = [package for package in PACKAGES[extra] if find_spec(package.replace("-", "_")) is None]
    if missing:
        raise SolarError(
            f"{command} needs {', '.join(missing)} (not installed); run pip install 'solar_plugins[{extra}]'"
        )
