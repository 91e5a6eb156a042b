"""The fifth step of the GPU check: the study's arms on many more tokens. Does an upscaled model overtake its base?

All arms see the same rows in the same order with the same schedule; a hash of the batches is compared. Runs are ordered
so that an early stop leaves the most useful comparison: each arm's most likely learning rate, in the order `ORDER`,
then its other rates, then more seeds with the rate that was best on the validation documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from typing import Any

from gpu_curves import TEST, best_rate
from gpu_runs import Check, attempt_all, make_base, train
from gpu_settings import LARGE, RECOVERY_CACHE, small_recipe
from study_arms import BASE, EQUAL_COMPUTE, EXPANSION, PROBED, SCALED, SEAM_ONLY, SOLAR, Arm, Sizes, arms

ORDER = (BASE, SOLAR, PROBED, SCALED, EXPANSION, EQUAL_COMPUTE, SEAM_ONLY)


def recovery(check: Check) -> None:
    settings = check.settings
    if settings.small_base is None:
        make_base(check)
    first, *others = settings.seeds
    chosen = recovery_arms(check)
    by_rank = zip_longest(*([(arm, rate) for rate in arm.rates] for arm in chosen))
    attempt_all(check, [_run(check, *pair, first) for rank in by_rank for pair in rank if pair])
    for seed in others:
        best = [(arm, best_rate(check.results.runs.values(), arm.name, first)) for arm in chosen]
        attempt_all(check, [_run(check, arm, rate.value, seed) for arm, rate in best if rate])
    _require_same_rows(check)


def recovery_arms(check: Check) -> list[Arm]:
    """The study's arms in the order of `ORDER`, with the sizes of the check."""
    settings = check.settings
    base = settings.small_base or check.folder / LARGE
    layers = json.loads((base / "config.json").read_text())["num_hidden_layers"]
    target = 2 * (layers - settings.small_drop_layers)
    sizes = Sizes(layers, target, settings.recovery_steps, settings.learning_rates, settings.some_layers_rates)
    return sorted(arms(settings.probed, str(base), sizes), key=lambda arm: ORDER.index(arm.name))


def _run(check: Check, arm: Arm, rate: float, seed: int) -> tuple[str, Callable[[], dict[str, Any]]]:
    return f"{arm.name}, learning rate {rate:.0e}, seed {seed}", partial(_measure, check, arm, rate, seed)


def _measure(check: Check, arm: Arm, rate: float, seed: int) -> dict[str, Any]:
    settings = check.settings
    recipe = small_recipe(
        settings, check.folder, grown=arm.solar is not None, learning_rate=rate, seed=seed, max_steps=arm.steps,
        micro_batch_size=settings.recovery_batch, **settings.exact_numbers,
    )  # fmt: skip
    if arm.solar:
        recipe["solar"] = {**arm.solar, "cache_dir": RECOVERY_CACHE}
    name = f"recovery-{ORDER.index(arm.name)}-{rate:.0e}-{seed}"
    metrics = train(check.folder, name, recipe, check.clock, eval_every=settings.eval_every)
    return {"arm": arm.name, "learning_rate": rate, "seed": seed, "at_once": check.at_once} | metrics


def _require_same_rows(check: Check) -> None:
    """Record a failure if runs with one seed did not see the same batches in the same order, as far as both go."""
    for seed in check.settings.seeds:
        orders: dict[int, set[str]] = {}
        for run in check.results.runs.values():
            for found in run["evaluations"]:
                if run["seed"] == seed and found["file"] == TEST:
                    orders.setdefault(found["step"], set()).add(found["order_sha256"])
        different = [step for step, digests in sorted(orders.items()) if len(digests) > 1]
        if different:
            check.results.fail(
                f"order of rows, seed {seed}", f"the runs did not see the same batches up to step {different[0]}"
            )
