"""What a report says: its figures, its sentences, and its JSON. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.report.loss_curve import MANY_POINTS, LossCurve
from solar_plugins.report.measure import Hardware, Loss, MeasuredModel, difference
from solar_plugins.upscaling.layer_plan import LayerPlan

JSON_VERSION = 1

NOTHING = "(nothing: it ends the text here)"
"""What is said for an empty continuation."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """How everything was measured.

    Args:
        held_out: The file of held-out texts.
        num_texts: How many texts are in it.
        sequence_tokens: Longest window, in tokens.
        max_new_tokens: Longest continuation.
        hardware: Device and number format.
        versions: Of Python and the packages that count.
        date: Of the measurement, in UTC.
    """

    held_out: str
    num_texts: int
    sequence_tokens: int
    max_new_tokens: int
    hardware: Hardware
    versions: Mapping[str, str]
    date: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is reported of a run.

    Args:
        base_name: The base's name, fit for publication.
        plan: How it was up-scaled.
        base: The base itself.
        upscaled: The up-scaled model before training.
        trained: The up-scaled model after training.
        prompts: What the models went on with.
        curve: The training log, if the run kept one.
        conditions: How it was measured.
        recipe_path: The recipe.
        recipe_text: Its text.
        html: The page; the figures lie beside it as JSON.
    """

    base_name: str
    plan: LayerPlan
    base: MeasuredModel
    upscaled: MeasuredModel
    trained: MeasuredModel
    prompts: tuple[str, ...]
    curve: LossCurve | None
    conditions: Conditions
    recipe_path: Path
    recipe_text: str
    html: Path

    @property
    def models(self) -> tuple[MeasuredModel, MeasuredModel, MeasuredModel]:
        """The three, in the order of their making."""
        return self.base, self.upscaled, self.trained

    @property
    def json(self) -> Path:
        """The file of the raw figures."""
        return self.html.with_suffix(".json")


def title(report: Report) -> str:
    """The report's heading."""
    return f"{report.base_name}: {report.plan.base_layers} to {len(report.plan)} layers"


def headline(report: Report) -> str:
    """The outcome in a sentence."""
    losses = [model.loss.nats_per_token for model in report.models]
    if not all(math.isfinite(loss) for loss in losses):
        broken = [model.name for model in report.models if not math.isfinite(model.loss.nats_per_token)]
        return f"The held-out loss of {_listed(broken)} is no finite number: its weights or its arithmetic are broken."
    base, upscaled, trained = losses
    steps = f"{report.curve.last_step:,} steps of training" if report.curve and report.curve.last_step else "Training"
    above = difference(report.trained.loss, report.base.loss)
    return (
        f"Up-scaling {_moved(base, upscaled, 'the held-out loss')}. {steps} "
        f"{_moved(upscaled, trained, 'it')}, {_relation(above.nats_per_token, above.standard_error)}."
    )


def _moved(before: float, after: float, what: str) -> str:
    if abs(after - before) < 0.0005:
        return f"left {what} at {after:.3f}"
    return f"{'raised' if after > before else 'lowered'} {what} from {before:.3f} to {after:.3f}"


def _relation(above: float, standard_error: float | None) -> str:
    if standard_error is not None and abs(above) <= 2 * standard_error:
        return "which is the base's level within the error of measurement"
    return f"{abs(above):.3f} {'above' if above > 0 else 'below'} the base"


def _listed(names: list[str]) -> str:
    return " and ".join(f"the {name} model" for name in names)


class AboveBase(NamedTuple):
    """A loss's distance from the base's in words, and its standard error (empty where it is unknown)."""

    distance: str
    standard_error: str


