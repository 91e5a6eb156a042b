"""Benchmark of `solar upscale` against mergekit-yaml and cp, and of Axolotl's start-up with and without the plugin.

    make bench            # or: .venv/bin/python scripts/benchmarks/bench.py --help

Creates random bfloat16 Mistral checkpoints with 32 layers and upscales them to 48. The tools run in turn, in random
order, as whole processes. Before each run dirty pages are flushed, and the tool's source is read into the page cache
("warm") or dropped from it ("cold"). cp copies a finished result, so it moves the same bytes. Every result is checked
for size, and once per size bit by bit against mergekit's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench_tables import OURS, Run, bench_table, copy_rate, estimate_table, spread
from checkpoints import (
    DROP_LAYERS,
    LAYERS,
    differing_tensors,
    hidden_for,
    make_base,
    make_many_tensors,
    result_bytes,
)
from processes import cool, machine, machine_text, run_process, sync, warm
from startup import OFFLINE, VARIANTS, measure_startup

from solar_plugins.storage.safetensors import COPY_THREADS

SCRIPTS = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]
MERGEKIT, MERGEKIT_DEFAULTS = "mergekit-yaml, best flags", "mergekit-yaml, defaults"
BEST_FLAGS = ("--out-shard-size", "1B", "--clone-tensors")
HEADER_ALLOWANCE = 1_000_000


class Size(NamedTuple):
    """A base of one size, with the folders that its runs use."""

    folder: Path
    result_bytes: int

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def copied(self) -> Path:
        """A finished result, which cp copies."""
        return self.folder / "copied"

    @property
    def out(self) -> Path:
        return self.folder / "out"


def prepare(folder: Path, wanted_bytes: float) -> Size:
    """Create a base whose upscaled result has about ``wanted_bytes``, and that result."""
    hidden = hidden_for(wanted_bytes)
    size = Size(folder / f"hidden-{hidden}", result_bytes(hidden))
    make_base(size.base, hidden)
    half = LAYERS - DROP_LAYERS
    sources = [{"sources": [{"model": str(size.base), "layer_range": [s, s + half]}]} for s in (0, DROP_LAYERS)]
    merge = {"slices": sources, "merge_method": "passthrough", "dtype": "bfloat16"}
    (size.folder / "merge.yml").write_text(json.dumps(merge))
    run_process(command_of(OURS, size)[0], size.folder / "log", env=OFFLINE)
    size.out.rename(size.copied)
    return size


def command_of(tool: str, size: Size) -> tuple[list[str | Path], Path]:
    """A tool's command, and the directory that it reads."""
    if tool == OURS:
        return [SCRIPTS / "solar", "upscale", size.base, size.out, "--drop-layers", str(DROP_LAYERS)], size.base
    if tool == "cp":
        return ["cp", "-r", size.copied, size.out], size.copied
    flags = BEST_FLAGS if tool == MERGEKIT else ()
    return [SCRIPTS / "mergekit-yaml", size.folder / "merge.yml", size.out, *flags], size.base


def measure(tool: str, size: Size, cache: str, number: int) -> Run:
    """One run; the result stays in ``size.out``."""
    command, source = command_of(tool, size)
    shutil.rmtree(size.out, ignore_errors=True)
    sync(size.folder)
    (warm if cache == "warm" else cool)(source)
    usage = run_process(command, size.folder / "log", env=OFFLINE)
    waited = sync(size.folder)
    found = sum(path.stat().st_size for path in size.out.glob("*.safetensors"))
    if not 0 <= found - size.result_bytes < HEADER_ALLOWANCE:
        raise RuntimeError(f"{tool}: wrote {found} bytes, expected {size.result_bytes} plus headers")
    return Run(tool, size.result_bytes, cache, number, usage.seconds, waited, usage.cpu_seconds, usage.peak_bytes)


def check_equal(size: Size) -> None:
    """Compare the result of the last run, which is mergekit's, with ours.

    Raises:
        RuntimeError: A tensor differs.
    """
    different = differing_tensors(size.copied, size.out)
    if different:
        raise RuntimeError(f"{len(different)} tensors differ from mergekit's, the first is {different[0]}")


