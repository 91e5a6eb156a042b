"""The result files of lm_eval: found, read, and checked against what the paper's table needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solar_plugins.errors import EvaluationError
from solar_plugins.evaluation.published import TASKS, Task
from solar_plugins.storage.untrusted import read_json_object

RESULT_FILES = "results_*.json"
"""How lm_eval names its files (lm_eval/loggers/evaluation_tracker.py)."""

NAME_ARGS = ("peft", "delta", "pretrained", "model", "path", "engine")
"""Arguments of lm_eval's models that name the model, in the order in which lm_eval itself asks for them."""
VARIANT_ARGS = (
    *("revision", "subfolder", "gguf_file", "peft", "delta"),
    *("load_in_4bit", "load_in_8bit", "quantization", "autogptq", "gptqmodel"),
)
"""Arguments that choose other weights under one name, or quantise them; lm_eval's ``model_name`` leaves them out."""


@dataclass(frozen=True, slots=True)
class Score:
    """One model's score in one task, in percent.

    Args:
        percent: The score.
        standard_error: As lm_eval estimates it; None where it gives none.
        examples: How many were answered.
        file: Where it was read.
    """

    percent: float
    standard_error: float | None
    examples: int
    file: Path


@dataclass(frozen=True, slots=True)
class ModelScores:
    """What the files say about one model.

    Args:
        model: Its name, as lm_eval was given it.
        scores: By task; tasks that were not run are absent.
        with_chat_template: Tasks that were asked through a chat template; the paper's were not.
    """

    model: str
    scores: Mapping[Task, Score]
    with_chat_template: tuple[Task, ...]


def result_files(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and every result file below the folders.

    Raises:
        EvaluationError: A folder holds none.
    """
    found: list[Path] = []
    for path in paths:
        files = sorted(path.rglob(RESULT_FILES)) if path.is_dir() else [path]
        if not files:
            raise EvaluationError(
                f"{path}: no file {RESULT_FILES} lies in this folder or below it; give lm_eval's --output_path, or "
                "the output_dir of a recipe with lm_eval_tasks"
            )
        found += files
    return list(dict.fromkeys(found))


def read_scores(files: Iterable[Path]) -> list[ModelScores]:
    """One entry for each model, in the order in which the files name them.

    Raises:
        EvaluationError: A file is none of lm_eval's, holds none of the six tasks, was made with other shots or another
            metric, or two files hold the same task of the same model.
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
                    f"{file}: {task.name} of {model} is also in {known[task].file}; expected one score of a task. "
                    "Give the files themselves, without the older one"
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
    """What tells the model of a result file from every other.

    ``lm_eval.simple_evaluate`` returns no ``model_name``; only the command line adds it. The arguments name the model
    then, and where they do not either, the file stands for a model of its own: two unknown models are never one.

    Args:
        content: The file's content.
        file: Where it was read.

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
        # A model that was handed over as an object is named by its path; anything else here is lm_eval's class for it.
        model = config.get("model")
        return model if isinstance(model, str) and "/" in model else f"unnamed model of {file}"
    variant = [f"{key}={args[key]}" for key in VARIANT_ARGS if args.get(key) not in (None, "", "main", "False", name)]
    return f"{name} ({', '.join(variant)})" if variant else str(name)


def _model_args(value: Any) -> dict[str, str]:
    """The arguments of the model, as lm_eval 0.4.9 writes them (a map) or as older versions do (``a=b,c=d``)."""
    if isinstance(value, Mapping):
        return {str(key): str(one) for key, one in value.items() if one is not None}
    pairs = (part.partition("=") for part in str(value or "").split(","))
    return {key.strip(): one.strip() for key, equals, one in pairs if equals}


def _read(file: Path) -> Mapping[str, Any]:
    fix = (
        f"give the file {RESULT_FILES} that lm_eval writes below --output_path, not one of its samples_*.jsonl or a "
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
        names = ", ".join(sorted(map(str, results))[:8]) or "nothing"
        raise EvaluationError(
            f"{file}: results: holds {names}; expected at least one of {', '.join(task.name for task in TASKS)}. "
            "recipes/eval/solar_h6.yml runs all six"
        )
    return found


def _score(task: Task, content: Mapping[str, Any], file: Path) -> Score:
    results = content["results"][task.name]
    where = f"{file}: results.{task.name}"
    if not isinstance(results, Mapping):
        raise EvaluationError(
            f"{where}: is a {type(results).__name__}; expected a map from metric to score, as lm_eval writes it. "
            "Evaluate the model again"
        )
    if task.metric not in results:
        there = ", ".join(sorted(key for key in results if "," in key and "_stderr" not in key)) or "no score"
        raise EvaluationError(
            f"{where}: holds {there}; expected {task.metric}, which the paper's table has. Run the task of this name "
            "that lm_eval itself brings"
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
    """Whether lm_eval gives no standard error: it writes N/A, or NaN for a single example; other programs null."""
    return error in ("N/A", None) or (isinstance(error, float) and math.isnan(error))


def _fraction(value: Any, where: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1:
        raise EvaluationError(
            f"{where}: {value!r:.60}; expected a number between 0 and 1, as lm_eval writes it. Evaluate the model again"
        )
    return float(value)


def _leaves(group_subtasks: Any, name: str, depth: int = 0) -> list[str]:
    """The tasks that a group consists of; the task itself if it is no group."""
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
                f"{file}: n-shot.{name}: {found!r}; expected {task.shots}, the paper's for {task.label}. Run it as "
                f"{task.name}:{task.shots} in lm_eval_tasks, or with lm_eval --num_fewshot {task.shots}"
            )


def _examples(subtasks: list[str], content: Mapping[str, Any], file: Path) -> int:
    total, samples = 0, content.get("n-samples")
    for name in subtasks:
        counts = samples.get(name) if isinstance(samples, Mapping) else None
        effective = counts.get("effective") if isinstance(counts, Mapping) else None
        if not isinstance(effective, int) or isinstance(effective, bool) or effective < 1:
            raise EvaluationError(
                f"{file}: n-samples.{name}.effective: {effective!r}; expected how many examples were answered. "
                "Evaluate again with lm_eval 0.4.3 or later"
            )
        total += effective
    return total