def above_base(loss: Loss, base: Loss) -> AboveBase:
    """How much a loss is above the base's.

    Example:
        >>> above_base(Loss((30.0, 50.0), (10, 10)), Loss((20.0, 30.0), (10, 10)))
        AboveBase(distance='+1.500', standard_error='± 0.500')
    """
    above, error = difference(loss, base)
    if not math.isfinite(above):
        return AboveBase("not finite", "")
    return AboveBase(f"{above:+.3f}", f"± {error:.3f}" if error is not None else "")


def number(value: float, decimals: int) -> str:
    """A figure for people.

    Example:
        >>> number(12345.678, 1), number(float("nan"), 1)
        ('12,345.7', 'not finite')
    """
    return f"{value:,.{decimals}f}" if math.isfinite(value) else "not finite"


def parameters(count: int) -> str:
    """A number of parameters for people.

    Example:
        >>> parameters(10_731_524_096), parameters(134_515_008), parameters(9_472)
        ('10.73 B', '134.5 M', '9.5 K')
    """
    for size, unit, decimals in ((10**9, "B", 2), (10**6, "M", 1), (10**3, "K", 1)):
        if count >= size:
            return f"{count / size:.{decimals}f} {unit}"
    return str(count)


def curve_note(report: Report) -> str:
    """What is to be said of the loss curve, or why there is none."""
    curve = report.curve
    if curve is None or not (curve.train or curve.held_out):
        return (
            "No loss curve: the run left no log with losses in its output_dir. The Trainer writes it with each "
            "checkpoint; leave out `save_strategy: no`, and set `logging_steps`."
        )
    parts = [f"Training: the mean since the point before{', smoothed' if len(curve.train) >= MANY_POINTS else ''}."]
    parts += (
        ["Held-out: the Trainer's own evaluation, whose windows are not those of the table."] if curve.held_out else []
    )
    if curve.last_step < curve.planned_steps:
        parts.append(f"The log ends at step {curve.last_step:,} of {curve.planned_steps:,}.")
    if curve.num_not_finite:
        parts.append(f"{curve.num_not_finite:,} logged losses were no finite number and are left out.")
    return " ".join(parts)


def limits(report: Report) -> list[str]:
    """What the report does not show."""
    loss = report.base.loss
    return [
        f"How the models do anything but predict the next token of this text: {loss.tokens:,} tokens of one file. "
        "No task, no instruction, no other language or field was tried.",
        "Whether the held-out text is new to the base or to the training data. That was not checked.",
        "What the added depth is worth. For that the base would have to be trained on the same data for the same cost.",
        "How another seed, another order of the data or longer training would end. This is one run.",
        "How often continuations are good. These are the likeliest words after a few prompts, not a sample.",
        "The ± is one standard error over windows as if they were independent; those of one text are not quite.",
    ]


def to_json(report: Report) -> dict[str, Any]:
    """The raw figures as JSON-ready values; what is no finite number is None."""
    content = {
        "version": JSON_VERSION,
        "base_model": report.base_name,
        "plan": report.plan.to_dict(),
        "models": {model.name: _model_figures(model, report.base) for model in report.models},
        "prompts": list(report.prompts),
        "loss_curve": asdict(report.curve) if report.curve else None,
        "conditions": asdict(report.conditions) | {"hardware": report.conditions.hardware._asdict()},
        "recipe": {"path": str(report.recipe_path), "text": report.recipe_text},
    }
    finite: dict[str, Any] = _finite(content)
    return finite


def _model_figures(model: MeasuredModel, base: MeasuredModel) -> dict[str, Any]:
    above = difference(model.loss, base.loss)
    return {
        "num_layers": model.num_layers,
        "num_parameters": model.num_parameters,
        "nats_per_token": model.loss.nats_per_token,
        "perplexity": model.loss.perplexity,
        "above_base": above.nats_per_token,
        "above_base_standard_error": above.standard_error,
        "tokens": model.loss.tokens,
        "window_nats": list(model.loss.window_nats),
        "window_tokens": list(model.loss.window_tokens),
        "continuations": list(model.continuations),
        "seconds": model.seconds,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