def measure_tools(
    sizes: Sequence[Size], rounds: int, deadline: float, mergekit: bool, report: Callable[[Run], object]
) -> list[Run]:
    """All runs: ours, cp and mergekit with its best flags warm; ours and cp cold; the other mergekit runs once.

    A round that would probably end after ``deadline`` (as `time.monotonic`) is not started.
    """
    runs = []
    slow = [MERGEKIT, MERGEKIT_DEFAULTS] if mergekit else []
    longest = 0.0
    for number in range(rounds):
        begin = time.monotonic()
        if number and begin + longest > deadline:
            break
        for size in sizes:
            warm_runs = [(tool, "warm") for tool in (OURS, "cp", *(slow if number == 0 else slow[:1]))]
            cold_runs = [(tool, "cold") for tool in (OURS, "cp", *(slow[:1] if number == 0 else ()))]
            for tool, cache in random.sample(warm_runs, len(warm_runs)) + random.sample(cold_runs, len(cold_runs)):
                runs.append(measure(tool, size, cache, number))
                report(runs[-1])
                if number == 0 and tool in slow:
                    check_equal(size)
            shutil.rmtree(size.out)
        longest = max(longest, time.monotonic() - begin)
    order = [OURS, "cp", *slow]
    return sorted(runs, key=lambda run: order.index(run.tool))


def measure_many_tensors(folder: Path) -> dict[str, float]:
    """Time and memory of `solar upscale` on a base with as many tensors as the largest models have."""
    tensors = make_many_tensors(folder / "many")
    command = [SCRIPTS / "solar", "upscale", folder / "many", folder / "many-out", "--drop-layers", "15"]
    usage = run_process(command, folder / "log", env=OFFLINE)
    return {"tensors": tensors, "seconds": usage.seconds, "peak_bytes": usage.peak_bytes}


def startup_table(startup: dict[str, Any]) -> str:
    """Seconds and CPU seconds of the variants, and the plugin's share of them."""
    runs = startup["runs"]
    lines = [
        "| Axolotl loads a recipe | seconds | CPU seconds | CPU against no plugin, same round |",
        "|---|---|---|---|",
    ]
    without = [cpu for _, cpu in runs["no plugin"]]
    for name in VARIANTS:
        wall, cpu = ([run[i] for run in runs[name]] for i in (0, 1))
        shares = spread(100 * (mine / theirs - 1) for mine, theirs in zip(cpu, without, strict=True))
        share = "" if name == "no plugin" else f"{shares.median:+.1f} % ({shares.low:+.1f} to {shares.high:+.1f})"
        lines.append(f"| {name} | {spread(wall)} | {spread(cpu)} | {share} |")
    lines += [
        "",
        "| the plugin's part, timed inside the process | milliseconds | share of the process |",
        "|---|---|---|",
    ]
    whole = spread(wall for wall, _ in runs["no plugin"]).median
    texts = {
        "import": "importing the plugin",
        "plain": "`register`, recipe without a block",
        "block": "`register`, block, checkpoint cached",
    }
    for key, text in texts.items():
        inside = [run[key][0] for run in startup["inside"]]
        lines.append(f"| {text} | {spread(1000 * s for s in inside)} | {100 * spread(inside).median / whole:.2f} % |")
    return "\n".join(lines)


