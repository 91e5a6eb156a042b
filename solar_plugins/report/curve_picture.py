"""The picture of what a run logged by optimizer step: training, held-out, and a level to compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from solar_plugins.report.picture import CALM, GRID, MUTED, PAPER, SEAM, new_sheet
from solar_plugins.report.plan_layout import spread
from solar_plugins.report.training_log import MANY_POINTS, LogPoint, Series, smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Lengths are points.
HEIGHT, BOTTOM, TOP, LEFT, RIGHT = 220.0, 36.0, 24.0, 42.0, 84.0
LABEL_DISTANCE = 13.0
STEP_TICK_DISTANCE = 34.0

WIDE, NARROW = 400.0, 300.0
"""Widths of a picture that stands alone, and of one of several side by side."""


class Level(NamedTuple):
    """A value to compare with, drawn as a line across."""

    value: float
    name: str


class Chart(NamedTuple):
    """What a picture shows.

    Args:
        series: With at least one point.
        quantity: Its name, above the axis.
        decimals: Of the last values, which stand beside the ends of the lines.
        level: A line to compare with.
        width: In points.
    """

    series: Series
    quantity: str
    decimals: int = 2
    level: Level | None = None
    width: float = WIDE


def curve_figure(chart: Chart) -> Figure:
    """The picture of a chart."""
    series = chart.series
    figure, sheet = new_sheet(chart.width, HEIGHT)
    axes = _empty_axes(figure, chart)
    smooth = smoothed(series.train)
    if smooth is not series.train:
        axes.plot(*_xy(series.train), color=CALM, linewidth=0.9, alpha=0.4)
    axes.plot(*_xy(smooth), color=CALM, linewidth=1.8, marker="o" if len(smooth) < MANY_POINTS else None, markersize=3)
    # Not clipped: the mark at step 0 stands on the edge.
    axes.plot(
        *_xy(series.held_out),
        color=SEAM,
        linewidth=1.8,
        marker="o",
        markersize=4.5,
        markeredgecolor=PAPER,
        clip_on=False,
    )
    _label_ends(sheet, axes, chart, [("training", smooth, CALM), ("held-out", series.held_out, SEAM)])
    sheet.text(12, HEIGHT - 14, chart.quantity, size=8.5, color=MUTED)
    sheet.text(LEFT + (chart.width - LEFT - RIGHT) / 2, 9, "optimizer step", size=8.5, color=MUTED, ha="center")
    return figure


def _empty_axes(figure: Figure, chart: Chart) -> Axes:
    from matplotlib.ticker import MaxNLocator

    plot_width = chart.width - LEFT - RIGHT
    place = (LEFT / chart.width, BOTTOM / HEIGHT, plot_width / chart.width, (HEIGHT - BOTTOM - TOP) / HEIGHT)
    axes = figure.add_axes(place, facecolor="none")
    values = [point.value for point in chart.series.points] + ([chart.level.value] if chart.level else [])
    room = 0.06 * (max(values) - min(values)) or 0.1
    axes.set_ylim(min(values) - room, max(values) + room)
    last = max(point.step for point in chart.series.points)
    axes.set_xlim(0, max(last, 1) * 1.01)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    if chart.level:
        axes.axhline(chart.level.value, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, labelcolor=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(math.floor(plot_width / STEP_TICK_DISTANCE), integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    return axes


def _xy(points: Sequence[LogPoint]) -> tuple[list[int], list[float]]:
    return [point.step for point in points], [point.value for point in points]


def _label_ends(sheet: Axes, axes: Axes, chart: Chart, lines: Sequence[tuple[str, Sequence[LogPoint], str]]) -> None:
    """Write each line's name and last value to the right of its end, and the level's name."""
    ends = [
        (f"{name} {points[-1].value:.{chart.decimals}f}", points[-1].value, color)
        for name, points, color in lines
        if points
    ]
    ends += [(chart.level.name, chart.level.value, MUTED)] if chart.level else []
    ends.sort(key=lambda end: end[1])
    low, high = axes.get_ylim()
    scale = (HEIGHT - BOTTOM - TOP) / (high - low)
    wanted = [BOTTOM + (value - low) * scale for _, value, _ in ends]
    places = spread(wanted, LABEL_DISTANCE, BOTTOM, HEIGHT - TOP)
    for (words, _, color), y in zip(ends, places, strict=True):
        sheet.text(chart.width - RIGHT + 8, y, words, size=8.5, weight="bold", color=color, va="center_baseline")
