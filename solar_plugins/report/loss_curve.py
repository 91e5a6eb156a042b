"""The loss curve of a run: read from what the Trainer logged, and drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from solar_plugins.errors import SolarError
from solar_plugins.report.picture import CALM, GRID, MUTED, PAPER, SEAM, new_sheet
from solar_plugins.report.plan_layout import spread
from solar_plugins.upscaling.untrusted_files import read_json_object

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STATE_FILE = "trainer_state.json"

# Lengths are points.
WIDTH, HEIGHT = 400.0, 220.0
LEFT, RIGHT, BOTTOM, TOP = 42.0, 84.0, 36.0, 24.0
LABEL_DISTANCE = 13.0

MANY_POINTS = 30
"""From here on the training loss is smoothed over a `SMOOTHING`-th of its points, and drawn thin as it was logged."""
SMOOTHING = 12


class LossPoint(NamedTuple):
    """A loss after an optimizer step."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class LossCurve:
    """What the Trainer logged. Losses that are no finite number are counted, not kept.

    Args:
        train: Training loss; each is the Trainer's mean since the point before.
        held_out: The Trainer's own evaluation, if the recipe asks for one.
        last_step: The last optimizer step that the log knows of.
        planned_steps: How many the run was to have.
        num_not_finite: Logged losses that were NaN or infinite.
    """

    train: tuple[LossPoint, ...]
    held_out: tuple[LossPoint, ...]
    last_step: int
    planned_steps: int
    num_not_finite: int


def read_loss_curve(output_dir: Path) -> LossCurve | None:
    """The loss curve of the run that wrote ``output_dir``, or None where it kept no log.

    The Trainer writes its log into each checkpoint (``checkpoint-*/trainer_state.json``); a run with
    ``save_strategy: no`` leaves none. Checkpoints of an earlier run can lie beside, so the log written last counts. A
    longer log that begins like it is of the same run and is taken instead: file times get lost in copying.

    Raises:
        SolarError: A log is damaged.
    """
    files = [
        path for path in (output_dir / STATE_FILE, *output_dir.glob(f"checkpoint-*/{STATE_FILE}")) if path.is_file()
    ]
    if not files:
        return None
    files.sort(key=lambda path: path.stat().st_mtime_ns)
    states = [_read_state(path) for path in files]
    newest = states[-1]["log_history"]
    same_run = [state for state in states if state["log_history"][: len(newest)] == newest]
    return loss_curve(max(same_run, key=lambda state: len(state["log_history"])))


def _read_state(path: Path) -> dict[str, Any]:
    state = read_json_object(path)
    history = state.get("log_history")
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise SolarError(
            f"{path}: log_history is {history!r:.60}, expected the Trainer's list of log entries; restore the "
            "file, or remove it to have the report without that loss curve"
        )
    return state


def loss_curve(state: Mapping[str, Any]) -> LossCurve:
    """The curve in the content of a ``trainer_state.json``.

    Example:
        >>> log = [{"step": 1, "loss": 3.5}, {"step": 2, "loss": float("nan")}, {"step": 2, "eval_loss": 3.25}]
        >>> curve = loss_curve({"global_step": 2, "max_steps": 8, "log_history": log})
        >>> curve.train, curve.held_out, curve.num_not_finite
        ((LossPoint(step=1, loss=3.5),), (LossPoint(step=2, loss=3.25),), 1)
    """
    history: Sequence[Mapping[str, Any]] = state["log_history"]
    train, held_out = _points(history, "loss"), _points(history, "eval_loss")
    return LossCurve(
        train=tuple(point for point in train if math.isfinite(point.loss)),
        held_out=tuple(point for point in held_out if math.isfinite(point.loss)),
        last_step=int(state.get("global_step") or 0),
        planned_steps=int(state.get("max_steps") or 0),
        num_not_finite=sum(not math.isfinite(point.loss) for point in train + held_out),
    )


def _points(history: Sequence[Mapping[str, Any]], key: str) -> list[LossPoint]:
    return [LossPoint(int(entry["step"]), float(entry[key])) for entry in history if key in entry and "step" in entry]


def smoothed(points: Sequence[LossPoint]) -> Sequence[LossPoint]:
    """Many points as means over neighbours, so that the trend shows; few points as they are.

    Example:
        >>> noisy = [LossPoint(step, 3.0 + step % 2) for step in range(60)]
        >>> smoothed(noisy)[30]
        LossPoint(step=30, loss=3.4)
    """
    if len(points) < MANY_POINTS:
        return points
    reach = len(points) // SMOOTHING // 2
    near = [points[max(index - reach, 0) : index + reach + 1] for index in range(len(points))]
    return [
        LossPoint(point.step, math.fsum(neighbour.loss for neighbour in group) / len(group))
        for point, group in zip(points, near, strict=True)
    ]


def loss_figure(curve: LossCurve) -> Figure:
    """The picture of a curve that has at least one point."""
    figure, sheet = new_sheet(WIDTH, HEIGHT)
    axes = _empty_chart(figure, curve)
    smooth = smoothed(curve.train)
    if smooth is not curve.train:
        axes.plot(*_xy(curve.train), color=CALM, linewidth=0.9, alpha=0.4)
    axes.plot(*_xy(smooth), color=CALM, linewidth=1.8, marker="o" if len(smooth) < MANY_POINTS else None, markersize=3)
    axes.plot(*_xy(curve.held_out), color=SEAM, linewidth=1.8, marker="o", markersize=4.5, markeredgecolor=PAPER)
    _label_ends(sheet, axes, [("training", smooth, CALM), ("held-out", curve.held_out, SEAM)])
    sheet.text(12, HEIGHT - 14, "loss", size=8.5, color=MUTED)
    sheet.text(LEFT + (WIDTH - LEFT - RIGHT) / 2, 9, "optimizer step", size=8.5, color=MUTED, ha="center")
    return figure


def _empty_chart(figure: Figure, curve: LossCurve) -> Axes:
    from matplotlib.ticker import MaxNLocator

    place = (LEFT / WIDTH, BOTTOM / HEIGHT, (WIDTH - LEFT - RIGHT) / WIDTH, (HEIGHT - BOTTOM - TOP) / HEIGHT)
    axes = figure.add_axes(place, facecolor="none")
    losses = [point.loss for point in (*curve.train, *curve.held_out)]
    room = 0.06 * (max(losses) - min(losses)) or 0.1
    axes.set_ylim(min(losses) - room, max(losses) + room)
    last = max(point.step for point in (*curve.train, *curve.held_out))
    axes.set_xlim(0, max(last, 1) * 1.01)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, labelcolor=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    return axes


def _xy(points: Sequence[LossPoint]) -> tuple[list[int], list[float]]:
    return [point.step for point in points], [point.loss for point in points]


def _label_ends(sheet: Axes, axes: Axes, lines: Sequence[tuple[str, Sequence[LossPoint], str]]) -> None:
    """Write each line's name and last loss to the right of its end."""
    drawn = sorted((line for line in lines if line[1]), key=lambda line: line[1][-1].loss)
    low, high = axes.get_ylim()
    scale = (HEIGHT - BOTTOM - TOP) / (high - low)
    wanted = [BOTTOM + (points[-1].loss - low) * scale for _, points, _ in drawn]
    for (name, points, color), y in zip(drawn, spread(wanted, LABEL_DISTANCE, BOTTOM, HEIGHT - TOP), strict=True):
        words = f"{name} {points[-1].loss:.2f}"
        sheet.text(WIDTH - RIGHT + 8, y, words, size=8.5, weight="bold", color=color, va="center_baseline")
