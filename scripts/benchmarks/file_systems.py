"""`solar upscale` on several file systems: sharing blocks, copying, and beside cp, dd and mergekit.

    .venv/bin/python scripts/benchmarks/file_systems.py [--rounds 3] [--folder FOLDER]

Each file system is made in an image file inside FOLDER and mounted (tmpfs: in memory), which needs root. On those that
can share blocks, a base of 7B's size is upscaled too: how does the time grow with bytes that are not copied? All tools
run as whole processes in random order, with the source in the page cache and dirty pages flushed before.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench_tables import Spread, spread
from checkpoints import DROP_LAYERS, LAYERS, differing_tensors, make_base, result_bytes
from disks import SHARING, CannotMountError, mounted
from processes import run_process, sync, warm
from startup import OFFLINE

REPOSITORY = Path(__file__).parents[2]
OURS, COPY, WRITE = "solar upscale", "solar upscale --copy", "one sequential write, fsync"
CP, CP_REFLINK, MERGEKIT = "cp", "cp --reflink", "mergekit-yaml, best flags"
BEST_FLAGS = ("--out-shard-size", "1B", "--clone-tensors")
FILE_SYSTEMS = ("ext4", "xfs", "btrfs", "tmpfs")
SMALL, MEDIUM, LARGE = 1024, 1856, 4096
"""Widths: bases of 1.0, 3.1 and 14.5 GB; the last one is Mistral 7B's size."""
IMAGE_MEGABYTES = {SMALL: 8_000, MEDIUM: 16_000, LARGE: 24_000}


class FileSystemRun(NamedTuple):
    """One run of a process on a file system."""

    file_system: str
    hidden: int
    tool: str
    round: int
    seconds: float
    """Until the result is on disk."""
    new_bytes: int
    """Disk space that it took."""


def commands(folder: Path) -> dict[str, list[str | Path]]:
    """The tools' commands. Ours is first: cp, dd and the comparison read its result."""
    scripts, out = Path(sys.executable).parent, folder / "out"
    upscale = [scripts / "solar", "upscale", folder / "base", out, "--drop-layers", str(DROP_LAYERS)]
    copied = folder / "copied"
    dd = f"mkdir {out} && cat {copied}/*.safetensors | dd of={out}/all bs=1M iflag=fullblock conv=fsync status=none"
    return {
        OURS: upscale,
        COPY: [*upscale, "--copy"],
        WRITE: ["sh", "-c", dd],
        CP: ["cp", "-r", "--reflink=never", copied, out],
        CP_REFLINK: ["cp", "-r", "--reflink=always", copied, out],
        MERGEKIT: [scripts / "mergekit-yaml", folder / "merge.yml", out, *BEST_FLAGS],
    }


def prepare(folder: Path, hidden: int) -> None:
    """A base, mergekit's recipe for the same result, and that result."""
    make_base(folder / "base", hidden)
    half = LAYERS - DROP_LAYERS
    sources = [{"sources": [{"model": str(folder / "base"), "layer_range": [s, s + half]}]} for s in (0, DROP_LAYERS)]
    merge = {"slices": sources, "merge_method": "passthrough", "dtype": "bfloat16"}
    (folder / "merge.yml").write_text(json.dumps(merge))


def measure(kind: str, folder: Path, hidden: int, tools: Sequence[str], rounds: int) -> Iterator[FileSystemRun]:
    """All runs on a file system; mergekit's result is compared with ours tensor by tensor."""
    prepare(folder, hidden)
    every, log = commands(folder), folder.parent / "log"
    run_process(every[OURS], log, env=OFFLINE)
    (folder / "out").rename(folder / "copied")
    for number in range(rounds):
        for tool in random.sample(tools, len(tools)):
            shutil.rmtree(folder / "out", ignore_errors=True)
            sync(folder)
            warm(folder / "base" if tool in (OURS, COPY, MERGEKIT) else folder / "copied")
            before = shutil.disk_usage(folder).used
            seconds = run_process(every[tool], log, env=OFFLINE).seconds + sync(folder)
            yield FileSystemRun(kind, hidden, tool, number, seconds, shutil.disk_usage(folder).used - before)
            if tool == MERGEKIT and number == 0 and differing_tensors(folder / "copied", folder / "out"):
                raise RuntimeError(f"{kind}: mergekit's tensors differ from ours")
    shutil.rmtree(folder / "out")
    shutil.rmtree(folder / "copied")


