"""A third-party package, installed with its entry point, used from the command line and from a recipe."""

import json
import shutil
from pathlib import Path

import pytest
from commands import cold, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A folder in which pip installed the example package, for PYTHONPATH."""
    target, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source") / "package"
    shutil.copytree(Path(__file__).parents[1] / "plugins" / "solar-plugins-example", source)
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    installed = run(cold("python", "-m", "pip", "install", *offline, "--target", target, source))
    assert installed.returncode == 0, installed.stderr
    return {"PYTHONPATH": str(target)}


def test_its_strategy_is_a_command_line_option(example, base, run):
    result = run(
        "solar", "plan", "--base", base, "--strategy", "repeat_top", "--repeated-layers", 3, "--json", env=example
    )
    assert result.returncode == 0, result.stderr
    assert [layer["source"] for layer in json.loads(result.stdout)["layers"]] == [*range(8), 5, 6, 7]


def test_its_arguments_are_checked_by_its_own_model(example, base, run):
    result = run("solar", "plan", "--base", base, "--strategy", "repeat_top", "--repeated-layers", 0, env=example)
    assert result.returncode == 1
    assert result.stderr.startswith(
        "Error: repeated_layers: '0' is not allowed; expected a value greater than or equal to 1"
    )


def test_its_initializer_writes_a_checkpoint(example, base, tmp_path, run):
    made = run("solar", "upscale", base, tmp_path / "out", "--strategy", "opt_deus", env=example)
    assert made.returncode == 0, made.stderr
    verified = run("solar", "verify", tmp_path / "out", "--base", base, env=example)
    assert "[0..3] + [3] as transport + [4]" in verified.stdout
    without = run("solar", "verify", tmp_path / "out", "--base", base)
    assert "Error: 'transport' is not a registered initializer; known: average, copy, identity" in without.stderr


def test_its_recipes_are_listed(example, run):
    listed = run("solar", "recipes", "list", env=example).stdout
    assert "example/repeat_top.yml  The tiny base of the tests, its top two layers twice" in listed


def test_its_recipe_trains(example, training_folder, run):
    copied = run("solar", "recipes", "copy", "recipes", cwd=training_folder, env=example)
    assert copied.returncode == 0, copied.stderr
    command = ["accelerate", "launch", "--cpu", "--num_processes", "1", "-m", "axolotl.cli.train"]
    result = run(*command, "recipes/example/repeat_top.yml", cwd=training_folder, env=example)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "with 10 layers" in result.stdout, "its hook was called"
    assert json.loads((training_folder / "out" / "config.json").read_text())["num_hidden_layers"] == 10


def write_riddles(folder):
    rows = [{"riddle": f"What is {n} + {n}?", "solution": str(2 * n)} for n in range(8)]
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    duels = [{"riddle": row["riddle"], "winner": row["solution"], "loser": "no idea"} for row in rows]
    (folder / "duel.jsonl").write_text("".join(json.dumps(row) + "\n" for row in duels))


def test_its_formatters_and_its_dpo_setting_train(example, training_folder, run, run_warm):
    write_riddles(training_folder)
    run("solar", "recipes", "copy", "recipes", cwd=training_folder, env=example)
    for name in ("quiz", "duel"):
        command = ["python", "-m", "axolotl.cli.train", f"recipes/example/{name}.yml"]
        result = run_warm(*command, cwd=training_folder, env=example)
        said = result.stdout + result.stderr
        assert result.returncode == 0, said
        assert f"datasets[0] ({name}.jsonl) as {name}: 8 rows read, 8 kept, 0 dropped" in said
    assert "solar.dpo: example sets rl: dpo, rl_beta: 0.5, sequence_len: 64" in said
    assert "the recipe overrides learning_rate: 2e-05" in said
    assert "'loss': '0.6931'" in said, "policy and reference are equal: ln 2"


def test_without_it_its_formatter_is_unknown(training_folder, run_warm):
    write_riddles(training_folder)
    recipe = (training_folder / "recipe.yml").read_text().replace("type: completion", "type: solar_plugins.quiz")
    (training_folder / "recipe.yml").write_text(recipe)
    result = run_warm("python", "-m", "axolotl.cli.train", "recipe.yml", cwd=training_folder)
    assert result.returncode == 1
    assert "datasets[0].type: 'quiz' is not a registered SFT formatter; known: alpaca, alpaca_prompt" in result.stderr
    assert "Traceback" not in result.stderr.split("solar_plugins:")[-1]


def test_without_it_the_recipe_names_what_is_missing(base, run, tmp_path):
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(f"base_model: {base}\nsolar: {{init: {{strategy: repeat_top, repeated_layers: 2}}}}\n")
    result = run("solar", "plan", recipe)
    assert result.returncode == 1
    assert "solar.init.strategy: 'repeat_top' is not a registered strategy; " in result.stderr
