"""The report as one HTML file that asks nothing of the network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.errors import SolarError
from solar_plugins.report import content
from solar_plugins.report.content import Report
from solar_plugins.report.loss_curve import loss_figure
from solar_plugins.report.picture import inline_svg
from solar_plugins.report.plan_plot import plan_figure

TEMPLATE = Path(__file__).with_name("report.html.jinja")


class Dot(NamedTuple):
    """A model's place on the scale of losses, from 0 (left) to 100."""

    name: str
    loss: str
    percent: float | None


def require_jinja() -> None:
    """Nothing, if jinja2 can be imported.

    Raises:
        SolarError: It is not installed.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise SolarError(
            "jinja2 is not installed, and the page is made with it; run pip install 'solar_plugins[report]'"
        ) from None


def render_page(report: Report) -> str:
    """The page. Everything that comes from models, files and the recipe is escaped."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(_values(report))


def _values(report: Report) -> dict[str, Any]:
    curve = report.curve
    return {
        "report": report,
        "content": content,
        "rows": [(model, content.above_base(model.loss, report.base.loss)) for model in report.models],
        "dots": loss_dots(report),
        "curve_svg": inline_svg(loss_figure(curve)) if curve and (curve.train or curve.held_out) else None,
        "plan_svg": inline_svg(plan_figure(report.plan)),
        "continuations": [
            (prompt, [(model.name, model.continuations[index]) for model in report.models])
            for index, prompt in enumerate(report.prompts)
        ],
        "seconds": sum(model.seconds for model in report.models),
    }


def loss_dots(report: Report) -> list[Dot]:
    """Each model's dot on a scale from the lowest loss to the highest; none for a loss that is not finite."""
    losses = [model.loss.nats_per_token for model in report.models]
    finite = [loss for loss in losses if math.isfinite(loss)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return [
        Dot(
            model.name,
            content.number(loss, 3),
            (100 * (loss - low) / (high - low) if high > low else 0.0) if math.isfinite(loss) else None,
        )
        for model, loss in zip(report.models, losses, strict=True)
    ]
