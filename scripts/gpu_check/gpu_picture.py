"""Plot of the recovery step: held-out loss of both models by tokens, and their difference near zero."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_curves import BASE, MODELS, UPSCALED, Run, best_rate, curve, difference_at, select

from solar_plugins.report.picture import CALM, FONTS, GRID, INK, MUTED, PAPER, SEAM, save_picture
from solar_plugins.report.plan_layout import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES, HEIGHT_INCHES = 8.0, 3.4
COLORS = {BASE: CALM, UPSCALED: SEAM}
LABEL_SHARE = 0.075
"""Minimum distance of two labels, as a share of the panel's height."""
NEAR_ZERO_FROM = 4
"""The axis of the difference is scaled without the first quarter of its points, which are far above."""
MILLION = 1e6


def draw_recovery(runs: Sequence[Run], seeds: Sequence[int], path: Path) -> None:
    """Draw the picture.

    Args:
        runs: Of the recovery step, including both models with the first seed.
        seeds: The first is drawn thick, at each model's best learning rate; all other runs are thin.
        path: A ``.png``.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.sans-serif": FONTS, "font.size": 9, "text.color": INK, "axes.edgecolor": GRID}):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), facecolor=PAPER)
        losses, excess = figure.subplots(1, 2, gridspec_kw={"wspace": 0.6})
        figure.subplots_adjust(left=0.06, right=0.985, top=0.88, bottom=0.15)
        best = {model: select(runs, model, best_rate(runs, model, seeds[0]).value, seeds[0]) for model in MODELS}
        _draw_losses(losses, runs, best)
        _draw_differences(excess, runs, best, seeds)
        save_picture(figure, path)


def _draw_losses(axes: Axes, runs: Sequence[Run], best: dict[str, Run]) -> None:
    for run in sorted(runs, key=lambda run: run is best[run["model"]]):
        points, chosen = curve(run), run is best[run["model"]]
        axes.plot(
            [point.tokens / MILLION for point in points], [point.loss.nats_per_token for point in points],
            color=COLORS[run["model"]], linewidth=2.2 if chosen else 0.9, alpha=1.0 if chosen else 0.4,
            marker="o" if chosen else None, markersize=3.5, clip_on=False,
        )  # fmt: skip
    _finish(axes, "Held-out loss, nats per token")
    ends = sorted((curve(run)[-1].loss.nats_per_token, model) for model, run in best.items())
    low, high = axes.get_ylim()
    places = spread([(value - low) / (high - low) for value, _ in ends], LABEL_SHARE, 0.0, 1.0)
    for place, (value, model) in zip(places, ends, strict=True):
        axes.annotate(
            f"{model} {value:.3f}", (1.02, place), xycoords="axes fraction", va="center", color=COLORS[model],
            fontweight="bold", fontsize=8.5,
        )  # fmt: skip


def _draw_differences(axes: Axes, runs: Sequence[Run], best: dict[str, Run], seeds: Sequence[int]) -> None:
    """The upscaled model's loss minus the base's, with a band of two standard errors; other seeds are thin."""
    shown = list[float]()
    for seed in seeds:
        pair = [select(runs, model, best[model]["learning_rate"], seed) for model in MODELS]
        if not all(pair):
            continue
        base, upscaled = (curve(run) for run in pair)
        above = [difference_at(base, upscaled, index) for index in range(len(base))]
        x, y = [point.tokens / MILLION for point in base], [found.nats_per_token for found in above]
        band = [2 * (found.standard_error or 0.0) for found in above]
        first = seed == seeds[0]
        axes.plot(x, y, color=SEAM, linewidth=2.2 if first else 0.9, marker="o" if first else None, markersize=3.5)
        low = [value - reach for value, reach in zip(y, band, strict=True)]
        high = [value + reach for value, reach in zip(y, band, strict=True)]
        axes.fill_between(x, low, high, color=SEAM, alpha=0.15, linewidth=0)
        start = len(y) // NEAR_ZERO_FROM
        shown += [*low[start:], *high[start:], 0.0]
    axes.axhline(0.0, color=CALM, linewidth=1.4)
    room = 0.08 * (max(shown) - min(shown)) or 0.1
    _finish(axes, "Upscaled minus base")
    axes.set_ylim(min(shown) - room, max(shown) + room)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=8)
    axes.set_xlim(left=0)
    axes.set_xlabel("training tokens, millions", color=MUTED)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(colors=MUTED, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
