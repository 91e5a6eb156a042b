"""What the installed Axolotl and mergekit say about keys, asked in a process of its own; our recipes pass `check`."""

import pytest
import yaml

from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.sharing.check import check, has_errors
from solar_plugins.sharing.schemas import ask_schemas

pytestmark = pytest.mark.slow

SFT = {
    "base_model": "org/model",
    "datasets": [{"path": "org/data", "type": "alpaca"}],
    "output_dir": "out",
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4,
    "num_epochs": 1,
}
RECIPES = {
    "good": {},
    "misspelled": {"learning_rte": 1},
    "unknown": {"my_own_note": "x"},
    "empty": {"some_old_key": None},
    "in a dataset": {"datasets": [{"path": "org/data", "type": "alpaca", "splitt": "train"}]},
    "under rl": {"rl": "dpo", "datasets": [{"path": "a/b", "type": "chat_template.default", "roles": {"user": ["x"]}}]},
    "wrong type": {"num_epochs": "many"},
    "contradiction": {"load_in_8bit": True, "load_in_4bit": True, "adapter": "qlora"},
    "plugin of others": {"plugins": ["not_here.Plugin"], "its_key": 1, "learning_rte": 1},
    "our plugin": {
        "plugins": ["solar_plugins.SolarPlugin"],
        "solar": {"init": {"strategy": "dus", "drop_layers": 2}},
        "datasets": [{"path": "a/b", "type": "solar_plugins.nothing"}],
    },
    "deprecated": {"flash_attention": True},
    "endless file": {"deepspeed": "/dev/zero"},
    "own code": {"plugins": ["evil_module.Plugin"], "datasets": [{"path": "a/b", "type": "evil_module.load"}]},
    "evaluation": {
        "base_model": None,
        "plugins": ["axolotl.integrations.lm_eval.LMEvalPlugin"],
        "lm_eval_tasks": ["x"],
        "lm_eval_taskz": 1,
    },
}
MERGES = {
    "good": {"merge_method": "slerp", "base_model": "a/b", "models": [{"model": "a/b"}, {"model": "c/d"}]},
    "method": {"merge_method": "slurp", "models": [{"model": "a/b"}]},
    "parameter": {"merge_method": "linear", "models": [{"model": "a/b", "parameters": {"wieght": 1}}]},
    "key": {"merge_method": "linear", "models": [{"model": "a/b", "weight": 1}], "dtipe": "float16"},
    "nothing": {"merge_method": "linear"},
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own code")
    (folder / "evil_module.py").write_text(f"open({str(folder / 'owned')!r}, 'w')\n")
    recipes = [
        {k: v for k, v in (SFT | more).items() if v is not None or k == "some_old_key"} for more in RECIPES.values()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe_answers, merge_answers = ask_schemas(recipes, list(MERGES.values()))
    assert not (folder / "owned").exists(), "a module of the working directory was imported"
    return dict(zip(RECIPES, recipe_answers, strict=True)), dict(zip(MERGES, merge_answers, strict=True))


@pytest.mark.parametrize(
    ("name", "errors", "dropped"),
    [
        ("good", [], []),
        ("misspelled", [], [("learning_rte", "learning_rate")]),
        ("unknown", [], [("my_own_note", "")]),
        ("empty", [], []),
        ("in a dataset", [], [("datasets[0].splitt", "split")]),
        ("under rl", [], [("datasets[0].roles", "")]),
        ("wrong type", ["num_epochs"], []),
        ("contradiction", [""], []),
        ("plugin of others", [], [("learning_rte", "learning_rate")]),
        ("our plugin", ["datasets[0].type"], []),
        ("deprecated", [], []),
        ("endless file", ["deepspeed"], []),
        ("own code", [], []),
        ("evaluation", [], [("lm_eval_taskz", "lm_eval_tasks")]),
    ],
)
def test_recipes(answers, name, errors, dropped):
    answer = answers[0][name]
    assert [key for key, _, _ in answer["errors"]] == errors
    assert [(key, meant) for key, _, meant in answer["dropped"]] == dropped


def test_plugins_of_others_are_not_loaded(answers):
    answer = answers[0]["plugin of others"]
    assert list(answer["not_loaded"]) == ["not_here.Plugin"]
    assert answer["unknown_with_plugins"] == ["its_key"]
    assert answers[0]["good"]["not_loaded"] == {}


def test_deprecated_names_are_told_and_replaced(answers):
    answer = answers[0]["deprecated"]
    assert [key for key, _, _ in answer["warnings"]] == ["flash_attention"]
    assert answer["content"]["attn_implementation"] == "flash_attention_2"


def test_merges(answers):
    found = {name: ([e[0] for e in a.errors], [(d[0], d[2]) for d in a.dropped]) for name, a in answers[1].items()}
    assert found == {
        "good": ([], []),
        "method": (["merge_method"], []),
        "parameter": ([], [("models[0].parameters.wieght", "weight")]),
        "key": ([], [("models[0].weight", ""), ("dtipe", "")]),
        "nothing": ([""], []),
    }


def test_all_recipes_of_this_repository_pass():
    findings = check(recipe_directory(), offline=True)
    assert not has_errors(findings), [one for one in findings if one.level == "error"]
    assert {one.kind for one in findings if one.level in ("error", "warning")} <= {"pins", "exists"}
    assert not [one for one in findings if one.kind == "keys"], "Axolotl and mergekit are installed, and were asked"


def test_recipes_that_would_not_pass(tmp_path):
    recipe = yaml.safe_load((recipe_directory() / "solar_dus.yml").read_text())
    changes = {"key": {"learning_rte": 1}, "value": {"seed": "x"}, "plan": {"solar": {"init": {"strategy": "duz"}}}}
    for name, change in changes.items():
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(recipe | change))
    errors = {(one.file, one.key) for one in check(tmp_path, offline=True) if one.level == "error"}
    assert errors == {("key.yml", "learning_rte"), ("value.yml", "seed"), ("plan.yml", "solar.init.strategy")}
