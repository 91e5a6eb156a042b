"""The layer map: the base on the left, the upscaled model on the right, and where each layer comes from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from solar_plugins.extras import require
from solar_plugins.report.picture import (
    DARK_ON_COLOR,
    DEPTH_COLORS,
    DONOR_COLORS,
    INK,
    LIGHT_ON_COLOR,
    MUTED,
    PAPER,
    SEAM,
    check_picture_path,
    depth_colors,
    new_sheet,
    save_picture,
)
from solar_plugins.report.plan_layout import (
    COLUMN_WIDTH,
    FOOT_HEIGHT,
    LABEL_INDENT,
    MANY_SEAMS,
    MARGIN,
    MIN_NUMBER_SIZE,
    PlanLayout,
    seam_label,
)
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer, start_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch
    from matplotlib.path import Path as Outline

MAX_NAME = 14
"""Letters of a donor's name that fit above its column."""

HATCH_DISTANCE = 5
"""Points between the slanted lines of a layer that does not start as a copy."""


def draw_plan(plan: LayerPlan, path: Path) -> None:
    """Write a picture of ``plan`` to ``path``, as PNG or SVG by its suffix.

    Raises:
        SolarError: The suffix is not one of these, the file cannot be written, or matplotlib is not installed.
    """
    check_picture_path(path)
    require("solar plan --plot")
    save_picture(plan_figure(plan), path)


def plan_figure(plan: LayerPlan) -> Figure:
    """The picture of ``plan``."""
    layout = PlanLayout(plan)
    colors = [depth_colors(depth, DONOR_COLORS if model else DEPTH_COLORS) for model, depth in enumerate(layout.depths)]
    figure, axes = new_sheet(layout.width, layout.height)
    _draw_head(axes, layout)
    _draw_bands(axes, layout, colors)
    _draw_columns(axes, layout, colors)
    _draw_seams(axes, layout)
    _draw_foot(axes, layout)
    return figure


def _draw_head(axes: Axes, layout: PlanLayout) -> None:
    plan, top = layout.plan, layout.height - MARGIN
    axes.text(MARGIN, top, f"{plan.base_layers} → {len(plan)} layers", size=15, weight="bold", color=INK, va="top")
    axes.text(MARGIN, top - 21, _summary(layout), size=8.5, color=MUTED, va="top")
    models = [
        (layout.base_x, layout.base_y(depth, model), _short_name(plan, model))
        for model, depth in enumerate(layout.depths)
    ]
    for x, y, words in (*models, (layout.new_x, layout.new_y(len(plan) - 1) + layout.layer_height, "upscaled")):
        axes.text(x + COLUMN_WIDTH / 2, y + 6, words, size=9.5, weight="bold", color=INK, ha="center", va="bottom")


def _short_name(plan: LayerPlan, model: int) -> str:
    """The last part of a model's name, cut to the width of its column."""
    name = plan.donors[model - 1].name.rpartition("/")[2] if model else "base"
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def _summary(layout: PlanLayout) -> str:
    ranges = layout.plan.ranges()
    others = Counter(layer.initialization for layer in layout.plan.layers if layer.initialization != "copy")
    several = bool(layout.plan.donors)
    few = [
        (f"{_short_name(layout.plan, part.model)} " if several else "") + f"{part.start}..{part.end - 1}"
        for part in ranges
    ]
    what = "layers" if several else "base layers"
    parts = [f"{what} {' + '.join(few)}" if len(ranges) <= 4 else f"{len(ranges)} ranges of {what}"]
    parts += [f"{count} {name} layer{'s' if count > 1 else ''}" for name, count in others.items()]
    parts += [f"{len(layout.seams) or 'no'} seam{'' if len(layout.seams) == 1 else 's'}"]
    return ", ".join(parts)


def _draw_bands(axes: Axes, layout: PlanLayout, colors: list[list[str]]) -> None:
    from matplotlib.patches import PathPatch

    left, right = layout.base_x + COLUMN_WIDTH + 3, layout.new_x - 3
    thickness = layout.layer_height - 2 * layout.inset
    for position, layer in enumerate(layout.plan.layers):
        left_y = layout.base_y(layer.source, layer.model) + layout.inset
        right_y = layout.new_y(position) + layout.inset
        ribbon = _ribbon(left, left_y, right, right_y, thickness)
        alpha = 0.24 if layer.initialization == "copy" else 0.1
        axes.add_patch(PathPatch(ribbon, facecolor=colors[layer.model][layer.source], alpha=alpha, linewidth=0))
    position = 0
    for part in layout.plan.ranges():
        count = part.end - part.start
        middle = layout.new_y(position) + count * layout.layer_height / 2
        if count > 1 and count * layout.layer_height >= 22:
            words = f"{part.start}..{part.end - 1}"
            axes.text(right - 6, middle, words, size=9, color=INK, ha="right", va="center_baseline")
        position += count


