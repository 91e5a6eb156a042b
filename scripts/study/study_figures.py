"""What the study's runs say: losses, paired differences with errors, and a rank correlation. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from solar_plugins.evaluation.loss import Difference, Loss
from solar_plugins.evaluation.loss import difference as paired

Run = Mapping[str, Any]
BOOTSTRAPS = 2000


def loss_of(run: Run, when: str = "after") -> Loss:
    """On the held-out texts, ``before`` or ``after`` the training."""
    tokens, nats = zip(*run[when], strict=True)
    return Loss(nats, tokens)


def nats_per_token(run: Run, when: str = "after") -> float:
    """The loss as a number."""
    return loss_of(run, when).nats_per_token


class SeededDifference(NamedTuple):
    """How much one way's loss is above another's, over the same seeds and texts.

    Args:
        all: Each text's nats are averaged over the seeds; the error is over texts.
        by_seed: The means of the single seeds, in nats for each token.
    """

    all: Difference
    by_seed: tuple[float, ...]


def difference(runs: Sequence[Run], others: Sequence[Run]) -> SeededDifference:
    """Of two ways to train, seed by seed.

    Raises:
        ValueError: The runs are not of the same seeds.
    """
    if [run["seed"] for run in runs] != [run["seed"] for run in others]:
        raise ValueError("the runs are not of the same seeds")
    single = [paired(loss_of(run), loss_of(other)) for run, other in zip(runs, others, strict=True)]
    return SeededDifference(paired(_mean(runs), _mean(others)), tuple(one.nats_per_token for one in single))


def _mean(runs: Sequence[Run]) -> Loss:
    losses = [loss_of(run) for run in runs]
    nats = tuple(sum(text) / len(losses) for text in zip(*(loss.window_nats for loss in losses), strict=True))
    return Loss(nats, losses[0].window_tokens)


def of_best_rate(runs: Sequence[Run], seed: int = 0) -> list[Run]:
    """One run for each seed, at the learning rate that was best on ``seed``."""
    rate = min((run for run in runs if run["seed"] == seed), key=nats_per_token)["rate"]
    return sorted((run for run in runs if run["rate"] == rate), key=lambda run: int(run["seed"]))


class Correlation(NamedTuple):
    """Spearman's rank correlation, and the middle 90 % of its values when texts are resampled with replacement."""

    rho: float
    low: float
    high: float


def correlation(runs: Sequence[Run]) -> Correlation:
    """Of the loss before and after training, over plans."""
    texts = range(len(runs[0]["after"]))
    draw = random.Random(0)
    drawn = sorted(_rho(runs, draw.choices(texts, k=len(texts))) for _ in range(BOOTSTRAPS))
    return Correlation(_rho(runs, texts), drawn[BOOTSTRAPS // 20], drawn[-BOOTSTRAPS // 20])


def _rho(runs: Sequence[Run], texts: Sequence[int]) -> float:
    before, after = (
        _ranks([sum(run[when][text][1] for text in texts) for run in runs]) for when in ("before", "after")
    )
    squares = sum((a - b) ** 2 for a, b in zip(before, after, strict=True))
    return 1 - 6 * squares / (len(runs) * (len(runs) ** 2 - 1))


def _ranks(values: Sequence[float]) -> list[int]:
    order = sorted(range(len(values)), key=values.__getitem__)
    return [order.index(place) for place in range(len(values))]
