"""Disks of a chosen file system, mounted from an image file."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAKE = {
    "ext4": ["mkfs.ext4", "-q"],
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q"],
}
SHARING = ("xfs", "btrfs")
"""Those that can share blocks between files."""
TOOLS = "/usr/sbin:/sbin:/usr/bin:/bin"
SMALLEST_MEGABYTES = 320
"""mkfs.xfs wants more than 300. An image takes only the space of what is written to it."""


class CannotMountError(Exception):
    """A tool is missing, or mounting is not permitted."""


@contextmanager
def mounted(kind: str, folder: Path, megabytes: int = SMALLEST_MEGABYTES) -> Iterator[Path]:
    """Mount a new, empty file system inside ``folder``; its image is removed at the end.

    Args:
        kind: A key of `MAKE`, or ``tmpfs``.
        folder: An existing folder.
        megabytes: Its size.

    Raises:
        CannotMountError: It cannot be made or mounted here.
    """
    image, place = folder / f"{kind}.img", folder / kind
    place.mkdir()
    options = ["-o", "loop", str(image)] if kind != "tmpfs" else ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs"]
    try:
        if kind != "tmpfs":
            _make(kind, image, megabytes)
        answer = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True, check=False)
        if answer.returncode:
            raise CannotMountError(f"no permission to mount {kind}: {answer.stderr.strip()}")
        try:
            yield place
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
    finally:
        image.unlink(missing_ok=True)


def _make(kind: str, image: Path, megabytes: int) -> None:
    command = shutil.which(MAKE[kind][0], path=TOOLS)
    if command is None:
        raise CannotMountError(f"{MAKE[kind][0]} is not installed")
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run([command, *MAKE[kind][1:], str(image)], check=True, capture_output=True)
