"""What only a GPU can show: upscaling and loading at 7B, QLoRA, peak memory, tokens per second, and recovery.

    make gpu-check-data                          # first, where a package index is: the small model, and the text
    make gpu-check                               # all steps; writes docs/gpu/*.json, gpu.md and recovery.png
    python scripts/gpu_check/gpu_check.py recovery       # one step
    python scripts/gpu_check/gpu_check.py --tiny --output DIR  # a rehearsal at tiny size on a CPU, no result

One GPU of 80 GB, 40 GB of disk, 32 GB of memory. Each run's figures are kept as soon as it has ended. The same command
goes on where the last one stopped: finished steps and known runs are not measured again, unless with ``--again``. A
step that meets its limit of time leaves what it has. README.md beside this file says in which order to go where a GPU
is lent for half an hour, and how to bring everything to a machine without a network.
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
sys.path.insert(0, str(REPOSITORY / "scripts" / "benchmarks"))  # processes.py

from gpu_report import write_report  # noqa: E402
from gpu_runs import Check, Clock, OutOfTimeError, Results  # noqa: E402
from gpu_settings import DATA, GPU, TINY, Settings  # noqa: E402
from gpu_steps import STEPS  # noqa: E402
from gpu_texts import SOURCES, split, topic_documents, write_split  # noqa: E402

NO_GPU = """\
Error: torch sees no CUDA device, and this check measures on one. Run it on a machine with an NVIDIA GPU of 80 GB and a
torch that fits its driver (python -c 'import torch; print(torch.cuda.is_available())' prints True there). To rehearse
every step at tiny size on a CPU: python scripts/gpu_check/gpu_check.py --tiny --output DIR
"""
NO_DATA = "Error: {missing} is missing. Run make gpu-check-data first, where a package index can be reached\n"
PACKAGES = ("axolotl", "transformers", "torch", "peft", "bitsandbytes", "trl")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps and write the report; 1 if a run failed or time ran out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)}; default: all, in this order")
    parser.add_argument("--minutes", type=float, default=30.0, help="limit for each step (30)")
    parser.add_argument("--again", action="store_true", help="measure these steps anew")
    parser.add_argument("--tiny", action="store_true", help="rehearse on a CPU; needs --output")
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu"), help="checkpoints, logs, data (runs/gpu)")
    parser.add_argument("--output", type=Path, help="for the figures (docs/gpu)")
    options = parser.parse_args(arguments)
    for name in options.steps:
        if name not in STEPS:
            parser.error(f"{name!r} is no step; the steps are {', '.join(STEPS)}")
    if options.tiny and options.output is None:
        parser.error("--tiny measures nothing that belongs into docs/; give it a folder with --output")
    settings = TINY if options.tiny else GPU
    problem = _problem(settings, options.folder)
    if problem:
        print(problem, file=sys.stderr, end="")
        return 1
    if settings.tiny:
        _make_tiny_data(options.folder)
    output = options.output or REPOSITORY / "docs" / "gpu"
    whole = all([
        _run_step(name, settings, options.folder.resolve(), output, options.minutes, options.again)
        for name in options.steps or STEPS
    ])  # fmt: skip
    print(write_report(output).read_text())
    return 0 if whole else 1


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


def _run_step(name: str, settings: Settings, folder: Path, output: Path, minutes: float, again: bool) -> bool:
    """Run a step; whether it is finished now."""
    results = Results(output / f"{name}.json", again=again)
    sizes = _sizes(settings)
    if results.settings and {key: results.settings.get(key) for key in sizes} != sizes:
        print(f"{name}: {results.path} was measured with other sizes; --again measures anew, --output keeps both")
        return False
    if results.finished:
        print(f"{name}: known; --again measures anew")
        return True
    print(f"{name}:", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    results.settings = sizes | _described(folder)
    try:
        STEPS[name](Check(settings, folder, Clock(minutes), results))
    except OutOfTimeError:
        results.write()
        print(f"{name}: {minutes:g} minutes are over; the same command goes on from here", flush=True)
        return False
    results.finish()
    return results.finished


def _sizes(settings: Settings) -> dict[str, Any]:
    """The settings as JSON has them."""
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
