"""What a report says in sentences: the outcome, notes on curves, and what it does not show. Pure."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from solar_plugins.evaluation.loss import Loss, difference
from solar_plugins.evaluation.measure import MeasuredModel
from solar_plugins.recipe import METHODS_WITHOUT_REFERENCE, DatasetKey
from solar_plugins.report.content import Report
from solar_plugins.report.stages import Stage
from solar_plugins.report.training_log import MANY_POINTS, TrainingLog

SMALLEST_SHOWN = 0.0005
"""Smaller differences of losses are none in three decimals."""


def headline(report: Report) -> str:
    """The outcome in a sentence, or for a chain in a few."""
    if broken := _broken(report):
        return broken
    base, upscaled, trained = (model.loss.nats_per_token for model in report.models[:3])
    steps = report.stages[0].steps
    training = f"{_counted(steps, 'step')} of training" if steps else "Training"
    above = difference(report.models[2].loss, report.base.loss)
    first = (
        f"Upscaling {_moved(base, upscaled, 'the held-out loss')}. {training} "
        f"{_moved(upscaled, trained, 'it')}, {_relation(above.nats_per_token, above.standard_error)}."
    )
    return " ".join([first, *_answers_sentence(report), *_pairs_sentence(report)])


def _broken(report: Report) -> str:
    """What is no finite number; empty where all is."""
    losses = [model.name for model in report.models if not _finite_losses(model)]
    pairs = [model.name for model in report.models if model.pairs and not model.pairs.is_finite]
    if not (losses or pairs):
        return ""
    what = f"The held-out loss of {_listed(losses)}" if losses else f"What {_listed(pairs)} gives for held-out pairs"
    return f"{what} is no finite number: weights or arithmetic are broken."


def _finite_losses(model: MeasuredModel) -> bool:
    losses = [model.loss.nats_per_token, *([model.answers.nats_per_token] if model.answers else [])]
    return all(map(math.isfinite, losses))


def _moved(before: float, after: float, what: str) -> str:
    old, new = f"{before:.3f}", f"{after:.3f}"
    if abs(after - before) < SMALLEST_SHOWN or old == new:
        return f"left {what} at {new}"
    return f"{'raised' if after > before else 'lowered'} {what} from {old} to {new}"


def _relation(above: float, standard_error: float | None) -> str:
    if standard_error is not None and abs(above) <= 2 * standard_error:
        return "which is the base's level within the error of measurement"
    if abs(above) < SMALLEST_SHOWN:
        return "which is the base's level"
    return f"{abs(above):.3f} {'above' if above > 0 else 'below'} the base"


def _listed(names: Sequence[str]) -> str:
    return _joined([f"the {name} model" for name in names])


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _joined(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def _answers_sentence(report: Report) -> Iterator[str]:
    """What the stage of instruction tuning did to answers, and where the last model ends."""
    measured = report.conditions.answers
    if measured is None:
        return
    before, last = report.before(measured.stage), report.models[-1]
    after = next(model for model in report.models if model.name == measured.stage)
    old, new, end = (_answers(model) for model in (before, after, last))
    moved = _moved(old.nats_per_token, new.nats_per_token, "the loss on held-out answers")
    above = difference(new, _answers(report.base))
    sentence = f"{after.name} {moved}, {_relation(above.nats_per_token, above.standard_error)}"
    if last is not after:
        change = difference(end, new)
        same = change.standard_error is not None and abs(change.nats_per_token) <= 2 * change.standard_error
        sentence += f"; {last.name} ends at {end.nats_per_token:.3f}"
        sentence += f", as {after.name} within the error of measurement" if same else ""
    yield f"{sentence}."


def _answers(model: MeasuredModel) -> Loss:
    assert model.answers is not None  # Every model is measured with the same task.
    return model.answers


def _pairs_sentence(report: Report) -> Iterator[str]:
    """What preference training did to the order of answers, up to the last model."""
    before, last = report.pair_reference, report.models[-1]
    if before is None:
        return
    assert before.pairs is not None
    assert last.pairs is not None
    pairs = len(last.pairs.chosen)
    yield (
        f"Of {_counted(pairs, 'held-out pair')} {before.name} holds the chosen answer to be likelier in "
        f"{before.pairs.preferred:,}, {last.name} in {last.pairs.preferred:,}; in "
        f"{last.pairs.gained_on(before.pairs):,} the chosen answer gained on the rejected one, where chance gives "
        f"{pairs / 2:,.1f} ± {math.sqrt(pairs) / 2:,.1f}."
    )


def curve_note(log: TrainingLog | None) -> str:
    """What is to be said of a loss curve, or why there is none."""
    if log is None or not log.loss.points:
        return (
            "No loss curve: the run left no log with losses in its output_dir. The Trainer writes it with each "
            "checkpoint; leave out `save_strategy: no`, and set `logging_steps`."
        )
    many = len(log.loss.train) >= MANY_POINTS
    parts = [f"Training: the mean since the point before{', smoothed' if many else ''}."]
    if log.loss.held_out:
        parts.append("Held-out: the Trainer's own evaluation, whose windows are not those of the table.")
    return " ".join([*parts, *_log_faults(log)])


def _log_faults(log: TrainingLog) -> Iterator[str]:
    if log.last_step < log.planned_steps:
        yield f"The log ends at step {log.last_step:,} of {log.planned_steps:,}."
    if log.num_not_finite:
        yield f"{log.num_not_finite:,} logged losses were no finite number and are left out."


def first_loss(stage: Stage) -> str:
    """DPO's first loss beside the one that it has before the first step; empty where that is not known."""
    if not stage.starts_at_ln_2 or stage.log is None or not stage.log.loss.train:
        return ""
    step, loss = stage.log.loss.train[0]
    since = "The first loss" if step == 1 else f"The first logged loss, the mean of {step:,} steps,"
    return (
        f"{since} is {loss:.4f}. Before the first step model and reference are the same, and it is "
        f"ln 2 = {math.log(2):.4f}."
    )


