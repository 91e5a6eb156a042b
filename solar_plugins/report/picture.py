"""How the report's pictures look and how they are saved: one palette, one font, one unit.

Pictures are drawn on a sheet whose unit is the point (1/72 inch), so that text and shapes share one measure.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from solar_plugins.errors import SolarError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = "#ffffff"
INK = "#1c2128"
MUTED = "#667081"
GRID = "#d9dee5"
SEAM = "#e0480c"
"""The warm colour of everything that wants attention: seams, and what the report is about."""
CALM = "#2f6fde"

DEPTH_COLORS = ("#4c3fb8", "#2f6fde", "#1495b5", "#19ab84", "#8fc93a")
"""Cool colours from the bottom layer of the base to its top."""

FONTS = ["DejaVu Sans", "Verdana", "sans-serif"]
POINTS_PER_INCH = 72
PNG_DOTS_PER_INCH = 220


def require_matplotlib() -> None:
    """Nothing, if matplotlib can be imported.

    Raises:
        SolarError: It is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SolarError(
            "matplotlib is not installed, and pictures are drawn with it; install it with pip install 'solar_plugins[report]'"
        ) from None


def new_sheet(width_points: float, height_points: float) -> tuple[Figure, Axes]:
    """An empty picture, and axes over all of it that count in points from the lower left corner."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_points / POINTS_PER_INCH, height_points / POINTS_PER_INCH), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width_points), ylim=(0, height_points))
    axes.set_axis_off()
    return figure, axes


def save_picture(figure: Figure, path: Path) -> None:
    """Write a picture as PNG or SVG, by the suffix of ``path``.

    Raises:
        SolarError: The suffix is another one, or the file cannot be written.
    """
    check_picture_path(path)
    try:
        path.write_bytes(_rendered(figure, path.suffix.lower().removeprefix("."), transparent=False))
    except OSError as error:
        raise SolarError(
            f"{path}: the picture cannot be written ({error.strerror}); give a file in a folder that exists and is writable"
        ) from None


def check_picture_path(path: Path) -> None:
    """Nothing, if the suffix names a kind of picture that can be drawn.

    Raises:
        SolarError: It does not.
    """
    if path.suffix.lower() not in (".png", ".svg"):
        raise SolarError(f"{path}: the suffix {path.suffix!r} is no kind of picture that can be drawn; use .png or .svg")


def svg_text(figure: Figure) -> str:
    """A picture as SVG text on a transparent ground. Its words stay words, so that they can be searched and read aloud."""
    return _rendered(figure, "svg", transparent=True).decode()


def _rendered(figure: Figure, kind: str, *, transparent: bool) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "solar_plugins", "font.sans-serif": FONTS}
    with rc_context(settings):
        figure.savefig(
            buffer,
            format=kind,
            dpi=PNG_DOTS_PER_INCH if kind == "png" else POINTS_PER_INCH,
            transparent=transparent,
            metadata={"Date": None, "Creator": "solar_plugins"} if kind == "svg" else {"Software": "solar_plugins"},
        )
    return buffer.getvalue()
