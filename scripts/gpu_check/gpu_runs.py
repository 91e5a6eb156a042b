"""Runs of the GPU check: one process per recipe with a time limit, and a JSON file with the metrics of each step."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import yaml
from gpu_settings import DATA, LARGE, Recipe, Settings
from processes import Usage, run_process  # scripts/benchmarks

HERE = Path(__file__).parent
SOLAR = (sys.executable, "-c", "from solar_plugins.cli import solar; solar()")
"""The command ``solar``, even if the package is not installed."""
TIMED_OUT = "exit status 124"
SHORTEST_RUN_SECONDS = 5.0


class OutOfTimeError(Exception):
    """The step reached its time limit. Its metrics are kept, and the same command resumes."""


class Clock:
    """The time limit of a step.

    Args:
        minutes: From now on.
    """

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.longest = SHORTEST_RUN_SECONDS

    def left(self) -> float:
        """Seconds that the next run may take.

        Raises:
            OutOfTimeError: Less time is left than the longest run took.
        """
        seconds = self.end - time.monotonic()
        if seconds < self.longest:
            raise OutOfTimeError
        return seconds

    def took(self, seconds: float) -> None:
        self.longest = max(self.longest, seconds)


class Results:
    """The metrics of a step. The file is rewritten after each run, with one line per run, so that nothing is lost.

    Threads may add runs at once.

    Args:
        path: The JSON file.
        again: Discard its contents.
    """

    def __init__(self, path: Path, *, again: bool) -> None:
        self.path = path
        known = json.loads(path.read_text()) if path.is_file() and not again else {}
        self.finished: bool = known.get("finished", False)
        self.settings: dict[str, Any] = known.get("settings", {})
        self.runs: dict[str, Any] = known.get("runs", {})
        self.failures: dict[str, str] = {}
        self.lock = RLock()

    def add(self, name: str, metrics: Mapping[str, Any]) -> None:
        with self.lock:
            self.runs[name] = dict(metrics)
            self.write()

    def fail(self, name: str, text: str) -> None:
        """Record why a run failed. A later call tries it again."""
        print(f"  {name}: FAILED; {text[-1500:]}", flush=True)
        with self.lock:
            self.failures[name] = text
            self.write()

    def finish(self) -> None:
        self.finished = not self.failures
        self.write()

    def write(self) -> None:
        head = {"finished": self.finished, "settings": self.settings, "failures": self.failures}
        runs = ",\n".join(f"  {json.dumps(name)}: {json.dumps(metrics)}" for name, metrics in self.runs.items())
        lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text("\n".join(["{", *lines, ' "runs": {', runs, " }", "}", ""]))
        partial.replace(self.path)


class Check(NamedTuple):
    """The context of a step.

    Args:
        settings: The sizes.
        folder: The work folder, absolute.
        clock: The step's time limit.
        results: Where its metrics go.
        at_once: Runs that share the GPU, where a step does not measure time.
    """

    settings: Settings
    folder: Path
    clock: Clock
    results: Results
    at_once: int = 1


def run_limited(command: Sequence[str | Path], folder: Path, name: str, clock: Clock, **env: str) -> Usage:
    """Run a command in the work folder; its output goes to ``logs/<name>.log``.

    Raises:
        OutOfTimeError: It was stopped at the limit.
        RuntimeError: It failed.
    """
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    # `timeout` ends the entire process group, including tokenizer workers.
    limited = ["timeout", "--kill-after=20", f"{clock.left():.0f}", *command]
    begin = time.monotonic()
    try:
        return run_process(limited, logs / f"{name}.log", folder, _environment() | env)
    except RuntimeError as error:
        if TIMED_OUT in str(error):
            raise OutOfTimeError from None
        raise
    finally:
        clock.took(time.monotonic() - begin)


def _environment() -> dict[str, str]:
    """No network, no telemetry, one GPU; this folder and the package on the path, even if it is not installed."""
    places = [str(HERE), str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1", "PYTHONPATH": os.pathsep.join(places)}
    # A single process would otherwise split each batch over all GPUs.
    return {"CUDA_VISIBLE_DEVICES": "0", **os.environ, **offline}


def train(
    folder: Path, name: str, recipe: Recipe, clock: Clock, *, hidden: str = "-", eval_every: int = 0
) -> dict[str, Any]:
    """Train a recipe with Axolotl, and return what gpu_metrics wrote, with the seconds of the process.

    Args:
        folder: The work folder.
        name: Of the run.
        recipe: Its ``output_dir`` is set here, and deleted afterwards.
        clock: The step's time limit.
        hidden: A distribution whose entry points are hidden from Axolotl.
        eval_every: Steps between evaluations on the held-out text; 0: never.

    Raises:
        OutOfTimeError: It was stopped at the limit.
        RuntimeError: It failed.
    """
    path = write_recipe(folder, name, recipe)
    metrics = folder / "metrics" / f"{name}.json"
    metrics.parent.mkdir(exist_ok=True)
    metrics.unlink(missing_ok=True)
    held_out = {"GPU_CHECK_HELD_OUT": str(folder / DATA), "GPU_CHECK_EVAL_EVERY": str(eval_every)} if eval_every else {}
    usage = run_limited(
        [sys.executable, HERE / "gpu_launch.py", hidden, path], folder, name, clock,
        GPU_CHECK_METRICS=str(metrics), GPU_CHECK_LAUNCHED=str(time.time()), **held_out,
    )  # fmt: skip
    shutil.rmtree(folder / output_dir(name), ignore_errors=True)
    return json.loads(metrics.read_text()) | {"process_seconds": usage.seconds}


def write_recipe(folder: Path, name: str, recipe: Recipe) -> Path:
    path = folder / "recipes" / f"{name}.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe | {"output_dir": output_dir(name)}, sort_keys=False))
    return path


def output_dir(name: str) -> str:
    return f"trained/{name}"


def estimated_memory(folder: Path, name: str, recipe: Recipe) -> dict[str, Any]:
    """The estimate of ``solar plan RECIPE --memory`` for one GPU: depth, peak, parts and notes."""
    path = write_recipe(folder, f"{name}-estimated", recipe)
    command = [*SOLAR, "plan", str(path), "--memory", "--gpus", "1", "--json"]
    answer = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"solar plan --memory: {answer.stderr}")
    report = json.loads(answer.stdout)
    return {
        "num_layers": report["num_layers"],
        "peak_bytes": report["peak_bytes"],
        "moments": report["moments"],
        "parts": {part["name"]: part["num_bytes"] for part in report["parts"]},
        "notes": report["notes"],
    }


def attempt(check: Check, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """The metrics of one run, saved immediately and not measured again; None if it failed."""
    if name in check.results.runs:
        return check.results.runs[name]
    print(f"  {name} ...", flush=True)
    try:
        metrics = measure()
    except RuntimeError as error:
        check.results.fail(name, str(error))
        return None
    check.results.add(name, metrics)
    return metrics


def attempt_all(check: Check, runs: Iterable[tuple[str, Callable[[], dict[str, Any]]]]) -> None:
    """Several runs, by name, of which ``check.at_once`` share the GPU. They start in the given order.

    Raises:
        OutOfTimeError: The limit was reached. Runs that had started are saved if they ended before it.
    """
    with ThreadPoolExecutor(check.at_once) as pool:
        for _ in pool.map(lambda run: attempt(check, *run), runs):
            pass


def make_base(check: Check) -> None:
    """Write the random checkpoint if it is missing."""
    done = check.folder / f"{LARGE}.checksums.json"
    if not done.is_file():
        config = check.folder / f"{LARGE}.config.json"
        config.write_text(json.dumps(check.settings.large_config))
        command = [sys.executable, HERE / "gpu_random_base.py", check.folder / LARGE, config]
        run_limited(command, check.folder, "random-base", check.clock)