def stage_note(stage: Stage) -> str:
    """What is to be said of a stage's curves in a report on a chain."""
    if stage.log is None or not stage.log.loss.points:
        return curve_note(stage.log)
    return " ".join(filter(None, [first_loss(stage), *_log_faults(stage.log)]))


def curves_note(report: Report) -> str:
    """How the curves of a chain are to be read; empty where there are none."""
    stages = [(stage, stage.log) for stage in report.stages if stage.log]
    parts = []
    if any(log.loss.train for _, log in stages):
        parts.append(
            "Training: the mean since the point before; of many points the line and its last value are smoothed."
        )
    if any(log.loss.held_out for _, log in stages):
        parts.append(
            "Held-out: the Trainer's own evaluation of what the stage's recipe holds out; its windows and means are "
            "not those of the table."
        )
    if rewarded := [stage for stage, log in stages if log.margins.points]:
        parts.append(_reward(rewarded))
        parts.append("Margin: how far the chosen answer's is above the rejected one's.")
    if any(log.accuracies.points for _, log in stages):
        parts.append("Accuracy: the share of pairs whose margin is positive.")
    return " ".join(parts)


def _reward(stages: Sequence[Stage]) -> str:
    """What TRL's trainers log as reward."""
    without = [stage.name for stage in stages if stage.method in METHODS_WITHOUT_REFERENCE]
    of_mean = f"beta times the mean log-probability of a token ({', '.join(without)}: no reference)"
    if len(without) == len(stages):
        return f"Reward: {of_mean}."
    gained = "beta times what the model gained in log-probability over the model that the stage began with"
    return f"Reward: {gained}{f'; {of_mean}' if without else ''}."


def table_note(report: Report) -> str:
    """How the columns of a chain's table are to be read."""
    parts = ["± is one standard error; beside a loss, that of its distance from the base's."]
    if report.conditions.answers or report.conditions.pairs:
        parts.append("Every model read the same token ids, answers and pairs in SOLAR's chat format.")
        if names := _before_chat(report):
            parts.append(f"{_joined(names)} were not trained on that format here.")
    if report.conditions.answers:
        parts.append("Answers: nats per token of the answer, its end token included.")
    if report.pair_reference:
        parts.append(
            "Pairs: the share whose chosen answer has the higher log-probability, and the share whose chosen answer "
            f"gained more of it over {report.pair_reference.name} than the rejected one{_reward_accuracy(report)}."
        )
    return " ".join(parts)


