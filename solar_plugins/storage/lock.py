"""One writer for a directory: the lock, who holds it, and what dead writers left beside the directory.

The lock only saves work. On some clusters ``flock`` holds for one node alone, or is missing, so that two nodes write at
once. The result is right all the same: each writer fills a partial directory of its own, and only one of them can be
renamed to the final name. Hence the rule for left-overs: a partial directory is removed only when its owner is dead
beyond doubt, or when nothing in it has changed for `STALE_SECONDS`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from solar_plugins.errors import CheckpointError
from solar_plugins.logs import logger, may_speak_while_waiting, speaks_for_node
from solar_plugins.storage.untrusted import read_json_object
from solar_plugins.text import format_bytes

LOG = logger("checkpoint")

FIRST_MESSAGE_SECONDS = 2.0
WAIT_MESSAGE_SECONDS = 30.0
POLL_SECONDS = 0.1
LONG_WAIT_POLL_SECONDS = 1.0
"""After the first message: a thousand ranks must not keep a shared file system busy while one of them writes."""

STALE_SECONDS = 3600.0
"""A live writer changes its partial directory every few seconds; a disk may hang for minutes."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Hold the lock for ``directory``. The kernel frees it when its owner dies, so a dead writer blocks nobody.

    While it is held by another process, a message says by whom and how much that one has written.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory.parent) as probe:
        # Fails at once where nothing can be written; the lock would be tried again and again. The file server's own
        # clock tells how old a left-over is.
        now = os.fstat(probe.fileno()).st_mtime
    lock = _acquire(directory)
    try:
        with suppress(OSError):
            holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
            Path(lock.lock_file).write_text(json.dumps(holder) + "\n", encoding="utf-8")
        remove_left_overs(directory, now)
        yield
    finally:
        # While it is still held: whoever opened the file before sees that it has no name any more, and starts over.
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def _acquire(directory: Path) -> FileLock:
    # A soft lock would outlive its owner, and everybody would wait for ever.
    lock = FileLock(directory.parent / f".{directory.name}.lock", fallback_to_soft=False, is_singleton=False)
    timeout, poll = FIRST_MESSAGE_SECONDS, POLL_SECONDS
    while True:
        try:
            lock.acquire(timeout=timeout, poll_interval=poll)
            return lock
        except Timeout:
            if may_speak_while_waiting():
                LOG.info("waiting for %s to finish %s", _holder(Path(lock.lock_file), directory), directory)
            timeout, poll = WAIT_MESSAGE_SECONDS, LONG_WAIT_POLL_SECONDS
        except OSError as error:
            if error.errno not in NO_LOCKS or Path(lock.lock_file).parent != directory.parent:
                raise
            # One writer a node, then: its own temporary folder has locks.
            place = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
            local = Path(tempfile.gettempdir()) / f"solar_plugins-{os.getuid()}-{place}.lock"
            if speaks_for_node():
                LOG.info("%s: no file locks there (%s); other computers are not waited for", directory.parent, error)
            lock = FileLock(local, fallback_to_soft=False, is_singleton=False)


def _holder(lock_file: Path, directory: Path) -> str:
    partials = partial_directories(directory)
    try:
        record = read_json_object(lock_file)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["since"]))
        who = f"process {int(record['pid'])} on {record['host']!s:.100}, at work since {since}"
        partials = [path for path in partials if f"-{int(record['pid'])}-" in path.name]
    except (CheckpointError, OSError, KeyError, TypeError, ValueError, OverflowError):
        who = "another process"
    written = sum(_disk_bytes(path) for path in partials)
    return f"{who} ({format_bytes(written)} written; if it is dead for certain, remove {lock_file})"


def _disk_bytes(directory: Path) -> int:
    """What a directory's files take on the disk; their sizes say less, because writers start in several places."""
    total = 0
    with suppress(OSError):
        for entry in os.scandir(directory):
            with suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


def new_partial_path(directory: Path) -> Path:
    """A name beside ``directory`` that tells whose it is: kernel and process namespace, process, its start."""
    owner = f"{_this_kernel()}-{os.getpid()}-{_process_start(os.getpid()) or 0}"
    return directory.parent / f".{directory.name}.partial-{owner}-{secrets.token_hex(4)}"


def partial_directories(directory: Path) -> list[Path]:
    """What writers of ``directory`` that are at work, or died, have beside it."""
    pattern = re.compile(re.escape(f".{directory.name}.partial-") + r"([0-9a-f]{8}-\d+-\d+-[0-9a-f]{8}|[a-z0-9_]{8})")
    return sorted(path for path in directory.parent.iterdir() if pattern.fullmatch(path.name))


def remove_left_overs(directory: Path, now: float | None = None) -> None:
    """Remove the partial directories of dead writers of ``directory``; with ``now``, also those long untouched."""
    for path in partial_directories(directory):
        if _owner_is_dead(path.name) or (now is not None and now - _last_change(path) > STALE_SECONDS):
            LOG.info("removing what an interrupted run left: %s", path)
            shutil.rmtree(path, ignore_errors=True)


def _owner_is_dead(name: str) -> bool:
    """Whether the owner of a partial directory is certainly dead. Of another kernel's processes we know nothing."""
    kernel, *owner = name.rpartition(".partial-")[2].split("-")
    if kernel != _this_kernel() or len(owner) != 3:
        return False
    pid, start = int(owner[0]), owner[1]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass  # Another user's; /proc may hide it.
    return _process_start(pid) not in (None, start)


def _last_change(path: Path) -> float:
    try:
        return max([path.stat().st_mtime, *(entry.stat().st_mtime for entry in os.scandir(path))])
    except OSError:
        return float("inf")  # Its owner is renaming or removing it right now.


@cache
def _this_kernel() -> str:
    """Names this boot of this machine and the namespace of our process numbers; a container has its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return hashlib.sha256(f"{boot}{os.stat('/proc/self/ns/pid').st_ino}".encode()).hexdigest()[:8]
    except OSError:
        return secrets.token_hex(4)  # Nobody can tell whether we live.


def _process_start(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; ``dead`` if it only waits for its parent, None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "dead" if fields[0] in "ZX" else fields[19]
