"""Run ``axolotl.cli.train`` on a recipe, with or without the plugin.

    python gpu_launch.py HIDDEN recipe.yml

Axolotl finds installed plugins by their entry points; those of the distribution HIDDEN are hidden. ``-`` hides none.
"""

import importlib.metadata
import runpy
import sys


def hide(distribution: str) -> None:
    """Make ``importlib.metadata.entry_points`` omit a distribution's Axolotl entry points."""
    real = importlib.metadata.entry_points

    def entry_points(**parameters):
        found = real(**parameters)
        if parameters.get("group", "").startswith("axolotl."):
            shown = (point for point in found if point.dist.name.replace("-", "_") != distribution)
            return importlib.metadata.EntryPoints(shown)
        return found

    importlib.metadata.entry_points = entry_points


if __name__ == "__main__":
    _, hidden, recipe = sys.argv
    hide(hidden)
    sys.argv = ["axolotl.cli.train", recipe]
    runpy.run_module("axolotl.cli.train", run_name="__main__", alter_sys=True)
