"""The curves of a run, read from what the Trainer logged: losses, and in preference training rewards."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.errors import SolarError
from solar_plugins.storage.untrusted import read_json_object

STATE_FILE = "trainer_state.json"
REPAIR = "restore the file, or remove it to have the report without that loss curve"

LOSS, MARGINS, ACCURACIES = "loss", "rewards/margins", "rewards/accuracies"
LOGGED = tuple(prefix + key for key in (LOSS, MARGINS, ACCURACIES) for prefix in ("", "eval_"))
"""What is read of the Trainer's entries."""

MANY_POINTS = 30
"""From here on a training series is smoothed over a `SMOOTHING`-th of its points, and drawn thin as it was logged."""
SMOOTHING = 12


class LogPoint(NamedTuple):
    """A logged value after an optimizer step."""

    step: int
    value: float


class Series(NamedTuple):
    """One logged quantity.

    Args:
        train: On training data; each is the Trainer's mean since the point before.
        held_out: The Trainer's own evaluation, if the recipe asks for one.
    """

    train: tuple[LogPoint, ...]
    held_out: tuple[LogPoint, ...]

    @property
    def points(self) -> tuple[LogPoint, ...]:
        """Those of both kinds."""
        return self.train + self.held_out


NO_SERIES = Series((), ())


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """What the Trainer logged. Values that are no finite number are left out; such losses are counted.

    Args:
        loss: The loss.
        last_step: The last optimizer step that the log knows of.
        planned_steps: How many the run was to have.
        num_not_finite: Logged losses that were NaN or infinite.
        margins: In preference training, by how much the reward of chosen answers is above that of rejected ones. A
            reward is beta times what the model gained over the reference in log-probability (arXiv:2305.18290, sec. 5).
        accuracies: The share of pairs whose chosen answer has the higher reward.
    """

    loss: Series
    last_step: int
    planned_steps: int
    num_not_finite: int
    margins: Series = NO_SERIES
    accuracies: Series = NO_SERIES


def read_training_log(output_dir: Path) -> TrainingLog | None:
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
    # Between two checkpoints nothing need be logged: of equal logs the later one knows how far the run came.
    return training_log(max(same_run, key=lambda state: (len(state["log_history"]), state.get("global_step") or 0)))


def _read_state(path: Path) -> dict[str, Any]:
    state = read_json_object(path, error=SolarError, fix=REPAIR)
    history = state.get("log_history")
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise _damaged(path, "log_history", history, "the Trainer's list of log entries")
    for number, entry in enumerate(history):
        for key in ("step", *LOGGED):
            if key in entry and not (_is_step if key == "step" else _is_number)(entry[key]):
                raise _damaged(path, f"{key} of log_history[{number}]", entry[key], "a number")
    for key in ("global_step", "max_steps"):
        if state.get(key) is not None and not _is_step(state[key]):
            raise _damaged(path, key, state[key], "a number of steps")
    return state


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.maxsize
    )


def _is_step(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _damaged(path: Path, what: str, found: object, expected: str) -> SolarError:
    return SolarError(f"{path}: {what} is {found!r:.60}, expected {expected}; {REPAIR}")


def training_log(state: Mapping[str, Any]) -> TrainingLog:
    """The curve in the content of a ``trainer_state.json``.

    Example:
        >>> history = [{"step": 1, "loss": 3.5}, {"step": 2, "loss": float("nan")}, {"step": 2, "eval_loss": 3.25}]
        >>> log = training_log({"global_step": 2, "max_steps": 8, "log_history": history})
        >>> log.loss.train, log.loss.held_out, log.num_not_finite
        ((LogPoint(step=1, value=3.5),), (LogPoint(step=2, value=3.25),), 1)
    """
    history: Sequence[Mapping[str, Any]] = state["log_history"]
    return TrainingLog(
        loss=_series(history, LOSS),
        last_step=int(state.get("global_step") or 0),
        planned_steps=int(state.get("max_steps") or 0),
        num_not_finite=sum(
            not math.isfinite(point.value) for key in (LOSS, f"eval_{LOSS}") for point in _points(history, key)
        ),
        margins=_series(history, MARGINS),
        accuracies=_series(history, ACCURACIES),
    )


def _series(history: Sequence[Mapping[str, Any]], key: str) -> Series:
    train, held_out = (
        tuple(point for point in _points(history, name) if math.isfinite(point.value)) for name in (key, f"eval_{key}")
    )
    return Series(train, held_out)


def _points(history: Sequence[Mapping[str, Any]], key: str) -> list[LogPoint]:
    return [LogPoint(int(entry["step"]), float(entry[key])) for entry in history if key in entry and "step" in entry]


def smoothed(points: Sequence[LogPoint]) -> Sequence[LogPoint]:
    """Many points as means over neighbours, so that the trend shows; few points as they are.

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
        LogPoint(point.step, math.fsum(neighbour.value for neighbour in group) / len(group))
        for point, group in zip(points, near, strict=True)
    ]
