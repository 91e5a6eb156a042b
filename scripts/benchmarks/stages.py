"""Every stage beside what users run today, and how its cost grows: writes docs/stages.json, stages.md and pictures.

    python scripts/benchmarks/stages.py rows FOLDER        # `axolotl preprocess`, about 20 minutes a round
    python scripts/benchmarks/stages.py encoding FOLDER    # the same without files and processes, a minute
    python scripts/benchmarks/stages.py files FOLDER       # `solar verify` beside cmp, `solar upscale --copy`
    python scripts/benchmarks/stages.py models FOLDER MODEL  # `sdpo-order`, `report` and `probe`
    python scripts/benchmarks/stages.py page

Each part appends its runs to docs/stages.json. The tools of a round run in random order.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import batched
from pathlib import Path
from typing import Any, NamedTuple

from bench_tables import Spread, spread
from checkpoints import DROP_LAYERS, hidden_for, make_base, result_bytes
from processes import machine, run_process, warm
from stage_rows import (
    ALPACA,
    AXOLOTL,
    OURS,
    TURNS,
    as_messages,
    differing_rows,
    encoders,
    prepared_rows,
    preprocess,
    rows_of,
    write_rows,
)
from stage_rows import (
    make_base as make_tokenizer,
)

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
SCRIPTS = Path(sys.executable).parent
ENCODED = {ALPACA: (300, 1_000, 3_000), TURNS: (100, 330, 1_000)}
ROWS = {ALPACA: (5_000, 16_000, 50_000), TURNS: (2_000, 6_500, 20_000)}
NOT_MEASURED = "-"
RESULT_BYTES = (0.35e9, 0.7e9, 1.4e9)


class Run(NamedTuple):
    """One run of a tool."""

    subject: str
    tool: str
    size: float
    round: int
    units: float
    """Rows, tokens or bytes."""
    seconds: float | None
    """None if the machine was busy in such a way that seconds say nothing."""
    cpu_seconds: float


def prepare_rows(
    folder: Path, kind: str, number: int, processes: int, round_number: int, alone: bool = False
) -> Iterator[Run]:
    """Both tools on the same rows: the entire process, its work on the dataset, and finding the result again.

    ``alone``: only ours, prepared once.
    """
    base, rows = folder / "base", folder / "rows"
    if not base.exists():
        make_tokenizer(base)
    shutil.rmtree(rows, ignore_errors=True)
    write_rows(rows, kind, number)
    kept: dict[str, Path] = {}
    for tool in [OURS] if alone else random.sample((OURS, AXOLOTL), 2):
        for again in (False,) if alone or processes > 1 else (False, True):
            found = preprocess(tool, kind, rows, base, processes, again)
            name = f"{kind}, {processes} process{'es' if processes > 1 else ''}"
            step = "found again" if again else "prepared"
            yield Run(f"{name}: {step}, entire process", tool, number, round_number, number, *found[:2])
            yield Run(f"{name}: {step}", tool, number, round_number, number, *found[2:])
        kept[tool] = folder / f"kept-{len(kept)}"
        shutil.rmtree(kept[tool], ignore_errors=True)
        kept[tool].mkdir()
        (rows / "prepared").rename(kept[tool] / "prepared")
    if alone:
        return
    different = differing_rows(*(prepared_rows(kept[tool]) for tool in (OURS, AXOLOTL)))
    yield Run(f"{kind}: rows that differ", OURS, number, round_number, different, 0.0, 0.0)


def encode_rows(folder: Path, kind: str, number: int, round_number: int, alone: bool) -> Iterator[Run]:
    """The encoding alone, in this process and in memory, in batches of 1000 as `datasets.map` makes them."""
    base = folder / "base"
    if not base.exists():
        make_tokenizer(base)
    ours, axolotls = encoders(kind, base)
    rows = list(rows_of(kind, number))
    tools = {OURS: (ours, rows)} | ({} if alone else {AXOLOTL: (axolotls, list(map(as_messages, rows)))})
    results = {}
    for tool in random.sample(list(tools), len(tools)):
        encode, given = tools[tool]
        begin, cpu = time.perf_counter(), time.process_time()
        results[tool] = [encode(batch) for batch in batched(given, 1000)]
        spent = time.perf_counter() - begin, time.process_time() - cpu
        yield Run(f"{kind}: ids and labels", tool, number, round_number, number, *spent)
    found = [
        [pair for batch in result for pair in zip(batch["input_ids"], batch["labels"], strict=True)]
        for result in results.values()
    ]
    different = sum(one != other for one, other in zip(found[0], found[-1], strict=True))
    if not alone:
        yield Run(f"{kind}: rows that differ", OURS, number, round_number, different, 0.0, 0.0)


def verify_and_copy(folder: Path, wanted: float, round_number: int, old: Path | None) -> Iterator[Run]:
    """`solar upscale --copy`, then `solar verify` and cmp of its result, warm. ``old`` has an older solar_plugins."""
    hidden = hidden_for(wanted)
    place, size = folder / f"hidden-{hidden}", result_bytes(hidden)
    base, out, copied, log = place / "base", place / "out", place / "copied", folder / "log"
    if not base.exists():
        make_base(base, hidden)
    shutil.rmtree(out, ignore_errors=True)
    upscale: list[str | Path] = [SCRIPTS / "solar", "upscale", base, out, "--drop-layers", str(DROP_LAYERS), "--copy"]
    usage = run_process(upscale, log)
    yield Run("solar upscale --copy", OURS, size, round_number, size, usage.seconds, usage.cpu_seconds)
    if not copied.exists():
        shutil.copytree(out, copied)
    module = "from solar_plugins.cli import solar; solar()"
    compare = f"for f in {out}/*; do cmp $f {copied}/$(basename $f) || exit 1; done"
    verify: list[str | Path] = [SCRIPTS / "solar", "verify", out, "--base", base]
    tools: dict[str, tuple[list[str | Path], dict[str, str]]] = {
        OURS: (verify, {}),
        "cmp": (["sh", "-c", compare], {}),
    }
    if old:
        tools["solar verify before"] = ([sys.executable, "-P", "-c", module, *verify[1:]], {"PYTHONPATH": str(old)})
    for tool in random.sample(list(tools), len(tools)):
        for directory in (base, out, copied):
            warm(directory)
        command, env = tools[tool]
        usage = run_process(command, log, env=env)
        yield Run("solar verify", tool, size, round_number, size, usage.seconds, usage.cpu_seconds)


def slope(runs: Sequence[Run]) -> Spread:
    """The exponent of CPU time by size: a least-squares fit of the logarithms, per round."""
    found = []
    for number in sorted({run.round for run in runs}):
        points = [(math.log(run.size), math.log(run.cpu_seconds)) for run in runs if run.round == number]
        if len({x for x, _ in points}) == 3:
            x_mean, y_mean = (sum(one) / len(points) for one in zip(*points, strict=True))
            top = sum((x - x_mean) * (y - y_mean) for x, y in points)
            found.append(top / sum((x - x_mean) ** 2 for x, _ in points))
    return spread(found)


def times_ours(runs: Sequence[Run], tool: str, field: str) -> str | Spread:
    """The tool's seconds, or CPU seconds, divided by ours in the same round."""
    ours = {run.round: getattr(run, field) for run in runs if run.tool == OURS}
    pairs = [(getattr(run, field), ours.get(run.round)) for run in runs if run.tool == tool]
    found = [one / mine for one, mine in pairs if one is not None and mine is not None]
    return spread(found) if found else NOT_MEASURED


