"""Plot of the recovery step: held-out loss of each arm by tokens, and its difference from the base near zero."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_curves import Run, best_runs, mean_curve, same_seeds
from study_arms import BASE, EQUAL_COMPUTE, EXPANSION, PROBED, SCALED, SEAM_ONLY, SOLAR

from solar_plugins.evaluation.loss import difference
from solar_plugins.report.picture import CALM, FONTS, GRID, INK, MUTED, PAPER, SEAM, save_picture, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES, HEIGHT_INCHES = 10.5, 4.0
COLORS = {
    BASE: CALM, EQUAL_COMPUTE: "#1495b5", SOLAR: SEAM, SEAM_ONLY: "#d9a03c", PROBED: "#7a2e8e", SCALED: "#cf5f9b",
    EXPANSION: "#3d9a5f",
}  # fmt: skip
LABEL_SHARE = 0.065
"""Minimum distance of two labels, as a share of the panel's height."""
NEAR_ZERO_FROM = 4
"""The axis of the difference is scaled without the first quarter of its points, which are far above."""
NEAR = 0.1
"""It is also scaled without arms that end further than this from the base, in nats per token."""
MILLION = 1e6


def draw_recovery(runs: Sequence[Run], seeds: Sequence[int], path: Path) -> None:
    """Draw the picture.

    Args:
        runs: Of the recovery step, including the base and another arm with the first seed.
        seeds: Their order; each arm's learning rate is the best with the first.
        path: A ``.png``.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.sans-serif": FONTS, "font.size": 9, "text.color": INK, "axes.edgecolor": GRID}):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), facecolor=PAPER)
        losses, excess = figure.subplots(1, 2, gridspec_kw={"wspace": 0.16})
        figure.subplots_adjust(left=0.05, right=0.73, top=0.88, bottom=0.14)
        best = best_runs(runs, seeds)
        _draw_losses(losses, best)
        _draw_differences(excess, best)
        save_picture(figure, path)


def _draw_losses(axes: Axes, best: dict[str, dict[int, Run]]) -> None:
    for arm, by_seed in best.items():
        points = mean_curve(by_seed, by_seed)
        axes.plot(
            [point.tokens / MILLION for point in points], [point.loss.nats_per_token for point in points],
            color=COLORS[arm], linewidth=2.2 if arm in (BASE, SOLAR) else 1.4,
            linestyle="--" if arm == EQUAL_COMPUTE else "-", clip_on=False,
        )  # fmt: skip
    _finish(axes, "Held-out loss, nats per token")


def _draw_differences(axes: Axes, best: dict[str, dict[int, Run]]) -> None:
    """Each arm's loss minus the base's at the same tokens, with a band of two standard errors.

    The base with equal compute has no point with the base's tokens at the end of its schedule: only its last is shown.
    """
    shown, ends = [0.0], {BASE: 0.0}
    base = best[BASE]
    for arm, by_seed in best.items():
        if arm == BASE:
            continue
        seeds = same_seeds(by_seed, base)
        points, reference = mean_curve(by_seed, seeds), mean_curve(base, seeds)
        if arm == EQUAL_COMPUTE:
            points, reference = points[-1:], reference[-1:]
        found = [difference(point.loss, other.loss) for point, other in zip(points, reference, strict=True)]
        x, y = [point.tokens / MILLION for point in reference], [one.nats_per_token for one in found]
        low = [one.nats_per_token - 2 * (one.standard_error or 0.0) for one in found]
        high = [one.nats_per_token + 2 * (one.standard_error or 0.0) for one in found]
        marker = "o" if arm == EQUAL_COMPUTE else None
        axes.plot(x, y, color=COLORS[arm], linewidth=2.2 if arm == SOLAR else 1.4, marker=marker)
        axes.fill_between(x, low, high, color=COLORS[arm], alpha=0.12, linewidth=0)
        start = len(y) // NEAR_ZERO_FROM
        shown += [*low[start:], *high[start:]] if abs(y[-1]) <= NEAR else []
        ends[arm] = y[-1]
    axes.axhline(0.0, color=CALM, linewidth=2.2)
    room = 0.05 * (max(shown) - min(shown)) or 0.1
    _finish(axes, "Minus the base, equal tokens")
    axes.set_ylim(min(shown) - room, max(shown) + room)
    _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: dict[str, float]) -> None:
    low, high = axes.get_ylim()
    ordered = sorted(ends.items(), key=lambda end: end[1])
    wanted = [min((value - low) / (high - low), 1.0) for _, value in ordered]
    places = spread(wanted, LABEL_SHARE, 0.0, 1.0)
    for place, (arm, value) in zip(places, ordered, strict=True):
        text = arm if arm == BASE else f"{arm} {value:+.3f}{' ↑' if value > high else ''}"
        style = {"va": "center", "color": COLORS[arm], "fontweight": "bold", "fontsize": 8}
        axes.annotate(text, (1.02, place), xycoords="axes fraction", **style)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=8)
    axes.set_xlim(left=0)
    axes.set_xlabel("training tokens, millions", color=MUTED)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(colors=MUTED, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
