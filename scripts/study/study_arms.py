"""The ways to spend the same tokens that the study compares on a CPU, and the GPU check on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from solar_plugins.report.plan_report import plan_for_base
from solar_plugins.solar_block import InitArgs

LAYERS, TARGET = 30, 48
STEPS = 60
EVERY_WEIGHT, SOME_LAYERS = (5e-5, 1e-4, 2e-4), (1e-4, 2e-4, 4e-4)
"""Learning rates: those around the demo's, and higher ones where few layers learn."""
STARTS = range(LAYERS - (TARGET - LAYERS) + 1)
DUS = (LAYERS - (TARGET - LAYERS)) // 2
"""Where SOLAR's symmetric cut begins its repeated block: m."""
BASE, SOLAR = "the base, equal tokens", "DUS"
"""Arms that the others are compared with."""
PROBED, EQUAL_COMPUTE, EXPANSION = "the probe's plan", "the base, equal compute", "block expansion, new layers only"
SEAM_ONLY, SCALED = "DUS, seam only", "DUS, copies scaled by 0.5"

Solar = Mapping[str, Any]


class Sizes(NamedTuple):
    """What differs between the study and the GPU check.

    Args:
        layers: Of the base.
        target: Layers of most upscaled models.
        steps: Optimizer steps at equal tokens.
        every_weight: Learning rates where every weight is trained.
        some_layers: Learning rates where some layers are.
    """

    layers: int = LAYERS
    target: int = TARGET
    steps: int = STEPS
    every_weight: tuple[float, ...] = EVERY_WEIGHT
    some_layers: tuple[float, ...] = SOME_LAYERS


STUDY = Sizes()


class Arm(NamedTuple):
    """A way to spend the same tokens.

    Args:
        name: In tables.
        solar: The recipe's block; None: the base itself is trained.
        rates: Learning rates that are tried.
        steps: Optimizer steps.
    """

    name: str
    solar: Solar | None
    rates: tuple[float, ...] = EVERY_WEIGHT
    steps: int = STEPS


def repeated(start: int, layers: int = LAYERS, target: int = TARGET) -> Solar:
    """The plan of ``target`` layers that repeats the block ``[start, start + target - layers)``."""
    return {"init": {"strategy": "slices", "slices": [[0, start + target - layers], [start, layers]]}}


def arms(best: int, base: str, sizes: Sizes = STUDY) -> tuple[Arm, ...]:
    """The arms, with the probe's best plan.

    Args:
        best: Where its repeated block begins.
        base: The base's folder.
        sizes: Of the base and of the runs.
    """
    layers, target, steps, every_weight, some_layers = sizes
    dus = repeated((2 * layers - target) // 2, layers, target)
    seam = {"layers": "seam", "around": 4}
    scaled = {"init": {**dus["init"], "duplicates": {"initializer": "scaled", "factor": 0.5}}}
    expansion = {"init": {"strategy": "block_expansion", "new_layers": layers // 2}, "train": {"layers": "new"}}
    size = plan_for_base(base, None, InitArgs.model_validate(dus["init"]))
    assert size.size is not None
    assert size.base_size is not None
    equal = round(steps * size.size.parameters / size.base_size.parameters)
    return (
        Arm(BASE, None, every_weight, steps),
        Arm(SOLAR, dus, every_weight, steps),
        Arm(PROBED, repeated(best, layers, target), every_weight, steps),
        Arm(EQUAL_COMPUTE, None, every_weight, equal),
        Arm(EXPANSION, expansion, some_layers, steps),
        Arm(SEAM_ONLY, {**dus, "train": seam}, some_layers, steps),
        Arm(SCALED, scaled, every_weight, steps),
    )
