"""What the Trainer logged by optimizer step, and its charts: losses, and in preference training rewards."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from solar_plugins.errors import SolarError
from solar_plugins.report.picture import CALM, MUTED, PAPER, POINTS_PER_INCH, SEAM, plain_axes, spread
from solar_plugins.storage.untrusted import read_json_object

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATE_FILE, RECORDED_LOG = "trainer_state.json", "solar_run/log.json"
REPAIR = "restore the file, or remove it to have the report without that training curve"

METRICS = LOSS, MARGINS, ACCURACIES = "loss", "rewards/margins", "rewards/accuracies"
LOGGED = tuple(prefix + key for key in METRICS for prefix in ("", "eval_"))
"""The keys of the Trainer's log entries that are read."""

MANY_POINTS = 30
"""From this number of entries on, a training curve is smoothed, and drawn thin as it was logged."""
SMOOTHING = 12
"""Each smoothed value is the mean of one ``SMOOTHING``-th of the entries."""

WIDTH, HEIGHT, BOTTOM, TOP, LEFT, RIGHT = 320.0, 220.0, 36.0, 24.0, 42.0, 84.0
"""Of a chart and its margins, in points."""
LABEL_DISTANCE, STEP_TICK_DISTANCE = 13.0, 34.0


class LogPoint(NamedTuple):
    """A value that was logged after an optimizer step."""

    step: int
    value: float


class Series(NamedTuple):
    """One metric: ``train`` are means since the entry before, ``held_out`` is the Trainer's own eval."""

    train: tuple[LogPoint, ...]
    held_out: tuple[LogPoint, ...]

    @property
    def points(self) -> tuple[LogPoint, ...]:
        """All of them."""
        return self.train + self.held_out


NO_SERIES = Series((), ())


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """What the Trainer logged, without values that are not finite.

    Args:
        loss: The loss.
        last_step: The last optimizer step in the log, of ``planned_steps`` of the full run.
        num_not_finite: Logged losses that were NaN or infinite.
        margins: In preference training, the reward of chosen responses minus that of rejected ones. A reward is beta
            times the log-probability gained over the reference (arXiv:2305.18290, sec. 5).
        accuracies: The share of pairs whose chosen response has the higher reward.
    """

    loss: Series
    last_step: int
    planned_steps: int
    num_not_finite: int
    margins: Series = NO_SERIES
    accuracies: Series = NO_SERIES


def read_training_log(output_dir: Path) -> TrainingLog | None:
    """The log in `read_training_state`, or None."""
    state = read_training_state(output_dir)
    return training_log(state) if state else None


def read_training_state(output_dir: Path) -> dict[str, Any] | None:
    """The ``trainer_state.json`` with the log of the run that wrote ``output_dir``, or None if it kept none.

    The Trainer writes its log into each checkpoint (``checkpoint-*/trainer_state.json``), and our plugin writes it once
    at the end. The folder may hold checkpoints of an earlier run, so the newest file counts; a longer log that starts
    with the same entries is of the same run and preferred, because copying loses file times.

    Raises:
        SolarError: A log is damaged.
    """
    places = (output_dir / STATE_FILE, output_dir / RECORDED_LOG, *output_dir.glob(f"checkpoint-*/{STATE_FILE}"))
    files = [path for path in places if path.is_file()]
    states = [_read_state(path) for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)]
    if not states:
        return None
    newest = states[-1]["log_history"]
    same_run = [state for state in states if state["log_history"][: len(newest)] == newest]
    # Two checkpoints may hold the same entries; the later one has the higher global_step.
    return max(same_run, key=lambda state: (len(state["log_history"]), state.get("global_step") or 0))


def _read_state(path: Path) -> dict[str, Any]:
    state = read_json_object(path, error=SolarError, fix=REPAIR)
    history = state.get("log_history")
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise SolarError(
            f"{path}: log_history is {history!r:.60}, expected the Trainer's list of log entries; {REPAIR}"
        )
    numbers = [(key, state[key], True) for key in ("global_step", "max_steps") if state.get(key) is not None]
    numbers += [
        (f"{key} of log_history[{place}]", entry[key], key == "step")
        for place, entry in enumerate(history)
        for key in ("step", *LOGGED)
        if key in entry
    ]
    for where, value, is_step in numbers:
        # A loss may be NaN or infinite; an int of 400 digits fits into no float.
        if type(value) not in (int, float) or not (abs(value) <= sys.maxsize or (type(value) is float and not is_step)):
            raise SolarError(f"{path}: {where} is {value!r:.60}, expected a number{' of steps' * is_step}; {REPAIR}")
    return state


