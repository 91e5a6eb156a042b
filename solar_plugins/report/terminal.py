"""The report as text in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from solar_plugins.report.content import Report
from solar_plugins.report.page import NOTHING, template
from solar_plugins.report.stages import Stage
from solar_plugins.report.training_log import LogPoint, Series
from solar_plugins.tables import show, table
from solar_plugins.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STYLES = {"base": "blue", "upscaled": "red", "trained": "green"}
PROSE_WIDTH = 100


def show_report(report: Report, console: Console | None = None) -> None:
    """Print the report. Tables are as wide as their cells; prose is wrapped at the terminal's width.

    Args:
        report: What was measured.
        console: Where to; the standard output by default.
    """
    from rich.console import Console
    from rich.text import Text

    out = console or Console()
    out.width = min(out.width, PROSE_WIDTH) if out.is_terminal else PROSE_WIDTH
    sentences: Any = template("sentences.jinja", autoescape=False).module
    styles = [STYLES[role] for role in report.roles]

    def say(text: str, style: str = "") -> None:
        if text := " ".join(printable(text).split()):
            out.print(Text(text, style=style))

    out.print()
    say(report.title, "bold")
    say(sentences.headline(report))
    for metrics in report.metrics():
        out.print()
        say(f"Held-out {metrics.data}: {metrics.size}", "bold")
        rows = [[model.name, *row] for model, row in zip(report.models, metrics.rows, strict=True)]
        show(table(["model", *metrics.headings], rows, styles=styles), out)
    say(sentences.metrics_note(report), "dim")
    out.print()
    say("Training", "bold")
    if any(stage.log for stage in report.stages):
        show(_stages(report.stages), out)
    for stage in report.stages:
        if stage.recipe and (note := sentences.stage_note(stage).strip()):
            say(f"{stage.name}: {note}", "dim")
    say(sentences.curves_note(report.stages), "dim")
    out.print()
    say(f"Layers: {report.plan}")
    for place, prompt in enumerate(report.prompts):
        out.print()
        say(prompt + ("" if report.conditions.answers else " …"), "bold")
        for model, style in zip(report.models, styles, strict=True):
            said = " ".join(printable(model.continuations[place]).split())
            out.print(Text.assemble((model.name, style), "  ", said or NOTHING))
    out.print()
    out.print(Text(f"page: {report.html}\nmetrics: {report.json}"), soft_wrap=True)


def _stages(stages: Sequence[Stage]) -> Table:
    """Losses by their first and last logged values; of the rewards the last, from the eval if there is one."""
    headings = ["stage", "steps", "training loss", "eval loss", "reward margin", "reward accuracy"]
    rows = []
    for stage in stages:
        if (log := stage.log) is not None:
            decimals = 4 if stage.starts_at_ln_2 else 2
            losses = [_ends(points, decimals) for points in (log.loss.train, log.loss.held_out)]
            rows.append([stage.name, f"{log.last_step:,}", *losses, _last(log.margins, 3), _last(log.accuracies, 2)])
    return table(headings, rows)


def _ends(points: Sequence[LogPoint], decimals: int) -> str:
    return " → ".join(f"{point.value:.{decimals}f}" for point in dict.fromkeys([*points[:1], *points[-1:]]))


def _last(series: Series, decimals: int) -> str:
    points = series.held_out or series.train
    return f"{points[-1].value:.{decimals}f}" if points else ""
