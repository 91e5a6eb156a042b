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
from solar_plugins.report.training_log import MANY_POINTS, curve_figure, log_charts
from solar_plugins.tables import show, table
from solar_plugins.text import counted, printable

if TYPE_CHECKING:
    from jinja2 import Template
    from rich.console import Console

FOLDER = Path(__file__).parent

NOTHING = "(nothing: the text ends here)"
STYLES = {"base": "blue", "upscaled": "red", "trained": "green"}
PROSE_WIDTH = 100


def template(name: str, folder: Path = FOLDER, *, autoescape: bool = True) -> Template:
    """A template in ``folder``, which may include those of this one. Using a name that is not defined is an error."""
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
    """Print the report, by default to standard output. Tables are as wide as their cells; prose is wrapped."""
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
    for stage in report.stages:
        charts = [f"{chart.alternative_text}." for chart in log_charts(stage.log, ln_2=stage.starts_at_ln_2)]
        if stage.recipe:
            steps = f" ({counted(stage.log.last_step, 'step')})" if stage.log else ""
            say(f"{stage.name}{steps}: {' '.join(charts)} {sentences.stage_note(stage)}")
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
