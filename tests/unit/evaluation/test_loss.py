import math
import statistics

import pytest

from solar_plugins.evaluation.loss import Difference, Loss, difference


def test_perplexity_overflows_to_infinity():
    assert Loss((1000.0,), (1,)).perplexity == math.inf


def test_the_standard_error_is_that_of_paired_windows():
    loss, base = Loss((30.0, 42.0, 51.0), (10, 10, 10)), Loss((20.0, 30.0, 45.0), (10, 10, 10))
    paired = [1.0, 1.2, 0.6]  # Nats per token, window by window.

    above = difference(loss, base)

    assert above.nats_per_token == pytest.approx(statistics.mean(paired))
    assert above.standard_error == pytest.approx(statistics.stdev(paired) / math.sqrt(3))


def test_one_window_has_no_standard_error():
    assert difference(Loss((3.0,), (2,)), Loss((1.0,), (2,))) == Difference(1.0, None)
