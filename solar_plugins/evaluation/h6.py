"""The paper's H6 table with rows of our own models, from the result files of lm_eval. Pure except for reading them.

H6 is the mean of six task scores; lm_eval has the tasks (its group ``openllm``) but not their mean. Task names are
those of lm_eval 0.4.11. Source of the published scores: Kim et al. 2023, "SOLAR 10.7B", arXiv:2312.15166 v2, the table
of results and the ablations of SFT, DPO and merging.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.errors import EvaluationError
from solar_plugins.storage.untrusted import read_json_object
from solar_plugins.tables import lines, table
from solar_plugins.text import printable


class Task(NamedTuple):
    """One of the six tasks.

    Args:
        label: Its name in tables.
        name: Its name in lm_eval and in a recipe's ``lm_eval_tasks``.
        shots: Few-shot examples, as in the paper.
        metric: The key of the score in lm_eval's results: metric and filter.
        examples: Size of the test set of the published scores.
    """

    label: str
    name: str
    shots: int
    metric: str
    examples: int

    @property
    def error_metric(self) -> str:
        """The key of the score's standard error.

        >>> TASKS[0].error_metric
        'acc_norm_stderr,none'
        """
        metric, _, filtered = self.metric.partition(",")
        return f"{metric}_stderr,{filtered}"


TASKS = (
    Task("ARC", "arc_challenge", 25, "acc_norm,none", 1172),
    Task("HellaSwag", "hellaswag", 10, "acc_norm,none", 10042),
    Task("MMLU", "mmlu", 5, "acc,none", 14042),
    Task("TruthfulQA", "truthfulqa_mc2", 0, "acc,none", 817),
    Task("Winogrande", "winogrande", 5, "acc,none", 1267),
    Task("GSM8K", "gsm8k", 5, "exact_match,strict-match", 1319),
)


class PublishedModel(NamedTuple):
    """A row of the paper's table, in percent.

    Args:
        name: The model.
        mean: Its H6 as printed.
        scores: In the order of `TASKS`.
    """

    name: str
    mean: float
    scores: tuple[float, ...]


PUBLISHED_MODELS = (
    PublishedModel("Mistral 7B", 60.97, (59.98, 83.31, 64.16, 42.15, 78.37, 37.83)),
    PublishedModel("SOLAR 10.7B", 66.04, (61.95, 84.60, 65.48, 45.04, 83.66, 55.50)),
    PublishedModel("SOLAR 10.7B-Instruct", 74.20, (71.08, 88.16, 66.21, 71.43, 83.58, 64.75)),
    PublishedModel("Mixtral 8x7B-Instruct", 72.62, (70.22, 87.63, 71.16, 64.58, 81.37, 60.73)),
)


class PublishedStage(NamedTuple):
    """The H6 of an intermediate model of SOLAR-Instruct, in percent."""

    name: str
    mean: float


PUBLISHED_STAGES = (
    PublishedStage("SFT v3", 70.03),
    PublishedStage("SFT v4", 70.88),
    PublishedStage("average of SFT v3 and v4", 71.11),
    PublishedStage("DPO v3, from that", 73.58),
    PublishedStage("average of two DPO candidates", 74.00),
)

EVALUATION_NOISE = 0.2
"""How much two scores of one model differ in the paper: SOLAR-Instruct has 74.20 in one table, 74.00 in another."""


RESULT_FILES = "results_*.json"
"""The file names of lm_eval (lm_eval/loggers/evaluation_tracker.py)."""

NAME_ARGS = ("peft", "delta", "pretrained", "model", "path", "engine")
"""Model arguments of lm_eval that name the model, in lm_eval's order of precedence."""
VARIANT_ARGS = (
    *("revision", "subfolder", "gguf_file", "peft", "delta"),
    *("load_in_4bit", "load_in_8bit", "quantization", "autogptq", "gptqmodel"),
)
"""Arguments that select other weights under the same name, or quantize them; ``model_name`` does not include them."""


@dataclass(frozen=True, slots=True)
class Score:
    """A model's score on a task, in percent.

    Args:
        percent: The score.
        standard_error: As estimated by lm_eval, or None.
        examples: Number of examples.
        file: The result file.
    """

    percent: float
    standard_error: float | None
    examples: int
    file: Path


@dataclass(frozen=True, slots=True)
class ModelScores:
    """The scores of a model.

    Args:
        model: Its name, as given to lm_eval.
        scores: By task; tasks that were not run are missing.
        with_chat_template: Tasks that were run with a chat template; the paper used none.
    """

    model: str
    scores: Mapping[Task, Score]
    with_chat_template: tuple[Task, ...]


def result_files(paths: Iterable[Path]) -> list[Path]:
    """The given files, and all result files below the given folders.

    Raises:
        EvaluationError: A folder has none.
    """
    found: list[Path] = []
    for path in paths:
        files = sorted(path.rglob(RESULT_FILES)) if path.is_dir() else [path]
        if not files:
            raise EvaluationError(
                f"{path}: no {RESULT_FILES} in this folder or below it; expected lm_eval's --output_path, or the "
                "output_dir of a recipe with lm_eval_tasks"
            )
        found += files
    return list(dict.fromkeys(found))


