"""Runs one command, and ends everything that it started when `solar run` ends, even by SIGKILL.

    python -m solar_plugins.running.supervisor PARENT LOCK COMMAND...

A launcher may leave its workers behind when it is killed, and they would go on writing into an output that the next
`solar run` continues. This process watches PARENT, the process of `solar run`. It adopts all workers, asks them to end,
and kills them after a while. It holds LOCK meanwhile, and the next `solar run` waits for it. Linux only.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GRACE_SECONDS = 20.0
"""After a request to end: torchrun gives its workers 30 s by default, but none of ours writes anything then."""


class Ended(BaseException):
    """Somebody wants this process to end."""


def descendants(pid: int) -> list[int]:
    """All processes below one, as /proc has them now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def end_all(number: int) -> None:
    """Send a signal to every descendant; after `GRACE_SECONDS` kill what is left. Further requests are ignored."""
    for request in REQUESTS:
        signal.signal(request, signal.SIG_IGN)
    deadline = time.monotonic() + GRACE_SECONDS
    while found := descendants(os.getpid()):
        late = time.monotonic() > deadline
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL if late else number)
            except ProcessLookupError:
                continue
        number = 0  # Once is enough: a second one makes some launchers give up at once.
        while True:  # Reap, or they would be found again.
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break
        time.sleep(0.05)


def main(parent: str, lock: str, *command: str) -> int:
    """Run the command; its exit status, or 128 and the number of the signal that ended it."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)

    def end(number: int, _: FrameType | None) -> None:
        raise Ended(number)

    for number in REQUESTS:
        signal.signal(number, end)
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            if os.getppid() != int(parent):  # It ended before this process asked to be told.
                raise Ended(signal.SIGTERM)
            status = subprocess.Popen(command).wait()
            wanted = signal.SIGTERM  # Whatever is left has nobody who waits for it.
        except Ended as request:
            wanted = request.args[0]
            status = -int(wanted)
        except OSError as error:
            print(f"{command[0]}: cannot be started ({error.strerror}); is it installed here?", file=sys.stderr)
            return 127
        end_all(wanted)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
