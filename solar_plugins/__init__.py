"""Depth up-scaling and the SOLAR recipe as a plugin for Axolotl.

Axolotl imports this module in every run, so it must not fail and must not import anything heavy.
"""

from __future__ import annotations

from typing import Any

from solar_plugins.plugins.markers import hookimpl

__all__ = ["SolarPlugin", "__version__", "hookimpl"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    # Lazy: `import axolotl.integrations.base` takes seconds.
    if name == "SolarPlugin":
        from solar_plugins.axolotl_adapter.plugin import SolarPlugin

        return SolarPlugin
    hint = "; in a recipe's plugins: write solar_plugins.SolarPlugin" if name.lower().startswith("solar") else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