def read_scores(files: Iterable[Path]) -> list[ModelScores]:
    """One entry per model, in the order of the files.

    Raises:
        EvaluationError: A file is not from lm_eval, has none of the six tasks, was run with other shots or another
            metric, or two files have the same task of the same model.
    """
    scores: dict[str, dict[Task, Score]] = {}
    templated: dict[str, list[Task]] = {}
    for file in files:
        content = _read(file)
        model = model_label(content, file)
        known = scores.setdefault(model, {})
        for task, score in _scores_of(content, file).items():
            if task in known:
                raise EvaluationError(
                    f"{file}: {task.name} of {model} is also in {known[task].file}; expected one score per task. "
                    "List the files instead of their folder, and leave the older one out"
                )
            known[task] = score
            if content.get("chat_template"):
                templated.setdefault(model, []).append(task)
    return [
        ModelScores(
            model,
            {task: found[task] for task in TASKS if task in found},
            tuple(task for task in TASKS if task in templated.get(model, [])),
        )
        for model, found in scores.items()
    ]


def model_label(content: Mapping[str, Any], file: Path) -> str:
    """The name that identifies the model of a result file.

    ``lm_eval.simple_evaluate`` returns no ``model_name``; only the command line adds it. Then the model arguments give
    the name. If they do not, every file counts as a model of its own, so that unknown models are never mixed up.

    Args:
        content: The content of the file.
        file: Its path.

    Example:
        >>> config = {"model": "hf", "model_args": "pretrained=org/base,revision=step1"}
        >>> model_label({"config": config}, Path("results_1.json"))
        'org/base (revision=step1)'
        >>> model_label({}, Path("results_1.json"))
        'unnamed model of results_1.json'
    """
    config = content.get("config")
    config = config if isinstance(config, Mapping) else {}
    args = _model_args(config.get("model_args"))
    name = content.get("model_name") or next((args[key] for key in NAME_ARGS if args.get(key)), None)
    if not name:
        # A model that was passed as an object is named by its path; otherwise this is the name of lm_eval's class.
        model = config.get("model")
        return model if isinstance(model, str) and "/" in model else f"unnamed model of {file}"
    variant = [f"{key}={args[key]}" for key in VARIANT_ARGS if args.get(key) not in (None, "", "main", "False", name)]
    return f"{name} ({', '.join(variant)})" if variant else str(name)


def _model_args(value: Any) -> dict[str, str]:
    """The model arguments, as lm_eval 0.4.9 writes them (a map) or as older versions do (``a=b,c=d``)."""
    if isinstance(value, Mapping):
        return {str(key): str(one) for key, one in value.items() if one is not None}
    pairs = (part.partition("=") for part in str(value or "").split(","))
    return {key.strip(): one.strip() for key, equals, one in pairs if equals}


def _read(file: Path) -> Mapping[str, Any]:
    fix = (
        f"use the file {RESULT_FILES} that lm_eval writes below --output_path, not one of its samples_*.jsonl or a "
        "recipe"
    )
    try:
        content = read_json_object(file, utf_16=True, error=EvaluationError, fix=fix)
    except OSError as error:
        raise EvaluationError(f"{file}: cannot be read ({error.strerror}); {fix}") from None
    results = content.get("results")
    if not isinstance(results, Mapping):
        found = f"is {type(results).__name__}" if "results" in content else "missing"
        raise EvaluationError(f"{file}: results: {found}, expected a map from task to scores; {fix}")
    return content


def _scores_of(content: Mapping[str, Any], file: Path) -> dict[Task, Score]:
    results = content["results"]
    found = {task: _score(task, content, file) for task in TASKS if task.name in results}
    if not found:
        names = ", ".join(sorted(map(str, results))[:8]) or "no tasks"
        raise EvaluationError(
            f"{file}: results: found {names}; expected at least one of {', '.join(task.name for task in TASKS)}. "
            "recipes/eval/solar_h6.yml runs all six"
        )
    return found


def _score(task: Task, content: Mapping[str, Any], file: Path) -> Score:
    results = content["results"][task.name]
    where = f"{file}: results.{task.name}"
    if not isinstance(results, Mapping):
        raise EvaluationError(
            f"{where}: has type {type(results).__name__}; expected a map from metric to score, as lm_eval writes it. "
            "Evaluate the model again"
        )
    if task.metric not in results:
        there = ", ".join(sorted(key for key in results if "," in key and "_stderr" not in key)) or "no score"
        raise EvaluationError(
            f"{where}: holds {there}; expected {task.metric}, the metric of the paper's table. Run lm_eval's own "
            "task of this name"
        )
    value = _fraction(results[task.metric], f"{where}.{task.metric}")
    error = results.get(task.error_metric, "N/A")
    subtasks = _leaves(content.get("group_subtasks"), task.name)
    _check_shots(task, subtasks, content, file)
    return Score(
        100 * value,
        None if _is_unknown(error) else 100 * _fraction(error, f"{where}.{task.error_metric}"),
        _examples(subtasks, content, file),
        file,
    )


