"""The metrics that the Trainer logged: losses, and in preference training rewards."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.errors import SolarError
from solar_plugins.storage.untrusted import read_json_object

STATE_FILE, RECORDED_LOG = "trainer_state.json", "solar_run/log.json"
REPAIR = "restore the file, or remove it to have the report without that training curve"

LOSS, MARGINS, ACCURACIES = "loss", "rewards/margins", "rewards/accuracies"
LOGGED = tuple(prefix + key for key in (LOSS, MARGINS, ACCURACIES) for prefix in ("", "eval_"))
"""The keys of the Trainer's log entries that are read."""

MANY_POINTS = 30
"""From this number of entries on, a training curve is smoothed, and drawn thin as it was logged."""
SMOOTHING = 12
"""Each smoothed value is the mean of one ``SMOOTHING``-th of the entries."""


class LogPoint(NamedTuple):
    """A value that was logged after an optimizer step."""

    step: int
    value: float


class Series(NamedTuple):
    """One logged metric.

    Args:
        train: On training data; each is the Trainer's mean since the entry before.
        held_out: Of the Trainer's own eval, if the recipe has one.
    """

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
        last_step: The last optimizer step in the log.
        planned_steps: The steps of the full run.
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
    """The log of the run that wrote ``output_dir``, or None if it kept none.

    Raises:
        SolarError: A log is damaged.
    """
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
    def check(valid: bool, key: str, value: object, expected: str) -> None:
        if not valid:
            raise SolarError(f"{path}: {key} is {value!r:.60}, expected {expected}; {REPAIR}")

    state = read_json_object(path, error=SolarError, fix=REPAIR)
    history = state.get("log_history")
    is_list = isinstance(history, list) and all(isinstance(entry, dict) for entry in history)
    check(is_list, "log_history", history, "the Trainer's list of log entries")
    for number, entry in enumerate(history or ()):
        for key in ("step", *LOGGED):
            if key in entry:
                check(_is_number(entry[key], key != "step"), f"{key} of log_history[{number}]", entry[key], "a number")
    for key in ("global_step", "max_steps"):
        check(state.get(key) is None or _is_number(state[key]), key, state.get(key), "a number of steps")
    return state


def _is_number(value: object, allow_nan: bool = False) -> bool:
    if isinstance(value, float):
        return allow_nan or math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.maxsize


def training_log(state: Mapping[str, Any]) -> TrainingLog:
    """The log in the content of a ``trainer_state.json``.

    Example:
        >>> history = [{"step": 1, "loss": 3.5}, {"step": 2, "loss": float("nan")}, {"step": 2, "eval_loss": 3.25}]
        >>> log = training_log({"global_step": 2, "max_steps": 8, "log_history": history})
        >>> log.loss.train, log.loss.held_out, log.num_not_finite
        ((LogPoint(step=1, value=3.5),), (LogPoint(step=2, value=3.25),), 1)
    """
    points = {key: list[LogPoint]() for key in LOGGED}
    for entry in state["log_history"]:
        for key in LOGGED:
            if key in entry and "step" in entry:
                points[key].append(LogPoint(int(entry["step"]), float(entry[key])))
    finite = {key: tuple(point for point in found if math.isfinite(point.value)) for key, found in points.items()}
    loss, margins, accuracies = (Series(finite[key], finite[f"eval_{key}"]) for key in (LOSS, MARGINS, ACCURACIES))
    return TrainingLog(
        loss=loss,
        last_step=int(state.get("global_step") or 0),
        planned_steps=int(state.get("max_steps") or 0),
        num_not_finite=len(points[LOSS]) + len(points[f"eval_{LOSS}"]) - len(loss.points),
        margins=margins,
        accuracies=accuracies,
    )


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
    return [
        LogPoint(point.step, math.fsum(neighbor.value for neighbor in group) / len(group))
        for point, group in zip(points, near, strict=True)
    ]
