"""docs/study.md and docs/study.png, from the study's record.

python scripts/study/study_page.py RECORD PAGE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study import SEEDS, block_name, chosen, run_key
from study_arms import BASE, DUS, EVERY_WEIGHT, SOLAR, repeated
from study_figures import Run, SeededDifference, correlation, difference, nats_per_token, of_best_rate

from solar_plugins.report.picture import CALM, FONTS, GRID, INK, MUTED, PAPER, SEAM, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATE = Path(__file__).with_name("study_page.md")


def plan_runs(record: Mapping[str, Any]) -> dict[int, Run]:
    """The runs of the ten plans that are there, by the start of their repeated block."""
    losses = {plan["init"]["slices"][1][0]: plan["delta"] for plan in record["probe"]}
    runs = {start: record["runs"].get(run_key(repeated(start), EVERY_WEIGHT[1], SEEDS[0])) for start in chosen(losses)}
    return {start: run for start, run in runs.items() if run}


def arm_runs(record: Mapping[str, Any]) -> dict[str, list[Run]]:
    """Of each arm that is done, a run for each seed at its best learning rate."""
    by_arm = {
        name: [record["runs"][key] for key in keys if key in record["runs"]] for name, keys in record["arms"].items()
    }
    best = {name: of_best_rate(runs) for name, runs in by_arm.items() if len(runs) == len(record["arms"][name])}
    return {name: runs for name, runs in best.items() if len(runs) == len(SEEDS)}


def page(record: Mapping[str, Any]) -> str:
    """docs/study.md."""
    plans, arms = plan_runs(record), arm_runs(record)
    found = correlation(list(plans.values()))
    spent = sum(run["cpu_seconds"] for run in record["runs"].values())
    text = record["texts"]
    return TEMPLATE.read_text().format(
        runs=len(record["runs"]),
        hours=spent / 3600,
        train=text["train"],
        held_out=text["held_out"],
        tokens=sum(tokens for tokens, _ in next(iter(plans.values()))["after"]),
        plans="\n".join(_plan_rows(plans)),
        rho=found.rho,
        low=found.low,
        high=found.high,
        arms="\n".join(_arm_rows(arms)),
    )


def _plan_rows(plans: Mapping[int, Run]) -> list[str]:
    rows = sorted(plans.items(), key=lambda item: nats_per_token(item[1], "before"))
    after = sorted(plans, key=lambda start: nats_per_token(plans[start]))
    return [
        f"| {block_name(start)}{' (DUS)' if start == DUS else ''} | {nats_per_token(run, 'before'):.3f} | "
        f"{nats_per_token(run):.3f} | {after.index(start) + 1} |"
        for start, run in rows
    ]


def _arm_rows(arms: Mapping[str, Sequence[Run]]) -> list[str]:
    rows = []
    for name, runs in arms.items():
        of_seeds = ", ".join(f"{nats_per_token(run):.3f}" for run in runs)
        over = [
            _words(difference(runs, arms[other])) if name != other and other in arms else "" for other in (BASE, SOLAR)
        ]
        rate, steps = runs[0]["rate"], runs[0]["steps"]
        minutes = sum(run["cpu_seconds"] for run in runs) / len(runs) / 60
        rows.append(f"| {name} | {steps} | {rate:.0e} | {minutes:.1f} | {of_seeds} | {over[0]} | {over[1]} |")
    return rows


def _words(found: SeededDifference) -> str:
    return f"{found.all.nats_per_token:+.3f} ± {found.all.standard_error:.3f}"


def draw(record: Mapping[str, Any], path: Path) -> None:
    """docs/study.png: the ten plans before and after training, and the arms next to the control."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.sans-serif": FONTS, "font.size": 9, "text.color": INK, "axes.edgecolor": GRID}):
        figure = Figure(figsize=(10.5, 4.0), facecolor=PAPER)
        left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.75, "width_ratios": (1, 1)})
        figure.subplots_adjust(left=0.07, right=0.985, top=0.88, bottom=0.15)
        _draw_plans(left, plan_runs(record))
        _draw_arms(right, arm_runs(record))
        save_picture(figure, path)


def _draw_plans(axes: Axes, plans: Mapping[int, Run]) -> None:
    points = {start: (nats_per_token(run, "before"), nats_per_token(run)) for start, run in plans.items()}
    for start, (before, after) in points.items():
        color = SEAM if start == DUS else CALM
        axes.plot(before, after, "o", color=color, markersize=6)
        # A label on the right would cover the next point.
        crowded = any(0 < x - before < 0.35 and abs(y - after) < 0.06 for x, y in points.values())
        offset, side = ((-6, -3), "right") if crowded else ((6, -3), "left")
        name = "DUS" if start == DUS else block_name(start)
        style = {"fontsize": 8, "color": color, "ha": side}
        axes.annotate(name, (before, after), xytext=offset, textcoords="offset points", **style)
    axes.margins(x=0.16)
    _label(axes, "Ten plans of 48 layers", "held-out loss before training, nats per token", "after 60 steps")


def _draw_arms(axes: Axes, arms: Mapping[str, Sequence[Run]]) -> None:
    names = [name for name in arms if name != BASE and BASE in arms]
    for place, name in enumerate(reversed(names)):
        found = difference(arms[name], arms[BASE])
        color = SEAM if name == SOLAR else CALM
        error = 2 * (found.all.standard_error or 0)
        axes.errorbar(found.all.nats_per_token, place, xerr=error, fmt="o", color=color, capsize=3, markersize=6)
        axes.plot(found.by_seed, [place] * len(found.by_seed), "|", color=color, markersize=9, alpha=0.6)
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set_yticks(range(len(names)), list(reversed(names)))
    _label(axes, "Loss vs. the base, equal tokens", "nats per token; bars: 2 errors, ticks: seeds", "")


def _label(axes: Axes, title: str, below: str, beside: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.set_xlabel(below, color=MUTED)
    axes.set_ylabel(beside, color=MUTED)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED)


def main(record: Path, target: Path) -> None:
    """Write both."""
    figures = json.loads(record.read_text())
    target.write_text(page(figures))
    draw(figures, target.with_suffix(".png"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
