"""From the runs of the recovery step to curves, the best learning rates, and where the curves cross. Pure."""

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
    """A model measured on the held-out test documents.

    Args:
        tokens: Trained on until then.
        seconds: Of training until then, evaluations left out.
        loss: With one part for each document.
    """

    tokens: int
    seconds: float
    loss: Loss


class Rate(NamedTuple):
    """A model's best learning rate.

    Args:
        value: The rate.
        at_edge: It is the lowest or the highest of several that were tried, so a better one may lie outside.
    """

    value: float
    at_edge: bool


def document_loss(evaluation: Mapping[str, Any], kind: str | None = None) -> Loss:
    """The loss with one part for each document, so that its error is one between documents."""
    chosen = [found for _, found in sorted(evaluation["documents"].items()) if kind in (None, found["kind"])]
    return Loss(tuple(found["nats"] for found in chosen), tuple(found["tokens"] for found in chosen))


def kinds(run: Run) -> list[str]:
    """The kinds of held-out documents."""
    return sorted({found["kind"] for found in run["evaluations"][0]["documents"].values()})


def curve(run: Run, kind: str | None = None) -> list[Point]:
    """A run's points, the first before training."""
    return [
        Point(found["tokens"], math.fsum(run["step_seconds"][: found["step"]]), document_loss(found, kind))
        for found in run["evaluations"]
        if found["file"] == TEST
    ]


def validation_loss(run: Run) -> float:
    """The loss in nats per token that chooses the learning rate; of other documents than the reported one."""
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
    """After how many tokens the upscaled model is below the base for good, between two points by a straight line.

    None if it is not below at the end. Both curves have points at the same tokens.

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
    """How far the upscaled model is above the base at a point; negative: it is below."""
    return difference(upscaled[index].loss, base[index].loss)


def loss_at_seconds(points: Sequence[Point], seconds: float) -> float:
    """The loss after so many seconds of training, between two points by a straight line; the last one's afterwards.

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
