"""Time and peak memory of entire processes, and control of the page cache."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

LAUNCHER = """
import json, os, sys, time
log, *command = sys.argv[1:]
actions = [(os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), (os.POSIX_SPAWN_DUP2, 1, 2)]
begin = time.perf_counter()
process = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
_, status, usage = os.wait4(process, 0)
seconds = time.perf_counter() - begin
print(json.dumps([seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status)]))
"""
"""Starts a command and waits for it. It is a process of its own because on Linux a child inherits the peak memory of
its parent; this one has 9 MB."""

READ_BYTES = 8 << 20


class Usage(NamedTuple):
    """Resources that a process used."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def run_process(
    command: Sequence[str | Path], log: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Usage:
    """Run a command to its end; its output goes to ``log``.

    Raises:
        RuntimeError: It failed.
    """
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(log), *map(str, command)]
    environment = {**os.environ, **(env or {})}
    answer = subprocess.run(launcher, cwd=cwd, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    seconds, cpu_seconds, peak_bytes, exit_code = json.loads(answer.stdout)
    if exit_code != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit status {exit_code}\n{log.read_text()[-3000:]}")
    return Usage(seconds, cpu_seconds, peak_bytes)


def warm(directory: Path) -> None:
    """Read every file into the page cache."""
    buffer = bytearray(READ_BYTES)
    for path in directory.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def cool(directory: Path) -> None:
    """Drop every file from the page cache: fsync, then POSIX_FADV_DONTNEED."""
    for path in directory.iterdir():
        with path.open("rb", buffering=0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync(directory: Path) -> float:
    """Flush the file system's dirty pages to disk, and return the seconds that took."""
    begin = time.perf_counter()
    handle = os.open(directory, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle):
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(handle)
    return time.perf_counter() - begin


def machine(folder: Path) -> dict[str, Any]:
    """What the measurements ran on: CPUs, memory, the file system of ``folder``, versions."""
    kind = subprocess.run(
        ["findmnt", "-no", "FSTYPE", "--target", folder], capture_output=True, text=True, check=False
    ).stdout.strip()
    packages = ("solar_plugins", "mergekit", "axolotl", "torch", "safetensors")
    return {
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "file_system": kind,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def machine_text(host: Mapping[str, Any]) -> str:
    """The same in words."""
    packages = ", ".join(f"{name} {number}" for name, number in host["packages"].items())
    return (
        f"{host['cpus']} CPUs, {host['memory_gib']} GiB, {host['file_system']}, Linux {host['kernel']}, "
        f"Python {host['python']}, {packages}"
    )
