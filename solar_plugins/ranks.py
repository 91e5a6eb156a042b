"""Several ranks of one run: who speaks, and how all wait for the slowest before anything collective starts.

A collective that a rank waits in too long ends with a time-out that names nobody. Where each node has a checkpoint
folder of its own, one node may write or download far longer than the others. So the ranks meet at the launcher's own
store (``MASTER_ADDR``, ``MASTER_PORT``) when their checkpoints are there, without a limit of time, saying whom they
wait for. No process group exists at that moment, so neither ``ddp_timeout`` nor NCCL's or gloo's limits can strike.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple

from solar_plugins.errors import CheckpointError, SolarError

# Axolotl shows INFO only from loggers whose name starts with "axolotl".
LOG = logging.getLogger("axolotl.solar_plugins.ranks")

POLL_SECONDS = 0.2
MESSAGE_SECONDS = 30.0
CONNECT_SECONDS = 10.0
UNREACHABLE_SECONDS = 600.0
"""Rank 0 opens the meeting before its own work, so a meeting that cannot be reached for so long is dead."""
NAMED_RANKS = 8

_meetings = itertools.count()
_stores: list[Any] = []
"""Rank 0 may be the one that hosts the store; it must live until the process group has taken it over."""


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


def speaks_for_node() -> bool:
    """Whether this rank says what all ranks of its node have to say."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def may_speak_while_waiting() -> bool:
    """Whether this rank says what it waits for: the first of its node, or the second, because the first may write."""
    return os.environ.get("LOCAL_RANK", "0") in ("0", "1")


@contextmanager
def ready_together(what: str) -> Iterator[None]:
    """Leave only when every rank has come to the end of this block.

    Does nothing for a lone process, and where a process group exists already, as on a worker of Ray's.

    Args:
        what: The result of the block, for messages.

    Raises:
        CheckpointError: Another rank failed in the block; the text is its own.
    """
    launch = launch_of(os.environ)
    if launch is None or _has_process_group():
        yield
        return
    meeting = _Meeting(launch, what, f"solar_plugins/{next(_meetings)}")
    meeting.open()
    try:
        yield
    except BaseException as error:
        # Whatever it is: the others would wait for ever.
        meeting.report_failure(str(error) if isinstance(error, SolarError) else f"{type(error).__name__}: {error}")
        raise
    meeting.wait()


def _has_process_group() -> bool:
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()


class _Meeting:
    """One meeting of all ranks at the store."""

    def __init__(self, launch: Launch, what: str, name: str) -> None:
        self.launch, self.what, self.name = launch, what, name
        self.store: Any = None
        self.next_message = time.monotonic() + MESSAGE_SECONDS

    def open(self) -> None:
        """Rank 0 hosts the store from now on, unless torchrun does, so that the others find it at any time."""
        if self.launch.rank == 0:
            self.store = self._connected()

    def report_failure(self, text: str) -> None:
        """Let the others stop with this rank's own words."""
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) < int(
            os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
        ):
            return  # torchrun starts all ranks again, and its store keeps what stands in it.
        with suppress(RuntimeError):  # Nobody to tell; each rank finds out by itself.
            self.store = self.store or self._connected()
            self.store.set("failed", f"rank {self.launch.rank} on {socket.gethostname()}: {text}")
            if self.launch.rank == 0 and not self.launch.has_agent:
                time.sleep(2 * POLL_SECONDS + 1)  # The store ends with this process.

    def wait(self) -> None:
        """Return when all ranks are here. If the store is lost with its rank, meet again when that is back."""
        import torch

        lost_since: float | None = None
        while True:
            try:
                self.store = self.store or self._connected()
                self._announce()
                lost_since = None
                while not self._all_here():
                    time.sleep(POLL_SECONDS)
                return
            except torch.distributed.DistError:
                self.store = None
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > UNREACHABLE_SECONDS:
                    raise CheckpointError(
                        f"rank 0 at {self.launch.address}:{self.launch.port}, where all ranks meet, could not be "
                        f"reached for {UNREACHABLE_SECONDS:.0f} s; see its log, and start the run again"
                    ) from None
                self._say(f"waiting for rank 0 at {self.launch.address}:{self.launch.port}, where all ranks meet")
                time.sleep(POLL_SECONDS)

    def _connected(self) -> Any:
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # torch's stubs lack them

        # As torch.distributed.rendezvous does it, but without waiting for the others there.
        store = TCPStore(
            self.launch.address,
            self.launch.port,
            self.launch.world_size,
            is_master=self.launch.rank == 0 and not self.launch.has_agent,
            timeout=timedelta(seconds=CONNECT_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,
        )
        _stores.append(store)
        return PrefixStore(self.name, store)

    def _announce(self) -> None:
        own = f"here/{self.launch.rank}"
        if not self.store.check([own]):
            self.store.set(own, socket.gethostname())
            self.store.add("number", 1)

    def _all_here(self) -> bool:
        if self.store.check(["failed"]):
            text = self.store.get("failed").decode(errors="replace")
            raise CheckpointError(f"another rank could not make {self.what}, so this one stops too; {text}")
        number = int(self.store.add("number", 0))
        if number < self.launch.world_size and time.monotonic() >= self.next_message:
            self._say(f"{number} of {self.launch.world_size} ranks have {self.what}; waiting for {self._missing()}")
        return number >= self.launch.world_size

    def _missing(self) -> str:
        ranks = range(self.launch.world_size)
        missing = [str(rank) for rank in ranks if not self.store.check([f"here/{rank}"])]
        more = f" and {len(missing) - NAMED_RANKS} more" if len(missing) > NAMED_RANKS else ""
        return f"rank {', '.join(missing[:NAMED_RANKS])}{more}. If one of them is dead, stop the run"

    def _say(self, text: str) -> None:
        if time.monotonic() >= self.next_message and speaks_for_node():
            LOG.info("%s", text)
        if time.monotonic() >= self.next_message:
            self.next_message = time.monotonic() + MESSAGE_SECONDS
