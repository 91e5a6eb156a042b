"""The upscaled checkpoints that recipes have left in the cache: which there are, and their removal."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from solar_plugins.errors import ArgsError, CheckpointError
from solar_plugins.storage.atomic import files_below, new_partial_path, remove, sole_writer
from solar_plugins.text import format_bytes
from solar_plugins.upscaling.checkpoint import CACHE_PREFIX, default_cache_dir
from solar_plugins.upscaling.marker import read_marker


class CachedCheckpoint(NamedTuple):
    """A checkpoint in the cache."""

    name: str
    num_bytes: int
    made: datetime
    words: str
    """Its base and plan; or why it is not used."""


def cache_directory(cache_dir: Path | None) -> Path:
    """``cache_dir`` itself, or the default."""
    return (cache_dir.expanduser() if cache_dir else default_cache_dir()).absolute()


def cached_checkpoints(cache: Path) -> list[CachedCheckpoint]:
    """What lies in the cache, newest first. A folder that does not exist is empty."""
    folders = [path for path in cache.glob(f"{CACHE_PREFIX}*") if path.is_dir() and not path.is_symlink()]
    return sorted(map(_described, folders), key=lambda one: one.made, reverse=True)


def _described(folder: Path) -> CachedCheckpoint:
    try:
        marker = read_marker(folder)
        words = f"{marker.base_name}{f'@{marker.base_revision[:12]}' if marker.base_revision else ''}: {marker.plan}"
    except CheckpointError as error:
        words = f"not used: {error}"
    sizes = [(folder / name).lstat().st_size for name in files_below(folder)]
    return CachedCheckpoint(folder.name, sum(sizes), datetime.fromtimestamp(folder.stat().st_mtime), words)


def remove_cached(cache: Path, name: str) -> int:
    """Remove a checkpoint from the cache, and return its bytes. The next run of its recipe makes it again.

    Waits for whoever is writing it.

    Args:
        cache: The cache.
        name: As `cached_checkpoints` lists it.

    Raises:
        ArgsError: There is none of that name.
        CheckpointError: A part of it cannot be removed.
    """
    found = {one.name: one for one in cached_checkpoints(cache)}
    if name not in found:
        raise ArgsError(f"{name}: not in {cache}; there: {', '.join(found) or 'nothing'}")
    with sole_writer(cache / name):
        # Renamed first: half of it must never be taken for the whole.
        gone = (cache / name).rename(new_partial_path(cache / name))
        remove(gone)
    if gone.exists():
        raise CheckpointError(f"{gone}: a part of {name} could not be removed; look at its permissions, and remove it")
    return found[name].num_bytes


def cache_lines(cache: Path) -> list[str]:
    """A line for each checkpoint, and their sum."""
    found = cached_checkpoints(cache)
    lines = [f"{one.name}  {format_bytes(one.num_bytes):>8}  {one.made:%Y-%m-%d %H:%M}  {one.words}" for one in found]
    return [*lines, f"{cache}: {len(found)} checkpoints, {format_bytes(sum(one.num_bytes for one in found))}"]
