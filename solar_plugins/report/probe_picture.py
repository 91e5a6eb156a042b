"""The picture of a probe: a heat map of every repeated block, the best of each size, and each layer's influence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from solar_plugins.evaluation.probe.probe import PlanResult, ProbeResult
from solar_plugins.report.picture import CALM, GRID, INK, MUTED, PAPER, SEAM, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES = (12.0, 7.4)
MIN_POSITIVE_SHARE = 0.9
DECADES_SHOWN = 2.0
"""Length of the color scale above the smallest loss, in powers of ten; losses above it share one color."""


def probe_figure(result: ProbeResult) -> Figure:
    """The picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, facecolor=PAPER)
    grid = figure.add_gridspec(
        2,
        2,
        width_ratios=(1.5, 1),
        height_ratios=(2.6, 1),
        left=0.055,
        right=0.975,
        top=0.9,
        bottom=0.07,
        hspace=0.32,
        wspace=0.22,
    )
    heat, curve, influence = (
        figure.add_subplot(grid[:, 0]),
        figure.add_subplot(grid[0, 1]),
        figure.add_subplot(grid[1, 1]),
    )
    for axes in (heat, curve, influence):
        plain_axes(axes)
    heat.grid(visible=False)
    _heat_map(heat, result)
    _by_size(curve, result)
    _influences(influence, result)
    figure.text(
        0.065,
        0.962,
        f"{result.base_name}: which layers to repeat",
        fontsize=14,
        fontweight="bold",
        color=INK,
        va="center",
    )
    figure.text(
        0.065,
        0.932,
        f"Loss of the untrained model above the base's {result.base_loss.nats_per_token:.3f} nats per token, on the "
        f"same tokens of {len(result.documents.race)} documents",
        fontsize=9.5,
        color=MUTED,
        va="center",
    )
    return figure


class ColorScale(NamedTuple):
    """Losses above the base as colors: light is near the base, dark is far.

    Args:
        low: The loss of the lightest color, in nats per token.
        high: That of the darkest color, and of every loss above it.
        logarithmic: Losses of real models span decades; those of untrained models can be below the base's.
    """

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, plans: Sequence[PlanResult]) -> Self:
        """The scale of some plans."""
        losses = sorted(plan.delta.nats_per_token for plan in plans)
        positive = [loss for loss in losses if loss > 0]
        if len(positive) < MIN_POSITIVE_SHARE * len(losses):
            return cls(losses[0], max(losses[-1], losses[0] + 1e-9), logarithmic=False)
        low = positive[0]
        return cls(low, max(min(losses[-1], low * 10**DECADES_SHOWN), low * 1.01), logarithmic=True)

    def color(self, loss: float) -> str:
        """The color of a loss."""
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        bounded = min(max(loss, self.low), self.high)
        if self.logarithmic:
            place = math.log(bounded / self.low) / math.log(self.high / self.low)
        else:
            place = (bounded - self.low) / (self.high - self.low)
        return to_hex(colormaps["YlGnBu"](0.12 + 0.88 * place))

    def at(self, place: float) -> float:
        """The loss at a position of the scale, from 0 to 1."""
        if self.logarithmic:
            return float(self.low * (self.high / self.low) ** place)
        return self.low + (self.high - self.low) * place


def cell_side(tokens: int, most: int) -> float:
    """The side of a cell that was measured on ``tokens`` of at most ``most`` tokens; 1 is the full cell."""
    return 0.36 + 0.6 * math.sqrt(tokens / most)


