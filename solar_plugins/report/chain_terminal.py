"""The figures of a chain of recipes as text in the terminal: one table of models, one of stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from solar_plugins.evaluation.loss import Loss
from solar_plugins.evaluation.measure import MeasuredModel
from solar_plugins.report import content
from solar_plugins.report.content import Report, Role
from solar_plugins.report.sentences import table_note
from solar_plugins.report.stages import Stage
from solar_plugins.report.training_log import LogPoint, Series
from solar_plugins.tables import show, table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def show_chain(report: Report, out: Console, styles: Mapping[Role, str]) -> None:
    """Print the table of models, and that of stages with a log."""
    from rich.text import Text

    show(_models(report, styles), out)
    out.print(Text(table_note(report), style="dim"))
    if any(stage.log for stage in report.stages):
        out.print()
        show(_stages(report.stages), out)
        out.print(Text(_stages_note(report.stages), style="dim"))


def _models(report: Report, styles: Mapping[Role, str]) -> Table:
    headings = ["model", "layers,\nparameters", *(heading for heading, _ in _measures(report))]
    rows = [
        [
            model.name,
            f"{model.num_layers}, {content.parameters(model.num_parameters)}",
            *(cell for _, cell in _measures(report, model)),
        ]
        for _, model in report.rows()
    ]
    return table(headings, rows, styles=[styles[role] for role, _ in report.rows()])


def _measures(report: Report, model: MeasuredModel | None = None) -> list[tuple[str, str]]:
    """Each column's heading, and a model's cell in it."""
    model, base = model or report.base, report.base
    columns = [(f"text\n{base.loss.tokens:,} tokens", _loss(model.loss, base.loss, is_base=model is base))]
    if model.answers and base.answers:
        heading = f"answers\n{len(base.answers.window_tokens):,}, {base.answers.tokens:,} tokens"
        columns.append((heading, _loss(model.answers, base.answers, is_base=model is base)))
    if model.pairs and report.pair_reference:
        columns.append((f"{len(model.pairs.chosen):,} pairs:\nlikelier", content.preferred(model)))
        columns.append((f"gained\non {report.pair_reference.name}", content.gained(report, model)))
    return columns


def _loss(loss: Loss, base: Loss, *, is_base: bool) -> str:
    shown = content.number(loss.nats_per_token, 3)
    return shown if is_base else f"{shown}\n{' '.join(content.above_base(loss, base))}"


def _stages(stages: Sequence[Stage]) -> Table:
    rows = []
    for stage in stages:
        if stage.log is not None:
            log, decimals = stage.log, 4 if stage.starts_at_ln_2 else 2
            rows.append(
                [
                    stage.name,
                    f"{log.last_step:,}" + (f" of {log.planned_steps:,}" if log.last_step < log.planned_steps else ""),
                    _ends(log.loss.train, decimals),
                    _ends(log.loss.held_out, decimals),
                    _last(log.margins, 3),
                    _last(log.accuracies, 2),
                ]
            )
    return table(["stage", "steps", "training loss", "held-out loss", "margin", "accuracy"], rows)


def _stages_note(stages: Sequence[Stage]) -> str:
    note = "Losses: first and last that were logged. Margin and accuracy of rewards: the last, held-out where logged."
    if any(stage.starts_at_ln_2 for stage in stages):
        note += f" DPO begins at ln 2 = {math.log(2):.4f}."
    return note


def _ends(points: Sequence[LogPoint], decimals: int) -> str:
    return " → ".join(f"{point.value:.{decimals}f}" for point in dict.fromkeys([*points[:1], *points[-1:]]))


def _last(series: Series, decimals: int) -> str:
    points = series.held_out or series.train
    return f"{points[-1].value:.{decimals}f}" if points else ""
