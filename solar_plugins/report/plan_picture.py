"""The layer map: the base on the left, the upscaled model on the right, and where each layer comes from.

All lengths are points.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solar_plugins.extras import require
from solar_plugins.report import picture
from solar_plugins.text import counted, span
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer, Seam, start_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARGIN, MIN_WIDTH, COLUMN_WIDTH, BAND_WIDTH, LABEL_INDENT = 14.0, 330.0, 52.0, 104.0, 28.0
NUMBER_WIDTH = 26.0
"""Room next to a column for the numbers of layers."""
HEAD_HEIGHT, FOOT_HEIGHT = 74.0, 40.0
LAYER_HEIGHT, MAX_LAYER_HEIGHT = 13.0, 24.0
MIN_COLUMN_HEIGHT, MAX_COLUMN_HEIGHT = 190.0, 620.0
MODEL_GAP = 20.0
"""Between the base and a donor above it, for the donor's name."""
MANY_SEAMS = 16
"""With more seams, labels and lines are smaller."""
MIN_NUMBER_SIZE = 5.0
"""Smaller numbers are not readable; the boxes then stay empty."""
MAX_NAME = 14
"""Letters of a donor's name that fit above its column."""
HATCH_DISTANCE = 5
"""Between the slanted lines of a layer that does not start as a copy."""


class PlanLayout:
    """The positions in the picture of one plan. The origin is the lower left corner."""

    def __init__(self, plan: LayerPlan) -> None:
        self.plan = plan
        self.seams = plan.seams()
        self.depths = [plan.base_layers, *(donor.num_layers or 0 for donor in plan.donors)]
        """Of the base and of each donor, which are stacked."""
        self.label_size = 8.5 if len(self.seams) <= MANY_SEAMS else 7.0
        self.label_distance = self.label_size * 1.45
        """The least distance between the middles of two labels."""
        layers, gaps = sum(self.depths), MODEL_GAP * len(plan.donors)
        wanted = min(max(max(len(plan), layers) * LAYER_HEIGHT, MIN_COLUMN_HEIGHT), MAX_COLUMN_HEIGHT)
        self.column_height = max(wanted, len(self.seams) * self.label_distance)
        self.seam_gap = min(7.0, 0.5 * self.column_height / len(plan))
        """The gap between two layers at a seam."""
        new_layers = (self.column_height - self.seam_gap * len(self.seams)) / len(plan)
        self.layer_height = min(new_layers, (self.column_height - gaps) / layers, MAX_LAYER_HEIGHT)
        self.inset = min(0.6, self.layer_height * 0.08)
        """Free space on either side of a layer."""
        self.number_size = min(7.5, self.layer_height * 0.72)
        """Font size of the number in a layer's box."""
        self.base_x = MARGIN + 14
        self.new_x = self.base_x + COLUMN_WIDTH + BAND_WIDTH
        longest = max((len(seam_label(plan, seam)) for seam in self.seams), default=0)
        labels = LABEL_INDENT + longest * self.label_size * 0.57  # The width of a letter in the widest font.
        right = max(labels if longest else 0.0, NUMBER_WIDTH)
        self.width = max(self.new_x + COLUMN_WIDTH + right + MARGIN, MIN_WIDTH)
        self.height = FOOT_HEIGHT + self.column_height + HEAD_HEIGHT
        self.base_bottom = FOOT_HEIGHT + (self.column_height - gaps - layers * self.layer_height) / 2
        used = len(plan) * self.layer_height + len(self.seams) * self.seam_gap
        self.new_bottom = FOOT_HEIGHT + (self.column_height - used) / 2
        seam_ys, top = [self.seam_y(seam) for seam in self.seams], FOOT_HEIGHT + self.column_height
        self.label_ys = picture.spread(seam_ys, self.label_distance, FOOT_HEIGHT, top)
        """Middles of the labels, as close to their seams as possible without overlap."""

    def name(self, model: int) -> str:
        """The last part of a model's name, cut to the width of its column."""
        name = self.plan.donors[model - 1].name.rpartition("/")[2] if model else "base"
        return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"

    def base_y(self, layer: int, model: int = 0) -> float:
        """Lower edge of a layer of the base or a donor. Past the last layer: the upper edge of the column."""
        below = sum(self.depths[:model]) * self.layer_height + model * MODEL_GAP
        return self.base_bottom + below + layer * self.layer_height

    def new_y(self, position: int) -> float:
        """Lower edge of a layer of the upscaled model."""
        below = sum(seam.position <= position for seam in self.seams)
        return self.new_bottom + position * self.layer_height + below * self.seam_gap

    def seam_y(self, seam: Seam) -> float:
        """Middle of the gap at a seam."""
        return self.new_y(seam.position) - self.seam_gap / 2


