"""`solar mix` with decontamination next to datatrove's n-gram filter and lm-eval's Janitor: docs/decontamination.md.

    .venv/bin/python scripts/benchmarks/decontamination.py                       # the page, from its JSON file
    .venv/bin/python scripts/benchmarks/decontamination.py --measure PYTHON      # measures that first: minutes

PYTHON is the interpreter of an environment with datatrove (and spacy, xxhash below 4, humanize, loguru) and lm_eval.
Rows and questions: `decontamination_rows.py`. All tools run as whole processes in random order.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from itertools import islice
from math import log
from pathlib import Path
from statistics import linear_regression, median
from typing import Any, NamedTuple

import yaml
from bench import REPOSITORY
from bench_tables import Spread, spread
from decontamination_rows import CLEAN, KINDS, PLANTED_PER_KIND, N, write_rows
from processes import Usage, run_process

from solar_plugins.report.picture import CALM, FONTS, GRID, INK, MUTED, PAPER, SEAM, save_picture

DOCS, HERE = REPOSITORY / "docs", Path(__file__).parent
STORED = DOCS / "decontamination.json"
ROWS, PEER_ROWS, FEW_ROWS = 100_000, 4_000, 400
SIZES = (25_000, 100_000, 400_000)
OURS, DATATROVE, JANITOR = "solar mix", "datatrove", "lm-eval Janitor"
TOOLS = (OURS, JANITOR, DATATROVE)
PROCESSES = {OURS: (1, 2), JANITOR: (1,), DATATROVE: (1,)}
DECON_SECONDS_PER_DOCUMENT, DECON_DOCUMENTS, DECON_SECONDS, DECON_BYTES = 34e-6, 5_162_084, 175.69, 30e9
"""allenai/decon's README: "34 µs/doc" in a run over a 30 GB dataset; it does not say how many cores ran."""
MANY_ROWS, MANY_WORKERS, MACHINES = 1e9, 8, 16
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


class MixRun(NamedTuple):
    """One run of a tool."""

    tool: str
    processes: int
    rows: int
    round: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    """Of the largest process."""


def mixture(folder: Path, paths: Sequence[Path], output: str) -> Path:
    """Write a mixture file."""
    content = {
        "output": str(folder / output),
        "sets": {"rows": {"path": [str(path) for path in paths], "text_columns": "text"}},
        "decontaminate": {"ngram": N, "against": [{"path": str(folder / "bench.jsonl"), "columns": "question"}]},
    }
    path = folder / f"{output}.yml"
    path.write_text(yaml.safe_dump(content))
    return path


def solar_mix(folder: Path, paths: Sequence[Path], *options: str) -> tuple[Usage, list[int]]:
    """Build a mixture; also the indices of the rows that were dropped."""
    recipe, made = mixture(folder, paths, "made"), folder / "made"
    if "--part" not in options:
        shutil.rmtree(made, ignore_errors=True)
    solar = Path(sys.executable).parent / "solar"
    usage = run_process([solar, "mix", recipe, *options], folder / "log")
    if "--part" in options:
        return usage, []
    dropped = (json.loads(line) for line in (made / "dropped.jsonl").read_text(encoding="utf-8").splitlines())
    return usage, [one["row"] - 1 for one in dropped]


def peer(python: str, tool: str, folder: Path, processes: int, cpp: str | None = None) -> tuple[Usage, dict[str, Any]]:
    """Run a peer over the rows in ``folder``."""
    out = folder / "peer"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    name = {DATATROVE: "datatrove", JANITOR: "janitor C++" if cpp else "janitor"}[tool]
    script: list[str | Path] = [
        python,
        HERE / "decontamination_peers.py",
        name,
        folder,
        str(processes),
        str(PEER_ROWS),
        out / "found",
    ]
    usage = run_process(script, folder / "log", env=OFFLINE | ({"PYTHONPATH": cpp} if cpp else {}))
    return usage, json.loads((out / "found").read_text())


