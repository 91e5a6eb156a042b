"""A picture of a layer plan: the base on the left, the deeper model on the right, and what became of what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from solar_plugins.report.picture import (
    DEPTH_COLORS,
    INK,
    MUTED,
    PAPER,
    SEAM,
    check_picture_path,
    new_sheet,
    require_matplotlib,
    save_picture,
)
from solar_plugins.upscaling.layer_plan import LayerPlan, Seam

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Outline

# All lengths are points.
MARGIN = 14.0
COLUMN_WIDTH = 52.0
BAND_WIDTH = 118.0
LABEL_INDENT = 34.0
HEAD_HEIGHT = 74.0
FOOT_HEIGHT = 30.0
LAYER_HEIGHT = 13.0
MIN_COLUMN_HEIGHT, MAX_COLUMN_HEIGHT = 190.0, 600.0
MANY_SEAMS = 16


def draw_plan(plan: LayerPlan, path: Path) -> None:
    """Write a picture of ``plan`` to ``path``, as PNG or SVG by its suffix.

    Raises:
        SolarError: The suffix is another one, the file cannot be written, or matplotlib is not installed.
    """
    check_picture_path(path)
    require_matplotlib()
    save_picture(plan_figure(plan), path)


def plan_figure(plan: LayerPlan) -> Figure:
    """The picture of ``plan``."""
    layout = PlanLayout(plan)
    figure, axes = new_sheet(layout.width, layout.height)
    _draw_head(axes, layout)
    _draw_bands(axes, layout)
    _draw_columns(axes, layout)
    _draw_seams(axes, layout)
    _draw_foot(axes, layout)
    return figure


@dataclass(frozen=True)
class PlanLayout:
    """Where everything in the picture of a plan lies. Pure arithmetic on the plan."""

    plan: LayerPlan

    @cached_property
    def seams(self) -> tuple[Seam, ...]:
        """The plan's seams, bottom first."""
        return self.plan.seams()

    @cached_property
    def colors(self) -> list[str]:
        """The colour of each base layer."""
        return layer_colors(self.plan.base_layers)

    @property
    def label_size(self) -> float:
        """Font size of a seam's label."""
        return 8.5 if len(self.seams) <= MANY_SEAMS else 7.0

    @property
    def label_distance(self) -> float:
        """The least distance between the middles of two labels."""
        return self.label_size * 1.45

    @property
    def column_height(self) -> float:
        """Height of the deeper model's column, or of the base's if that is higher."""
        layers = max(len(self.plan), self.plan.base_layers)
        wanted = min(max(layers * LAYER_HEIGHT, MIN_COLUMN_HEIGHT), MAX_COLUMN_HEIGHT)
        return max(wanted, len(self.seams) * self.label_distance)

    @property
    def seam_gap(self) -> float:
        """The free space that a seam opens between two layers."""
        return min(7.0, 0.5 * self.column_height / len(self.plan))

    @property
    def layer_height(self) -> float:
        """Height of one layer."""
        new_layers = (self.column_height - self.seam_gap * len(self.seams)) / len(self.plan)
        return min(new_layers, self.column_height / self.plan.base_layers)

    @property
    def base_x(self) -> float:
        """Left edge of the base's column."""
        return MARGIN + 16

    @property
    def new_x(self) -> float:
        """Left edge of the deeper model's column."""
        return self.base_x + COLUMN_WIDTH + BAND_WIDTH

    @property
    def width(self) -> float:
        """Width of the picture."""
        right = self.new_x + COLUMN_WIDTH + 26
        longest = max((len(seam_label(seam)) for seam in self.seams), default=0)
        return max(right + (LABEL_INDENT + longest * self.label_size * 0.57 if self.seams else MARGIN), 340)

    @property
    def height(self) -> float:
        """Height of the picture."""
        return FOOT_HEIGHT + self.column_height + HEAD_HEIGHT

    def base_y(self, layer: int) -> float:
        """Lower edge of a base layer; that of the layer past the last is the column's upper edge."""
        free = self.column_height - self.plan.base_layers * self.layer_height
        return FOOT_HEIGHT + free / 2 + layer * self.layer_height

    def new_y(self, position: int) -> float:
        """Lower edge of a layer of the deeper model."""
        below = sum(seam.position <= position for seam in self.seams)
        used = len(self.plan) * self.layer_height + len(self.seams) * self.seam_gap
        return FOOT_HEIGHT + (self.column_height - used) / 2 + position * self.layer_height + below * self.seam_gap

    def seam_y(self, seam: Seam) -> float:
        """Middle of the gap that a seam opens."""
        return self.new_y(seam.position) - self.seam_gap / 2

    @cached_property
    def label_ys(self) -> list[float]:
        """Middles of the seams' labels, as near to their seams as they can be without touching."""
        return spread([self.seam_y(seam) for seam in self.seams], self.label_distance)