def _reward_accuracy(report: Report) -> str:
    """Whose reward accuracy that share is: that of a stage whose reference is known to be the model compared with."""
    stage = report.stage(report.conditions.pairs.stage) if report.conditions.pairs else None
    if stage is None or stage.began_with is None or stage.method not in ("dpo", "ipo"):
        return ""
    return f", for {stage.name} the reward accuracy of DPO"


def _before_chat(report: Report) -> list[str]:
    """The models before the first stage that trains on a chat format: two or more, or none where no stage does."""
    places = [place for place, stage in enumerate(report.stages) if stage.uses_chat_format]
    return [model.name for model in report.models[: 2 + places[0]]] if places else []


def limits(report: Report) -> list[str]:
    """What the report does not show."""
    chat = _chat_sets(report)
    return [
        _measured_only(report),
        *_also_trained_on(report),
        f"Whether the held-out {_joined(['text', *chat])} {'are' if chat else 'is'} new to the base or to the training "
        "data. That was not checked.",
        "What the added depth is worth. For that the base would have to be trained on the same data for the same cost.",
        "How another seed, another order of the data or longer training would end. This is one run.",
        "How often continuations are good. These are the likeliest words after a few prompts, not a sample.",
        f"The ± is one standard error over {_joined(['windows', *chat])} as if they were independent; those of one "
        "text are not quite.",
        *_chat_limits(report),
    ]


def _chat_sets(report: Report) -> list[str]:
    conditions = report.conditions
    return [name for name, found in (("answers", conditions.answers), ("pairs", conditions.pairs)) if found]


def _also_trained_on(report: Report) -> Iterator[str]:
    """Which held-out files a recipe names for training too: the text's in any split, others in the same part."""
    conditions = report.conditions
    held_out: list[tuple[str, str | None]] = [(os.path.normpath(conditions.held_out), None)]
    for measured in filter(None, (conditions.answers, conditions.pairs)):
        held_out += map(_path_and_part, _entries(report.stage(measured.stage), "test_datasets"))
    for path, part in dict.fromkeys(held_out):
        if names := [stage.name for stage in report.stages if _trains_on(stage, path, part)]:
            yield f"What is new to the models in {path}: {_joined(names)} trained on it. Its figures are not held-out."


def _trains_on(stage: Stage, path: str, part: str | None) -> bool:
    entries = [*_entries(stage, "datasets"), *_entries(stage, "pretraining_dataset")]
    return any(found == path and part in (None, its) for found, its in map(_path_and_part, entries))


def _entries(stage: Stage, key: DatasetKey) -> list[Mapping[str, Any]]:
    return [entry for _, entry in stage.recipe.entries(key)] if stage.recipe else []


def _path_and_part(entry: Mapping[str, Any]) -> tuple[str, str]:
    part = [entry.get(key) for key in ("split", "name", "data_files")]
    return os.path.normpath(str(entry.get("path"))), str(part)


def _chat_limits(report: Report) -> Iterator[str]:
    if report.conditions.answers and (names := _before_chat(report)):
        yield (
            f"How much of what comes after {names[-1]} is better answers, and how much only the chat format and its "
            "end token, on which the models up to there were not trained."
        )


def _measured_only(report: Report) -> str:
    tokens, conditions = report.base.loss.tokens, report.conditions
    sets = [_counted(conditions.answers.size, "answer")] if conditions.answers else []
    sets += [_counted(conditions.pairs.size, "pair")] if conditions.pairs else []
    if not sets:
        return (
            f"How the models do anything but predict the next token of this text: {tokens:,} tokens of one file. "
            "No task, no instruction, no other language or field was tried."
        )
    return (
        f"How the models do anything but predict {tokens:,} tokens of one file of text and judge {' and '.join(sets)}. "
        "What they say was not graded, and no task, no other language or field was tried."
    )
