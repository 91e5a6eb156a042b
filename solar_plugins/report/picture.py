"""The style of all pictures, and how they are saved: one palette, one font, one unit.

The unit is the point (1/72 inch), for text and shapes alike.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from solar_plugins.errors import SolarError
from solar_plugins.storage.atomic import write_errors_explained, write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = "#ffffff"
INK = "#1c2128"
MUTED = "#667081"
GRID = "#d9dee5"
SEAM = "#dd4409"
"""The warm color, for what matters most: a seam, a held-out loss."""
CALM = "#2f6fde"
THEMED = {PAPER: "paper", INK: "ink", MUTED: "muted", GRID: "grid", SEAM: "seam", CALM: "calm"}
"""In a page these colors are CSS variables, which differ between light and dark mode. The others do not change."""

LIGHT_ON_COLOR, DARK_ON_COLOR = "#fefefe", "#000000"
"""Not the theme's colors: they lie on the colors of layers, which are the same in light and dark."""
DEPTH_COLORS = ("#4c3fb8", "#2f6fdf", "#1495b5", "#19ab84", "#8fc93a")
"""Cool colors, from the bottom layer of the base to its top layer."""
DONOR_COLORS = ("#7a2e8e", "#a83f9c", "#cf5f9b", "#e58fa6")
"""The same for a donor."""

FONTS = ["DejaVu Sans", "Verdana", "sans-serif"]
POINTS_PER_INCH = 72
PNG_DOTS_PER_INCH = 220


def new_sheet(width_points: float, height_points: float) -> tuple[Figure, Axes]:
    """An empty picture with axes over all of it, in points from the lower left corner."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_points / POINTS_PER_INCH, height_points / POINTS_PER_INCH), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width_points), ylim=(0, height_points))
    axes.set_axis_off()
    return figure, axes


def plain_axes(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """The style of every chart: no frame, muted labels, and a light line at each tick of the vertical axis."""
    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0, labelsize=8, labelcolor=MUTED)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=9.5, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=8.5, color=MUTED)
    axes.set_ylabel(y, fontsize=8.5, color=MUTED)


def spread(wanted: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """The positions from ``low`` to ``high`` nearest to ``wanted``, ascending, and ``distance`` or more apart.

    They have the least sum of squared differences. The ``distance`` must be small enough that all fit.

    Example:
        >>> spread([50, 51, 99], 10, 0, 100)
        [45.5, 55.5, 99.0]
    """
    # Pool adjacent violators: without the steps of `distance`, positions only have to ascend.
    pools: list[tuple[float, int]] = []
    for index, position in enumerate(wanted):
        total, count = position - index * distance, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            lower_total, lower_count = pools.pop()
            total, count = total + lower_total, count + lower_count
        pools.append((total, count))
    top = high - (len(wanted) - 1) * distance
    levels = [min(max(total / count, low), top) for total, count in pools for _ in range(count)]
    return [level + index * distance for index, level in enumerate(levels)]


def save_picture(figure: Figure, path: Path) -> None:
    """Write a picture as PNG or SVG, by the suffix of ``path``.

    Raises:
        SolarError: The suffix is not one of these, or the file cannot be written.
    """
    check_picture_path(path)
    picture = _rendered(figure, "svg" if path.suffix.lower() == ".svg" else "png", transparent=False)
    with write_errors_explained(path, "picture", "give a file in a folder that you may write to", SolarError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, picture)


def check_picture_path(path: Path) -> None:
    """Check that the suffix is ``.png`` or ``.svg``.

    Raises:
        SolarError: It is not.
    """
    if path.suffix.lower() not in (".png", ".svg"):
        raise SolarError(f"{path}: the suffix is {path.suffix!r}, expected .png or .svg")


def depth_colors(num_layers: int, scale: Sequence[str] = DEPTH_COLORS) -> list[str]:
    """A color for each layer of a model, bottom first."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    gradient = LinearSegmentedColormap.from_list("depth", scale)
    return [to_hex(gradient(layer / max(num_layers - 1, 1))) for layer in range(num_layers)]


def inline_svg(figure: Figure, alternative_text: str, titles: Mapping[str, str] = MappingProxyType({})) -> str:
    """A picture as an ``<svg>`` element for the body of an HTML page: transparent, in the colors of the page's theme.

    Its text can be searched. It contains no address, not even that of a namespace, which HTML does not need.
    ``alternative_text`` is for screen readers; ``titles`` are shown while the mouse is over the part with that ``gid``.
    """
    svg = _rendered(figure, "svg", transparent=True).decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    for color, variable in THEMED.items():
        svg = svg.replace(color, f"var(--{variable})")
    for gid, title in titles.items():
        svg = svg.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{html.escape(title)}</title>')
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(alternative_text)}"', 1)


def _rendered(figure: Figure, kind: Literal["png", "svg"], *, transparent: bool) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "solar_plugins", "font.sans-serif": FONTS}):
        figure.savefig(
            buffer,
            format=kind,
            dpi=PNG_DOTS_PER_INCH if kind == "png" else POINTS_PER_INCH,
            transparent=transparent,
            metadata={"Date": None, "Creator": "solar_plugins"} if kind == "svg" else {"Software": "solar_plugins"},
        )
    return buffer.getvalue()