def seam_label(plan: LayerPlan, seam: Seam) -> str:
    """The label of a seam."""
    return f"seam: {plan.seam_words(seam, short=True)}"


def draw_plan(plan: LayerPlan, path: Path) -> None:
    """Write a picture of ``plan`` to ``path``, as PNG or SVG by its suffix.

    Raises:
        SolarError: The suffix is not one of these, the file cannot be written, or matplotlib is not installed.
    """
    picture.check_picture_path(path)
    require("solar plan --plot")
    picture.save_picture(plan_figure(plan), path)


def plan_figure(plan: LayerPlan) -> Figure:
    """The picture of ``plan``."""
    layout = PlanLayout(plan)
    scales = [picture.DONOR_COLORS if model else picture.DEPTH_COLORS for model in range(len(layout.depths))]
    colors = [picture.depth_colors(depth, scale) for depth, scale in zip(layout.depths, scales, strict=True)]
    figure, axes = picture.new_sheet(layout.width, layout.height)
    top = layout.height - MARGIN
    _text(axes, MARGIN, top, f"{plan.base_layers} → {len(plan)} layers", 15, weight="bold", va="top")
    _text(axes, MARGIN, top - 21, _summary(layout), 8.5, picture.MUTED, va="top")
    tops = [(layout.base_x, layout.base_y(depth, m), layout.name(m)) for m, depth in enumerate(layout.depths)]
    for x, y, name in [*tops, (layout.new_x, layout.new_y(len(plan) - 1) + layout.layer_height, "upscaled")]:
        _text(axes, x + COLUMN_WIDTH / 2, y + 6, name, 9.5, weight="bold", ha="center", va="bottom")
    _draw_bands(axes, layout, colors)
    _draw_columns(axes, layout, colors)
    _draw_seams(axes, layout)
    for line, note in enumerate(_notes(layout)):
        _text(axes, MARGIN, FOOT_HEIGHT - 20 - 11 * line, note, 7, picture.MUTED, va="baseline")
    return figure


def _text(axes: Axes, x: float, y: float, text: str, size: float, color: str = picture.INK, **style: Any) -> None:
    axes.text(x, y, text, {"size": size, "color": color, "va": "center_baseline"} | style)


def _summary(layout: PlanLayout) -> str:
    plan, ranges = layout.plan, layout.plan.ranges()
    what = "layers" if plan.donors else "base layers"
    few = [f"{f'{layout.name(part.model)} ' * bool(plan.donors)}{part.start}..{part.end - 1}" for part in ranges]
    parts = [f"{what} {' + '.join(few)}" if len(ranges) <= 4 else f"{len(ranges)} ranges of {what}"]
    others = Counter(layer.initialization for layer in plan.layers if layer.initialization != "copy")
    parts += [counted(count, f"{name} layer") for name, count in others.items()]
    return ", ".join([*parts, counted(len(layout.seams), "seam") if layout.seams else "no seams"])


def _notes(layout: PlanLayout) -> list[str]:
    which = "layer of its model" if layout.plan.donors else "base layer"
    notes = [f"Number in a box: the {which}. Next to it: the layer of the upscaled model."]
    if layout.number_size < MIN_NUMBER_SIZE:
        notes = ["Number next to a box: the layer of that model."]
    starts = dict.fromkeys(start_words(layer) for layer in layout.plan.layers if layer.initialization != "copy")
    if starts:
        passing = ", passes its input through" if starts.keys() == {"identity"} else ""
        notes += [f"Hatched: starts as {', '.join(starts)}{passing}."]
    return notes


