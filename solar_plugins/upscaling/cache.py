"""List and remove the upscaled checkpoints in the cache."""

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
    description: str
    """Its base and plan; or why it cannot be used."""


def cache_directory(cache_dir: Path | None) -> Path:
    """``cache_dir`` itself, or the default."""
    return (cache_dir.expanduser() if cache_dir else default_cache_dir()).absolute()


def cached_checkpoints(cache: Path) -> list[CachedCheckpoint]:
    """The checkpoints in the cache, newest first. None if the directory does not exist."""
    folders = [path for path in cache.glob(f"{CACHE_PREFIX}*") if path.is_dir() and not path.is_symlink()]
    return sorted(map(_described, folders), key=lambda one: one.made, reverse=True)


def _described(folder: Path) -> CachedCheckpoint:
    try:
        marker = read_marker(folder)
        revision = f"@{marker.base_revision[:12]}" if marker.base_revision else ""
        description = f"{marker.base_name}{revision}: {marker.plan}"
    except CheckpointError as error:
        description = f"not usable: {error}"
    sizes = [(folder / name).lstat().st_size for name in files_below(folder)]
    return CachedCheckpoint(folder.name, sum(sizes), datetime.fromtimestamp(folder.stat().st_mtime), description)


def remove_cached(cache: Path, name: str) -> int:
    """Remove a checkpoint from the cache and return its size in bytes. The next run of its recipe writes it again.

    Waits if another process is writing it.

    Args:
        cache: The cache.
        name: As in `cached_checkpoints`.

    Raises:
        ArgsError: The name does not exist.
        CheckpointError: A part of it cannot be removed.
    """
    found = {one.name: one for one in cached_checkpoints(cache)}
    if name not in found:
        raise ArgsError(f"{name}: not in {cache}; expected one of: {', '.join(found) or '(the cache is empty)'}")
    with sole_writer(cache / name):
        # Renamed first: a partly removed checkpoint must never be used.
        gone = (cache / name).rename(new_partial_path(cache / name))
        remove(gone)
    if gone.exists():
        raise CheckpointError(f"{gone}: a part of {name} could not be removed; fix its permissions and remove it")
    return found[name].num_bytes


def cache_lines(cache: Path) -> list[str]:
    """A line for each checkpoint, and a line with the total."""
    found = cached_checkpoints(cache)
    lines = [
        f"{one.name}  {format_bytes(one.num_bytes):>8}  {one.made:%Y-%m-%d %H:%M}  {one.description}" for one in found
    ]
    return [*lines, f"{cache}: {len(found)} checkpoints, {format_bytes(sum(one.num_bytes for one in found))}"]
