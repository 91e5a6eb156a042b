"""What `solar report` shows: the measured models, their metrics as text, and the same as JSON. Pure."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.evaluation.log_probabilities import share_standard_error
from solar_plugins.evaluation.loss import Loss, difference
from solar_plugins.evaluation.measure import MeasuredModel, PairLogProbs
from solar_plugins.evaluation.models import Hardware
from solar_plugins.recipe import DatasetKey
from solar_plugins.report.stages import Stage
from solar_plugins.text import counted
from solar_plugins.upscaling.layer_plan import LayerPlan

JSON_VERSION = 1


@dataclass(frozen=True, slots=True)
class MeasuredSet:
    """Held-out responses or pairs of the first ``stage`` that names any; ``sets`` counts the rows of each dataset."""

    stage: str
    sets: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Conditions:
    """How everything was measured. With ``answers``, the prompts are questions in SOLAR's chat format."""

    held_out: str
    num_texts: int
    sequence_tokens: int
    max_new_tokens: int
    hardware: Hardware
    versions: Mapping[str, str]
    date: str
    answers: MeasuredSet | None = None
    pairs: MeasuredSet | None = None


class Metrics(NamedTuple):
    """The table of one kind of held-out data: a row of text for each model, and for all but pairs its loss."""

    data: str
    size: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    losses: Sequence[float] = ()
    """In nats per token."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is reported about a recipe and the stages after it.

    Args:
        base_name: The base's name, without the path of this machine.
        models: The base, the upscaled model before training, then the model of each stage.
        stages: The recipe that upscales by ``plan``, then the later ones.
        prompts: What the models continued or answered.
        html: The page. The raw metrics are next to it as JSON.
    """

    base_name: str
    plan: LayerPlan
    models: tuple[MeasuredModel, ...]
    stages: tuple[Stage, ...]
    prompts: tuple[str, ...]
    conditions: Conditions
    html: Path

    @property
    def json(self) -> Path:
        """The file of the raw metrics."""
        return self.html.with_suffix(".json")

    @property
    def title(self) -> str:
        """The heading."""
        return f"{self.base_name}: {self.plan.base_layers} to {len(self.plan)} layers"

    @property
    def base(self) -> MeasuredModel:
        """The base itself."""
        return self.models[0]

    @property
    def roles(self) -> tuple[str, ...]:
        """What each model is: base, upscaled or trained. It decides the color."""
        untrained = {stage.untrained for stage in self.stages}
        return "base", "upscaled", *("upscaled" if m.name in untrained else "trained" for m in self.models[2:])

    @property
    def pair_reference(self) -> MeasuredModel | None:
        """The model at the start of preference training, if pairs were measured."""
        return self.before(self.conditions.pairs.stage) if self.conditions.pairs else None

    def model(self, name: str) -> MeasuredModel:
        """The model of that name."""
        return next(model for model in self.models if model.name == name)

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def before(self, name: str) -> MeasuredModel:
        """The model that a stage started from; if that is not in the report, the one before the stage."""
        if began_with := self.stage(name).began_with:
            return self.model(began_with)
        return self.models[self.models.index(self.model(name)) - 1]

    def metrics(self) -> Iterator[Metrics]:
        """The metrics on each kind of held-out data that was measured."""
        base, reference, names = self.base, self.pair_reference, [model.name for model in self.models]
        losses = [model.loss for model in self.models]
        rows = [
            [name, str(model.num_layers), parameters(model.num_parameters), *cells, number(model.loss.perplexity, 2)]
            for name, model, cells in zip(names, self.models, _loss_cells(losses), strict=True)
        ]
        headings = ["model", "layers", "parameters", *LOSS_HEADINGS, "perplexity"]
        yield Metrics("text", f"{base.loss.tokens:,} tokens", headings, rows, _nats(losses))
        if base.answers:
            losses = [model.answers or base.answers for model in self.models]
            size = f"{counted(len(base.answers.window_tokens), 'response')}, {base.answers.tokens:,} tokens"
            rows = [[name, *cells] for name, cells in zip(names, _loss_cells(losses), strict=True)]
            yield Metrics("responses", size, ["model", *LOSS_HEADINGS], rows, _nats(losses))
        if base.pairs and reference and reference.pairs:
            pairs, count = [model.pairs or base.pairs for model in self.models], len(base.pairs.chosen)
            later = self.models.index(reference) + 1
            preferred = [share(one.num_preferred, count) for one in pairs]
            gained = [""] * later + [share(one.num_rewarded(reference.pairs), count) for one in pairs[later:]]
            headings = ["model", "chosen more likely", f"margin up vs. {reference.name}"]
            rows = [list(cells) for cells in zip(names, preferred, gained, strict=True)]
            yield Metrics("preference pairs", counted(count, "pair"), headings, rows)

    @property
    def broken(self) -> tuple[str, list[str]] | None:
        """Which metric is not finite, and the names of the models of which it is not; None if all are finite."""
        losses = {model.name: _nats(filter(None, (model.loss, model.answers))) for model in self.models}
        infinite = [name for name, found in losses.items() if not all(map(math.isfinite, found))]
        pairs = [model.name for model in self.models if model.pairs and not model.pairs.is_finite]
        found = (("held-out loss", infinite), ("log-probability of held-out pairs", pairs))
        return next((one for one in found if one[1]), None)

    @property
    def before_chat(self) -> list[str]:
        """The models before the first stage that trains on a chat format; empty if no stage does."""
        first = next((stage.name for stage in self.stages if stage.uses_chat_format), None)
        return [model.name for model in takewhile(lambda model: model.name != first, self.models)] if first else []

    @property
    def trained_on(self) -> dict[str, list[str]]:
        """Held-out files that stages trained on, with the names of these stages.

        The held-out text counts in any split; responses and pairs only in the same split, name and data_files.
        """
        held_out: list[tuple[str, str | None]] = [(os.path.normpath(self.conditions.held_out), None)]
        for measured in filter(None, (self.conditions.answers, self.conditions.pairs)):
            held_out += _files(self.stage(measured.stage), "test_datasets")
        trained = {stage.name: _files(stage, "datasets", "pretraining_dataset") for stage in self.stages}
        found = dict[str, list[str]]()
        for path, part in held_out:
            same = {name for name, files in trained.items() for p, q in files if path == p and part in (None, q)}
            if same:
                found.setdefault(path, [name for name in trained if name in same])
        return found