def of(runs: Sequence[Run], *subjects: str) -> list[Run]:
    return [run for run in runs if run.subject in subjects]


def largest(runs: Sequence[Run]) -> list[Run]:
    """The runs of the largest size that every tool has."""
    tools = {run.tool for run in runs}
    sizes = [size for size in {run.size for run in runs} if {run.tool for run in runs if run.size == size} == tools]
    return [run for run in runs if run.size == max(sizes)]


def comparison(runs: Sequence[Run], subjects: Sequence[str], units: str) -> str:
    """A table with the tools of each subject at its largest size."""
    rate = f"{units} per CPU second"
    lines = [
        f"| | size | tool | rounds | CPU seconds | {rate} | CPU seconds, times ours | seconds | seconds, times ours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for subject in subjects:
        chosen = largest(of(runs, subject))
        for tool in dict.fromkeys(run.tool for run in sorted(chosen, key=lambda run: run.tool != OURS)):
            mine = [run for run in chosen if run.tool == tool]
            seconds = [run.seconds for run in mine if run.seconds is not None]
            scale = 1e9 if units == "GB" else 1
            cells = [
                subject,
                f"{mine[0].size / scale:,.3g}" if units == "GB" else f"{mine[0].size:,.0f}",
                tool,
                len(mine),
                spread(run.cpu_seconds for run in mine),
                spread(run.units / run.cpu_seconds / scale for run in mine),
                "1" if tool == OURS else times_ours(chosen, tool, "cpu_seconds"),
                spread(seconds) if seconds else NOT_MEASURED,
                ("1" if seconds else NOT_MEASURED) if tool == OURS else times_ours(chosen, tool, "seconds"),
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


GROWTH = {
    f"{ALPACA}: ids and labels": "rows",
    f"{TURNS}: ids and labels": "rows",
    "solar upscale --copy": "bytes of the result",
    "solar verify": "bytes of the result",
    "solar sdpo-order": "pairs",
    "solar report, held-out loss": "tokens",
    "solar probe": "layers of the base",
}
MODELS = ("solar sdpo-order", "solar report, held-out loss", "solar probe")


def growth(runs: Sequence[Run]) -> str:
    """A table with the CPU seconds at three sizes, and the exponent."""
    lines = ["| | tool | sizes | CPU seconds | exponent |", "|---|---|---|---|---|"]
    for subject, unit in GROWTH.items():
        chosen = of(runs, subject)
        for tool in dict.fromkeys(run.tool for run in sorted(chosen, key=lambda run: run.tool != OURS)):
            mine = [run for run in chosen if run.tool == tool]
            sizes = sorted({run.size for run in mine})
            if len(sizes) == 3:
                middle = [spread(run.cpu_seconds for run in mine if run.size == size).median for size in sizes]
                found = slope(mine)
                cells = ", ".join(f"{size:,.0f}" for size in sizes), ", ".join(f"{one:.2f}" for one in middle)
                lines.append(f"| {subject} | {tool} | {cells[0]} {unit} | {cells[1]} | {found} |")
    return "\n".join(lines)


def draw(runs: Sequence[Run], subjects: Sequence[str], path: Path) -> None:
    """Bars: how many times our CPU time each tool takes; the line is the range over rounds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from solar_plugins.report.picture import CALM, FONTS, GRID, INK, MUTED, PAPER, SEAM, save_picture

    bars: list[tuple[str, Spread]] = []
    for subject in subjects:
        chosen = largest(of(runs, subject))
        for tool in dict.fromkeys(run.tool for run in chosen if run.tool != OURS):
            found = times_ours(chosen, tool, "cpu_seconds")
            if isinstance(found, Spread):
                bars.append((f"{subject},\n{tool}", found))
    with rc_context({"font.sans-serif": FONTS, "font.size": 9, "text.color": INK, "axes.edgecolor": GRID}):
        figure = Figure(figsize=(7.0, 0.6 + 0.5 * len(bars)), facecolor=PAPER)
        axes = figure.subplots()
        figure.subplots_adjust(left=0.53, right=0.96, top=1 - 0.35 / (0.6 + 0.5 * len(bars)), bottom=0.16)
        for place, (_, found) in enumerate(reversed(bars)):
            axes.barh(place, found.median, color=CALM, height=0.55)
            axes.plot([found.low, found.high], [place, place], color=INK, lw=1.4)
        axes.axvline(1, color=SEAM, lw=1.8)
        axes.set_yticks(range(len(bars)), [name for name, _ in reversed(bars)])
        axes.set_title("CPU time, times ours (line: 1)", loc="left", fontsize=10, fontweight="bold")
        axes.grid(axis="x", color=GRID, lw=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=MUTED, length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        save_picture(figure, path)


def draw_growth(runs: Sequence[Run], path: Path) -> None:
    """CPU seconds by size on logarithmic axes, relative to the smallest size; dashes: proportional."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from solar_plugins.report.picture import FONTS, GRID, INK, MUTED, PAPER, SEAM, save_picture

    with rc_context({"font.sans-serif": FONTS, "font.size": 9, "text.color": INK, "axes.edgecolor": GRID}):
        figure = Figure(figsize=(7.0, 3.6), facecolor=PAPER)
        axes = figure.subplots()
        figure.subplots_adjust(left=0.07, right=0.64, top=0.9, bottom=0.13)
        for number, subject in enumerate(GROWTH):
            mine = [run for run in of(runs, subject) if run.tool == OURS]
            sizes = sorted({run.size for run in mine})
            if len(sizes) == 3:
                cpu = [spread(run.cpu_seconds for run in mine if run.size == size).median for size in sizes]
                x, y = [size / sizes[0] for size in sizes], [one / cpu[0] for one in cpu]
                axes.plot(
                    x, y, marker="os^Dv<>"[number], color=SEAM if subject in MODELS else MUTED, lw=1.4, label=subject
                )
        axes.plot([1, 10], [1, 10], "--", color=INK, lw=1, label="proportional")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_title("CPU time, times that of the smallest size", loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("size, times the smallest", color=MUTED)
        axes.grid(color=GRID, lw=0.8)
        axes.tick_params(colors=MUTED, length=0, which="both")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        save_picture(figure, path)


def write_page(output: Path) -> None:
    """The page and its pictures, from stages.json."""
    found = json.loads((output / "stages.json").read_text())
    runs = [Run(**run) for run in found["runs"]]
    kinds = (": ids and labels", "prepared", "prepared, entire process", "found again", "found again, entire process")
    rows = [
        subject
        for kind in kinds
        for subject in sorted({run.subject for run in runs})
        if subject.endswith(kind) and {run.tool for run in of(runs, subject)} == {OURS, AXOLOTL}
    ]
    page = (Path(__file__).parent / "stages_page.md").read_text()
    compared = sorted(runs, key=lambda run: run.size)
    differ = {run.subject.partition(":")[0]: run for run in compared if run.subject.endswith("rows that differ")}
    tables = {
        "rows": comparison(runs, rows, "rows"),
        "verify": comparison(runs, ["solar verify"], "GB"),
        "models": comparison(runs, MODELS, "tokens"),
        "growth": growth(runs),
        "machine": found["machine"],
        "differ": "; ".join(f"{kind}: {run.units:.0f} of {run.size:,.0f}" for kind, run in differ.items()),
    }
    for name, text in tables.items():
        page = page.replace("{" + name + "}", text)
    (output / "stages.md").write_text(page)
    draw(runs, rows, output / "stages-rows.png")
    draw(runs, ["solar verify"], output / "stages-verify.png")
    draw(runs, MODELS, output / "stages-models.png")
    draw_growth(runs, output / "stages-growth.png")


def measure_preparing(options: argparse.Namespace, number: int) -> Iterator[Run]:
    """One round of `axolotl preprocess`."""
    for processes in options.processes:
        for place in (2, 1, 0) if processes == 1 else (2,):
            for kind in random.sample((ALPACA, TURNS), 2):
                yield from prepare_rows(options.folder, kind, ROWS[kind][place], processes, number, alone=place < 2)


def measure_encoding(options: argparse.Namespace, number: int) -> Iterator[Run]:
    """One round of encoding in memory."""
    for kind, sizes in ENCODED.items():
        for size in sizes:
            yield from encode_rows(options.folder, kind, size, number, alone=size < sizes[-1])


def measure_files(options: argparse.Namespace, number: int) -> Iterator[Run]:
    """One round of `solar upscale --copy` and `solar verify`."""
    for wanted in RESULT_BYTES:
        yield from verify_and_copy(options.folder, wanted, number, options.old)


def measure_models(options: argparse.Namespace, number: int) -> Iterator[Run]:
    """One round of `sdpo-order`, `report` and `probe`."""
    lines = options.folder / f"runs-{number}.jsonl"
    command = [sys.executable, Path(__file__).parent / "stage_models.py", options.model, options.folder, lines]
    subprocess.run(command, check=True)
    yield from (Run(**json.loads(line) | {"round": number}) for line in lines.read_text().splitlines())


PARTS = {"rows": measure_preparing, "encoding": measure_encoding, "files": measure_files, "models": measure_models}


def described(folder: Path) -> str:
    """The machine in words."""
    host = machine(folder)
    packages = ", ".join(f"{name} {version(name)}" for name in ("axolotl", "transformers", "tokenizers", "torch"))
    return (
        f"{host['cpus']} CPUs, {host['memory_gib']} GiB, {host['file_system']}, Linux {host['kernel']}, Python "
        f"{host['python']}, {packages}"
    )


def add(run: Run, folder: Path, path: Path) -> None:
    """Append a run to the file."""
    host, runs = described(folder), list[dict[str, Any]]()
    if path.exists():
        host, runs = json.loads(path.read_text()).values()
    found = {"machine": host, "runs": [*runs, run._asdict()]}
    path.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*PARTS, "page"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60.0, help="do not start a measurement later")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--old", type=Path, help="a folder with an older solar_plugins, for `solar verify`")
    parser.add_argument("--output", type=Path, default=DOCS)
    options = parser.parse_args()
    if options.part == "page":
        write_page(options.output)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    for number in range(options.rounds):
        for run in PARTS[options.part](options, number):
            add(run, options.folder, options.output / "stages.json")
            print(f"{run.subject}, {run.tool}, {run.size:,.0f}: CPU {run.cpu_seconds:.2f} s", flush=True)
            if time.monotonic() > deadline:
                return


if __name__ == "__main__":
    main()
