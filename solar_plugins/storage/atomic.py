"""Files and directories that are either complete or absent, with one writer at a time.

A writer fills ``.NAME.partial-OWNER`` next to NAME, flushes it to disk and renames it. If the process is killed, the
disk is full or the power fails at any moment, NAME stays as it was, or is complete.

The lock only saves work. On some clusters ``flock`` works within one node only, or not at all, so two nodes may write
at once. The result is still correct: each writer has its own partial, and only one of them can be renamed to NAME.
For the same reason a lock cannot tell whether the owner of a partial is alive. Its name can: a partial is removed only
if its owner is certainly dead, or if nothing in it has changed for `STALE_SECONDS`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from solar_plugins.errors import CheckpointError, SolarError
from solar_plugins.logs import logger, may_speak_while_waiting, speaks_for_node
from solar_plugins.storage.untrusted import read_json_object
from solar_plugins.text import format_bytes

LOG = logger("storage")

STALE_SECONDS = 3600.0
"""A live writer changes its partial every few seconds, but a disk may hang for minutes."""

FIRST_MESSAGE_SECONDS = 2.0
WAIT_MESSAGE_SECONDS = 30.0
POLL_SECONDS = 0.1
LONG_WAIT_POLL_SECONDS = 1.0
"""After the first message: a thousand waiting ranks must not keep a shared file system busy."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

FIXES = {
    errno.EIO: "A disk or file system failed (see dmesg): repair it and run again",
    errno.ESTALE: "The file server lost the file: run again",
}


def write_file(path: Path, content: bytes) -> None:
    """Write a complete file, or leave the existing one unchanged. A link to a file stays a link.

    The directory entry is not flushed: after a power failure the old file may be back, but never a partial one.

    Raises:
        OSError: It cannot be written.
    """
    path = path.resolve()
    remove_left_overs(path)
    partial = new_partial_path(path)
    try:
        partial.write_bytes(content)
        sync(partial)
        partial.replace(path)
    finally:
        remove(partial)


def ensure_directory(
    directory: Path, fill: Callable[[Path], object], is_finished: Callable[[Path], bool], *, what: str
) -> bool:
    """Create a directory whose name identifies its content, unless it is finished. Other processes wait.

    If a directory of that name exists but is not finished, it is damaged and is created again.

    Args:
        directory: The final path.
        fill: As for `write_directory`.
        is_finished: As for `write_directory`.
        what: What it is, for messages: ``upscaled checkpoint``.

    Returns:
        Whether this process created it.

    Raises:
        OSError: It cannot be written, or ``is_finished`` cannot read it, which does not mean that it is damaged.
    """
    if is_finished(directory):
        remove_left_overs(directory)
        return False
    with sole_writer(directory):
        if not is_finished(directory) and directory.exists():
            LOG.warning("%s: this %s is damaged or incomplete; creating it again", directory, what)
            _remove_damaged(directory, is_finished)
        return not is_finished(directory) and write_directory(directory, fill, is_finished)


def write_directory(
    directory: Path, fill: Callable[[Path], object], is_finished: Callable[[Path], bool], *, replace: bool = False
) -> bool:
    """Create a complete directory, or none. The caller must hold `sole_writer` for it.

    Args:
        directory: The final path. It must not exist or be an empty directory, unless ``replace``.
        fill: Writes the content into the directory it is given. It need not flush anything.
        is_finished: Whether the directory it is given holds all that ``fill`` writes.
        replace: Replace what exists at the final path once the new content is complete.

    Returns:
        False if another node, which the lock did not reach, finished it first. Its directory is kept.

    Raises:
        OSError: It cannot be written. The final path is unchanged.
    """
    partial = new_partial_path(directory)
    try:
        partial.mkdir()
        fill(partial)
        _sync_tree(partial)
        return _place(partial, directory, is_finished, replace)
    finally:
        remove(partial)


def files_below(directory: Path) -> Iterator[str]:
    """The relative paths, with slashes, of everything except directories. Links to directories are not followed.

    Raises:
        OSError: A directory cannot be read; `Path.rglob` would skip it.
    """
    for folder, subfolders, names in os.walk(directory, onerror=_raise):
        links = [name for name in subfolders if Path(folder, name).is_symlink()]
        yield from (Path(folder, name).relative_to(directory).as_posix() for name in [*names, *links])


@contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Hold the lock for ``directory``. The kernel frees it when its owner dies, so a dead writer blocks nobody.

    While another process holds it, a message says which one, and how much it has written.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory.parent) as probe:
        # Fails at once where nothing can be written; acquiring the lock would be retried. The age of leftovers is
        # measured by the file server's clock.
        now = os.fstat(probe.fileno()).st_mtime
    lock = _acquire(directory)
    try:
        with suppress(OSError):
            holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
            Path(lock.lock_file).write_text(json.dumps(holder) + "\n", encoding="utf-8")
        remove_left_overs(directory, now)
        yield
    finally:
        # While the lock is held: a process that has opened the file sees that it was unlinked, and starts over.
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


