"""Several ranks of one run wait for the slowest before anything collective starts.

A collective that a rank waits in too long ends with a time-out that names nobody. Where each node has a checkpoint
folder of its own, one node may write or download far longer than the others. So the ranks meet at the launcher's own
store (``MASTER_ADDR``, ``MASTER_PORT``) when their checkpoints are there, without a limit of time, saying whom they
wait for. No process group exists at that moment, so neither ``ddp_timeout`` nor NCCL's or gloo's limits can strike.
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from solar_plugins.axolotl_adapter.launch import Launch, is_started_again, launch_of
from solar_plugins.errors import LaunchError, SolarError
from solar_plugins.logs import logger, may_speak_while_waiting, speaks_for_node

LOG = logger("ranks")

POLL_SECONDS = 0.2
RANKS_PER_POLL_SECOND = 512
"""A larger run asks more seldom, so that the one store answers a few thousand questions a second at most."""
MESSAGE_SECONDS = 30.0
CONNECT_SECONDS = 10.0
REPORT_SECONDS = 30.0
"""How long a rank that failed tries to reach the others; rank 0 may still be loading its libraries."""
UNREACHABLE_SECONDS = 600.0
"""Rank 0 opens the meeting before its own work, so a meeting that cannot be reached for so long is dead."""
NAMED_RANKS = 8

_meetings = itertools.count()
_stores: list[Any] = []
"""Rank 0 may be the one that hosts the store; it must live until the process group has taken it over."""


@contextmanager
def ready_together(what: str) -> Iterator[None]:
    """Leave only when every rank has come to the end of this block.

    Does nothing for a lone process, and where a process group exists already, as on a worker of Ray's.

    Args:
        what: The result of the block, for messages.

    Raises:
        LaunchError: Another rank failed in the block (the text is its own), or the ranks cannot meet.
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
        raise  # The others know, or cannot be reached.
    except BaseException as error:
        # Whatever it is: the others would wait for ever.
        meeting.tell_failure(str(error) if isinstance(error, SolarError) else f"{type(error).__name__}: {error}")
        raise


def _has_process_group() -> bool:
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()


