"""The study's arithmetic, on metrics written by hand."""

import random
import statistics

import pytest
from study import block_name, chosen
from study_arms import DUS, STARTS, repeated
from study_figures import correlation, difference, of_best_rate

from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.strategies import plan_of


def run(after, seed=0, rate=1e-4, before=None):
    return {"after": after, "before": before or after, "seed": seed, "rate": rate}


def test_every_block_gives_48_layers_and_dus_is_among_them():
    plans = {start: plan_of(InitArgs.model_validate(repeated(start)["init"]), 30) for start in STARTS}
    assert [len(plan) for plan in plans.values()] == [48] * 13
    assert plans[DUS] == plan_of(InitArgs(strategy="dus", drop_layers=6), 30)
    assert (block_name(DUS), block_name(STARTS[-1])) == ("[6, 24)", "[12, 30)")


def test_ten_plans_across_the_range_with_the_best_the_worst_and_solars_own():
    for seed in range(20):
        losses = dict(zip(STARTS, random.Random(seed).sample(range(100), len(STARTS)), strict=True))
        picked = chosen(losses)
        assert len(set(picked)) == 10
        assert {min(losses, key=losses.get), max(losses, key=losses.get), DUS} <= set(picked)


def test_a_difference_is_paired_by_seed_and_text_and_its_error_is_over_texts():
    base = [run([(10, 10.0), (10, 30.0), (10, 20.0)], seed) for seed in (0, 1)]
    other = [run([(10, 11.0), (10, 33.0), (10, 22.0)], 0), run([(10, 12.0), (10, 33.0), (10, 21.0)], 1)]
    found = difference(other, base)
    assert found.all.nats_per_token == pytest.approx(0.2)
    assert found.all.standard_error == pytest.approx(statistics.stdev([0.15, 0.3, 0.15]) / 3**0.5)
    assert found.by_seed == pytest.approx((0.2, 0.2))
    with pytest.raises(ValueError, match="same seeds"):
        difference(other, base[::-1])


def test_a_rank_correlation():
    plans = [run([(10, 3.0 + n), (10, 5.0 + n)], before=[(10, 1.0 * n), (10, 2.0 * n)]) for n in range(5)]
    assert correlation(plans) == (1, 1, 1)
    turned = [one | {"before": two["before"]} for one, two in zip(plans, plans[::-1], strict=True)]
    assert correlation(turned) == (-1, -1, -1)


def test_the_best_rate_is_chosen_on_the_first_seed():
    runs = [run([(1, 2.0)], 0, 1e-4), run([(1, 1.0)], 0, 2e-4), run([(1, 0.1)], 1, 1e-4), run([(1, 9.0)], 1, 2e-4)]
    assert [(one["seed"], one["rate"]) for one in of_best_rate(runs)] == [(0, 2e-4), (1, 2e-4)]