def _draw_bands(axes: Axes, layout: PlanLayout, colors: list[list[str]]) -> None:
    """S-shaped bands of constant height from each layer of the base or a donor to its copies."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    left, right = layout.base_x + COLUMN_WIDTH + 3, layout.new_x - 3
    middle, thickness = (left + right) / 2, layout.layer_height - 2 * layout.inset
    curve = [Outline.CURVE4] * 3
    codes = [Outline.MOVETO, *curve, Outline.LINETO, *curve, Outline.CLOSEPOLY]
    for position, layer in enumerate(layout.plan.layers):
        left_y = layout.base_y(layer.source, layer.model) + layout.inset
        right_y = layout.new_y(position) + layout.inset
        there = [(left, left_y), (middle, left_y), (middle, right_y), (right, right_y)]
        back = [(x, y + thickness) for x, y in reversed(there)]
        band = Outline([*there, *back, there[0]], codes)
        alpha = 0.24 if layer.initialization == "copy" else 0.1
        axes.add_patch(PathPatch(band, facecolor=colors[layer.model][layer.source], alpha=alpha, linewidth=0))
    position = 0
    for part in layout.plan.ranges():
        count = part.end - part.start
        if count > 1 and count * layout.layer_height >= 22:
            y = layout.new_y(position) + count * layout.layer_height / 2
            _text(axes, right - 6, y, span(part.start, part.end), 9, ha="right")
        position += count


def _draw_columns(axes: Axes, layout: PlanLayout, colors: list[list[str]]) -> None:
    plan, boxes, ticks = layout.plan, [], []
    step = next((step for step in (1, 2, 4, 8, 16, 32, 64) if step * layout.layer_height >= 24), 128)
    for model, of_model in enumerate(colors):
        places = [layout.base_y(layer, model) for layer in range(len(of_model))]
        boxes += [(layout.base_x, y, PlannedLayer(layer), of_model[layer]) for layer, y in enumerate(places)]
        if layout.number_size < MIN_NUMBER_SIZE:
            ticks += [(layout.base_x - 5, y, layer, "right") for layer, y in enumerate(places)][::step]
    for position, layer in enumerate(plan.layers):
        boxes += [(layout.new_x, layout.new_y(position), layer, colors[layer.model][layer.source])]
    for box in boxes:
        _draw_layer(axes, layout, *box)
    new = [(layout.new_x + COLUMN_WIDTH + 5, layout.new_y(place), place, "left") for place in range(0, len(plan), step)]
    seam_ys = [layout.seam_y(seam) for seam in layout.seams]
    for x, bottom, number, side in [*ticks, *new]:
        y = bottom + layout.layer_height / 2
        if side == "right" or all(abs(y - seam_y) > 5 for seam_y in seam_ys):  # The line of a seam takes this place.
            _text(axes, x, y, str(number), 6.5, picture.MUTED, ha=side)


def _draw_layer(axes: Axes, layout: PlanLayout, x: float, y: float, layer: PlannedLayer, color: str) -> None:
    from matplotlib.patches import FancyBboxPatch, PathPatch
    from matplotlib.path import Path as Outline

    height, hatched = layout.layer_height, layer.initialization != "copy"
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
    if hatched:  # By hand: in SVG, matplotlib's own hatch is opaque on a translucent background.
        starts = range(-int(height), int(COLUMN_WIDTH), HATCH_DISTANCE)
        ends = [point for start in starts for point in ((x + start, y), (x + start + height, y + height))]
        lines = Outline(ends, [Outline.MOVETO, Outline.LINETO] * len(starts))
        hatch = PathPatch(lines, edgecolor=color, linewidth=0.8)
        hatch.set_clip_path(box)
        axes.add_patch(hatch)
    if layout.number_size >= MIN_NUMBER_SIZE:
        on_color = picture.DARK_ON_COLOR if _is_light(color) else picture.LIGHT_ON_COLOR
        paper = {"facecolor": picture.PAPER, "linewidth": 0, "pad": 0.8} if hatched else None
        style: dict[str, Any] = {"color": picture.INK if hatched else on_color, "bbox": paper, "ha": "center"}
        _text(axes, x + COLUMN_WIDTH / 2, y + height / 2, str(layer.source), layout.number_size, **style)


def _is_light(color: str) -> bool:
    """Whether black on a color has more contrast than white (relative luminance of WCAG 2.2)."""
    red, green, blue = (((int(color[start : start + 2], 16) / 255 + 0.055) / 1.055) ** 2.4 for start in (1, 3, 5))
    return bool(0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18)


def _draw_seams(axes: Axes, layout: PlanLayout) -> None:
    left, right = layout.new_x - 4, layout.new_x + COLUMN_WIDTH + 4
    label_x, style = right - 4 + LABEL_INDENT, dict[str, Any](color=picture.SEAM)
    weight = 2.0 if len(layout.seams) <= MANY_SEAMS else 1.2
    for seam, label_y in zip(layout.seams, layout.label_ys, strict=True):
        y, gid = layout.seam_y(seam), f"seam-{seam.position}"
        axes.plot([left, right], [y, y], linewidth=weight, solid_capstyle="round", **style)
        axes.plot([right, right + 4, label_x - 11, label_x - 5], [y, y, label_y, label_y], linewidth=0.8, **style)
        _text(axes, label_x, label_y, seam_label(layout.plan, seam), layout.label_size, gid=gid, **style)