class _Meeting:
    """One meeting of all ranks at the store.

    Rank 0 names a round when it opens the meeting. Each rank writes a sign of its own under that round when it is here;
    when all signs are there, rank 0 hands each back, and a rank leaves on its own sign alone. A plain count of ranks
    would be simpler, but torchrun's store outlives a restart of the ranks, and what dead ranks wrote stays in it.
    """

    def __init__(self, launch: Launch, what: str, name: str) -> None:
        self.launch, self.what, self.name = launch, what, name
        self.place = f"rank 0 at {launch.address}:{launch.port}, where all ranks meet"
        self.sign = secrets.token_hex(8)
        self.round = ""
        self.store: Any = None
        self.last_error = ""
        self.poll_seconds = max(POLL_SECONDS, launch.world_size / RANKS_PER_POLL_SECOND)
        self.last_answer = time.monotonic()
        self.next_message = self.last_answer + MESSAGE_SECONDS

    def open(self) -> None:
        """Rank 0 hosts the store from now on, unless torchrun does, so that the others find it at any time."""
        import torch

        if not 0 < self.launch.port < 65536:
            raise LaunchError(f"MASTER_PORT: {self.launch.port} is not a port; give all ranks one from 1024 to 65535")
        if self.launch.rank != 0:
            return
        try:
            self.store = self._connected()
        except (OSError, UnicodeError, torch.distributed.DistError) as error:
            raise LaunchError(
                f"MASTER_ADDR, MASTER_PORT: rank 0 cannot meet the others at {self.launch.address}:{self.launch.port} "
                f"({_first_line(error)}). If another program has that port, give all ranks another one; MASTER_ADDR "
                "must be the computer that rank 0 runs on"
            ) from None
        self.store.set("round", self.sign)

    def tell_failure(self, text: str) -> None:
        """Let the others stop with this rank's own words."""
        if is_started_again():
            return  # torchrun's store would tell the next attempt of this failure.
        if self._hosts():
            LOG.error("telling the other ranks, which may take %.0f s: %s", REPORT_SECONDS, text)
        # In a thread: a store whose host is suspended does not answer, and torch knows no limit for a question.
        teller = threading.Thread(target=self._tell, args=(text,), daemon=True)
        teller.start()
        teller.join(2 * REPORT_SECONDS + CONNECT_SECONDS)

    def _tell(self, text: str) -> None:
        self.store = self.store or self._store_in_time(REPORT_SECONDS)
        if self.store is None:
            return  # Nobody to tell; each rank finds out by itself.
        told = f"rank {self.launch.rank} on {socket.gethostname()}: {text}".encode(errors="backslashreplace").decode()
        with suppress(RuntimeError):
            self.store.compare_set("failed", "", told)  # The first failure stands; others often follow from it.
            self._stay_until_all("told")

    def wait(self) -> None:
        """Return when all ranks are here. If the store is lost with its rank, meet again when that is back."""
        import torch

        self.last_answer = time.monotonic()
        ended = threading.Event()
        threading.Thread(target=self._speak_when_stuck, args=(ended,), daemon=True).start()
        try:
            while True:
                try:
                    self.store = self.store or self._store_in_time(UNREACHABLE_SECONDS)
                    if self.store is None:
                        raise LaunchError(
                            f"{self.place}, could not be reached for {UNREACHABLE_SECONDS:.0f} s "
                            f"({self.last_error}); see its log, and start the run again"
                        )
                    while not self._may_leave():
                        time.sleep(self.poll_seconds)
                    return
                except torch.distributed.DistError:
                    self.store = None
                    time.sleep(self.poll_seconds)
        finally:
            ended.set()

    def _store_in_time(self, seconds: float) -> Any:
        import torch

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                return self._connected()
            except (OSError, UnicodeError, torch.distributed.DistError) as error:
                self.last_error = _first_line(error)
                self.last_answer = time.monotonic()
                self._say(f"waiting for {self.place}", rank_0_can_speak=False)
                time.sleep(self.poll_seconds)
        return None

    def _connected(self) -> Any:
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # torch's stubs lack them

        if not self._hosts():  # Fails at once and quietly, where torch would try in vain and print a trace.
            socket.create_connection((self.launch.address, self.launch.port), CONNECT_SECONDS).close()
        # As torch.distributed.rendezvous does it, but without waiting for the others there.
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
        """Say that this rank has read something; where the store ends with this process, wait for the others to."""
        self.store.set(f"{word}/{self.launch.rank}", "")
        end = time.monotonic() + REPORT_SECONDS
        while self._hosts() and not self.store.check(self._keys(word)) and time.monotonic() < end:
            time.sleep(self.poll_seconds)

    def _may_leave(self) -> bool:
        if self.store.check(["failed"]):
            text = self.store.get("failed").decode(errors="replace")
            with suppress(RuntimeError):
                self._stay_until_all("told")
            raise LaunchError(f"another rank could not make {self.what}, so this one stops too; {text}")
        self._announce()
        if self.launch.rank == 0 and self.store.check(here := self._keys(f"{self.round}/here")):
            self.store.multi_set(self._keys(f"{self.round}/back"), self.store.multi_get(here))
        leaves = self._has_its_sign_back()
        self.last_answer = time.monotonic()
        if leaves:
            self._stay_until_all(f"{self.round}/left")
        elif self.last_answer >= self.next_message:
            self._say_whom_we_wait_for()
        return leaves

    def _has_its_sign_back(self) -> bool:
        own = f"{self.round}/back/{self.launch.rank}"
        if not self.store.check([own]):
            return False
        # Without torchrun the store is no older than rank 0. So another sign that stands there is that of a rank that
        # died when all were ready; they went on, and wait for this one.
        return not self.launch.has_agent or self.store.get(own).decode() == self.sign

    def _announce(self) -> None:
        if not self.store.check(["round"]):
            if self.launch.rank != 0:
                return
            self.store.set("round", self.sign)  # Its store was lost, and what stood there.
        found = self.store.get("round").decode()
        if found != self.round:
            self.round = found
            self.store.set(f"{found}/here/{self.launch.rank}", self.sign)

    def _say_whom_we_wait_for(self) -> None:
        here = self._keys(f"{self.round}/here")
        rank_0_can_speak = bool(self.round) and self.store.check(here[:1])
        if not self._has_the_word(rank_0_can_speak):
            return  # A thousand ranks must not ask for what they do not say.
        missing = [str(rank) for rank, key in enumerate(here) if not self.store.check([key])]
        if not missing or not self.round:  # Rank 0 has not opened this meeting; all may be of a round that has ended.
            LOG.info("waiting for %s", self.place)
            return
        more = f" and {len(missing) - NAMED_RANKS} more" if len(missing) > NAMED_RANKS else ""
        LOG.info(
            "%d of %d ranks have %s; waiting for rank %s%s. If one of them is dead, stop the run",
            len(here) - len(missing),
            len(here),
            self.what,
            ", ".join(missing[:NAMED_RANKS]),
            more,
        )

    def _speak_when_stuck(self, ended: threading.Event) -> None:
        """In a thread: a store whose host is suspended does not answer, and torch knows no limit for a question."""
        while not ended.wait(MESSAGE_SECONDS / 2):
            if time.monotonic() - self.last_answer > MESSAGE_SECONDS:
                self._say(
                    f"{self.place}, does not answer. If it is suspended, let it go on; if it is dead, or another "
                    "program has that port, stop the run",
                    rank_0_can_speak=False,
                )

    def _say(self, text: str, rank_0_can_speak: bool) -> None:
        if self._has_the_word(rank_0_can_speak):
            LOG.info("%s", text)

    def _has_the_word(self, rank_0_can_speak: bool) -> bool:
        """Whether it is time for a message, and this rank's turn: one of a node, or beside a silent rank 0 the next."""
        if time.monotonic() < self.next_message:
            return False
        self.next_message = time.monotonic() + MESSAGE_SECONDS
        return speaks_for_node() or (may_speak_while_waiting() and not rank_0_can_speak)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
