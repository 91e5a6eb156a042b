"""The report as one HTML file that asks nothing of the network."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from solar_plugins.evaluation.loss import Loss
from solar_plugins.report import content, sentences
from solar_plugins.report.content import Report, Role
from solar_plugins.report.curve_picture import NARROW, WIDE, Chart, Level, curve_figure
from solar_plugins.report.picture import inline_svg
from solar_plugins.report.plan_plot import plan_figure
from solar_plugins.report.stages import Stage
from solar_plugins.report.templates import template

TEMPLATE = "report.html.jinja"


class Dot(NamedTuple):
    """A model's place on the scale of losses, from 0 (left) to 100."""

    name: str
    role: Role
    loss: str
    percent: float | None


class Picture(NamedTuple):
    """An inline picture, and what it shows for those who do not see it."""

    svg: str
    shows: str


def render_page(report: Report) -> str:
    """The page. Everything that comes from models, files and the recipe is escaped."""
    return template(TEMPLATE).render(_values(report))


def _values(report: Report) -> dict[str, Any]:
    return {
        "report": report,
        "content": content,
        "sentences": sentences,
        "scales": _scales(report),
        "stages": [(stage, [_drawn(chart) for chart in stage_charts(stage)]) for stage in report.stages],
        "plan_svg": inline_svg(plan_figure(report.plan)),
        "continuations": [
            (prompt, [(role, model.name, _shown(report, model.continuations[index])) for role, model in report.rows()])
            for index, prompt in enumerate(report.prompts)
        ],
        "seconds": sum(model.seconds for model in report.models),
    }


def _shown(report: Report, text: str) -> str:
    """What a model said. Of many models it is shown without blank lines, of which a broken one writes nothing else."""
    return re.sub(r"\n\s*\n", "\n", text) if report.is_chain else text


def _scales(report: Report) -> list[tuple[str, list[Dot]]]:
    """The losses of text, and of answers where they were measured, each on a scale of its own."""
    rows = report.rows()
    scales = [("text", loss_dots([(role, model.name, model.loss) for role, model in rows]))]
    answers = [(role, model.name, model.answers) for role, model in rows if model.answers]
    return [*scales, ("answers", loss_dots(answers))] if answers else scales


def loss_dots(rows: Sequence[tuple[Role, str, Loss]]) -> list[Dot]:
    """Each model's dot on a scale from the lowest loss to the highest; none for a loss that is not finite."""
    finite = [loss.nats_per_token for _, _, loss in rows if math.isfinite(loss.nats_per_token)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)

    def percent(loss: float) -> float | None:
        if not math.isfinite(loss):
            return None
        return 100 * (loss - low) / (high - low) if high > low else 0.0

    return [
        Dot(name, role, content.number(loss.nats_per_token, 3), percent(loss.nats_per_token))
        for role, name, loss in rows
    ]


def stage_charts(stage: Stage) -> list[Chart]:
    """What is drawn of a stage: its loss, and after preference training the rewards; nothing without a log."""
    log = stage.log
    if log is None or not log.loss.points:
        return []
    rewards = [("reward margin", log.margins, 3), ("reward accuracy", log.accuracies, 2)]
    drawn = [Chart(series, name, decimals, width=NARROW) for name, series, decimals in rewards if series.points]
    level = Level(math.log(2), "ln 2") if stage.starts_at_ln_2 else None
    width, decimals = (NARROW, 3) if drawn else (WIDE, 2)
    return [Chart(log.loss, "loss", decimals, level, width), *drawn]


def _drawn(chart: Chart) -> Picture:
    return Picture(inline_svg(curve_figure(chart)), f"{chart.quantity.capitalize()} by optimizer step")
