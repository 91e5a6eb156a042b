"""Single files, replaced whole; and what went wrong while something was written, in words for the user."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from solar_plugins.errors import SolarError
from solar_plugins.storage.partials import new_partial_path, remove, remove_left_overs


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole, or leave what stands there as it was. A link to a file stays a link.

    The name in the directory is not flushed: after a power failure it may be the old file, but not half of one.

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


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


FIXES = {
    errno.EIO: "A disk or file system failed (see dmesg): repair it and run again",
    errno.ESTALE: "The file server lost the file: run again",
}


@contextmanager
def write_errors_explained(
    path: Path, what: str, otherwise: str, error_class: Callable[[str], SolarError]
) -> Iterator[None]:
    """Turn an `OSError` of a writer into an error that a user can act on.

    Args:
        path: What was to be written.
        what: The same in words: ``upscaled checkpoint``.
        otherwise: What else the user can do: ``choose another place with solar.cache_dir``.
        error_class: The error to raise.
    """
    try:
        yield
    except OSError as error:
        said = " ".join(str(error.strerror or error).split())
        raise error_class(
            f"{path}: the {what} could not be written ({said}{f', {error.filename}' if error.filename else ''}); a "
            f"partial one is never used. {FIXES.get(error.errno or 0, 'Make room or give write permission')}, or "
            f"{otherwise}"
        ) from None
