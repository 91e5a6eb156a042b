"""What was measured and how, and its figures in words. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from solar_plugins.evaluation.log_probabilities import share_standard_error
from solar_plugins.evaluation.loss import Loss, difference
from solar_plugins.evaluation.measure import MeasuredModel
from solar_plugins.evaluation.models import Hardware
from solar_plugins.report.stages import Stage
from solar_plugins.upscaling.layer_plan import LayerPlan

type Role = Literal["base", "upscaled", "trained"]
"""Which colour a model has."""

NOTHING = "(nothing: it ends the text here)"
"""What is said for an empty continuation."""


class MeasuredSet(NamedTuple):
    """Held-out rows of a later stage.

    Args:
        stage: The first stage that names any; its tokenizer reads them.
        sets: For each of its sets what became of the rows, in words.
        size: How many answers or pairs were measured.
    """

    stage: str
    sets: tuple[str, ...]
    size: int


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
        answers: Held-out answers, where a stage names any. Then prompts are questions in SOLAR's chat format.
        pairs: Held-out pairs, where a stage names any.
    """

    held_out: str
    num_texts: int
    sequence_tokens: int
    max_new_tokens: int
    hardware: Hardware
    versions: Mapping[str, str]
    date: str
    answers: MeasuredSet | None = None
    pairs: MeasuredSet | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is reported of a recipe, or of a chain of them.

    Args:
        base_name: The base's name, fit for publication.
        plan: How it was upscaled.
        models: In the order of their making: the base, the upscaled one before training, then that of each stage.
        stages: The recipe that upscales, then the later ones.
        prompts: What the models went on with, or were asked.
        conditions: How it was measured.
        html: The page; the figures lie beside it as JSON.
    """

    base_name: str
    plan: LayerPlan
    models: tuple[MeasuredModel, ...]
    stages: tuple[Stage, ...]
    prompts: tuple[str, ...]
    conditions: Conditions
    html: Path

    @property
    def base(self) -> MeasuredModel:
        """The base itself."""
        return self.models[0]

    @property
    def pair_reference(self) -> MeasuredModel | None:
        """The model with which preference training began, if pairs were measured."""
        return self.before(self.conditions.pairs.stage) if self.conditions.pairs else None

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def before(self, name: str) -> MeasuredModel:
        """The model with which a stage began; where that is not in the report, the one before the stage."""
        names = [model.name for model in self.models]
        began_with = self.stage(name).began_with
        return self.models[names.index(began_with) if began_with else names.index(name) - 1]

    @property
    def is_chain(self) -> bool:
        """Whether there are stages after the recipe that upscales."""
        return len(self.stages) > 1

    def rows(self) -> list[tuple[Role, MeasuredModel]]:
        """The models, each with its role."""
        base, upscaled, *trained = self.models
        return [("base", base), ("upscaled", upscaled), *(("trained", model) for model in trained)]

    @property
    def json(self) -> Path:
        """The file of the raw figures."""
        return self.html.with_suffix(".json")


def title(report: Report) -> str:
    """The report's heading."""
    return f"{report.base_name}: {report.plan.base_layers} to {len(report.plan)} layers"


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


def share(count: int, pairs: int) -> str:
    """A share of pairs, with its standard error.

    Example:
        >>> share(2, 3)
        '67 % ± 19'
    """
    return f"{100 * count / pairs:.0f} % ± {100 * share_standard_error(count, pairs):.0f}"


def preferred(model: MeasuredModel) -> str:
    """The share of pairs whose chosen answer a model holds to be likelier."""
    assert model.pairs is not None
    return share(model.pairs.preferred, len(model.pairs.chosen)) if model.pairs.is_finite else "not finite"


def gained(report: Report, model: MeasuredModel) -> str:
    """The share of pairs whose chosen answer gained more than the rejected one since preference training began."""
    reference, names = report.pair_reference, [model.name for model in report.models]
    if reference is None or names.index(model.name) <= names.index(reference.name):
        return ""
    assert model.pairs is not None
    assert reference.pairs is not None
    if not (model.pairs.is_finite and reference.pairs.is_finite):
        return "not finite"
    return share(model.pairs.gained_on(reference.pairs), len(model.pairs.chosen))
