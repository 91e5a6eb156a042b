"""The training curves of a stage: loss, and in preference training the rewards, by optimizer step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from solar_plugins.report.picture import CALM, MUTED, PAPER, SEAM, new_sheet, plain_axes, spread
from solar_plugins.report.stages import Stage
from solar_plugins.report.training_log import MANY_POINTS, Series, smoothed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Lengths are points.
HEIGHT, BOTTOM, TOP, LEFT, RIGHT = 220.0, 36.0, 24.0, 42.0, 84.0
WIDE, NARROW = 400.0, 300.0
"""Widths of a chart that stands alone, and of one of several in a row."""
LABEL_DISTANCE = 13.0
STEP_TICK_DISTANCE = 34.0


class Chart(NamedTuple):
    """One chart.

    Args:
        series: With at least one point.
        quantity: The title.
        decimals: Of the last values, which stand at the ends of the lines.
        ln_2: Whether to draw a dashed line at ln 2, where DPO starts.
        width: In points.
    """

    series: Series
    quantity: str
    decimals: int = 2
    ln_2: bool = False
    width: float = WIDE

    @property
    def alternative_text(self) -> str:
        """The chart in a sentence."""
        lines = [
            f"{name} from {points[0].value:.{self.decimals}f} to {points[-1].value:.{self.decimals}f}"
            for name, points in (("training", self.series.train), ("eval", self.series.held_out))
            if points
        ]
        return f"{self.quantity.capitalize()} by optimizer step: {', '.join(lines)}"


def stage_charts(stage: Stage) -> list[Chart]:
    """The charts of a stage; empty without a logged loss."""
    log = stage.log
    if log is None or not log.loss.points:
        return []
    rewards = [("reward margin", log.margins, 3), ("reward accuracy", log.accuracies, 2)]
    drawn = [Chart(series, name, decimals, width=NARROW) for name, series, decimals in rewards if series.points]
    width, decimals = (NARROW, 3) if drawn else (WIDE, 2)
    return [Chart(log.loss, "loss", decimals, stage.starts_at_ln_2, width), *drawn]


def curve_figure(chart: Chart) -> Figure:
    """The figure of a chart."""
    from matplotlib.ticker import MaxNLocator

    figure, sheet = new_sheet(chart.width, HEIGHT)
    width, height = chart.width - LEFT - RIGHT, HEIGHT - BOTTOM - TOP
    axes = figure.add_axes((LEFT / chart.width, BOTTOM / HEIGHT, width / chart.width, height / HEIGHT))
    plain_axes(axes)
    values = [point.value for point in chart.series.points] + [math.log(2)] * chart.ln_2
    margin = 0.06 * (max(values) - min(values)) or 0.1
    low, high = min(values) - margin, max(values) + margin
    last_step = max(point.step for point in chart.series.points)
    axes.set(ylim=(low, high), xlim=(0, max(last_step, 1) * 1.01))
    axes.xaxis.set_major_locator(MaxNLocator(math.floor(width / STEP_TICK_DISTANCE), integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    ends = []
    if chart.ln_2:
        axes.axhline(math.log(2), color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
        ends = [(math.log(2), "ln 2", MUTED)]
    train = smoothed(chart.series.train)
    if train is not chart.series.train:
        axes.plot(*zip(*chart.series.train, strict=True), color=CALM, linewidth=0.9, alpha=0.4)
    for name, points, color in (("training", train, CALM), ("eval", chart.series.held_out, SEAM)):
        if points:
            marker = "o" if name == "eval" or len(points) < MANY_POINTS else None
            # Not clipped: the mark at step 0 lies on the edge.
            style: dict[str, Any] = {"marker": marker, "markersize": 4.5, "markeredgecolor": PAPER, "clip_on": False}
            axes.plot(*zip(*points, strict=True), color=color, linewidth=1.8, **style)
            ends.append((points[-1].value, f"{name} {points[-1].value:.{chart.decimals}f}", color))
    ends.sort()
    wanted = [BOTTOM + (value - low) * height / (high - low) for value, _, _ in ends]
    for (_, text, color), y in zip(ends, spread(wanted, LABEL_DISTANCE, BOTTOM, HEIGHT - TOP), strict=True):
        sheet.text(chart.width - RIGHT + 8, y, text, size=8.5, weight="bold", color=color, va="center_baseline")
    sheet.text(12, HEIGHT - 14, chart.quantity, size=8.5, color=MUTED)
    sheet.text(LEFT + width / 2, 9, "optimizer step", size=8.5, color=MUTED, ha="center")
    return figure