def measure(python: str, cpp: str | None, rounds: int, folder: Path) -> dict[str, Any]:
    """Everything that the page shows."""
    began = os.getloadavg()
    large, small, few = folder / "large", folder / "small", folder / "few"
    large.mkdir()
    write_rows(large, ROWS)
    for one, rows in ((small, PEER_ROWS), (few, FEW_ROWS)):
        first_rows(large, one, rows)
    runs, dropped = list[MixRun](), dict[str, list[int]]()
    for number in range(rounds):
        tasks = [(tool, processes, small) for tool in TOOLS for processes in PROCESSES[tool]]
        tasks += [(OURS, processes, large) for processes in PROCESSES[OURS]]
        tasks += [(tool, 1, few) for tool in TOOLS]
        for tool, processes, where in random.sample(tasks, len(tasks)):
            if tool == OURS:
                usage, found = solar_mix(where, [where / "rows.jsonl"], "--processes", str(processes))
            else:
                usage, answer = peer(python, tool, where, processes)
                found = answer["dropped"]
            rows = {few: FEW_ROWS, small: PEER_ROWS, large: ROWS}[where]
            runs.append(MixRun(tool, processes, rows, number, *usage))
            print(runs[-1], len(found), flush=True)
            if where == small and dropped.setdefault(tool, found) != found:
                raise RuntimeError(f"{tool}: another result with {processes} processes")
    kinds = json.loads((large / "kinds.json").read_text())[:PEER_ROWS]
    found_cpp = peer(python, JANITOR, small, 1, cpp)[1] if cpp else None
    growth, parts = grow(large)
    return {
        "machine": machine(),
        "load": [began[0], os.getloadavg()[0]],
        "row_bytes": (large / "rows.jsonl").stat().st_size / ROWS,
        "runs": runs,
        "agreement": agreement(kinds, dropped),
        "janitor_cpp": {name: len(rows) for name, rows in found_cpp.items()} if found_cpp else None,
        "growth": growth,
        "parts": parts,
    }


def first_rows(large: Path, folder: Path, rows: int) -> None:
    """Copy the first rows and all questions."""
    (folder / "shards").mkdir(parents=True)
    with (large / "rows.jsonl").open(encoding="utf-8") as file:
        lines = "".join(islice(file, rows))
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    (folder / "shards" / "rows.jsonl").write_text(lines, encoding="utf-8")  # datatrove reads a folder.
    shutil.copy(large / "bench.jsonl", folder)


