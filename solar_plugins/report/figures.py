"""The raw figures of a report, for other programs. Pure."""

from __future__ import annotations

import math
from typing import Any

from solar_plugins.evaluation.chat_measures import JudgedPairs
from solar_plugins.evaluation.log_probabilities import share_standard_error
from solar_plugins.evaluation.loss import Loss, difference
from solar_plugins.evaluation.measure import MeasuredModel
from solar_plugins.report.content import Conditions, MeasuredSet, Report
from solar_plugins.report.stages import Stage
from solar_plugins.report.training_log import TrainingLog

JSON_VERSION = 1


def to_json(report: Report) -> dict[str, Any]:
    """The raw figures as JSON-ready values; what is no finite number is None.

    ``loss_curve`` and ``recipe`` are those of the recipe that upscales; later stages have their own.
    """
    first, *later = report.stages
    content = {
        "version": JSON_VERSION,
        "base_model": report.base_name,
        "plan": report.plan.to_dict(),
        "models": {model.name: _model_figures(model, report) for model in report.models},
        "prompts": list(report.prompts),
        **_stage_figures(first),
        "later_stages": [{"name": stage.name} | _stage_figures(stage) for stage in later],
        "conditions": _conditions(report.conditions),
    }
    finite: dict[str, Any] = _finite(content)
    return finite


def _model_figures(model: MeasuredModel, report: Report) -> dict[str, Any]:
    base, reference = report.base, report.pair_reference
    return {
        "num_layers": model.num_layers,
        "num_parameters": model.num_parameters,
        **_loss_figures(model.loss, base.loss),
        "continuations": list(model.continuations),
        "seconds": model.seconds,
        "answers": _loss_figures(model.answers, base.answers) if model.answers and base.answers else None,
        "pairs": _pair_figures(model.pairs, reference) if model.pairs and reference else None,
    }


def _loss_figures(loss: Loss, base: Loss) -> dict[str, Any]:
    above = difference(loss, base)
    return {
        "nats_per_token": loss.nats_per_token,
        "perplexity": loss.perplexity,
        "above_base": above.nats_per_token,
        "above_base_standard_error": above.standard_error,
        "tokens": loss.tokens,
        "window_nats": list(loss.window_nats),
        "window_tokens": list(loss.window_tokens),
    }


def _pair_figures(pairs: JudgedPairs, reference: MeasuredModel) -> dict[str, Any]:
    assert reference.pairs is not None
    finite = pairs.is_finite and reference.pairs.is_finite
    return {
        "pairs": len(pairs.chosen),
        "preferred": pairs.preferred if pairs.is_finite else None,
        "standard_error": share_standard_error(pairs.preferred, len(pairs.chosen)) if pairs.is_finite else None,
        "reference": reference.name,
        "gained_on_reference": pairs.gained_on(reference.pairs) if finite else None,
        "chosen_log_probability": list(pairs.chosen),
        "rejected_log_probability": list(pairs.rejected),
    }


def _stage_figures(stage: Stage) -> dict[str, Any]:
    recipe = {"path": str(stage.recipe.path), "text": stage.recipe.text} if stage.recipe else None
    return {"loss_curve": _log_figures(stage.log) if stage.log else None, "recipe": recipe}


def _log_figures(log: TrainingLog) -> dict[str, Any]:
    return {
        **log.loss._asdict(),
        "last_step": log.last_step,
        "planned_steps": log.planned_steps,
        "num_not_finite": log.num_not_finite,
        "margins": log.margins._asdict() if log.margins.points else None,
        "accuracies": log.accuracies._asdict() if log.accuracies.points else None,
    }


def _conditions(conditions: Conditions) -> dict[str, Any]:
    def as_dict(measured: MeasuredSet | None) -> dict[str, Any] | None:
        return measured._asdict() if measured else None

    return {
        "held_out": conditions.held_out,
        "num_texts": conditions.num_texts,
        "sequence_tokens": conditions.sequence_tokens,
        "max_new_tokens": conditions.max_new_tokens,
        "hardware": conditions.hardware._asdict(),
        "versions": dict(conditions.versions),
        "date": conditions.date,
        "answers": as_dict(conditions.answers),
        "pairs": as_dict(conditions.pairs),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
