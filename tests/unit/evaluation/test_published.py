"""The table of tasks against the installed lm_eval, the recipe against the table, and the published means."""

import math
import re
from functools import cache
from pathlib import Path

import lm_eval
import pytest
import yaml

from solar_plugins.evaluation.h6 import PUBLISHED_MODELS, PUBLISHED_STAGES, TASKS
from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.recipe import read_yaml

RECIPE = recipe_directory() / "eval" / "solar_h6.yml"


class TaskLoader(yaml.SafeLoader):
    """lm_eval's files name Python functions; their names are enough here."""


TaskLoader.add_constructor("!function", lambda loader, node: node.value)


@cache
def task_files():
    """Every file of the six tasks' folders that names a task or a group."""
    folder = Path(lm_eval.__file__).parent / "tasks"
    places = ["arc", "hellaswag", "mmlu/default", "truthfulqa", "winogrande", "gsm8k"]
    files = [path for place in places for path in sorted((folder / place).glob("*.yaml"))]
    return {path: yaml.load(path.read_text(), TaskLoader) for path in files}


def task_config(name):
    """A task's own file over those that it includes."""
    [(path, config)] = [(p, dict(c)) for p, c in task_files().items() if name in (c.get("task"), c.get("group"))]
    while "include" in config:
        path = path.parent / config.pop("include")
        config = yaml.load(path.read_text(), TaskLoader) | config
    return config


def metrics(config):
    """As lm_eval spells them in its results: metric and filter."""
    names = [metric["metric"] for metric in config.get("metric_list") or config["aggregate_metric_list"]]
    filters = [entry["name"] for entry in config.get("filter_list", [{"name": "none"}])]
    return [f"{name},{filtered}" for name in names for filtered in filters]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_installed_lm_eval_has_task_and_metric(task):
    assert task.metric in metrics(task_config(task.name))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_lm_eval_does_not_override_the_shots(task):
    """A task whose file says ``num_fewshot: 0`` always uses 0; others follow the recipe."""
    config = task_config(task.name)
    assert config.get("num_fewshot") in ({0} if task.shots == 0 else {None, task.shots})


def test_mmlu_has_its_57_subjects_and_counts_questions_alike():
    subjects = [c for c in task_files().values() if str(c.get("include")) == "_default_template_yaml"]
    assert len(subjects) == 57
    assert task_config("mmlu")["aggregate_metric_list"] == [{"metric": "acc", "weight_by_size": True}]


def test_the_leaderboard_group_of_lm_eval_has_the_same_shots():
    """lm_eval's own ``openllm`` is the Open LLM Leaderboard, the source of the paper's scores."""
    path = Path(lm_eval.__file__).parent / "tasks" / "benchmarks" / "openllm.yaml"
    shots = {entry["task"]: entry["num_fewshot"] for entry in yaml.safe_load(path.read_text())["task"]}
    assert {name.removesuffix("_mc2"): shots_of for name, shots_of in recipe_shots().items()} == shots


def recipe_shots():
    pairs = [entry.split(":") for entry in read_yaml(RECIPE)["lm_eval_tasks"]]
    return {name: int(shots) for name, shots in pairs}


def test_the_recipe_asks_for_these_tasks_and_shots():
    assert recipe_shots() == {task.name: task.shots for task in TASKS}


def test_the_recipe_names_the_metric_of_each_task():
    for task in TASKS:
        [comment] = re.findall(rf"- {task.name}:{task.shots}  # paper; (.*)", RECIPE.read_text())
        assert comment.startswith(task.metric.partition(",")[0])


def test_axolotl_calls_lm_eval_once_per_number_of_shots():
    from axolotl.integrations.lm_eval.cli import build_lm_eval_command

    recipe = read_yaml(RECIPE)
    calls = build_lm_eval_command(
        recipe["lm_eval_tasks"], bfloat16=recipe["bf16"], output_dir=recipe["output_dir"], model=recipe["lm_eval_model"]
    )
    asked = {}
    for call in calls:
        options = dict(zip(call[1::2], call[2::2], strict=True))
        assert options["--model_args"] == "pretrained=outputs/solar_average,dtype=bfloat16"
        asked |= dict.fromkeys(options["--tasks"].split(","), int(options["--num_fewshot"]))
    assert asked == {task.name: task.shots for task in TASKS}


@pytest.mark.parametrize("model", PUBLISHED_MODELS, ids=lambda model: model.name)
def test_the_published_means_are_means_of_the_published_scores(model):
    """To the last printed digit: the scores were rounded before, so that 0.01 may be lost."""
    assert abs(math.fsum(model.scores) / len(TASKS) - model.mean) < 0.0051
    assert len(model.scores) == len(TASKS)


def test_the_stages_are_those_of_the_ablations():
    assert [stage.mean for stage in PUBLISHED_STAGES] == [70.03, 70.88, 71.11, 73.58, 74.00]
