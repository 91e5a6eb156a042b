"""The report as one HTML file that loads nothing from the network, and the templates of this folder."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from solar_plugins.evaluation.loss import difference
from solar_plugins.recipe import METHODS_WITHOUT_REFERENCE
from solar_plugins.report.content import Report, counted, number
from solar_plugins.report.curves import curve_figure, stage_charts
from solar_plugins.report.picture import inline_svg
from solar_plugins.report.plan_picture import plan_figure
from solar_plugins.report.training_log import MANY_POINTS

if TYPE_CHECKING:
    from jinja2 import Template

NOTHING = "(nothing: the text ends here)"
"""Stands for an empty continuation."""


FOLDER = Path(__file__).parent


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
    environment.filters["shown"] = lambda text: re.sub(r"\n\s*\n", "\n", text.strip()) or NOTHING
    return environment.get_template(name)


def render_page(report: Report) -> str:
    """The page. Everything that comes from models, files and the recipe is escaped."""
    from markupsafe import Markup

    stages = [
        (stage, [Markup(inline_svg(curve_figure(chart), chart.alternative_text)) for chart in stage_charts(stage)])
        for stage in report.stages
    ]
    return template("report.html.jinja").render(
        report=report,
        metrics=[(metrics, dot_places(metrics.losses)) for metrics in report.metrics()],
        stages=stages,
        plan=Markup(inline_svg(plan_figure(report.plan), f"Layer map: {report.plan}")),
    )


def dot_places(losses: Sequence[float]) -> list[float | None]:
    """The place of each loss on an axis from the lowest (0) to the highest (100); None for one that is not finite."""
    finite = list(filter(math.isfinite, losses))
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return [100 * (loss - low) / ((high - low) or 1.0) if math.isfinite(loss) else None for loss in losses]
