"""The page and picture of `file_systems.py`, from its runs. Pure but for the picture's file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench_tables import OURS, Spread, spread
from checkpoints import LAYERS, layer_shapes, num_bytes, outer_shapes, result_bytes
from disks import SHARING
from processes import machine_text

COPY, WRITE = "solar upscale --copy", "one sequential write, fsync"
CP, CP_REFLINK, MERGEKIT = "cp", "cp --reflink", "mergekit-yaml, best flags"
TOOLS = (OURS, COPY, WRITE, CP, CP_REFLINK, MERGEKIT)
SMALL, MEDIUM, LARGE = 1024, 1856, 4096
"""Widths: bases of 1.0, 3.1 and 14.5 GB; the last one is Mistral 7B's size."""
NAMES = {"ext4": "ext4", "xfs": "XFS", "btrfs": "Btrfs", "tmpfs": "tmpfs"}

PAGE = """\
# Without copying: file systems that share blocks

Written by `scripts/benchmarks/file_systems.py`, part of `make bench`. Machine: {machine}

On XFS, Btrfs and other file systems that share blocks between files, `solar upscale` writes a header and lets the file
system share the base's blocks with the result: no bytes are copied, and no disk space is taken until one of the files
changes. Where that is not possible it copies. [How it works](explanation/how-it-works.md).

![Seconds until a 4.5 GB result is on disk, by file system and tool](sharing-blocks.png)

A random bfloat16 Mistral checkpoint with 32 layers ({base:.1f} GB), upscaled to 48 ({result:.1f} GB), on file systems
in an image file. Whole processes in random order, {rounds} rounds, the source in the page cache, a sync after each
command. Median (min to max); ratios are taken within a round. "One sequential write" is `dd` of the finished result
with blocks of 16 MB. mergekit's best flags: `--out-shard-size 1B --clone-tensors`. Every tensor of mergekit's first
result on each file system was bit-identical to ours. Load average at the end of the measurement: {load}.

{tools}

How the time grows with the base, where blocks are shared:

{sizes}

| aim | measured | |
|---|---|---|
{aims}
{missing}"""


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


def page(measured: dict[str, Any]) -> str:
    """The page in Markdown."""
    runs = [FileSystemRun(**run) for run in measured["runs"]]
    return PAGE.format(
        machine=machine_text(measured["machine"]),
        load=measured["load"],
        base=base_gigabytes(MEDIUM),
        result=result_bytes(MEDIUM) / 1e9,
        rounds=1 + max(run.round for run in runs),
        tools="\n".join(_tools(runs)),
        sizes="\n".join(_sizes(runs)),
        aims="\n".join(_aims(runs)),
        missing="".join(f"\n{kind} was not measured: {why}.\n" for kind, why in measured["missing"].items()),
    )


def ratio(runs: Sequence[FileSystemRun], tool: str, to: str) -> Spread:
    """The tool's seconds divided by another's in the same round."""
    other = {run.round: run.seconds for run in runs if run.tool == to}
    return spread(run.seconds / other[run.round] for run in runs if run.tool == tool)


def _on(runs: Sequence[FileSystemRun], kind: str, hidden: int = MEDIUM) -> list[FileSystemRun]:
    return [run for run in runs if (run.file_system, run.hidden) == (kind, hidden)]


def _tools(runs: Sequence[FileSystemRun]) -> Iterator[str]:
    yield "| file system | tool | seconds until on disk | times ours | new disk space |"
    yield "|---|---|---|---|---|"
    for kind in dict.fromkeys(run.file_system for run in runs):
        chosen = _on(runs, kind)
        for tool in TOOLS:
            if mine := [run for run in chosen if run.tool == tool]:
                space = max(run.new_bytes for run in mine) / 1e6
                times = "1" if tool == OURS else ratio(chosen, tool, OURS)
                seconds = spread(run.seconds for run in mine)
                yield f"| {NAMES[kind]} | {tool} | {seconds} | {times} | {space:,.0f} MB |"


