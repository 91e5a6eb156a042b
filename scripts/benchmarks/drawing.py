"""The benchmark's plot: time and memory by size, one line per tool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench_tables import OURS, Run, Spread, select, spread, tools_of

from solar_plugins.report.picture import CALM, FONTS, GRID, INK, MUTED, PAPER, SEAM, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES, HEIGHT_INCHES = 7.0, 3.5
COLORS = {OURS: SEAM, "cp": CALM}


def draw(runs: Sequence[Run], path: Path) -> None:
    """Plot the warm runs by size: median and range, on a log scale because the tools are far apart."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.sans-serif": FONTS, "font.size": 9, "text.color": INK, "axes.edgecolor": GRID}):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), facecolor=PAPER)
        time, memory = figure.subplots(1, 2, gridspec_kw={"wspace": 0.28})
        figure.subplots_adjust(left=0.055, right=0.845, top=0.9, bottom=0.13)
        _draw_panel(time, runs, "Seconds, until on disk", lambda run: run.durable_seconds, labels=False)
        _draw_unfinished_cp(time, runs)
        _draw_panel(memory, runs, "Peak memory, MB", lambda run: run.peak_bytes / 1e6, labels=True)
        save_picture(figure, path)


def _draw_panel(axes: Axes, runs: Sequence[Run], title: str, value: Callable[[Run], float], labels: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    sizes = sorted({run.result_bytes for run in runs})
    ends = []
    for tool in tools_of(runs):
        found = {size: select(runs, tool, size, "warm") for size in sizes}
        spreads: dict[int, Spread] = {size: spread(map(value, group)) for size, group in found.items() if group}
        x = [size / 1e9 for size in spreads]
        color = COLORS.get(tool, MUTED)
        style = "--" if tool.endswith("defaults") else "-"
        axes.plot(x, [s.median for s in spreads.values()], style, color=color, lw=2.2, marker="o", ms=4.5)
        axes.fill_between(
            x, [s.low for s in spreads.values()], [s.high for s in spreads.values()], color=color, alpha=0.15, lw=0
        )
        ends.append((list(spreads.values())[-1].median, tool, color))
    axes.set_yscale("log")
    axes.set_xlim(0, sizes[-1] / 1e9 * 1.06)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=8)
    axes.set_xlabel("result, GB", color=MUTED)
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 300 * low else (1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    panel_style(axes, "y")
    if labels:
        for height, (_, tool, color) in zip(_apart([end[0] for end in ends], high / low), ends, strict=True):
            axes.annotate(
                tool.replace(", ", ",\n"), (1.02, height), xycoords=("axes fraction", "data"), va="center", color=color,
                fontweight="bold" if tool == OURS else "normal",
            )  # fmt: skip


def panel_style(axes: Axes, grid: Literal["x", "y"]) -> None:
    """The frame of every panel: a light grid across the values, and no box."""
    axes.grid(axis=grid, color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0, which="both")
    for side in ("top", "right", "left" if grid == "y" else "bottom"):
        axes.spines[side].set_visible(False)


def _draw_unfinished_cp(axes: Axes, runs: Sequence[Run]) -> None:
    """When cp itself returns: its bytes are in the page cache, and writing them may still fail."""
    sizes = sorted({run.result_bytes for run in runs if run.tool == "cp"})
    medians = [spread(run.seconds for run in select(runs, "cp", size, "warm")).median for size in sizes]
    axes.plot([size / 1e9 for size in sizes], medians, ":", color=CALM, lw=1.4)
    axes.annotate("cp, not yet on disk", (sizes[0] / 1e9 * 1.25, medians[0]), va="center", color=CALM, fontsize=8)


def _apart(heights: Sequence[float], span: float) -> list[float]:
    """Heights of two-line labels on a logarithmic axis, moved down where they would overlap."""
    step, last, moved = span**0.13, float("inf"), dict[int, float]()
    for place in sorted(range(len(heights)), key=lambda place: -heights[place]):
        last = min(heights[place], last / step)
        moved[place] = last
    return [moved[place] for place in range(len(heights))]