def _heat_map(axes: Axes, result: ProbeResult) -> None:
    from matplotlib.patches import Rectangle

    blocks = [plan for plan in result.plans if plan.candidate.block]
    scale = ColorScale.of(blocks or result.plans)
    most = max((plan.loss.tokens for plan in blocks), default=1)
    best = {result.plans[found.best].candidate.block for found in result.sizes.values()}
    for plan in blocks:
        start, end = plan.candidate.block or (0, 0)
        side = cell_side(plan.loss.tokens, most)
        color = scale.color(plan.delta.nats_per_token)
        axes.add_patch(Rectangle((start + 0.5 - side / 2, end - side / 2), side, side, color=color, linewidth=0))
        if plan.candidate.is_dus:
            axes.plot(
                start + 0.5, end, marker="o", markersize=3.2, color=PAPER, markeredgecolor=INK, markeredgewidth=0.7
            )
        if plan.candidate.block in best:
            axes.add_patch(Rectangle((start + 0.04, end - 0.46), 0.92, 0.92, fill=False, edgecolor=SEAM, linewidth=1.1))
    layers = result.num_layers
    for size in range(5, layers + 1, 5):
        axes.plot([0, layers - size + 1], [size - 0.5, layers + 0.5], color=GRID, linewidth=0.7, zorder=0)
        axes.annotate(f"+{size}", (layers - size + 1, layers + 0.5), fontsize=7, color=MUTED, ha="left", va="bottom")
    axes.set(xlim=(0, layers + 0.5), ylim=(0.4, layers + 0.6), aspect="equal")
    axes.set_xticks([place + 0.5 for place in range(0, layers, 5)], [str(place) for place in range(0, layers, 5)])
    axes.set_xlabel("first repeated layer i", fontsize=9, color=MUTED)
    axes.set_ylabel("end of the repeated block j: layers 0 .. j - 1, then i .. n - 1", fontsize=9, color=MUTED)
    _legend(axes, scale)


def _legend(axes: Axes, scale: ColorScale) -> None:
    from matplotlib.lines import Line2D

    marks: list[Any] = [
        Line2D([], [], marker="s", linestyle="", markersize=8, fillstyle="none", color=SEAM, label="best of its size"),
        Line2D([], [], marker="o", linestyle="", markersize=4, color=PAPER, markeredgecolor=INK, label="DUS"),
        Line2D([], [], marker="s", linestyle="", markersize=4, color=MUTED, label="small cell: fewer tokens"),
    ]
    axes.legend(
        handles=marks, loc="lower right", frameon=False, fontsize=8, labelcolor=MUTED, bbox_to_anchor=(1.0, 0.17)
    )
    bar = axes.inset_axes((0.56, 0.1, 0.4, 0.022))
    steps = 120
    for step in range(steps):
        bar.axvspan(step / steps, (step + 1) / steps, color=scale.color(scale.at(step / (steps - 1))), linewidth=0)
    bar.set(xlim=(0, 1), ylim=(0, 1), yticks=[])
    places = (0.0, 0.5, 1.0)
    bar.set_xticks(places, [f"{scale.at(place):+.2g}" for place in places])
    bar.tick_params(labelsize=7.5, colors=MUTED, length=2)
    for spine in bar.spines.values():
        spine.set_visible(False)
    bar.set_title("nats per token above the base", fontsize=8, color=MUTED, pad=4)


def _by_size(axes: Axes, result: ProbeResult) -> None:
    sizes = sorted(result.sizes)
    best = [result.plans[result.sizes[size].best] for size in sizes]
    depths = [result.num_layers + size for size in sizes]
    _with_errors(axes, depths, best, CALM, "best plan of the size")
    pairs = [
        (result.num_layers + size, result.plans[dus]) for size in sizes if (dus := result.sizes[size].dus) is not None
    ]
    if pairs:
        _with_errors(axes, [depth for depth, _ in pairs], [plan for _, plan in pairs], SEAM, "DUS")
    shown = [*best, *(plan for _, plan in pairs)]
    losses = [plan.delta.nats_per_token for plan in shown]
    if min(losses) > 0:
        axes.set_yscale("log")
        axes.set_ylim(min(losses) * 0.6, max(losses) * 1.6)
        _plain_decades(axes)
    axes.set_xlabel("layers of the upscaled model", fontsize=9, color=MUTED)
    axes.set_title("Loss above the base by depth, nats per token", fontsize=9.5, color=INK, loc="left")
    axes.legend(frameon=False, fontsize=8, labelcolor=MUTED)


def _with_errors(axes: Axes, depths: Sequence[int], plans: Sequence[PlanResult], color: str, label: str) -> None:
    losses = [plan.delta.nats_per_token for plan in plans]
    errors = [plan.delta.standard_error or 0.0 for plan in plans]
    axes.errorbar(depths, losses, yerr=errors, color=color, marker="o", markersize=3, linewidth=1.3, label=label)


def _influences(axes: Axes, result: ProbeResult) -> None:
    axes.bar(range(result.num_layers), result.influences, color=CALM, width=0.8)
    axes.set_xlabel("layer of the base", fontsize=9, color=MUTED)
    axes.set_title("Block influence: 1 - cosine of input and output", fontsize=9.5, color=INK, loc="left")
    axes.set_yscale("log")
    _plain_decades(axes)


def _plain_decades(axes: Axes) -> None:
    """Numbers instead of powers of ten on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