def grow(folder: Path) -> tuple[list[MixRun], dict[str, Any]]:
    """Our runs by size, and the time of filtering and of joining at the middle size."""
    halves, paths = SIZES[0], list[Path]()
    lines = (folder / "rows.jsonl").read_bytes().splitlines(keepends=True)
    for at in range(0, ROWS, halves):
        paths.append(folder / f"{at}.jsonl")
        paths[-1].write_bytes(b"".join(lines[at : at + halves]))
    repeated = [folder / f"{at}-{path.name}" for at in range(SIZES[-1] // ROWS) for path in paths]
    for at, path in enumerate(repeated):
        path.symlink_to(paths[at % len(paths)])
    found = []
    for rows in SIZES:
        usage, _ = solar_mix(folder, repeated[: rows // halves], "--processes", "2")
        found.append(MixRun(OURS, 2, rows, 0, *usage))
        print(found[-1], flush=True)
    some = repeated[: SIZES[1] // halves]
    shutil.rmtree(folder / "made")
    filtering, _ = solar_mix(folder, some, "--processes", "1", "--part", "0/1")
    joining, _ = solar_mix(folder, some)
    return found, {"rows": SIZES[1], "filtering": filtering, "joining": joining}


def agreement(kinds: Sequence[str], dropped: dict[str, list[int]]) -> dict[str, dict[str, int]]:
    """By kind of row: how many rows there are, and how many each tool dropped."""
    found = {kind: {"rows": kinds.count(kind), **dict.fromkeys(TOOLS, 0)} for kind in [*KINDS, CLEAN]}
    for tool, rows in dropped.items():
        for row in rows:
            found[kinds[row]][tool] += 1
    return found


def machine() -> str:
    names = ("solar_plugins",)
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}, {packages}"


def chosen(runs: Sequence[MixRun], tool: str, processes: int, rows: int = PEER_ROWS) -> list[MixRun]:
    """The runs of one kind, by round."""
    found = [run for run in runs if (run.tool, run.processes, run.rows) == (tool, processes, rows)]
    return sorted(found, key=lambda run: run.round)


def row_microseconds(runs: Sequence[MixRun], tool: str) -> dict[int, float]:
    """By round: CPU time of a further row, without start-up and index. From few rows to many, one process."""
    most = ROWS if tool == OURS else PEER_ROWS
    pairs = zip(chosen(runs, tool, 1, FEW_ROWS), chosen(runs, tool, 1, most), strict=True)
    return {few.round: (many.cpu_seconds - few.cpu_seconds) / (most - FEW_ROWS) * 1e6 for few, many in pairs}


def exponent(growth: Sequence[MixRun]) -> float:
    """Of the fitted power: CPU seconds = a x rows ** exponent."""
    return linear_regression([log(run.rows) for run in growth], [log(run.cpu_seconds) for run in growth]).slope


def speed_table(runs: Sequence[MixRun]) -> str:
    """Entire processes of all tools."""
    lines = [
        "| tool | processes | rows | rows per second | rows per CPU second | memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    kinds = [(OURS, one, ROWS) for one in PROCESSES[OURS]]
    kinds += [(tool, one, PEER_ROWS) for tool in TOOLS for one in PROCESSES[tool]]
    for tool, processes, rows in kinds:
        found = chosen(runs, tool, processes, rows)
        wall, cpu = (spread(run.rows / getattr(run, name) for run in found) for name in ("seconds", "cpu_seconds"))
        memory = spread(run.peak_bytes / 1e6 for run in found)
        lines.append(f"| {tool} | {processes} | {rows:,} | {wall} | {cpu} | {memory} |")
    return "\n".join(lines)


def row_table(runs: Sequence[MixRun]) -> str:
    """CPU time of a further row, and the ratios within a round."""
    lines = ["| tool | CPU time of a further row, us | times ours |", "|---|---|---|"]
    ours = row_microseconds(runs, OURS)
    for tool in TOOLS:
        found = row_microseconds(runs, tool)
        times: Spread | str = spread(value / ours[at] for at, value in found.items()) if tool != OURS else "1"
        lines.append(f"| {tool} | {spread(found.values())} | {times} |")
    return "\n".join(lines)


REASONS = {
    "case, punctuation": "Janitor: a word of only punctuation counts as one of 13 in a row, but not in a question",
    "12 words": "the passage around them is the match",
    "HTML entities": "only ours decodes entities",
    "line-end hyphens": "only ours joins a word that was divided at the end of a line",
    "typography": "Janitor does not apply NFKC",
    "invisible characters": "only ours removes soft hyphens and zero-width characters",
    "hyphens for spaces": "datatrove separates words at a hyphen. Ours and Janitor's delete it, so that `well-known` "
    "equals `wellknown`: **missed by ours**",
    "accents": "datatrove removes accents. To ours `é` is another letter than `e`: **missed by ours**",
    "other numbers": "datatrove replaces all numbers by 0: another problem counts as the same one",
    "short, inside": "a question of fewer than 13 words has no n-gram; only ours searches for the entire question",
    "short, entire": "the same; ours requires that it is the entire row",
    "Chinese": "ours treats a character as a word. datatrove has tokenizers for other languages, and a pipeline uses "
    "one for all rows",
    CLEAN: "sentences that the library repeats. Only ours: questions of 8 to 12 words that a row contains entirely. "
    "Only datatrove: all numbers are 0, or 13 of its words are fewer of ours, since it separates `os.path` into two. "
    "Not Janitor: words of only punctuation, as above",
}
"""By kind of row, why the tools may differ."""


def agreement_table(found: dict[str, dict[str, int]]) -> str:
    lines = [f"| planted | rows | {' | '.join(TOOLS)} | why they differ |", "|---|---|" + "---|" * len(TOOLS) + "---|"]
    for kind, counts in found.items():
        meaning = KINDS[kind].meaning if kind in KINDS else "nothing planted"
        cells = " | ".join(f"{counts[tool]:,}" for tool in TOOLS)
        reason = REASONS.get(kind, "") if len({counts[tool] for tool in TOOLS}) > 1 else ""
        lines.append(f"| {kind}: {meaning} | {counts['rows']:,} | {cells} | {reason} |")
    return "\n".join(lines)


def on_paper(stored: dict[str, Any]) -> dict[str, float]:
    """Microseconds per row of filtering and of joining, without start-up and index, and the hours for `MANY_ROWS`."""
    growth, parts = [MixRun(*run) for run in stored["growth"]], stored["parts"]
    fixed = linear_regression([run.rows for run in growth], [run.cpu_seconds for run in growth]).intercept
    filtering, joining = (
        (Usage(*parts[name]).cpu_seconds - fixed) / parts["rows"] * 1e6 for name in ("filtering", "joining")
    )
    filter_hours, join_hours = (MANY_ROWS * one / 1e6 / 3600 for one in (filtering, joining))
    return {
        "fixed": fixed,
        "filter_us": filtering,
        "join_us": joining,
        "filter": filter_hours,
        "join": join_hours,
        "one": filter_hours / MANY_WORKERS + join_hours,
        "many": filter_hours / MANY_WORKERS / MACHINES + join_hours,
        "gigabytes_per_second": stored["row_bytes"] / joining / 1e3,
    }


def page(stored: dict[str, Any]) -> str:
    """docs/decontamination.md."""
    runs = [MixRun(*run) for run in stored["runs"]]
    growth = [MixRun(*run) for run in stored["growth"]]
    ours = 1e6 / median(row_microseconds(runs, OURS).values())
    cpp = stored["janitor_cpp"]
    return (
        (HERE / "decontamination_page.md")
        .read_text()
        .format(
            machine=stored["machine"],
            load=stored["load"],
            peer_rows=PEER_ROWS,
            row_bytes=stored["row_bytes"],
            rounds=1 + max(run.round for run in runs),
            n=N,
            planted=PLANTED_PER_KIND,
            few_rows=FEW_ROWS,
            speed=speed_table(runs),
            row=row_table(runs),
            agreement=agreement_table(stored["agreement"]),
            cpp=f"{cpp['dropped']:,} of {PEER_ROWS:,} rows, and it failed on {cpp['failed']:,}"
            if cpp
            else "not measured",
            decon_rate=1 / DECON_SECONDS_PER_DOCUMENT,
            decon_mb=DECON_BYTES / DECON_SECONDS / 1e6,
            decon_kb=DECON_BYTES / DECON_DOCUMENTS / 1e3,
            ours_rate=ours,
            ours_mb=ours * stored["row_bytes"] / 1e6,
            decon_cores=DECON_BYTES / DECON_SECONDS / (ours * stored["row_bytes"]),
            growth="\n".join(
                f"| {run.rows:,} | {run.seconds:.1f} | {run.cpu_seconds:.1f} | {run.rows / run.cpu_seconds:,.0f} | "
                f"{run.peak_bytes / 1e6:.0f} |"
                for run in growth
            ),
            exponent=exponent(growth),
            further_us=(growth[2].cpu_seconds - growth[1].cpu_seconds) / (growth[2].rows - growth[1].rows) * 1e6,
            parts_rows=stored["parts"]["rows"],
            paper=on_paper(stored),
            many=f"{MANY_ROWS:,.0f}",
            terabytes=MANY_ROWS * stored["row_bytes"] / 1e12,
            kept=MANY_ROWS / 1e9,
            workers=MANY_WORKERS,
            machines=MACHINES,
        )
    )


def draw(runs: Sequence[MixRun], path: Path) -> None:
    """Rows per CPU second, without start-up and index, and memory of every tool, each on a log scale."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    rates = {tool: [1e6 / one for one in row_microseconds(runs, tool).values()] for tool in TOOLS}
    memory = {tool: [run.peak_bytes / 1e6 for run in chosen(runs, tool, 1)] for tool in TOOLS}
    with rc_context({"font.sans-serif": FONTS, "font.size": 9, "text.color": INK, "axes.edgecolor": GRID}):
        figure = Figure(figsize=(7.0, 2.3), facecolor=PAPER)
        panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.12})
        figure.subplots_adjust(left=0.15, right=0.97, top=0.84, bottom=0.16)
        for axes, title, values in (
            (panels[0], "Rows per CPU second", rates),
            (panels[1], "Peak memory, MB", memory),
        ):
            for place, tool in enumerate(reversed(TOOLS)):
                found = spread(values[tool])
                color = SEAM if tool == OURS else CALM if tool == JANITOR else MUTED
                axes.barh(place, found.median, height=0.55, color=color)
                axes.plot([found.low, found.high], [place, place], color=INK, lw=1.2)
                axes.annotate(f" {found.median:,.0f}", (found.high, place), va="center", color=color)
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            axes.set_xlim(max(1, low / 2), high * 5)
            axes.set_yticks(range(len(TOOLS)), reversed(TOOLS) if axes is panels[0] else [""] * len(TOOLS))
            axes.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=8)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,g}"))
            axes.grid(axis="x", color=GRID, lw=0.8)
            axes.set_axisbelow(True)
            axes.tick_params(colors=MUTED, length=0, which="both")
            for side in ("top", "right", "left"):
                axes.spines[side].set_visible(False)
        save_picture(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", metavar="PYTHON", help="measure first, with this interpreter for the peers")
    parser.add_argument("--janitor-cpp", metavar="FOLDER", help="folder of the compiled janitor_util")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are written")
    args = parser.parse_args()
    if args.measure:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            found = measure(args.measure, args.janitor_cpp, args.rounds, Path(folder))
        STORED.write_text(json.dumps(found, indent=1) + "\n")
        print(f"measured in {time.monotonic() - began:.0f} s")
    stored = json.loads(STORED.read_text())
    (DOCS / "decontamination.md").write_text(page(stored), encoding="utf-8")
    draw([MixRun(*run) for run in stored["runs"]], DOCS / "decontamination.png")


if __name__ == "__main__":
    main()
