"""The fifth step of the GPU check: does the upscaled model overtake its base, trained on the same tokens as a control?

Both models see the same rows in the same order with the same schedule; a hash of all batches is compared. Each is
trained with every learning rate, and its best one on the validation documents is repeated with more seeds. The most
likely rate is run first, so that an early stop still leaves a comparison.
"""

from __future__ import annotations

from typing import Any

from gpu_curves import BASE, MODELS, UPSCALED, best_rate
from gpu_runs import Check, attempt, make_base, train
from gpu_settings import small_recipe


def recovery(check: Check) -> None:
    settings = check.settings
    if settings.small_base is None:
        make_base(check)
    first, *others = settings.seeds
    for rate in settings.learning_rates:
        for model in MODELS:
            _run(check, model, rate, first)
    for seed in others:
        for model in MODELS:
            best = best_rate(check.results.runs.values(), model, first)
            if best:
                _run(check, model, best.value, seed)
    _require_same_rows(check)


def _run(check: Check, model: str, rate: float, seed: int) -> None:
    name = f"{model}, learning rate {rate:.0e}, seed {seed}"
    attempt(check, name, lambda: _measure(check, model, rate, seed))


def _measure(check: Check, model: str, rate: float, seed: int) -> dict[str, Any]:
    settings = check.settings
    recipe = small_recipe(
        settings, check.folder, grown=model == UPSCALED, learning_rate=rate, seed=seed,
        max_steps=settings.recovery_steps, **settings.exact_numbers,
    )  # fmt: skip
    name = f"recovery-{'base' if model == BASE else 'upscaled'}-{rate:.0e}-{seed}"
    metrics = train(check.folder, name, recipe, check.clock, eval_every=settings.eval_every)
    return {"model": model, "learning_rate": rate, "seed": seed} | metrics


def _require_same_rows(check: Check) -> None:
    """Record a failure if runs with one seed did not see the same batches in the same order."""
    for seed in check.settings.seeds:
        runs = {name: run for name, run in check.results.runs.items() if run["seed"] == seed}
        if len({run["order_sha256"] for run in runs.values()}) > 1:
            check.results.fail(f"order of rows, seed {seed}", f"{', '.join(runs)} did not see the same batches")