def _files(stage: Stage, *keys: DatasetKey) -> list[tuple[str, str]]:
    """The path of each dataset, and which part of it is read."""
    entries = [entry for key in keys for _, entry in stage.recipe.entries(key)] if stage.recipe else []
    parts = ("split", "name", "data_files")
    return [(os.path.normpath(str(entry.get("path"))), str([entry.get(part) for part in parts])) for entry in entries]


LOSS_HEADINGS = ("nats/token", "vs. base")


def _loss_cells(losses: Sequence[Loss]) -> list[tuple[str, str]]:
    """Each loss, and how far it is above the first, which is the base's."""
    above = ["", *(above_base(loss, losses[0]) for loss in losses[1:])]
    return [(number(nats, 3), cell) for nats, cell in zip(_nats(losses), above, strict=True)]


def _nats(losses: Iterable[Loss]) -> list[float]:
    return [loss.nats_per_token for loss in losses]


def above_base(loss: Loss, base: Loss) -> str:
    """How far a loss is above the base's, with the standard error if that is known.

    >>> above_base(Loss((30.0, 50.0), (10, 10)), Loss((20.0, 30.0), (10, 10)))
    '+1.500 ± 0.500'
    """
    above, error = difference(loss, base)
    if not math.isfinite(above):
        return "not finite"
    return f"{above:+.3f}" if error is None else f"{above:+.3f} ± {error:.3f}"


