"""Curves of the recovery runs, the best learning rates, and where the curves cross. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from solar_plugins.evaluation.loss import Difference, Loss, difference

BASE, UPSCALED = "base", "upscaled"
MODELS = (BASE, UPSCALED)
TEST, VALIDATION = "test.jsonl", "validation.jsonl"

Run = Mapping[str, Any]


class Point(NamedTuple):
    """The loss of a model on the held-out test documents.

    Args:
        tokens: Training tokens so far.
        seconds: Training time so far, without evaluations.
        loss: With one window per document.
    """

    tokens: int
    seconds: float
    loss: Loss


class Rate(NamedTuple):
    """A model's best learning rate.

    Args:
        value: The rate.
        at_edge: It is the lowest or highest of several that were tried, so a better one may lie outside.
    """

    value: float
    at_edge: bool


def document_loss(evaluation: Mapping[str, Any], kind: str | None = None) -> Loss:
    """The loss with one window per document, so that its standard error is over documents."""
    chosen = [found for _, found in sorted(evaluation["documents"].items()) if kind in (None, found["kind"])]
    return Loss(tuple(found["nats"] for found in chosen), tuple(found["tokens"] for found in chosen))


def kinds(run: Run) -> list[str]:
    """The kinds of held-out documents."""
    return sorted({found["kind"] for found in run["evaluations"][0]["documents"].values()})


def curve(run: Run, kind: str | None = None) -> list[Point]:
    """The points of a run, starting before training."""
    return [
        Point(found["tokens"], math.fsum(run["step_seconds"][: found["step"]]), document_loss(found, kind))
        for found in run["evaluations"]
        if found["file"] == TEST
    ]


def validation_loss(run: Run) -> float:
    """The loss in nats per token for choosing the learning rate; not on the reported documents."""
    (found,) = [found for found in run["evaluations"] if found["file"] == VALIDATION]
    return document_loss(found).nats_per_token


def best_rate(runs: Iterable[Run], model: str, seed: int) -> Rate | None:
    """The learning rate with the lowest validation loss; None if the model was not trained with that seed."""
    losses = {
        run["learning_rate"]: validation_loss(run) for run in runs if (run["model"], run["seed"]) == (model, seed)
    }
    if not losses:
        return None
    value = min(losses, key=losses.__getitem__)
    return Rate(value, len(losses) > 1 and value in (min(losses), max(losses)))


def select(runs: Iterable[Run], model: str, rate: float, seed: int) -> Run | None:
    """The run of a model, rate and seed, if there is one."""
    found = [run for run in runs if (run["model"], run["learning_rate"], run["seed"]) == (model, rate, seed)]
    return found[0] if found else None


def crossing(base: Sequence[Point], upscaled: Sequence[Point]) -> float | None:
    """The tokens after which the upscaled model stays below the base, interpolated linearly; None if it ends above.

    Both curves have points at the same tokens.

    Example:
        >>> def points(*losses):
        ...     return [Point(100 * i, 0.0, Loss((loss,), (1,))) for i, loss in enumerate(losses)]
        >>> crossing(points(3.0, 3.0, 3.0), points(4.0, 3.5, 2.5))
        150.0
        >>> crossing(points(3.0, 3.0, 3.0), points(4.0, 2.9, 3.1)) is None
        True
    """
    above = [point.loss.nats_per_token - below.loss.nats_per_token for below, point in zip(base, upscaled, strict=True)]
    if above[-1] >= 0:
        return None
    last = max((number for number, excess in enumerate(above) if excess >= 0), default=None)
    if last is None:
        return 0.0
    share = above[last] / (above[last] - above[last + 1])
    return base[last].tokens + share * (base[last + 1].tokens - base[last].tokens)


def difference_at(base: Sequence[Point], upscaled: Sequence[Point], index: int) -> Difference:
    """The upscaled model's loss minus the base's at a point."""
    return difference(upscaled[index].loss, base[index].loss)


def loss_at_seconds(points: Sequence[Point], seconds: float) -> float:
    """The loss after some seconds of training, interpolated linearly; after the last point, its loss.

    Example:
        >>> loss_at_seconds([Point(0, 0.0, Loss((4.0,), (1,))), Point(9, 10.0, Loss((3.0,), (1,)))], 5.0)
        3.5
    """
    for before, after in pairwise(points):
        if seconds < after.seconds:
            share = (seconds - before.seconds) / (after.seconds - before.seconds)
            low, high = before.loss.nats_per_token, after.loss.nats_per_token
            return low + share * (high - low)
    return points[-1].loss.nats_per_token
