import random

import pytest

from solar_plugins.evaluation.loss import Loss
from solar_plugins.evaluation.probe.probe import FIRST_CAP, LAST_CAP, still_racing


def noisy(rng, excess, noise, windows=40, text=2.0):
    """A loss that is ``excess`` above the text's own, which all plans share."""
    rng.seed(7)
    shared = [32 * (text + rng.gauss(0, 0.5)) for _ in range(windows)]
    rng.seed(hash(excess))
    return Loss(tuple(nats + 32 * (excess + rng.gauss(0, noise)) for nats in shared), (32,) * windows)


def test_a_plan_that_is_surely_worse_stops():
    """The texts differ much more than the plans, which are compared on the same texts."""
    rng = random.Random()
    losses = {0: noisy(rng, 0.10, 0.05), 1: noisy(rng, 0.11, 0.05), 2: noisy(rng, 0.30, 0.05)}
    assert still_racing(losses, [[0, 1, 2]], frozenset(), 0) == {0, 1}


def test_sizes_do_not_compete_and_the_kept_go_on():
    rng = random.Random()
    losses = {0: noisy(rng, 0.1, 0.01), 1: noisy(rng, 0.5, 0.01), 2: noisy(rng, 0.9, 0.01)}
    assert still_racing(losses, [[0], [1, 2]], frozenset({2}), 0) == {0, 1, 2}
    assert still_racing(losses, [[0], [1, 2]], frozenset(), 0) == {0, 1}


def test_equals_are_fewer_in_each_round():
    losses = {place: Loss((32.0 + place / 1e6, 64.0), (32, 32)) for place in range(40)}
    counts = [len(still_racing(losses, [range(40)], frozenset(), turn)) for turn in range(6)]
    assert counts == [FIRST_CAP, 12, 6, 3, LAST_CAP, LAST_CAP]
    assert still_racing(losses, [range(40)], frozenset(), 5) == {0, 1}


@pytest.mark.parametrize("segments", [1, 2, 7])
def test_few_segments_decide_nothing_by_their_error(segments):
    losses = {0: Loss((32.0,) * segments, (32,) * segments), 1: Loss((320.0,) * segments, (32,) * segments)}
    assert still_racing(losses, [[0, 1]], frozenset(), 0) == {0, 1}