def number(value: float, decimals: int) -> str:
    """A metric as text.

    >>> number(12345.678, 1), number(float("nan"), 1)
    ('12,345.7', 'not finite')
    """
    return f"{value:,.{decimals}f}" if math.isfinite(value) else "not finite"


def parameters(count: int) -> str:
    """A number of parameters as text.

    >>> parameters(10_731_524_096), parameters(134_515_008), parameters(9_472)
    ('10.73 B', '134.5 M', '9.5 K')
    """
    for size, unit, decimals in ((10**9, "B", 2), (10**6, "M", 1), (10**3, "K", 1)):
        if count >= size:
            return f"{count / size:.{decimals}f} {unit}"
    return str(count)


def share(count: int | None, pairs: int) -> str:
    """A share of pairs with its standard error; without a count, one that is not finite.

    >>> share(2, 3), share(None, 3)
    ('67 % ± 19', 'not finite')
    """
    if count is None:
        return "not finite"
    return f"{100 * count / pairs:.0f} % ± {100 * share_standard_error(count, pairs):.0f}"


def to_json(report: Report) -> dict[str, Any]:
    """The raw metrics as JSON-ready values; what is not finite is None.

    ``loss_curve`` and ``recipe`` are those of the recipe that upscales; later stages have their own.
    """
    first, *later = report.stages
    content = {
        "version": JSON_VERSION,
        "base_model": report.base_name,
        "plan": report.plan.to_dict(),
        "models": {model.name: _model_json(model, report) for model in report.models},
        "prompts": report.prompts,
        **_stage_json(first),
        "later_stages": [{"name": stage.name} | _stage_json(stage) for stage in later],
        "conditions": asdict(report.conditions) | {"hardware": report.conditions.hardware._asdict()},
    }
    finite: dict[str, Any] = _finite(content)
    return finite


def _model_json(model: MeasuredModel, report: Report) -> dict[str, Any]:
    base, reference = report.base, report.pair_reference
    return {
        "num_layers": model.num_layers,
        "num_parameters": model.num_parameters,
        **_loss_json(model.loss, base.loss),
        "continuations": model.continuations,
        "seconds": model.seconds,
        "answers": _loss_json(model.answers, base.answers) if model.answers and base.answers else None,
        "pairs": _pair_json(model.pairs, reference) if model.pairs and reference else None,
    }


def _loss_json(loss: Loss, base: Loss) -> dict[str, Any]:
    above, error = difference(loss, base)
    return {
        "nats_per_token": loss.nats_per_token,
        "perplexity": loss.perplexity,
        "above_base": above,
        "above_base_standard_error": error,
        "tokens": loss.tokens,
        **asdict(loss),
    }


def _pair_json(pairs: PairLogProbs, reference: MeasuredModel) -> dict[str, Any]:
    assert reference.pairs is not None
    preferred = pairs.num_preferred
    return {
        "pairs": len(pairs.chosen),
        "preferred": preferred,
        "standard_error": None if preferred is None else share_standard_error(preferred, len(pairs.chosen)),
        "reference": reference.name,
        "gained_on_reference": pairs.num_rewarded(reference.pairs),
        "chosen_log_probability": pairs.chosen,
        "rejected_log_probability": pairs.rejected,
    }


def _stage_json(stage: Stage) -> dict[str, Any]:
    log = stage.log
    return {
        "loss_curve": log
        and {
            **log.loss._asdict(),
            "last_step": log.last_step,
            "planned_steps": log.planned_steps,
            "num_not_finite": log.num_not_finite,
            "margins": log.margins._asdict() if log.margins.points else None,
            "accuracies": log.accuracies._asdict() if log.accuracies.points else None,
        },
        "recipe": stage.recipe and {"path": str(stage.recipe.path), "text": stage.recipe.text},
        **({"plan": stage.plan.to_dict()} if stage.plan else {}),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
