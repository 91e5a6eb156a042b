"""All ranks of a run wait for the slowest one before the first collective.

A collective that times out names no rank. Where each node has its own checkpoint folder, one node may take much longer
than the others to write or to download. So the ranks meet at the launcher's store (``MASTER_ADDR``, ``MASTER_PORT``)
when their checkpoint is ready. They wait without a time limit and log which ranks they wait for. No process group
exists yet, so neither ``ddp_timeout`` nor the timeouts of NCCL and gloo apply.

torch's TCPStore waits for the replies of its host without limit, whatever its ``timeout`` (seen with torch 2.14). So
while the host of the store is suspended (SIGSTOP), the other ranks block without a message, and a rank that fails then
shows its error only after the host has been resumed or killed. The same holds for all ranks but 0 if another program
listens on ``MASTER_PORT`` and never answers; rank 0 fails then, and its error names the port.
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple

from solar_plugins.errors import LaunchError, SolarError
from solar_plugins.logs import logger, may_speak_while_waiting, speaks_for_node

LOG = logger("ranks")

POLL_SECONDS = 0.2
RANKS_PER_POLL_SECOND = 512
"""Larger runs poll less often, so that the store answers at most a few thousand requests per second."""
MESSAGE_SECONDS = 30.0
CONNECT_SECONDS = 10.0
REPORT_SECONDS = 30.0
"""How long a rank that failed tries to tell the other ranks; rank 0 may still be importing its libraries."""
UNREACHABLE_SECONDS = 600.0
"""Rank 0 opens its store before its own work. A store that cannot be reached for this long is considered dead."""
MAX_LISTED_RANKS = 8

_meetings = itertools.count()
_stores: list[Any] = []
"""Keeps the store alive on rank 0, which may host it, until the process group takes it over."""


class Launch(NamedTuple):
    """What a launcher (torchrun, accelerate, or srun with the usual variables) tells each rank."""

    rank: int
    world_size: int
    address: str
    port: int
    has_agent: bool
    """Whether torchrun's agent hosts the store; otherwise rank 0 does."""


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """How this process was launched; None for a single process, or where the variables for a rendezvous are missing.

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


def torchrun_will_restart(environment: Mapping[str, str]) -> bool:
    """Whether torchrun restarts all ranks after a failure."""
    try:
        count, limit = (int(environment[f"TORCHELASTIC_{name}"]) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    except (KeyError, ValueError):
        return False
    return count < limit


@contextmanager
def ready_together(what: str) -> Iterator[None]:
    """Leave the block only when every rank has reached its end.

    Does nothing for a single process, or where a process group exists already, as on a Ray worker.

    Args:
        what: The result of the block, for messages.

    Raises:
        LaunchError: Another rank failed in the block (the text has its error), or the ranks cannot meet.
    """
    launch = launch_of(os.environ)
    if launch is None or _has_process_group():
        yield
        return
    meeting = _Meeting(launch, what, f"solar_plugins/{next(_meetings)}")
    meeting.open()
    try:
        yield
        meeting.wait()
    except LaunchError:
        raise  # The other ranks know already, or cannot be reached.
    except BaseException as error:
        # Of any kind, or the other ranks would wait forever.
        meeting.report_failure(str(error) if isinstance(error, SolarError) else f"{type(error).__name__}: {error}")
        raise


def _has_process_group() -> bool:
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()


class _Meeting:
    """One meeting of all ranks at the store.

    Rank 0 names a round when it opens the meeting. Each rank that is ready writes its own token under that round. When
    all tokens are there, rank 0 returns each of them, and a rank leaves only when it finds its own token returned.
    Counting ranks would be simpler, but torchrun's store outlives a restart of the ranks and keeps what the previous
    attempt wrote.
    """

    def __init__(self, launch: Launch, what: str, name: str) -> None:
        self.launch, self.what, self.name = launch, what, name
        self.address = f"{launch.address}:{launch.port}"
        self.token = secrets.token_hex(8)
        self.round = ""
        self.store: Any = None
        self.last_error = ""
        self.poll_seconds = max(POLL_SECONDS, launch.world_size / RANKS_PER_POLL_SECOND)
        self.next_message = time.monotonic() + MESSAGE_SECONDS

    def open(self) -> None:
        """On rank 0: host the store, unless torchrun does, so that the other ranks can connect at any time."""
        import torch

        if not 0 < self.launch.port < 65536:
            raise LaunchError(
                f"MASTER_PORT: {self.launch.port} is not a valid port; set the same port, from 1024 to 65535, on all "
                "ranks"
            )
        if self.launch.rank != 0:
            return
        try:
            self.store = self._connected()
        except (OSError, UnicodeError, torch.distributed.DistError) as error:
            raise LaunchError(
                f"MASTER_ADDR, MASTER_PORT: rank 0 cannot host the ranks' store at {self.address} "
                f"({_first_line(error)}). MASTER_ADDR must be the host that rank 0 runs on. If another program uses "
                "that port, set MASTER_PORT to another one on all ranks"
            ) from None
        self.store.set("round", self.token)

    def report_failure(self, text: str) -> None:
        """Make the other ranks exit with this rank's error."""
        if torchrun_will_restart(os.environ):
            return  # torchrun's store would pass this failure on to the next attempt.
        if self._hosts():
            LOG.error("telling the other ranks, which may take %.0f s: %s", REPORT_SECONDS, text)
        told = f"rank {self.launch.rank} on {socket.gethostname()}: {text}".encode(errors="backslashreplace").decode()
        with suppress(RuntimeError):  # This rank's own error matters more.
            self.store = self.store or self._store_in_time(REPORT_SECONDS)
            if self.store is not None:
                self.store.compare_set("failed", "", told)  # Keeps the first failure, which may have caused the others.
                self._stay_until_all("told")

    def wait(self) -> None:
        """Return when all ranks are ready. If rank 0 dies and the store with it, meet again when rank 0 is back."""
        import torch

        while True:
            try:
                self.store = self.store or self._store_in_time(UNREACHABLE_SECONDS)
                if self.store is None:
                    raise LaunchError(
                        f"rank 0 at {self.address} could not be reached for {UNREACHABLE_SECONDS:.0f} s "
                        f"({self.last_error}); see its log, then restart the run"
                    )
                while not self._may_leave():
                    time.sleep(self.poll_seconds)
                return
            except torch.distributed.DistError:
                self.store = None
                time.sleep(self.poll_seconds)

    def _store_in_time(self, seconds: float) -> Any:
        import torch

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                return self._connected()
            except (OSError, UnicodeError, torch.distributed.DistError) as error:
                self.last_error = _first_line(error)
                if self._may_log(rank_0_can_speak=False):
                    LOG.info("waiting for rank 0 at %s", self.address)
                time.sleep(self.poll_seconds)
        return None

    def _connected(self) -> Any:
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # torch's stubs lack them

        if not self._hosts():  # Fails at once and quietly; torch would retry and print a stack trace.
            socket.create_connection((self.launch.address, self.launch.port), CONNECT_SECONDS).close()
        # As torch.distributed.rendezvous does, but without waiting for the other ranks.
        store = TCPStore(
            self.launch.address,
            self.launch.port,
            self.launch.world_size,
            is_master=self._hosts(),
            timeout=timedelta(seconds=CONNECT_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,
        )
        if self._hosts():
            _stores.append(store)
        return PrefixStore(self.name, store)

    def _hosts(self) -> bool:
        return self.launch.rank == 0 and not self.launch.has_agent

    def _keys(self, word: str) -> list[str]:
        return [f"{word}/{rank}" for rank in range(self.launch.world_size)]

    def _stay_until_all(self, word: str) -> None:
        """Record that this rank has read the result. The rank that hosts the store waits for all others to do so."""
        self.store.set(f"{word}/{self.launch.rank}", "")
        end = time.monotonic() + REPORT_SECONDS
        while self._hosts() and not self.store.check(self._keys(word)) and time.monotonic() < end:
            time.sleep(self.poll_seconds)

    def _may_leave(self) -> bool:
        if self.store.check(["failed"]):
            text = self.store.get("failed").decode(errors="replace")
            with suppress(RuntimeError):
                self._stay_until_all("told")
            raise LaunchError(f"this rank stops because another rank failed before {self.what} was ready; {text}")
        self._announce()
        if self.launch.rank == 0 and self.store.check(ready := self._keys(f"{self.round}/ready")):
            self.store.multi_set(self._keys(f"{self.round}/returned"), self.store.multi_get(ready))
        leaves = self._has_its_token_back()
        if leaves:
            self._stay_until_all(f"{self.round}/left")
        elif time.monotonic() >= self.next_message:
            self._log_missing_ranks()
        return leaves

    def _has_its_token_back(self) -> bool:
        own = f"{self.round}/returned/{self.launch.rank}"
        if not self.store.check([own]):
            return False
        # Without torchrun the store is as old as rank 0. So a different token here belonged to an earlier process of
        # this rank, which died after all were ready. The other ranks have left and wait for this one.
        return not self.launch.has_agent or self.store.get(own).decode() == self.token

    def _announce(self) -> None:
        if not self.store.check(["round"]):
            if self.launch.rank != 0:
                return
            self.store.set("round", self.token)  # The old store is gone, with everything in it.
        found = self.store.get("round").decode()
        if found != self.round:
            self.round = found
            self.store.set(f"{found}/ready/{self.launch.rank}", self.token)

    def _log_missing_ranks(self) -> None:
        ready = self._keys(f"{self.round}/ready")
        rank_0_can_speak = bool(self.round) and self.store.check(ready[:1])
        if not self._may_log(rank_0_can_speak):
            return  # Only a rank that logs asks about every rank: in a large run that is many requests.
        missing = [str(rank) for rank, key in enumerate(ready) if not self.store.check([key])]
        if not missing or not self.round:  # Rank 0 has not opened this meeting; the ranks may be of an earlier round.
            LOG.info("waiting for rank 0 at %s", self.address)
            return
        more = f" and {len(missing) - MAX_LISTED_RANKS} more" if len(missing) > MAX_LISTED_RANKS else ""
        LOG.info(
            "%d of %d ranks have %s; waiting for rank %s%s. If one of them is dead, stop the run",
            len(ready) - len(missing),
            len(ready),
            self.what,
            ", ".join(missing[:MAX_LISTED_RANKS]),
            more,
        )

    def _may_log(self, rank_0_can_speak: bool) -> bool:
        """Whether a message is due and this rank logs it: one per node, or the next one if rank 0 is still busy."""
        if time.monotonic() < self.next_message:
            return False
        self.next_message = time.monotonic() + MESSAGE_SECONDS
        return speaks_for_node() or (may_speak_while_waiting() and not rank_0_can_speak)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
