"""Share blocks between files instead of copying them, on file systems that can (XFS, Btrfs and others).

``FICLONERANGE`` (ioctl_ficlonerange(2)) makes a range of a file refer to the blocks of another one. A later write to
either file gets new blocks, so both keep their content. Only whole blocks can be shared: both offsets and the length
have to be multiples of the file system's block size.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

FICLONERANGE = 0x4020940D
"""On x86, Arm, RISC-V and s390. Elsewhere the number is unknown to the kernel, and the bytes are copied."""

CANNOT_SHARE = frozenset({
    *(errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EBADF),
    *(errno.ETXTBSY, errno.EISDIR, errno.EFBIG, errno.EMLINK),
})  # fmt: skip
"""Answers that say that these files cannot share blocks. A full or failing disk is not among them."""

COMMON_BLOCK = 4096
LARGEST_BLOCK = 1 << 16


class Sharing(NamedTuple):
    """Which files can share blocks with new files in a directory."""

    block: int
    """The block size in bytes; 0 if no file can."""
    files: frozenset[Path]


NONE = Sharing(0, frozenset())


def clone_range(source: int, source_start: int, target: int, target_start: int, num_bytes: int) -> bool:
    """Let a range of a file refer to the blocks of another file. False if these files cannot share blocks.

    Args:
        source: File descriptor to read from.
        source_start: Offset in bytes, a multiple of the block size.
        target: File descriptor to write to.
        target_start: Offset in bytes, a multiple of the block size.
        num_bytes: A multiple of the block size, greater than zero: zero would mean "to the end" to the kernel.

    Raises:
        OSError: The disk is full or failed.
    """
    try:
        fcntl.ioctl(target, FICLONERANGE, struct.pack("=qQQQ", source, source_start, num_bytes, target_start))
    except OSError as error:
        if error.errno not in CANNOT_SHARE:
            raise
        return False
    return True


def find_sharing(files: Iterable[Path], directory: Path) -> Sharing:
    """Try which files can share blocks with new files in a directory. One file is tried for each device.

    Args:
        files: Existing files.
        directory: Where to create new ones; a temporary file is written there.

    Raises:
        OSError: A file cannot be read, or the directory cannot be written.
    """
    by_device: dict[int, list[Path]] = {}
    for path in files:
        by_device.setdefault(path.stat().st_dev, []).append(path)
    blocks = {device: _block(max(paths, key=_size), directory) for device, paths in by_device.items()}
    block = max(blocks.values(), default=0)
    shared = [path for device, paths in by_device.items() if block and blocks[device] for path in paths]
    return Sharing(block, frozenset(shared))


def _size(path: Path) -> int:
    return path.stat().st_size


def _block(path: Path, directory: Path) -> int:
    """The block size with which a file can share; 0 if it cannot."""
    preferred = os.statvfs(directory).f_frsize
    with path.open("rb", buffering=0) as source, tempfile.TemporaryFile(dir=directory, buffering=0) as target:
        for block in dict.fromkeys((preferred, COMMON_BLOCK)):
            fits = 0 < block <= LARGEST_BLOCK and _size(path) >= block
            if fits and clone_range(source.fileno(), 0, target.fileno(), 0, block):
                return max(block, COMMON_BLOCK)
    return 0
