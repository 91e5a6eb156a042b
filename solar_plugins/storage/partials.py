"""Partial directories and files: named after the process that writes them, and removed once it is dead.

A writer fills ``.NAME.partial-OWNER`` beside NAME and renames it when it is whole. A lock cannot tell whether the owner
is alive, because on some clusters it holds for one node alone, or is missing. So the name does: a partial is removed
only when its owner is certainly dead, or when nothing in it has changed for `STALE_SECONDS`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path

from solar_plugins.logs import logger

LOG = logger("storage")

STALE_SECONDS = 3600.0
"""A live writer changes its partial every few seconds; a disk may hang for minutes."""


def new_partial_path(target: Path) -> Path:
    """A name beside ``target`` that tells whose it is: kernel and process namespace, process, its start."""
    owner = f"{_this_kernel()}-{os.getpid()}-{_process_start(os.getpid()) or 0}"
    return target.parent / f".{target.name}.partial-{owner}-{os.urandom(4).hex()}"


def partials_of(target: Path) -> list[Path]:
    """What writers of ``target`` that are at work, or died, have beside it."""
    pattern = re.compile(re.escape(f".{target.name}.partial-") + r"([0-9a-f]{8}-\d+-\d+-[0-9a-f]{8}|[a-z0-9_]{8})")
    return sorted(path for path in target.parent.iterdir() if pattern.fullmatch(path.name))


def remove_left_overs(target: Path, now: float | None = None) -> None:
    """Remove the partials of dead writers of ``target``; with ``now``, also those long untouched.

    Args:
        target: The final name.
        now: Seconds since the epoch by the file server's clock.
    """
    for path in partials_of(target):
        if _owner_is_dead(path.name) or (now is not None and now - _last_change(path) > STALE_SECONDS):
            LOG.info("removing what an interrupted run left: %s", path)
            remove(path)


def remove(path: Path) -> None:
    """Remove a directory, file or link as far as possible; what is not there is no error."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _owner_is_dead(name: str) -> bool:
    """Whether the owner of a partial is certainly dead. Of another kernel's processes we know nothing."""
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
        return max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")))
    except OSError:
        return float("inf")  # Its owner is renaming or removing it right now.


@cache
def _this_kernel() -> str:
    """Names this boot of this machine and the namespace of our process numbers; a container has its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return hashlib.sha256(f"{boot}{os.stat('/proc/self/ns/pid').st_ino}".encode()).hexdigest()[:8]
    except OSError:
        return os.urandom(4).hex()  # Nobody can tell whether we live.


def _process_start(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; ``dead`` if it only waits for its parent, None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "dead" if fields[0] in "ZX" else fields[19]
