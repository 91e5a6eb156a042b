"""Which versions of Axolotl the plugin was tried with. The package itself does not pin Axolotl. Pure."""

from __future__ import annotations

TRIED_AXOLOTL = "0.21"
"""Major and minor version; what `axolotl_adapter` knows of Axolotl was read there and is tested with it."""


def untried(installed: str) -> str | None:
    """What to tell the user of another Axolotl; None for a version that was tried.

    >>> untried("0.21.3") is None
    True
    """
    if installed.split(".")[:2] == TRIED_AXOLOTL.split("."):
        return None
    return (
        f"solar_plugins was tried with Axolotl {TRIED_AXOLOTL} and meets {installed}, so its checks of the recipe may "
        f"be wrong; if something fails, try pip install 'axolotl=={TRIED_AXOLOTL}.*'"
    )