def spread(wanted: Sequence[float], distance: float) -> list[float]:
    """The positions nearest to the ascending ``wanted`` (least squares) that are at least ``distance`` apart.

    Example:
        >>> spread([0, 1, 100], 10)
        [-4.5, 5.5, 100.0]
    """
    # Pool adjacent violators: without the steps of `distance`, positions only have to ascend, so any that do not share a mean.
    pools: list[tuple[float, int]] = []
    for index, position in enumerate(wanted):
        total, count = position - index * distance, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            lower_total, lower_count = pools.pop()
            total, count = total + lower_total, count + lower_count
        pools.append((total, count))
    levels = [total / count for total, count in pools for _ in range(count)]
    return [level + index * distance for index, level in enumerate(levels)]


def seam_label(seam: Seam) -> str:
    """What stands beside a seam."""
    return f"seam: layer {seam.below} feeds {seam.above}, distance {seam.distance}"


def layer_colors(base_layers: int) -> list[str]:
    """A colour for each base layer, bottom first."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    gradient = LinearSegmentedColormap.from_list("depth", DEPTH_COLORS)
    return [to_hex(gradient(layer / max(base_layers - 1, 1))) for layer in range(base_layers)]


def _draw_head(axes: Axes, layout: PlanLayout) -> None:
    plan, top = layout.plan, layout.height - MARGIN
    axes.text(MARGIN, top, f"{plan.base_layers} → {len(plan)} layers", size=15, weight="bold", color=INK, va="top")
    axes.text(MARGIN, top - 21, _summary(layout), size=8.5, color=MUTED, va="top")
    for x, y, words in (
        (layout.base_x, layout.base_y(plan.base_layers), "base"),
        (layout.new_x, layout.new_y(len(plan) - 1) + layout.layer_height, "up-scaled"),
    ):
        axes.text(x + COLUMN_WIDTH / 2, y + 6, words, size=9.5, weight="bold", color=INK, ha="center", va="bottom")


def _summary(layout: PlanLayout) -> str:
    ranges, seams = layout.plan.ranges(), len(layout.seams)
    if len(ranges) > 4:
        return f"{len(ranges)} ranges of base layers, {seams or 'no'} seam{'' if seams == 1 else 's'}"
    parts = [f"{part.start}–{part.end - 1}{'' if part.initialization == 'copy' else ' as identity'}" for part in ranges]
    return f"base layers {' + '.join(parts)}" + ("" if seams else ", no seam: nothing changed place")


def _draw_bands(axes: Axes, layout: PlanLayout) -> None:
    from matplotlib.patches import PathPatch

    colors, position = layout.colors, 0
    for part in layout.plan.ranges():
        count = part.end - part.start
        left, right = layout.base_x + COLUMN_WIDTH + 3, layout.new_x - 3
        for layer in range(part.start, part.end):
            new_y = layout.new_y(position + layer - part.start)
            path = _ribbon(left, layout.base_y(layer), right, new_y, layout.layer_height)
            # Without antialiasing neighbours meet exactly: no hairlines between the layers of one band.
            axes.add_patch(PathPatch(path, facecolor=colors[layer], alpha=0.2, linewidth=0, antialiased=False))
        low, high = layout.base_y(part.start), layout.new_y(position)
        outline = _ribbon(left, low, right, high, count * layout.layer_height)
        style = "solid" if part.initialization == "copy" else (0, (2, 1.6))
        edge = colors[(part.start + part.end - 1) // 2]
        axes.add_patch(PathPatch(outline, facecolor="none", edgecolor=edge, alpha=0.55, linewidth=0.7, linestyle=style))
        _draw_band_label(axes, layout, f"{part.start}–{part.end - 1}", high, count)
        position += count


def _ribbon(left: float, left_y: float, right: float, right_y: float, height: float) -> Outline:
    """An S-shaped band of constant height between two columns."""
    from matplotlib.path import Path as Outline

    middle = (left + right) / 2
    there = [(left, left_y), (middle, left_y), (middle, right_y), (right, right_y)]
    back = [(x, y + height) for x, y in reversed(there)]
    curve = [Outline.CURVE4] * 3
    return Outline([*there, *back, there[0]], [Outline.MOVETO, *curve, Outline.LINETO, *curve, Outline.CLOSEPOLY])


def _draw_band_label(axes: Axes, layout: PlanLayout, words: str, low: float, count: int) -> None:
    height = count * layout.layer_height
    if height >= 11 and count > 1:
        axes.text(layout.new_x - 8, low + height / 2, words, size=8.5, color=INK, ha="right", va="center_baseline")


def _draw_columns(axes: Axes, layout: PlanLayout) -> None:
    plan = layout.plan
    for layer in range(plan.base_layers):
        _draw_layer(axes, layout, layout.base_x, layout.base_y(layer), layer, identity=False)
    for position, planned in enumerate(plan.layers):
        identity = planned.initialization == "identity"
        _draw_layer(axes, layout, layout.new_x, layout.new_y(position), planned.source, identity=identity)
    step = _tick_step(layout.layer_height)
    for layer in range(0, plan.base_layers, step):
        _draw_tick(axes, layout.base_x - 5, layout.base_y(layer) + layout.layer_height / 2, layer, "right")
    seam_ys = [layout.seam_y(seam) for seam in layout.seams]
    for position in range(0, len(plan), step):
        y = layout.new_y(position) + layout.layer_height / 2
        if all(abs(y - seam_y) > 5 for seam_y in seam_ys):  # A seam's line takes the place of a number.
            _draw_tick(axes, layout.new_x + COLUMN_WIDTH + 5, y, position, "left")


def _draw_layer(axes: Axes, layout: PlanLayout, x: float, y: float, source: int, *, identity: bool) -> None:
    from matplotlib.patches import FancyBboxPatch

    height = layout.layer_height
    inset = min(0.6, height * 0.08)
    color = layout.colors[source]
    box = FancyBboxPatch(
        (x, y + inset),
        COLUMN_WIDTH,
        height - 2 * inset,
        boxstyle=f"round,pad=0,rounding_size={min(2.5, height / 4)}",
        facecolor=(color, 0.12) if identity else color,
        edgecolor=color,
        linewidth=min(0.9, height / 8) if identity else 0,
        hatch="////" if identity else None,
    )
    axes.add_patch(box)
    size = min(7.5, height * 0.72)
    if size >= 5.5:
        ink = INK if identity or _is_light(color) else PAPER
        axes.text(x + COLUMN_WIDTH / 2, y + height / 2, str(source), size=size, color=ink, ha="center", va="center_baseline")


def _is_light(color: str) -> bool:
    red, green, blue = (int(color[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.6


def _tick_step(layer_height: float) -> int:
    return next((step for step in (1, 2, 4, 8, 16, 32, 64) if step * layer_height >= 24), 128)


def _draw_tick(axes: Axes, x: float, y: float, number: int, side: Literal["left", "right"]) -> None:
    axes.text(x, y, str(number), size=6.5, color=MUTED, ha=side, va="center_baseline")


def _draw_seams(axes: Axes, layout: PlanLayout) -> None:
    right = layout.new_x + COLUMN_WIDTH
    weight = 2.0 if len(layout.seams) <= MANY_SEAMS else 1.2
    for seam, label_y in zip(layout.seams, layout.label_ys, strict=True):
        y = layout.seam_y(seam)
        axes.plot([layout.new_x - 4, right + 4], [y, y], color=SEAM, linewidth=weight, solid_capstyle="round")
        turn, end = right + 8, right + LABEL_INDENT - 5
        axes.plot([right + 4, turn, end - 6, end], [y, y, label_y, label_y], color=SEAM, linewidth=0.8)
        axes.text(
            right + LABEL_INDENT, label_y, seam_label(seam), size=layout.label_size, color=SEAM, va="center_baseline", gid="seam"
        )


def _draw_foot(axes: Axes, layout: PlanLayout) -> None:
    ...
