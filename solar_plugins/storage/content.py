"""Content hashes of files: files of equal size and time may still differ."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

from solar_plugins.logs import speaks_for_node

CHUNK_BYTES = 1_000_000
PROGRESS_BYTES = 1_000_000_000
"""Minimum total size for a progress bar; hashing takes about a second per gigabyte."""

type FileStamp = tuple[int, int, int, int]
"""Device, inode, size and change time of a file, to detect changes while it is read."""


def stamps(paths: Iterable[str]) -> dict[str, FileStamp]:
    """The stamp of each file.

    Raises:
        OSError: A file does not exist.
    """
    found = {path: os.stat(path) for path in paths}
    # The inode's change time: unlike the modification time, programs cannot set it.
    return {path: (one.st_dev, one.st_ino, one.st_size, one.st_ctime_ns) for path, one in found.items()}


def content_hashes(paths: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of each file's content, read in chunks.

    Raises:
        OSError: A file cannot be read.
    """
    from tqdm import tqdm

    names = list(dict.fromkeys(paths))
    total = sum(os.stat(name).st_size for name in names)
    hashes = {}
    with tqdm(
        total=total,
        desc="hashing input files",
        unit="B",
        unit_scale=True,
        unit_divisor=1000,
        mininterval=0.5,
        disable=total < PROGRESS_BYTES or not speaks_for_node(),
    ) as bar:
        for name in names:
            digest = hashlib.sha256()
            try:
                with open(name, "rb") as file:
                    while chunk := file.read(CHUNK_BYTES):
                        digest.update(chunk)
                        bar.update(len(chunk))
            except OSError as error:
                error.filename = error.filename or name  # A failed read does not say which file.
                raise
            hashes[name] = digest.hexdigest()
    return hashes
