"""What files hold, as a hash: two files of one size and one time may differ."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

from solar_plugins.logs import speaks_for_node

CHUNK_BYTES = 1_000_000
PROGRESS_BYTES = 1_000_000_000
"""From so many bytes on a progress bar is shown: hashing takes about a second for each."""

type FileStamp = tuple[int, int, int, int]
"""Device and number, size and last change of a file: whether it was touched while it was read."""


def stamps(paths: Iterable[str]) -> dict[str, FileStamp]:
    """The stamp of each file.

    Raises:
        OSError: One is gone.
    """
    found = {path: os.stat(path) for path in paths}
    # The time of the last change of the inode: unlike that of the content, nobody can set it.
    return {path: (one.st_dev, one.st_ino, one.st_size, one.st_ctime_ns) for path, one in found.items()}


def content_hashes(paths: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of each file's content, read a piece at a time.

    Raises:
        OSError: One cannot be read.
    """
    from tqdm import tqdm

    names = list(dict.fromkeys(paths))
    total = sum(os.stat(name).st_size for name in names)
    hashes = {}
    with tqdm(
        total=total,
        desc="Comparing files with what was made before",
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
                error.filename = error.filename or name  # A failed read does not say of which file.
                raise
            hashes[name] = digest.hexdigest()
    return hashes
