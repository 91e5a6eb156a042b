"""The paper's H6 table with rows of our own: as text and as JSON. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from solar_plugins.evaluation.lm_eval_results import ModelScores, Score
from solar_plugins.evaluation.published import EVALUATION_NOISE, PUBLISHED_MODELS, PUBLISHED_STAGES, TASKS, Task
from solar_plugins.tables import lines, table
from solar_plugins.text import printable

MISSING = "-"
MARK = "*"
"""In front of a score, so that the digits of a column stay aligned."""
SOURCE = "Kim et al. 2023, arXiv:2312.15166"


def is_whole(task: Task, score: Score) -> bool:
    """Whether the score stands on as many examples as the test set has."""
    return score.examples == task.examples


def h6(model: ModelScores) -> float | None:
    """The mean of the six scores; None unless all six are there, each on its whole test set."""
    scores = [model.scores.get(task) for task in TASKS]
    whole = [score.percent for task, score in zip(TASKS, scores, strict=True) if score and is_whole(task, score)]
    return math.fsum(whole) / len(TASKS) if len(whole) == len(TASKS) else None


def h6_standard_error(model: ModelScores) -> float | None:
    """Of `h6`: the six taken as independent; None where one of the six is not known."""
    errors = [score.standard_error for score in model.scores.values() if score.standard_error is not None]
    if h6(model) is None or len(errors) < len(TASKS):
        return None
    return math.sqrt(math.fsum(error**2 for error in errors)) / len(TASKS)


def as_text(models: Sequence[ModelScores]) -> str:
    """The table, then what has to be known to read it."""
    headings = ["model\nshots", "H6\n ", *(f"{task.label}\n{task.shots}" for task in TASKS)]
    rows = [
        [published.name, f"{published.mean:.2f}", *(f"{score:.2f}" for score in published.scores)]
        for published in PUBLISHED_MODELS
    ]
    own = [line for model in models for line in _rows(model)]
    stages = ", ".join(f"{stage.name} {stage.mean:.2f}" for stage in PUBLISHED_STAGES)
    notes = [
        f"rows above the last line: {SOURCE}; percent",
        f"its stages by H6: {stages}. One model has two scores there that lie {EVALUATION_NOISE} apart",
        *(note for model in models for note in _notes(model)),
    ]
    return "\n".join([*lines(table(headings, [*rows, *own], rules=(len(rows),))), "", *notes])


def _rows(model: ModelScores) -> list[list[str]]:
    mean, error = h6(model), h6_standard_error(model)
    scores = [model.scores.get(task) for task in TASKS]
    values = [_cell(task, score) for task, score in zip(TASKS, scores, strict=True)]
    errors = [
        "" if score is None or score.standard_error is None else f"±{score.standard_error:.2f}" for score in scores
    ]
    rows = [[printable(model.model).replace("\n", " "), MISSING if mean is None else f"{mean:.2f}", *values]]
    if any(errors):
        rows.append(["  standard error", "" if error is None else f"±{error:.2f}", *errors])
    return rows


def _cell(task: Task, score: Score | None) -> str:
    if score is None:
        return MISSING
    return f"{'' if is_whole(task, score) else MARK}{score.percent:.2f}"


def _notes(model: ModelScores) -> list[str]:
    name = printable(model.model).replace("\n", " ")
    missing = [task.name for task in TASKS if task not in model.scores]
    partial = [
        f"{task.label} on {score.examples:,} examples (the test set has {task.examples:,})"
        for task, score in model.scores.items()
        if not is_whole(task, score)
    ]
    notes = []
    if missing:
        notes.append(f"{MISSING} {name}: not run: {', '.join(missing)}; so there is no H6")
    if partial:
        notes.append(f"{MARK} {name}: {'; '.join(partial)}; not comparable, so there is no H6")
    if model.with_chat_template:
        tasks = ", ".join(task.label for task in model.with_chat_template)
        notes.append(f"{name}: asked through a chat template: {tasks}; the paper's scores were not")
    return notes


def as_json(models: Sequence[ModelScores]) -> dict[str, Any]:
    """The same for programs; what is not known is null."""
    return {
        "tasks": [
            {"name": task.name, "label": task.label, "shots": task.shots, "metric": task.metric} for task in TASKS
        ],
        "models": [_model_as_json(model) for model in models],
        "published": {
            "source": SOURCE,
            "models": [
                {
                    "model": row.name,
                    "h6": row.mean,
                    "scores": {task.name: score for task, score in zip(TASKS, row.scores, strict=True)},
                }
                for row in PUBLISHED_MODELS
            ],
            "stages": [{"stage": stage.name, "h6": stage.mean} for stage in PUBLISHED_STAGES],
        },
    }


def _model_as_json(model: ModelScores) -> dict[str, Any]:
    return {
        "model": model.model,
        "h6": h6(model),
        "h6_standard_error": h6_standard_error(model),
        "scores": {task.name: _score_as_json(task, model.scores.get(task)) for task in TASKS},
        "with_chat_template": [task.name for task in model.with_chat_template],
    }


def _score_as_json(task: Task, score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    return {
        "percent": score.percent,
        "standard_error": score.standard_error,
        "examples": score.examples,
        "whole_test_set": is_whole(task, score),
        "file": str(score.file),
    }
