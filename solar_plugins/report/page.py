"""The report as one HTML file that loads nothing from the network, and as text in the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solar_plugins.evaluation.loss import difference
from solar_plugins.recipe import METHODS_WITHOUT_REFERENCE
from solar_plugins.report.content import Report, number
from solar_plugins.report.picture import inline_svg
from solar_plugins.report.plan_picture import plan_figure
from solar_plugins.report.stages import Stage
from solar_plugins.report.training_log import MANY_POINTS, curve_figure, log_charts
from solar_plugins.tables import show, table
from solar_plugins.text import counted, printable

if TYPE_CHECKING:
    from jinja2 import Template
    from rich.console import Console
    from rich.table import Table

FOLDER = Path(__file__).parent

NOTHING = "(nothing: the text ends here)"
"""Stands for an empty continuation."""

STYLES = {"base": "blue", "upscaled": "red", "trained": "green"}
PROSE_WIDTH = 100


def template(name: str, folder: Path = FOLDER, *, autoescape: bool = True) -> Template:
    """A template, which may include those of this folder. Using a name that is not defined is an error.

    Args:
        name: Its file name.
        folder: That holds it.
        autoescape: Whether everything that is filled in is escaped for HTML.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, FOLDER]),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "counted": counted,
        "difference": difference,
        "number": number,
        "many_points": MANY_POINTS,
        "ln_2": math.log(2),
        "methods_without_reference": METHODS_WITHOUT_REFERENCE,
    }
    environment.filters["shown"] = lambda text: re.sub(r"\n\s*\n", "\n", printable(text).strip()) or NOTHING
    return environment.get_template(name)


def render_page(report: Report) -> str:
    """The page. Everything that comes from models, files and the recipe is escaped."""
    from markupsafe import Markup

    charts = [
        [
            Markup(inline_svg(curve_figure(chart), chart.alternative_text))
            for chart in log_charts(stage.log, ln_2=stage.starts_at_ln_2)
        ]
        for stage in report.stages
    ]
    return template("report.html.jinja").render(
        report=report,
        metrics=[(metrics, dot_places(metrics.losses)) for metrics in report.metrics()],
        stages=list(zip(report.stages, charts, strict=True)),
        plan=Markup(inline_svg(plan_figure(report.plan), f"Layer map: {report.plan}")),
    )


def dot_places(losses: Sequence[float]) -> list[float | None]:
    """The place of each loss on an axis from the lowest (0) to the highest (100); None for one that is not finite."""
    finite = list(filter(math.isfinite, losses))
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return [100 * (loss - low) / ((high - low) or 1.0) if math.isfinite(loss) else None for loss in losses]


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

    def title(text: str) -> None:
        out.print()
        say(text, "bold")

    title(report.title)
    say(sentences.headline(report))
    for metrics in report.metrics():
        title(f"Held-out {metrics.data}: {metrics.size}")
        show(table(metrics.headings, metrics.rows, styles=styles), out)
    say(sentences.metrics_note(report), "dim")
    title("Training")
    if any(stage.log for stage in report.stages):
        show(_stages(report.stages), out)
    for stage in report.stages:
        if stage.recipe and (note := sentences.stage_note(stage).strip()):
            say(f"{stage.name}: {note}", "dim")
    say(sentences.curves_note(report.stages), "dim")
    out.print()
    say(f"Layers: {report.plan}")
    for place, prompt in enumerate(report.prompts):
        title(prompt + ("" if report.conditions.answers else " …"))
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
            digits = 4 if stage.starts_at_ln_2 else 2
            ends = [dict.fromkeys([*points[:1], *points[-1:]]) for points in log.loss]
            losses = [" → ".join(f"{point.value:.{digits}f}" for point in points) for points in ends]
            rewards = [
                f"{points[-1].value:.{decimals}f}" if points else ""
                for series, decimals in ((log.margins, 3), (log.accuracies, 2))
                for points in [series.held_out or series.train]
            ]
            rows.append([stage.name, f"{log.last_step:,}", *losses, *rewards])
    return table(headings, rows)
