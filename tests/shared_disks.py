"""Disks that can share blocks, for tests that skip where none can be mounted."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from disks import SHARING, CannotMountError, mounted

__all__ = ["SHARING", "disk"]


@contextmanager
def disk(kind):
    """A small disk, in memory if possible; without it the test skips, and says what was not tested."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        context = mounted(kind, Path(folder))
        try:
            place = context.__enter__()
        except CannotMountError as error:
            pytest.skip(f"nothing was tested on {kind}: {error}")
        try:
            yield place
        finally:
            context.__exit__(None, None, None)
