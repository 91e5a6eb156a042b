"""How long waiting ranks take to find the finished checkpoint, one after another.

Processes on one machine wait for a lock until all of them wait. Then the first writes a tiny checkpoint, and each of
the others takes the lock, finds the checkpoint and continues.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from checkpoints import DROP_LAYERS, LAYERS, make_base

from solar_plugins.storage import atomic
from solar_plugins.storage.atomic import sole_writer
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import cache_name, ensure_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan

SETTLE_SECONDS = 4.0
"""Until all processes poll at the slow rate of a long wait, out of step, like ranks that started at different times."""


class HandOver(NamedTuple):
    """One round of waiting processes."""

    processes: int
    poll_seconds: float
    """How often each process polled the lock."""
    seconds: float
    """From the release of the lock until the last process continued."""


def measure_hand_over(folder: Path, processes: int, poll_seconds: float) -> HandOver:
    """Run one round. The base is ``folder/base``, created if missing."""
    if not (folder / "base").exists():
        make_base(folder / "base", 64)
    half = LAYERS - DROP_LAYERS
    plan = LayerPlan.from_sources(LAYERS, [*range(half), *range(DROP_LAYERS, LAYERS)])
    cache = folder / f"cache-{processes}-{time.monotonic_ns()}"
    cache.mkdir()
    context = multiprocessing.get_context("fork")
    done = context.SimpleQueue()
    logging.getLogger("axolotl").setLevel(logging.WARNING)
    target = cache / cache_name(find_base(str(folder / "base")), plan)
    with mock.patch.object(atomic, "LONG_WAIT_POLL_SECONDS", poll_seconds), sole_writer(target):
        ranks = [context.Process(target=_wait, args=(folder / "base", plan, cache, done)) for _ in range(processes)]
        for rank in ranks:
            rank.start()
        time.sleep(SETTLE_SECONDS + 0.02 * processes)
        released = time.monotonic()
    last = max(done.get() for _ in ranks)
    for rank in ranks:
        rank.join()
    return HandOver(processes, poll_seconds, last - released)


def _wait(base: Path, plan: LayerPlan, cache: Path, done) -> None:
    ensure_checkpoint(find_base(str(base)), plan, cache)
    done.put(time.monotonic())


def seconds_of_a_rank(rounds: Sequence[HandOver]) -> float:
    """Seconds per additional process: the slope of a least-squares fit."""
    n = len(rounds)
    mean_x, mean_y = sum(r.processes for r in rounds) / n, sum(r.seconds for r in rounds) / n
    above = sum((r.processes - mean_x) * (r.seconds - mean_y) for r in rounds)
    return above / sum((r.processes - mean_x) ** 2 for r in rounds)