def training_log(state: Mapping[str, Any]) -> TrainingLog:
    """The log in the content of a ``trainer_state.json``.

    Example:
        >>> history = [{"step": 1, "loss": 3.5}, {"step": 2, "loss": float("nan")}, {"step": 2, "eval_loss": 3.25}]
        >>> log = training_log({"global_step": 2, "max_steps": 8, "log_history": history})
        >>> log.loss.train, log.loss.held_out, log.num_not_finite
        ((LogPoint(step=1, value=3.5),), (LogPoint(step=2, value=3.25),), 1)
    """
    entries = [entry for entry in state["log_history"] if "step" in entry]
    points = {key: [LogPoint(int(one["step"]), float(one[key])) for one in entries if key in one] for key in LOGGED}
    finite = {key: tuple(point for point in found if math.isfinite(point.value)) for key, found in points.items()}
    loss, margins, accuracies = (Series(finite[key], finite[f"eval_{key}"]) for key in METRICS)
    return TrainingLog(
        loss=loss,
        last_step=int(state.get("global_step") or 0),
        planned_steps=int(state.get("max_steps") or 0),
        num_not_finite=len(points[LOSS]) + len(points[f"eval_{LOSS}"]) - len(loss.points),
        margins=margins,
        accuracies=accuracies,
    )


class Chart(NamedTuple):
    """One chart of a ``series`` with at least one point; ``ln_2`` draws a dashed line there, where DPO starts."""

    series: Series
    quantity: str
    decimals: int = 2
    ln_2: bool = False

    @property
    def lines(self) -> list[tuple[str, tuple[LogPoint, ...], str]]:
        """The name, points and color of each line that has points."""
        named = (("training", self.series.train, CALM), ("eval", self.series.held_out, SEAM))
        return [line for line in named if line[1]]

    @property
    def alternative_text(self) -> str:
        """The chart in a sentence."""
        ends = [
            f"{name} from {points[0].value:.{self.decimals}f} to {points[-1].value:.{self.decimals}f}"
            for name, points, _ in self.lines
        ]
        return f"{self.quantity.capitalize()} by optimizer step: {', '.join(ends)}"


def log_charts(log: TrainingLog | None, *, ln_2: bool) -> list[Chart]:
    """The charts of a log; none without a logged loss."""
    if log is None or not log.loss.points:
        return []
    rewards = [Chart(log.margins, "reward margin", 3), Chart(log.accuracies, "reward accuracy")]
    drawn = [chart for chart in rewards if chart.series.points]
    return [Chart(log.loss, "loss", 3 if drawn else 2, ln_2), *drawn]


def curve_figure(chart: Chart) -> Figure:
    """The figure of a chart. The last value stands at the end of each line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH / POINTS_PER_INCH, HEIGHT / POINTS_PER_INCH), facecolor=PAPER)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - TOP
    axes = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, width / WIDTH, height / HEIGHT))
    plain_axes(axes, chart.quantity, "optimizer step")
    values = [point.value for point in chart.series.points] + [math.log(2)] * chart.ln_2
    margin = 0.06 * (max(values) - min(values)) or 0.1
    low, high = min(values) - margin, max(values) + margin
    axes.set(ylim=(low, high), xlim=(0, max(1, *(point.step for point in chart.series.points)) * 1.01))
    axes.xaxis.set_major_locator(MaxNLocator(math.floor(width / STEP_TICK_DISTANCE), integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    ends = []
    if chart.ln_2:
        axes.axhline(math.log(2), color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
        ends = [(math.log(2), "ln 2", MUTED)]
    for name, points, color in chart.lines:
        drawn = smoothed(points) if name == "training" else points
        if drawn is not points:
            axes.plot(*zip(*points, strict=True), color=color, linewidth=0.9, alpha=0.4)
        marker = "o" if name == "eval" or drawn is points else None
        # Not clipped: the mark at step 0 lies on the edge.
        style: dict[str, Any] = {"marker": marker, "markersize": 4.5, "markeredgecolor": PAPER, "clip_on": False}
        axes.plot(*zip(*drawn, strict=True), color=color, linewidth=1.8, **style)
        ends.append((drawn[-1].value, f"{name} {drawn[-1].value:.{chart.decimals}f}", color))
    ends.sort()
    places = spread([value for value, _, _ in ends], LABEL_DISTANCE * (high - low) / height, low, high)
    for (_, text, color), y in zip(ends, places, strict=True):
        axes.annotate(
            text,
            (1, y),
            (8, 0),
            ("axes fraction", "data"),
            "offset points",
            size=8.5,
            weight="bold",
            color=color,
            va="center_baseline",
        )
    return figure


def smoothed(points: Sequence[LogPoint]) -> Sequence[LogPoint]:
    """Many points as means over their neighbors; few points as they are.

    Example:
        >>> noisy = [LogPoint(step, 3.0 + step % 2) for step in range(60)]
        >>> smoothed(noisy)[30]
        LogPoint(step=30, value=3.4)
    """
    if len(points) < MANY_POINTS:
        return points
    reach = len(points) // SMOOTHING // 2
    near = [points[max(index - reach, 0) : index + reach + 1] for index in range(len(points))]
    means = (math.fsum(point.value for point in group) / len(group) for group in near)
    return [LogPoint(point.step, mean) for point, mean in zip(points, means, strict=True)]
