"""One writer at a time for a directory: the lock, and who holds it.

The lock only saves work. On some clusters ``flock`` holds for one node alone, or is missing, so that two nodes write at
once. The result is right all the same: each writer fills a partial directory of its own (`partials.py`), and only one
of them can be renamed to the final name (`directories.py`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from solar_plugins.errors import CheckpointError
from solar_plugins.logs import logger, may_speak_while_waiting, speaks_for_node
from solar_plugins.storage.partials import partials_of, remove_left_overs
from solar_plugins.storage.untrusted import read_json_object
from solar_plugins.text import format_bytes

LOG = logger("storage")

FIRST_MESSAGE_SECONDS = 2.0
WAIT_MESSAGE_SECONDS = 30.0
POLL_SECONDS = 0.1
LONG_WAIT_POLL_SECONDS = 1.0
"""After the first message: a thousand ranks must not keep a shared file system busy while one of them writes."""

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
    partials = partials_of(directory)
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
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total
