"""What a launcher says to each rank of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple


class Launch(NamedTuple):
    """What a launcher (torchrun, accelerate, or srun with the usual variables) says to each rank."""

    rank: int
    world_size: int
    address: str
    port: int
    has_agent: bool
    """Whether torchrun's agent hosts the store; else rank 0 does."""


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """How this process was launched; None where it is alone, or where nobody says how to meet the others.

    >>> launch_of({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"})
    Launch(rank=1, world_size=2, address='node1', port=29500, has_agent=False)
    >>> launch_of({"WORLD_SIZE": "1", "RANK": "0"}) is None
    True
    """
    try:
        rank, world_size, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        address = environment["MASTER_ADDR"]
    except (KeyError, ValueError):
        return None
    if world_size < 2 or environment.get("AXOLOTL_IS_PREPROCESS") == "1":
        return None
    return Launch(rank, world_size, address, port, environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True")


def is_started_again() -> bool:
    """Whether torchrun starts all ranks again after a failure."""
    try:
        count, most = (int(os.environ[f"TORCHELASTIC_{name}"]) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    except (KeyError, ValueError):
        return False
    return count < most