def _ribbon(left: float, left_y: float, right: float, right_y: float, height: float) -> Outline:
    """An S-shaped band of constant height between two columns."""
    from matplotlib.path import Path as Outline

    middle = (left + right) / 2
    there = [(left, left_y), (middle, left_y), (middle, right_y), (right, right_y)]
    back = [(x, y + height) for x, y in reversed(there)]
    curve = [Outline.CURVE4] * 3
    return Outline([*there, *back, there[0]], [Outline.MOVETO, *curve, Outline.LINETO, *curve, Outline.CLOSEPOLY])


def _draw_columns(axes: Axes, layout: PlanLayout, colors: list[list[str]]) -> None:
    plan = layout.plan
    for model, of_model in enumerate(colors):
        for layer, color in enumerate(of_model):
            _draw_layer(axes, layout, (layout.base_x, layout.base_y(layer, model)), PlannedLayer(layer), color)
    for position, planned in enumerate(plan.layers):
        color = colors[planned.model][planned.source]
        _draw_layer(axes, layout, (layout.new_x, layout.new_y(position)), planned, color)
    step, half = _tick_step(layout.layer_height), layout.layer_height / 2
    if layout.number_size < MIN_NUMBER_SIZE:
        for model, depth in enumerate(layout.depths):
            for layer in range(0, depth, step):
                _draw_tick(axes, layout.base_x - 5, layout.base_y(layer, model) + half, layer, "right")
    seam_ys = [layout.seam_y(seam) for seam in layout.seams]
    for position in range(0, len(plan), step):
        y = layout.new_y(position) + half
        if all(abs(y - seam_y) > 5 for seam_y in seam_ys):  # The line of a seam takes this place.
            _draw_tick(axes, layout.new_x + COLUMN_WIDTH + 5, y, position, "left")


def _draw_layer(axes: Axes, layout: PlanLayout, corner: tuple[float, float], layer: PlannedLayer, color: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    (x, y), height, hatched = corner, layout.layer_height, layer.initialization != "copy"
    box = FancyBboxPatch(
        (x, y + layout.inset),
        COLUMN_WIDTH,
        height - 2 * layout.inset,
        boxstyle=f"round,pad=0,rounding_size={min(2.5, height / 4)}",
        facecolor=(color, 0.12) if hatched else color,
        edgecolor=color,
        linewidth=min(0.9, height / 8) if hatched else 0,
    )
    axes.add_patch(box)
    if hatched:
        _hatch(axes, box, corner, height, color)
    if layout.number_size >= MIN_NUMBER_SIZE:
        axes.text(
            x + COLUMN_WIDTH / 2,
            y + height / 2,
            str(layer.source),
            size=layout.number_size,
            color=INK if hatched else DARK_ON_COLOR if _is_light(color) else LIGHT_ON_COLOR,
            bbox={"facecolor": PAPER, "linewidth": 0, "pad": 0.8} if hatched else None,
            ha="center",
            va="center_baseline",
        )


def _hatch(axes: Axes, box: FancyBboxPatch, corner: tuple[float, float], height: float, color: str) -> None:
    """Draw slanted lines over a box. In SVG, matplotlib's own hatch is opaque on a translucent background."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    (x, y), starts = corner, range(-int(height), int(COLUMN_WIDTH), HATCH_DISTANCE)
    ends = [point for start in starts for point in ((x + start, y), (x + start + height, y + height))]
    lines = PathPatch(Outline(ends, [Outline.MOVETO, Outline.LINETO] * len(starts)), edgecolor=color, linewidth=0.8)
    lines.set_clip_path(box)
    axes.add_patch(lines)


def _is_light(color: str) -> bool:
    """Whether black on a color has more contrast than white (relative luminance of WCAG 2.2)."""
    red, green, blue = (((int(color[start : start + 2], 16) / 255 + 0.055) / 1.055) ** 2.4 for start in (1, 3, 5))
    return bool(0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18)


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
            right + LABEL_INDENT,
            label_y,
            seam_label(layout.plan, seam),
            size=layout.label_size,
            color=SEAM,
            va="center_baseline",
            gid=f"seam-{seam.position}",
        )


def _draw_foot(axes: Axes, layout: PlanLayout) -> None:
    y = FOOT_HEIGHT - 20
    which = "layer of its model" if layout.plan.donors else "base layer"
    notes = [f"Number in a box: the {which}. Next to it: the layer of the upscaled model."]
    if layout.number_size < MIN_NUMBER_SIZE:
        notes = ["Number next to a box: the layer of that model."]
    starts = [start_words(layer) for layer in layout.plan.layers if layer.initialization != "copy"]
    if starts:
        passing = ", passes its input through" if set(starts) == {"identity"} else ""
        notes += [f"Hatched: starts as {', '.join(dict.fromkeys(starts))}{passing}."]
    for line, note in enumerate(notes):
        axes.text(MARGIN, y - 11 * line, note, size=7, color=MUTED)