@contextmanager
def write_errors_explained(
    path: Path, what: str, otherwise: str, error_class: Callable[[str], SolarError]
) -> Iterator[None]:
    """Turn an `OSError` of a writer into an error with a fix.

    Args:
        path: The file or directory to write.
        what: What it is: ``upscaled checkpoint``.
        otherwise: What else the user can do: ``choose another place with solar.cache_dir``.
        error_class: The error to raise.
    """
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        raise error_class(
            f"{path}: the {what} could not be written ({reason}{f', {error.filename}' if error.filename else ''}); a "
            f"partial one is never used. {FIXES.get(error.errno or 0, 'Free disk space or fix the permissions')}, or "
            f"{otherwise}"
        ) from None


def new_partial_path(target: Path) -> Path:
    """A name next to ``target`` that identifies its owner: kernel and process namespace, process id, start time."""
    owner = f"{_this_kernel()}-{os.getpid()}-{_process_start(os.getpid()) or 0}"
    return target.parent / f".{target.name}.partial-{owner}-{os.urandom(4).hex()}"


def partials_of(target: Path) -> list[Path]:
    """The partials of ``target``, of live and of dead writers."""
    pattern = re.compile(re.escape(f".{target.name}.partial-") + r"([0-9a-f]{8}-\d+-\d+-[0-9a-f]{8}|[a-z0-9_]{8})")
    return sorted(path for path in target.parent.iterdir() if pattern.fullmatch(path.name))


def remove_left_overs(target: Path, now: float | None = None) -> None:
    """Remove the partials of dead writers of ``target``; with ``now``, also stale ones.

    Args:
        target: The final path.
        now: Seconds since the epoch by the file server's clock.
    """
    for path in partials_of(target):
        if _owner_is_dead(path.name) or (now is not None and now - _last_change(path) > STALE_SECONDS):
            LOG.info("removing leftovers of an interrupted run: %s", path)
            remove(path)


def remove(path: Path) -> None:
    """Remove a directory, file or link as far as possible. It need not exist."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _place(partial: Path, directory: Path, is_finished: Callable[[Path], bool], replace: bool) -> bool:
    old = new_partial_path(directory)
    if replace and directory.exists() and not is_finished(directory):
        directory.rename(old)
    try:
        partial.rename(directory)
    except BaseException as error:
        with suppress(OSError):
            old.rename(directory)
        if not isinstance(error, OSError) or not is_finished(directory):
            raise
        LOG.info("another process finished %s first; using its copy", directory)
        remove(old)
        return False
    try:
        sync(directory.parent)
    finally:
        remove(old)
    return True


def _remove_damaged(directory: Path, is_finished: Callable[[Path], bool]) -> None:
    aside = new_partial_path(directory)
    directory.rename(aside)
    damaged = False
    try:
        # Where locks do not reach other nodes, one of them may have created it again in the meantime.
        damaged = not is_finished(aside)
    finally:
        if not damaged:
            with suppress(OSError):
                aside.rename(directory)
    remove(aside)


def _sync_tree(directory: Path) -> None:
    """Flush all files below a directory and all directory entries, bottom-up."""
    for folder, _, names in os.walk(directory, topdown=False, onerror=_raise):
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))


def _raise(error: OSError) -> None:
    raise error


def _acquire(directory: Path) -> FileLock:
    # A soft lock would outlive a dead owner, and all others would wait forever.
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
            # One writer per node instead: the node's own temporary directory supports locks.
            place = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
            local = Path(tempfile.gettempdir()) / f"solar_plugins-{os.getuid()}-{place}.lock"
            if speaks_for_node():
                LOG.info("%s: no file locks there (%s); not waiting for other nodes", directory.parent, error)
            lock = FileLock(local, fallback_to_soft=False, is_singleton=False)


def _holder(lock_file: Path, directory: Path) -> str:
    partials = partials_of(directory)
    try:
        record = read_json_object(lock_file)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["since"]))
        who = f"process {int(record['pid'])} on {record['host']!s:.100}, writing since {since}"
        partials = [path for path in partials if f"-{int(record['pid'])}-" in path.name]
    except (CheckpointError, OSError, KeyError, TypeError, ValueError, OverflowError):
        who = "another process"
    written = sum(_disk_bytes(path) for path in partials)
    return f"{who} ({format_bytes(written)} written; if you are sure that it is dead, remove {lock_file})"


def _disk_bytes(directory: Path) -> int:
    """Disk usage of a directory's files in bytes. File sizes would mislead: writers start at several offsets."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


def _owner_is_dead(name: str) -> bool:
    """Whether the owner of a partial is certainly dead. Processes of another kernel cannot be checked."""
    kernel, *owner = name.rpartition(".partial-")[2].split("-")
    if kernel != _this_kernel() or len(owner) != 3:
        return False
    pid, start = int(owner[0]), owner[1]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass  # Another user's process; /proc may hide it.
    return _process_start(pid) not in (None, start)


def _last_change(path: Path) -> float:
    try:
        return max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")))
    except OSError:
        return float("inf")  # Its owner is renaming or removing it right now.


@cache
def _this_kernel() -> str:
    """Identifies this boot of this machine and its process namespace; a container has its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return hashlib.sha256(f"{boot}{os.stat('/proc/self/ns/pid').st_ino}".encode()).hexdigest()[:8]
    except OSError:
        return os.urandom(4).hex()  # Unknown: no other process can tell whether this one is alive.


def _process_start(pid: int) -> str | None:
    """Start time of a process in kernel ticks; ``dead`` for a zombie, None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "dead" if fields[0] in "ZX" else fields[19]