def measure_file_systems(folder: Path, rounds: int, mergekit: bool) -> dict[str, Any]:
    """Runs on every file system that can be mounted, and why the others could not."""
    runs: list[FileSystemRun] = []
    missing: dict[str, str] = {}
    for kind in FILE_SYSTEMS:
        for hidden in (SMALL, MEDIUM, LARGE) if kind in SHARING else (MEDIUM,):
            tools = [OURS] if hidden != MEDIUM else [OURS, COPY, WRITE, CP, *([MERGEKIT] if mergekit else [])]
            tools += [CP_REFLINK] if kind in SHARING and hidden == MEDIUM else []
            place = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=folder))
            try:
                with mounted(kind, place, IMAGE_MEGABYTES[hidden]) as disk:
                    (disk / "bench").mkdir()
                    for run in measure(kind, disk / "bench", hidden, tools, rounds):
                        runs.append(run)
                        print(f"{kind} {result_bytes(hidden) / 1e9:.1f} GB {run.tool}: {run.seconds:.2f} s", flush=True)
            except CannotMountError as error:
                missing[kind] = str(error)
            finally:
                shutil.rmtree(place)
    return {"runs": [run._asdict() for run in runs], "missing": missing}


def ratio(runs: Sequence[FileSystemRun], tool: str, to: str) -> Spread:
    """The tool's seconds divided by another's in the same round."""
    other = {run.round: run.seconds for run in runs if run.tool == to}
    return spread(run.seconds / other[run.round] for run in runs if run.tool == tool)


def table(measured: dict[str, Any]) -> str:
    """The page's section."""
    runs = [FileSystemRun(**run) for run in measured["runs"]]
    lines = ["| file system | tool | seconds until on disk | times ours | new disk space |", "|---|---|---|---|---|"]
    for kind in dict.fromkeys(run.file_system for run in runs):
        chosen = [run for run in runs if (run.file_system, run.hidden) == (kind, MEDIUM)]
        for tool in dict.fromkeys(tool for tool in (OURS, COPY, WRITE, CP, CP_REFLINK, MERGEKIT)):
            mine = [run for run in chosen if run.tool == tool]
            if mine:
                space = max(run.new_bytes for run in mine) / 1e6
                seconds, times = spread(run.seconds for run in mine), ratio(chosen, tool, OURS)
                lines.append(f"| {kind} | {tool} | {seconds} | {times} | {space:,.0f} MB |")
    lines += ["", "| file system | base | seconds | times the smallest base's |", "|---|---|---|---|"]
    for kind in dict.fromkeys(run.file_system for run in runs if run.file_system in SHARING):
        ours = [run for run in runs if (run.file_system, run.tool) == (kind, OURS)]
        smallest = {run.round: run.seconds for run in ours if run.hidden == SMALL}
        for hidden in (SMALL, MEDIUM, LARGE):
            mine = [run for run in ours if run.hidden == hidden]
            seconds = spread(run.seconds for run in mine)
            times = spread(run.seconds / smallest[run.round] for run in mine)
            lines.append(f"| {kind} | {base_gigabytes(hidden):.1f} GB | {seconds} | {times} |")
    lines += [f"\n{kind} was not measured: {why}." for kind, why in measured["missing"].items()]
    return "\n".join(lines)


def base_gigabytes(hidden: int) -> float:
    """Size of the base's weights."""
    from checkpoints import layer_shapes, num_bytes, outer_shapes

    return (num_bytes(outer_shapes(hidden)) + LAYERS * num_bytes(layer_shapes(hidden))) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--no-mergekit", action="store_true")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "file-systems.json")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="solar-bench-", dir=options.folder))
    try:
        measured = measure_file_systems(folder, options.rounds, not options.no_mergekit)
    finally:
        shutil.rmtree(folder)
    options.output.write_text(json.dumps(measured, indent=1) + "\n")
    print(table(measured))


if __name__ == "__main__":
    main()
