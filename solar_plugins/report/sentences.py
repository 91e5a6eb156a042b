"""What a report says in sentences: the outcome, notes on curves, and what it does not show. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from solar_plugins.report.content import Report
from solar_plugins.report.loss import Loss, difference
from solar_plugins.report.measure import MeasuredModel
from solar_plugins.report.stages import Stage
from solar_plugins.report.training_log import MANY_POINTS, TrainingLog

SMALLEST_SHOWN = 0.0005
"""Smaller differences of losses are none in three decimals."""


def headline(report: Report) -> str:
    """The outcome in a sentence, or for a chain in a few."""
    broken = [model.name for model in report.models if not _is_finite(model)]
    if broken:
        return f"The held-out loss of {_listed(broken)} is no finite number: its weights or its arithmetic are broken."
    base, upscaled, trained = (model.loss.nats_per_token for model in report.models[:3])
    log = report.stages[0].log
    steps = f"{log.last_step:,} steps of training" if log and log.last_step else "Training"
    above = difference(report.models[2].loss, report.base.loss)
    first = (
        f"Up-scaling {_moved(base, upscaled, 'the held-out loss')}. {steps} "
        f"{_moved(upscaled, trained, 'it')}, {_relation(above.nats_per_token, above.standard_error)}."
    )
    return " ".join([first, *_answers_sentence(report), *_pairs_sentence(report)])


def _is_finite(model: MeasuredModel) -> bool:
    losses = [model.loss.nats_per_token, *([model.answers.nats_per_token] if model.answers else [])]
    return all(map(math.isfinite, losses)) and (model.pairs is None or model.pairs.is_finite)


def _moved(before: float, after: float, what: str) -> str:
    if abs(after - before) < SMALLEST_SHOWN:
        return f"left {what} at {after:.3f}"
    return f"{'raised' if after > before else 'lowered'} {what} from {before:.3f} to {after:.3f}"


def _relation(above: float, standard_error: float | None) -> str:
    if standard_error is not None and abs(above) <= 2 * standard_error:
        return "which is the base's level within the error of measurement"
    return f"{abs(above):.3f} {'above' if above > 0 else 'below'} the base"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"the {name} model" for name in names)


def _answers_sentence(report: Report) -> Iterator[str]:
    """What the stage of instruction tuning did to answers, and where the last model ends."""
    measured = report.conditions.answers
    if measured is None:
        return
    place = [model.name for model in report.models].index(measured.stage)
    before, after, last = report.models[place - 1], report.models[place], report.models[-1]
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
        f"Of {pairs:,} held-out pairs {before.name} holds the chosen answer to be likelier in "
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
    """How the curves of a chain are to be read."""
    parts = [
        "Training: the mean since the point before; of many points the line is smoothed. Held-out: the Trainer's "
        "own evaluation on the stage's test_datasets; its windows and means are not those of the table."
    ]
    if any(stage.log and stage.log.margins.points for stage in report.stages):
        parts.append(
            "Reward: beta times what the model gained in log-probability over the model that the stage began with. "
            "Margin: how far the chosen answer's is above the rejected one's. Accuracy: the share of pairs whose "
            "margin is positive."
        )
    return " ".join(parts)


def table_note(report: Report) -> str:
    """How the columns of a chain's table are to be read."""
    parts = ["± is one standard error; beside a loss, that of its distance from the base's."]
    if report.conditions.answers or report.conditions.pairs:
        parts.append("Every model read the same token ids, answers and pairs in SOLAR's chat format.")
        if names := _before_chat(report):
            parts.append(f"{', '.join(names[:-1])} and {names[-1]} were not trained on that format here.")
    if report.conditions.answers:
        parts.append("Answers: nats per token of the answer, its end token included.")
    if report.pair_reference:
        parts.append(
            "Pairs: the share whose chosen answer has the higher log-probability, and the share whose chosen answer "
            f"gained more of it over {report.pair_reference.name} than the rejected one, the reward accuracy of DPO."
        )
    return " ".join(parts)


def _before_chat(report: Report) -> list[str]:
    """The models before the first stage that trains on a chat format: two or more, or none where no stage does."""
    places = [place for place, stage in enumerate(report.stages) if stage.uses_chat_format]
    return [model.name for model in report.models[: 2 + places[0]]] if places else []


def limits(report: Report) -> list[str]:
    """What the report does not show."""
    return [
        _measured_only(report),
        "Whether the held-out text is new to the base or to the training data. That was not checked.",
        "What the added depth is worth. For that the base would have to be trained on the same data for the same cost.",
        "How another seed, another order of the data or longer training would end. This is one run.",
        "How often continuations are good. These are the likeliest words after a few prompts, not a sample.",
        "The ± is one standard error over windows as if they were independent; those of one text are not quite.",
        *_chat_limits(report),
    ]


def _chat_limits(report: Report) -> Iterator[str]:
    if report.conditions.answers and (names := _before_chat(report)):
        yield (
            f"How much of what comes after {names[-1]} is better answers, and how much only the chat format and its "
            "end token, on which the models up to there were not trained."
        )


def _measured_only(report: Report) -> str:
    tokens, conditions = report.base.loss.tokens, report.conditions
    sets = [f"{conditions.answers.size:,} answers"] if conditions.answers else []
    sets += [f"{conditions.pairs.size:,} pairs"] if conditions.pairs else []
    if not sets:
        return (
            f"How the models do anything but predict the next token of this text: {tokens:,} tokens of one file. "
            "No task, no instruction, no other language or field was tried."
        )
    return (
        f"How the models do anything but predict {tokens:,} tokens of one file of text and judge {' and '.join(sets)}. "
        "What they say was not graded, and no task, no other language or field was tried."
    )
