"""`solar upscale` on several file systems: sharing blocks, copying, and beside cp, dd and mergekit.

    .venv/bin/python scripts/benchmarks/file_systems.py [--rounds 3] [--folder FOLDER]

Each file system is made in an image file inside FOLDER and mounted (tmpfs: in memory), which needs root. On those that
can share blocks, a base of 7B's size is upscaled too: how does the time grow with bytes that are not copied? All tools
run as whole processes in random order, with the source in the page cache and dirty pages flushed before. Writes
docs/sharing-blocks.json, .md and .png; needs 25 GB of disk and about 12 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from checkpoints import DROP_LAYERS, LAYERS, differing_tensors, make_base, result_bytes
from disks import SHARING, CannotMountError, mounted
from file_systems_page import (
    COPY,
    CP,
    CP_REFLINK,
    LARGE,
    MEDIUM,
    MERGEKIT,
    OURS,
    SMALL,
    WRITE,
    FileSystemRun,
    draw,
    page,
)
from processes import machine, run_process, sync, warm
from startup import OFFLINE

REPOSITORY = Path(__file__).parents[2]
BEST_FLAGS = ("--out-shard-size", "1B", "--clone-tensors")
FILE_SYSTEMS = ("ext4", "xfs", "btrfs", "tmpfs")
IMAGE_MEGABYTES = {SMALL: 8_000, MEDIUM: 16_000, LARGE: 24_000}


def commands(folder: Path) -> dict[str, list[str | Path]]:
    """The tools' commands. Ours is first: cp, dd and the comparison read its result."""
    scripts, out = Path(sys.executable).parent, folder / "out"
    upscale = [scripts / "solar", "upscale", folder / "base", out, "--drop-layers", str(DROP_LAYERS)]
    copied = folder / "copied"
    # Not through a pipe, which would copy every byte twice.
    one = f'dd if="$f" of={out}/all bs=16M oflag=append conv=notrunc status=none'
    dd = f"mkdir {out} && for f in {copied}/*.safetensors; do {one}; done && sync {out}/all"
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
    load = round(os.getloadavg()[1], 1)
    return {"machine": machine(folder), "load": load, "runs": [run._asdict() for run in runs], "missing": missing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--no-mergekit", action="store_true")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "sharing-blocks")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="solar-bench-", dir=options.folder))
    try:
        measured = measure_file_systems(folder, options.rounds, not options.no_mergekit)
    finally:
        shutil.rmtree(folder)
    options.output.with_suffix(".json").write_text(json.dumps(measured, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(page(measured))
    draw([FileSystemRun(**run) for run in measured["runs"]], options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
