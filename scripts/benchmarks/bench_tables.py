"""Tables from single runs: medians, ratios within a round, and estimates for large models. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

OURS = "solar upscale"


class Run(NamedTuple):
    """One run of a process."""

    tool: str
    result_bytes: int
    cache: str
    round: int
    seconds: float
    sync_seconds: float
    """Time of the `syncfs` afterwards; only then is the result on disk."""
    cpu_seconds: float
    peak_bytes: int

    @property
    def durable_seconds(self) -> float:
        return self.seconds + self.sync_seconds


class Spread(NamedTuple):
    """Median, minimum and maximum."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_digits(self.median)} ({_digits(self.low)} to {_digits(self.high)})"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values: Iterable[float]) -> Spread:
    found = list(values)
    return Spread(median(found), min(found), max(found))


def select(runs: Sequence[Run], tool: str, result_bytes: int, cache: str) -> list[Run]:
    return [run for run in runs if (run.tool, run.result_bytes, run.cache) == (tool, result_bytes, cache)]


def ratios(runs: Sequence[Run], tool: str, result_bytes: int, cache: str, durable: bool = False) -> Spread:
    """The tool's seconds divided by ours in the same round."""

    def seconds(run: Run) -> float:
        return run.durable_seconds if durable else run.seconds

    ours = {run.round: seconds(run) for run in select(runs, OURS, result_bytes, cache)}
    return spread(seconds(run) / ours[run.round] for run in select(runs, tool, result_bytes, cache))


def tools_of(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.tool for run in runs))


def bench_table(runs: Sequence[Run]) -> str:
    """A Markdown table with one block of rows per cache state and size."""
    lines = [
        "| cache | result | tool | seconds | times ours | until on disk, s | times ours | peak memory, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups = dict.fromkeys((run.cache, run.result_bytes) for run in runs)
    for cache, size in sorted(groups, key=lambda group: (group[0] != "warm", group[1])):
        for tool in tools_of(runs):
            chosen = select(runs, tool, size, cache)
            if chosen:
                cells = [
                    cache,
                    f"{size / 1e9:.1f} GB",
                    tool,
                    spread(run.seconds for run in chosen),
                    "1" if tool == OURS else ratios(runs, tool, size, cache),
                    spread(run.durable_seconds for run in chosen),
                    "1" if tool == OURS else ratios(runs, tool, size, cache, durable=True),
                    spread(run.peak_bytes / 1e6 for run in chosen),
                ]
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def short_table(runs: Sequence[Run]) -> str:
    """The table in fast-right-safe.md: medians of the warm runs, with ranges for ours and for the ratio to mergekit."""
    peer = "mergekit-yaml, best flags"
    lines = [
        "| size of the result | `solar upscale`, until on disk | `cp`, until on disk | `cp` alone "
        "| `mergekit-yaml`, best flags | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for size in sorted({run.result_bytes for run in runs}):
        ours, copy, theirs = (select(runs, tool, size, "warm") for tool in (OURS, "cp", peer))
        memory = [f"{max(run.peak_bytes for run in chosen) / 1e6:,.0f}" for chosen in (ours, copy, theirs)]
        cells = [
            f"{size / 1e9:.1f} GB",
            f"{spread(run.durable_seconds for run in ours)} s",
            f"{_digits(median(run.durable_seconds for run in copy))} s",
            f"{_digits(median(run.seconds for run in copy))} s",
            f"{_digits(median(run.seconds for run in theirs))} s, {ratios(runs, peer, size, 'warm')} times ours",
            f"{' / '.join(memory)} MB",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def copy_rate(runs: Sequence[Run]) -> float:
    """Bytes that we copy per second of CPU time: the median warm run at the largest size."""
    largest = max(run.result_bytes for run in runs)
    return largest / median(run.cpu_seconds for run in select(runs, OURS, largest, "warm"))


class Device(NamedTuple):
    """A disk with an assumed rate."""

    name: str
    bytes_per_second: float


DEVICES = (
    Device("one NVMe drive, 3 GB/s", 3e9),
    Device("parallel file system, 2 GB/s per client", 2e9),
    Device("parallel file system, 1 GB/s per client", 1e9),
)
LARGE_BASES = {"7B": 7e9, "70B": 70e9, "400B": 400e9}
ELEMENT_BYTES = 2
GROWTH = 1.5


def estimated_seconds(moved_bytes: float, core_rate: float, threads: int, device: Device) -> float:
    """The slower of device and cores: each byte is read from and written to the device once, and copied once by a core.

    Args:
        moved_bytes: Size of the result.
        core_rate: Bytes that a core copies per second.
        threads: Number of cores that copy.
        device: Reads and writes share its rate.
    """
    return max(moved_bytes / (core_rate * threads), 2 * moved_bytes / device.bytes_per_second)


def estimate_table(core_rate: float, threads: int) -> str:
    lines = [
        "| base | reads, writes | " + " | ".join(device.name for device in DEVICES) + " |",
        "|---|---|" + "---|" * len(DEVICES),
    ]
    for name, parameters in LARGE_BASES.items():
        moved = parameters * ELEMENT_BYTES * GROWTH
        times = [f"{estimated_seconds(moved, core_rate, threads, device):,.0f} s" for device in DEVICES]
        lines.append(f"| {name} | {moved / 1e9:,.0f} GB each | " + " | ".join(times) + " |")
    return "\n".join(lines)
