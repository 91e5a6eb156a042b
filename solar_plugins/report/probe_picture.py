"""The pictures of a probe: a heat map of every repeated block, the best of each size, and each layer's influence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from solar_plugins.evaluation.probe.probe import PlanResult, ProbeResult
from solar_plugins.report.picture import (
    CALM,
    DARK_ON_COLOR,
    GRID,
    INK,
    LIGHT_ON_COLOR,
    MUTED,
    PAPER,
    POINTS_PER_INCH,
    SEAM,
    inline_svg,
    plain_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

INCHES = (12.0, 7.4)
MIN_POSITIVE_SHARE = 0.9
DECADES_SHOWN = 2.0
"""Length of the color scale above the smallest loss, in powers of ten; losses above it share one color."""
COLORS = 64
"""In the color scale."""


def probe_figure(result: ProbeResult) -> Figure:
    """All three pictures in one."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=INCHES, facecolor=PAPER, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12))
    axes = figure.subplot_mosaic(
        [["heat", "sizes"], ["heat", "influence"]], width_ratios=(1.5, 1), height_ratios=(2, 1)
    )
    _heat_map(axes["heat"], result)
    _by_size(axes["sizes"], result)
    _influences(axes["influence"], result)
    figure.suptitle(f"{result.base_name}: which layers to repeat", size=14, weight="bold", color=INK, x=0.02, ha="left")
    axes["heat"].set_title(
        f"Loss of the untrained model above the base's {result.base_loss.nats_per_token:.3f} nats per token, on the "
        f"same tokens of {len(result.documents.race)} documents",
        size=9.5,
        color=MUTED,
        loc="left",
        pad=14,
    )
    return figure


def probe_svgs(result: ProbeResult, titles: Mapping[str, str]) -> dict[str, str]:
    """The three pictures for a page, by the names in its template; without blocks there is no heat map.

    Args:
        result: The probe's result.
        titles: What is shown while the mouse is over a cell of the heat map, by `cell_id`.
    """
    from matplotlib.figure import Figure

    svgs = {"heat_map": ""}
    for name, draw, height, shows in (
        ("heat_map", _heat_map, 400, "Loss above the base for every repeated block of layers"),
        ("by_size", _by_size, 240, "Loss above the base of the best plan of each size, and of DUS; as in the table"),
        ("influences", _influences, 150, "Block influence of each layer of the base"),
    ):
        if titles or draw is not _heat_map:
            inches = (400 / POINTS_PER_INCH, height / POINTS_PER_INCH)
            figure = Figure(figsize=inches, facecolor=PAPER, layout="constrained")
            draw(figure.add_subplot(), result)
            svgs[name] = inline_svg(figure, shows, titles)
    return svgs


def cell_id(block: tuple[int, int]) -> str:
    """The ``gid`` of a block's cell."""
    return f"cell-{block[0]}-{block[1]}"


