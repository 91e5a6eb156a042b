"""The results of a probe as one HTML page that loads nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from solar_plugins.evaluation.probe.probe import ProbeResult
from solar_plugins.report.page import template
from solar_plugins.report.probe_figures import LIMITS, short_name, size_table
from solar_plugins.report.probe_picture import ColorScale, cell_side

TEMPLATE = "probe.html.jinja"


class Cell(NamedTuple):
    """A repeated block in the heat map. Lengths are in cells, from the upper left corner."""

    start: int
    top: int
    x: float
    y: float
    side: float
    color: str
    title: str
    best: bool
    dus: bool


def render_page(result: ProbeResult, parameters: Sequence[int], block: str | None) -> str:
    """The page. Everything that comes from models and files is escaped.

    Args:
        result: The probe's result.
        parameters: Of each plan's model.
        block: The recommendation, as YAML.
    """
    return template(TEMPLATE).render(
        result=result, cells=_cells(result, parameters), sizes=size_table(result), block=block, limits=LIMITS
    )


def _cells(result: ProbeResult, parameters: Sequence[int]) -> list[Cell]:
    best = {found.best for found in result.sizes.values()}
    blocks = [(place, plan) for place, plan in enumerate(result.plans) if plan.candidate.block]
    if not blocks:
        return []
    scale = ColorScale.of([plan for _, plan in blocks])
    most = max(plan.loss.tokens for _, plan in blocks)
    cells = []
    for place, plan in blocks:
        start, end = plan.candidate.block or (0, 0)
        side, top = cell_side(plan.loss.tokens, most), result.num_layers - end
        error = "" if plan.delta.standard_error is None else f" +- {plan.delta.standard_error:.3f}"
        title = (
            f"{short_name(plan.candidate)}: {plan.candidate.plan}\n{plan.delta.nats_per_token:+.3f}{error} nats per "
            f"token above the base\n{parameters[place]:,} parameters\nmeasured on {plan.loss.tokens:,} tokens"
        )
        margin = (1 - side) / 2
        cells.append(
            Cell(
                start=start,
                top=top,
                x=round(start + margin, 3),
                y=round(top + margin, 3),
                side=round(side, 3),
                color=scale.color(plan.delta.nats_per_token),
                title=title,
                best=place in best,
                dus=plan.candidate.is_dus,
            )
        )
    return cells
