"""Directories that are whole or absent.

They are written under another name beside the final one, flushed to the disk, and renamed. A kill, a full disk or a
power failure at any moment leaves the final name as it was, or whole. What is left beside it is removed by the next
writer (`partials.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from solar_plugins.logs import logger
from solar_plugins.storage.files import sync
from solar_plugins.storage.lock import sole_writer
from solar_plugins.storage.partials import new_partial_path, remove, remove_left_overs

LOG = logger("storage")


def ensure_directory(
    directory: Path, fill: Callable[[Path], object], is_finished: Callable[[Path], bool], *, what: str
) -> bool:
    """Make a directory whose name stands for its content, unless it is finished. Other processes wait for it.

    A directory of that name that is not finished is damaged, and is made again.

    Args:
        directory: The final name.
        fill: As for `write_directory`.
        is_finished: As for `write_directory`.
        what: What it is, for messages: ``upscaled checkpoint``.

    Returns:
        Whether this process made it.

    Raises:
        OSError: It cannot be written, or ``is_finished`` cannot read it: that alone does not make it damaged.
    """
    if is_finished(directory):
        remove_left_overs(directory)
        return False
    with sole_writer(directory):
        if not is_finished(directory) and directory.exists():
            LOG.warning("%s: this %s is damaged or incomplete; it is made again", directory, what)
            _remove_damaged(directory, is_finished)
        return not is_finished(directory) and write_directory(directory, fill, is_finished)


def write_directory(
    directory: Path, fill: Callable[[Path], object], is_finished: Callable[[Path], bool], *, replace: bool = False
) -> bool:
    """Make a directory that is whole or absent. The caller holds `sole_writer` for it.

    Args:
        directory: The final name. What stands there must be absent or an empty directory, unless ``replace``.
        fill: Writes the content into the directory it is given. It need not flush anything.
        is_finished: Whether the directory it is given holds, whole, what ``fill`` writes.
        replace: What stands at the final name gives way once the new content is whole.

    Returns:
        False if another computer, which the lock did not reach, has finished it first; that copy then stays.

    Raises:
        OSError: It cannot be written. The final name is as it was.
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
    """The relative paths, with slashes, of all that is no folder. Links to folders are named, not followed.

    Raises:
        OSError: A folder cannot be read; `Path.rglob` would pass over it.
    """
    for folder, subfolders, names in os.walk(directory, onerror=_raise):
        links = [name for name in subfolders if Path(folder, name).is_symlink()]
        yield from (Path(folder, name).relative_to(directory).as_posix() for name in [*names, *links])


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
        LOG.info("another process finished %s first; its copy is used", directory)
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
        # Where locks do not reach other computers, one of them may have made it anew since we looked.
        damaged = not is_finished(aside)
    finally:
        if not damaged:
            with suppress(OSError):
                aside.rename(directory)
    remove(aside)


def _sync_tree(directory: Path) -> None:
    """Flush every file below a directory and every name in it, the directory itself last."""
    for folder, _, names in os.walk(directory, topdown=False, onerror=_raise):
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))


def _raise(error: OSError) -> None:
    raise error