def _color_scale(plans: Sequence[PlanResult]) -> tuple[Normalize, Colormap]:
    """Losses above the base as colors: light is near the base, dark is far.

    Losses of real models span decades; those of untrained models can be below the base's.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm, Normalize

    losses = sorted(plan.delta.nats_per_token for plan in plans)
    positive = [loss for loss in losses if loss > 0]
    if len(positive) < MIN_POSITIVE_SHARE * len(losses):
        norm = Normalize(losses[0], max(losses[-1], losses[0] + 1e-9), clip=True)
    else:
        low = positive[0]
        norm = LogNorm(low, max(min(losses[-1], low * 10**DECADES_SHOWN), low * 1.01), clip=True)
    colors = [colormaps["YlGnBu"](0.12 + 0.88 * step / (COLORS - 1)) for step in range(COLORS)]
    return norm, ListedColormap(colors)


def _heat_map(axes: Axes, result: ProbeResult) -> None:
    from matplotlib.patches import Rectangle

    plain_axes(axes, x="first repeated layer i", y="end of the repeated block j: layers 0 .. j - 1, then i .. n - 1")
    axes.grid(visible=False)
    blocks = [(plan.candidate.block, plan) for plan in result.plans if plan.candidate.block]
    norm, colors = _color_scale([plan for _, plan in blocks] or result.plans)
    most = max((plan.loss.tokens for _, plan in blocks), default=1)
    best = {result.plans[found.best].candidate.block for found in result.sizes.values()}
    for (start, end), plan in blocks:
        side = 0.36 + 0.6 * math.sqrt(plan.loss.tokens / most)
        color = colors(float(norm(plan.delta.nats_per_token)))
        corner = (start + 0.5 - side / 2, end - side / 2)
        axes.add_patch(Rectangle(corner, side, side, color=color, linewidth=0, gid=cell_id((start, end))))
        if plan.candidate.is_dus:
            axes.plot(start + 0.5, end, **_DUS)
        if (start, end) in best:
            axes.add_patch(Rectangle((start + 0.04, end - 0.46), 0.92, 0.92, fill=False, edgecolor=SEAM, linewidth=1.1))
    layers = result.num_layers
    for size in range(5, layers + 1, 5):
        axes.plot([0, layers - size + 1], [size - 0.5, layers + 0.5], color=GRID, linewidth=0.7, zorder=0)
        axes.annotate(f"+{size}", (layers - size + 1, layers + 0.5), fontsize=7, color=MUTED, ha="left", va="bottom")
    axes.set(xlim=(0, layers + 0.5), ylim=(0.4, layers + 0.6), aspect="equal")
    axes.set_xticks([place + 0.5 for place in range(0, layers, 5)], [str(place) for place in range(0, layers, 5)])
    _legend(axes, norm, colors)


_DUS: Any = {
    "marker": "o",
    "markersize": 4,
    "markerfacecolor": LIGHT_ON_COLOR,
    "markeredgecolor": DARK_ON_COLOR,
    "markeredgewidth": 0.7,
}


def _legend(axes: Axes, norm: Normalize, colors: Colormap) -> None:
    """What the marks mean, and the color scale; both in the empty triangle at the lower right."""
    from matplotlib.cm import ScalarMappable

    for marker, label in (
        ({"marker": "s", "markersize": 8, "markerfacecolor": "none", "markeredgecolor": SEAM}, "best of its size"),
        (_DUS, "DUS"),
        ({"marker": "s", "markersize": 4, "color": MUTED}, "small cell: fewer tokens"),
    ):
        axes.plot([], [], linestyle="", label=label, **marker)
    axes.legend(loc="lower right", frameon=False, fontsize=8, labelcolor=MUTED, bbox_to_anchor=(1.0, 0.17))
    bar = axes.inset_axes((0.56, 0.08, 0.4, 0.022))
    ticks = [float(norm.inverse(place)) for place in (0.0, 0.5, 1.0)]
    mapped = ScalarMappable(norm, colors)
    drawn = axes.figure.colorbar(mapped, cax=bar, orientation="horizontal", ticks=ticks, format="{x:+.2g}")
    assert drawn.solids is not None
    # In SVG: no embedded PNG, which the page does not load, and no gaps between the colors.
    drawn.solids.set(rasterized=False, edgecolor="face")
    drawn.outline.set_visible(False)
    drawn.minorticks_off()
    plain_axes(bar)
    bar.set_title("nats per token above the base", fontsize=8, color=MUTED, pad=4)


def _by_size(axes: Axes, result: ProbeResult) -> None:
    plain_axes(axes, "Loss above the base by depth, nats per token", "layers of the upscaled model")
    best = {result.num_layers + size: result.plans[found.best] for size, found in sorted(result.sizes.items())}
    dus = {
        result.num_layers + size: result.plans[found.dus]
        for size, found in sorted(result.sizes.items())
        if found.dus is not None
    }
    for plans, color, label in ((best, CALM, "best plan of the size"), (dus, SEAM, "DUS")):
        if plans:
            losses = [plan.delta.nats_per_token for plan in plans.values()]
            errors = [plan.delta.standard_error or 0.0 for plan in plans.values()]
            axes.errorbar([*plans], losses, errors, color=color, marker="o", markersize=3, linewidth=1.3, label=label)
    shown = [plan.delta.nats_per_token for plan in (*best.values(), *dus.values())]
    if min(shown) > 0:
        _logarithmic(axes)
        axes.set_ylim(min(shown) * 0.6, max(shown) * 1.6)
    axes.legend(frameon=False, fontsize=8, labelcolor=MUTED)


def _influences(axes: Axes, result: ProbeResult) -> None:
    plain_axes(axes, "Block influence: 1 - cosine of input and output", "layer of the base")
    axes.bar(range(result.num_layers), result.influences, color=CALM, width=0.8)
    _logarithmic(axes)


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis with numbers instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