def _is_unknown(error: Any) -> bool:
    """Whether there is no standard error: lm_eval writes N/A, or NaN for a single example; other programs null."""
    return error in ("N/A", None) or (isinstance(error, float) and math.isnan(error))


def _fraction(value: Any, where: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1:
        raise EvaluationError(
            f"{where}: {value!r:.60}; expected a number between 0 and 1, as lm_eval writes it. Evaluate the model again"
        )
    return float(value)


def _leaves(group_subtasks: Any, name: str, depth: int = 0) -> list[str]:
    """The tasks of a group; the task itself if it is not a group."""
    children = group_subtasks.get(name) if isinstance(group_subtasks, Mapping) else None
    if not isinstance(children, list) or not children or depth > 8:
        return [name]
    return [leaf for child in children for leaf in _leaves(group_subtasks, str(child), depth + 1)]


def _check_shots(task: Task, subtasks: list[str], content: Mapping[str, Any], file: Path) -> None:
    shots = content.get("n-shot")
    for name in subtasks:
        found = shots.get(name) if isinstance(shots, Mapping) else None
        if found != task.shots:
            raise EvaluationError(
                f"{file}: n-shot.{name}: {found!r}; expected {task.shots}, as in the paper for {task.label}. Run it as "
                f"{task.name}:{task.shots} in lm_eval_tasks, or with lm_eval --num_fewshot {task.shots}"
            )


def _examples(subtasks: list[str], content: Mapping[str, Any], file: Path) -> int:
    total, samples = 0, content.get("n-samples")
    for name in subtasks:
        counts = samples.get(name) if isinstance(samples, Mapping) else None
        effective = counts.get("effective") if isinstance(counts, Mapping) else None
        if not isinstance(effective, int) or isinstance(effective, bool) or effective < 1:
            raise EvaluationError(
                f"{file}: n-samples.{name}.effective: {effective!r}; expected the number of examples. "
                "Evaluate the model again with lm_eval 0.4.3 or later"
            )
        total += effective
    return total


MISSING = "-"
MARK = "*"
"""In front of a score, so that the digits of a column stay aligned."""
SOURCE = "Kim et al. 2023, arXiv:2312.15166"


def is_complete(task: Task, score: Score) -> bool:
    """Whether the score covers the full test set."""
    return score.examples == task.examples


def h6(model: ModelScores) -> float | None:
    """The mean of the six scores; None unless there are all six, each on the full test set."""
    scores = [model.scores.get(task) for task in TASKS]
    complete = [score.percent for task, score in zip(TASKS, scores, strict=True) if score and is_complete(task, score)]
    return math.fsum(complete) / len(TASKS) if len(complete) == len(TASKS) else None


def h6_standard_error(model: ModelScores) -> float | None:
    """The standard error of `h6`, with the six treated as independent; None if one of them is unknown."""
    errors = [score.standard_error for score in model.scores.values() if score.standard_error is not None]
    if h6(model) is None or len(errors) < len(TASKS):
        return None
    return math.sqrt(math.fsum(error**2 for error in errors)) / len(TASKS)


def as_text(models: Sequence[ModelScores]) -> str:
    """The table, and notes on how to read it."""
    headings = ["model\nshots", "H6\n ", *(f"{task.label}\n{task.shots}" for task in TASKS)]
    rows = [
        [published.name, f"{published.mean:.2f}", *(f"{score:.2f}" for score in published.scores)]
        for published in PUBLISHED_MODELS
    ]
    own = [line for model in models for line in _rows(model)]
    stages = ", ".join(f"{stage.name} {stage.mean:.2f}" for stage in PUBLISHED_STAGES)
    notes = [
        f"upper rows: {SOURCE}, in percent",
        f"H6 of its stages: {stages}. Two scores of the same model differ by {EVALUATION_NOISE} there",
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
    return f"{'' if is_complete(task, score) else MARK}{score.percent:.2f}"


def _notes(model: ModelScores) -> list[str]:
    name = printable(model.model).replace("\n", " ")
    missing = [task.name for task in TASKS if task not in model.scores]
    partial = [
        f"{task.label} on {score.examples:,} examples (the test set has {task.examples:,})"
        for task, score in model.scores.items()
        if not is_complete(task, score)
    ]
    notes = []
    if missing:
        notes.append(f"{MISSING} {name}: no H6, because these tasks were not run: {', '.join(missing)}")
    if partial:
        notes.append(f"{MARK} {name}: no H6, because scores are not comparable: {'; '.join(partial)}")
    if model.with_chat_template:
        tasks = ", ".join(task.label for task in model.with_chat_template)
        notes.append(f"{name}: run with a chat template, unlike the paper's scores: {tasks}")
    return notes


def as_json(models: Sequence[ModelScores]) -> dict[str, Any]:
    """The same as JSON; unknown values are null."""
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
        "whole_test_set": is_complete(task, score),
        "file": str(score.file),
    }
