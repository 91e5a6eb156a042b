"""Curves of the recovery runs, the best learning rates, differences, and where curves cross. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from solar_plugins.evaluation.loss import Loss

TEST, VALIDATION = "test.jsonl", "validation.jsonl"

Run = Mapping[str, Any]


class Point(NamedTuple):
    """The loss of a model on the held-out test documents.

    Args:
        tokens: Training tokens so far.
        loss: With one window per document.
    """

    tokens: int
    loss: Loss


class Rate(NamedTuple):
    """An arm's best learning rate.

    Args:
        value: The rate.
        tried: All that were tried, ascending.
    """

    value: float
    tried: tuple[float, ...]


def document_loss(evaluation: Mapping[str, Any], kind: str | None = None) -> Loss:
    """The loss with one window per document, so that its standard error is over documents."""
    chosen = [found for _, found in sorted(evaluation["documents"].items()) if kind in (None, found["kind"])]
    return Loss(tuple(found["nats"] for found in chosen), tuple(found["tokens"] for found in chosen))


def kinds(run: Run) -> list[str]:
    """The kinds of held-out documents."""
    return sorted({found["kind"] for found in run["evaluations"][0]["documents"].values()})


def curve(run: Run, kind: str | None = None) -> list[Point]:
    """The points of a run, starting before training."""
    return [Point(found["tokens"], document_loss(found, kind)) for found in run["evaluations"] if found["file"] == TEST]


def validation_loss(run: Run) -> float:
    """The loss in nats per token for choosing the learning rate; not on the reported documents."""
    (found,) = [found for found in run["evaluations"] if found["file"] == VALIDATION]
    return document_loss(found).nats_per_token


def best_rate(runs: Iterable[Run], arm: str, seed: int) -> Rate | None:
    """The learning rate with the lowest validation loss; None if the arm was not trained with that seed."""
    losses = {run["learning_rate"]: validation_loss(run) for run in runs if (run["arm"], run["seed"]) == (arm, seed)}
    return Rate(min(losses, key=losses.__getitem__), tuple(sorted(losses))) if losses else None


def best_runs(runs: Sequence[Run], seeds: Sequence[int]) -> dict[str, dict[int, Run]]:
    """For each arm that was trained with the first seed: its runs at the rate that was best there, by seed."""
    found: dict[str, dict[int, Run]] = {}
    for arm in dict.fromkeys(run["arm"] for run in runs):
        best = best_rate(runs, arm, seeds[0])
        if best:
            of_rate = {run["seed"]: run for run in runs if (run["arm"], run["learning_rate"]) == (arm, best.value)}
            found[arm] = {seed: of_rate[seed] for seed in seeds if seed in of_rate}
    return found


def mean_curve(runs: Mapping[int, Run], seeds: Iterable[int], kind: str | None = None) -> list[Point]:
    """The points of runs with several seeds, each document's nats averaged over the seeds."""
    curves = [curve(runs[seed], kind) for seed in seeds]
    return [Point(points[0].tokens, _mean([point.loss for point in points])) for points in zip(*curves, strict=True)]


def _mean(losses: Sequence[Loss]) -> Loss:
    by_document = zip(*(loss.window_nats for loss in losses), strict=True)
    return Loss(tuple(math.fsum(nats) / len(losses) for nats in by_document), losses[0].window_tokens)


def same_seeds(runs: Mapping[int, Run], others: Mapping[int, Run]) -> list[int]:
    """The seeds that two arms were both trained with."""
    return [seed for seed in runs if seed in others]


def crossing(base: Sequence[Point], other: Sequence[Point]) -> float | None:
    """The tokens after which another model stays below the base, interpolated linearly; None if it ends above.

    Both curves have points at the same tokens.

    Example:
        >>> def points(*losses):
        ...     return [Point(100 * i, Loss((loss,), (1,))) for i, loss in enumerate(losses)]
        >>> crossing(points(3.0, 3.0, 3.0), points(4.0, 3.5, 2.5))
        150.0
        >>> crossing(points(3.0, 3.0, 3.0), points(4.0, 2.9, 3.1)) is None
        True
    """
    above = [point.loss.nats_per_token - below.loss.nats_per_token for below, point in zip(base, other, strict=True)]
    if above[-1] >= 0:
        return None
    last = max((number for number, excess in enumerate(above) if excess >= 0), default=None)
    if last is None:
        return 0.0
    share = above[last] / (above[last] - above[last + 1])
    return base[last].tokens + share * (base[last + 1].tokens - base[last].tokens)