def _growth(runs: Sequence[FileSystemRun], kind: str, hidden: int) -> Spread:
    """Our seconds divided by those for the smallest base in the same round."""
    smallest = {run.round: run.seconds for run in _on(runs, kind, SMALL) if run.tool == OURS}
    return spread(run.seconds / smallest[run.round] for run in _on(runs, kind, hidden) if run.tool == OURS)


def _sizes(runs: Sequence[FileSystemRun]) -> Iterator[str]:
    yield "| file system | base | result | seconds | times the smallest base's |"
    yield "|---|---|---|---|---|"
    for kind in dict.fromkeys(run.file_system for run in runs if run.file_system in SHARING):
        for hidden in (SMALL, MEDIUM, LARGE):
            seconds = spread(run.seconds for run in _on(runs, kind, hidden) if run.tool == OURS)
            sizes = f"{base_gigabytes(hidden):.1f} GB | {result_bytes(hidden) / 1e9:.1f} GB"
            yield f"| {NAMES[kind]} | {sizes} | {seconds} | {_growth(runs, kind, hidden)} |"


def _aims(runs: Sequence[FileSystemRun]) -> Iterator[str]:
    """The aims of the project, met or missed by their medians."""
    for kind in SHARING:
        if chosen := _on(runs, kind):
            times, grown = ratio(chosen, MERGEKIT, OURS), _growth(runs, kind, LARGE)
            yield f"| {NAMES[kind]}: at least 30 times as fast as mergekit | {times} | {_met(times.median >= 30)} |"
            yield f"| {NAMES[kind]}: 14.5 GB in 1.5 times the time of 1 GB | {grown} | {_met(grown.median <= 1.5)} |"
    if chosen := _on(runs, "ext4"):
        times = ratio(chosen, OURS, WRITE)
        yield f"| ext4: at most 1.1 times one sequential write | {times} | {_met(times.median <= 1.1)} |"


def _met(is_met: bool) -> str:
    return "met" if is_met else "**missed**"


def base_gigabytes(hidden: int) -> float:
    """Size of the base's weights."""
    return (num_bytes(outer_shapes(hidden)) + LAYERS * num_bytes(layer_shapes(hidden))) / 1e9


def draw(runs: Sequence[FileSystemRun], path: Path) -> None:
    """Bars of seconds by file system and tool, with the range of the rounds."""
    from drawing import panel_style
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from solar_plugins.report.picture import CALM, FONTS, GRID, INK, MUTED, PAPER, SEAM, save_picture

    shown = (OURS, COPY, CP, WRITE, MERGEKIT)
    colors = {OURS: SEAM, COPY: SEAM, CP: CALM, WRITE: CALM, MERGEKIT: MUTED}
    kinds = list(dict.fromkeys(run.file_system for run in runs))
    with rc_context({"font.sans-serif": FONTS, "font.size": 9, "text.color": INK, "axes.edgecolor": GRID}):
        figure = Figure(figsize=(7.0, 3.2), facecolor=PAPER)
        every = figure.subplots(1, len(kinds), sharey=True, gridspec_kw={"wspace": 0.08}, squeeze=False)[0]
        figure.subplots_adjust(left=0.27, right=0.985, top=0.86, bottom=0.12)
        longest = max(run.seconds for run in runs if run.tool in shown)
        for axes, kind in zip(every, kinds, strict=True):
            for place, tool in enumerate(shown):
                found = spread(run.seconds for run in _on(runs, kind) if run.tool == tool)
                alpha = 0.45 if tool in (COPY, WRITE) else 1.0
                axes.barh(place, found.median, height=0.68, color=colors[tool], alpha=alpha)
                axes.plot([found.low, found.high], [place, place], color=INK, lw=1.2)
                text, at = f"{found.median:.2g}", (found.high, place)
                axes.annotate(text, at, (4, 0), textcoords="offset points", va="center", fontsize=8)
            axes.set_xlim(0, 1.25 * longest)
            axes.set_title(NAMES[kind], loc="left", fontsize=10, fontweight="bold", pad=6)
            axes.set_yticks(range(len(shown)), shown)
            panel_style(axes, "x")
        every[0].invert_yaxis()
        figure.text(0.27, 0.955, "Seconds until a 4.5 GB result is on disk", color=MUTED, va="center")
        save_picture(figure, path)