PAGE = """\
# Benchmark

Written by `make bench`, which measures or computes every number below. Machine: {machine}. Load average at the start
{load[0]:.1f}, at the end {load[1]:.1f}.

![Time and peak memory by size of the result](bench.png)

Random bfloat16 Mistral checkpoints with {layers} layers, upscaled by dus (m = {drop_layers}) to {new_layers}. Whole
processes in random order, {rounds} rounds (one for mergekit with a cold cache or with its defaults). Median (min to
max); ratios are taken within a round. Only `solar upscale` waits until its files are on disk; "until on disk" adds a
sync after each command. mergekit's best flags: `{flags}`. cp copies a finished result. Cold: the source was fsynced
and dropped from the page cache with POSIX_FADV_DONTNEED. Memory: ru_maxrss, which cannot show less than the launcher's
9 MB.

{table}
{checked}
Memory grows with the number of tensors, not with bytes: a base with the {many[tensors]:,} tensor names of DeepSeek-V3
(which stores each expert separately), but tiny tensors, took {many_peak:.0f} MB and {many[seconds]:.1f} s.
{startup}
## Large models, estimated

Not measured. Seconds = max(result / (rate of a core x threads), (bytes read + bytes written) / rate of the device).
Measured above: {core_rate:.2f} GB per second of CPU time; {threads} threads copy. Assumed: the device rates in the
table's header, shared by reads and writes; bfloat16; 1.5 times the layers.

{estimates}
"""
CHECKED = "\nIn the first round every tensor of every mergekit result was bit-identical to ours.\n"


def page(results: dict[str, Any]) -> str:
    """docs/bench.md."""
    host, runs = results["machine"], [Run(**run) for run in results["runs"]]
    startup, rate = results["startup"], copy_rate(runs)
    return PAGE.format(
        machine=machine_text(host),
        load=results["load"],
        layers=LAYERS,
        drop_layers=DROP_LAYERS,
        new_layers=2 * (LAYERS - DROP_LAYERS),
        rounds=results["rounds"],
        flags=" ".join(BEST_FLAGS),
        table=bench_table(runs),
        many=results["many_tensors"],
        many_peak=results["many_tensors"]["peak_bytes"] / 1e6,
        checked=CHECKED if results["mergekit"] else "",
        startup=f"\n## Axolotl's start-up\n\n{startup_table(startup)}\n" if startup else "",
        core_rate=rate / 1e9,
        threads=COPY_THREADS,
        estimates=estimate_table(rate, COPY_THREADS),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gigabytes", type=float, nargs="+", default=[1.0, 2.4, 4.6], help="sizes of the upscaled checkpoints"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=20.0, help="do not start a round that would end later")
    parser.add_argument("--startup-rounds", type=int, default=7, help="0 skips Axolotl")
    parser.add_argument("--no-mergekit", action="store_true")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="a folder on the disk to measure"
    )
    parser.add_argument(
        "--output", type=Path, default=REPOSITORY / "docs", help="folder for bench.json, bench.md, bench.png"
    )
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="solar-bench-", dir=options.folder))
    load, deadline = [os.getloadavg()[0]], time.monotonic() + 60 * options.minutes
    try:
        sizes = [prepare(folder, 1e9 * gigabytes) for gigabytes in options.gigabytes]
        startup = measure_startup(folder / "startup", options.startup_rounds) if options.startup_rounds else None
        runs = measure_tools(sizes, options.rounds, deadline, not options.no_mergekit, show)
        many = measure_many_tensors(folder)
        host = machine(folder)
    finally:
        shutil.rmtree(folder)
    load.append(os.getloadavg()[0])
    results = {
        "machine": host,
        "load": load,
        "rounds": 1 + max(run.round for run in runs),
        "mergekit": not options.no_mergekit,
        "many_tensors": many,
        "runs": [run._asdict() for run in runs],
        "startup": startup,
    }
    write(results, options.output)
    print(bench_table(runs))


def show(run: Run) -> None:
    print(
        f"{run.result_bytes / 1e9:.1f} GB {run.cache} round {run.round + 1}: {run.tool:26} {run.seconds:6.2f} s, "
        f"on disk {run.durable_seconds:6.2f} s, {run.peak_bytes / 1e6:5.0f} MB",
        flush=True,
    )


def write(results: dict[str, Any], output: Path) -> None:
    """Write the metrics, the page and the picture."""
    from drawing import draw  # loads matplotlib: only after everything is measured

    output.mkdir(parents=True, exist_ok=True)
    (output / "bench.json").write_text(json.dumps(results, indent=1) + "\n")
    (output / "bench.md").write_text(page(results))
    draw([Run(**run) for run in results["runs"]], output / "bench.png")


if __name__ == "__main__":
    main()
