"""Every command without its extra, and with nothing else."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from maths_runs import write_recipe
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from stand_in_endpoint import KEY, MODEL, stand_in_endpoint
from tiny_embeddings import bag_of_words, write_model
from trained_models import *  # noqa: F403  fixtures

from solar_plugins.cli import solar
from solar_plugins.extras import EXTRA_OF, PACKAGES
from solar_plugins.plugins.recipe_packs import recipe_directory

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
PLAN = ["plan", "--base", "{folder}/base", "--drop-layers", "1"]
ARGUMENTS = {
    "solar plan --plot": [*PLAN, "--plot", "{folder}/plan.png"],
    "solar probe": ["probe", "{folder}/base", "--text", "{folder}/texts.jsonl", "--output", "{folder}/probe"],
    "solar report": ["report", "{folder}/recipe.yml", "--output", "{folder}/report.html"],
    "solar report on test_datasets of type solar_plugins.*": [
        *("report", "{folder}/recipe.yml", "{folder}/solar_sft.yml", "--output", "{folder}/report.html")
    ],
    "solar recipes gallery": ["recipes", "gallery", "{folder}", "--output", "{folder}/gallery.html"],
    "solar maths": ["maths", "{folder}/maths.yml"],
    "decontaminate.similar": ["mix", "{folder}/similar.yml"],
    "decontaminate.similar with an endpoint or a judge": ["mix", "{folder}/similar_endpoint.yml"],
    "solar preview": ["preview", "{folder}/preview.yml"],
    "solar sdpo-order": ["sdpo-order", "{folder}/base", "{folder}/pairs.jsonl", "--max-length", "64"],
    "a layer with computed weights": [
        *("upscale", "{folder}/base", "{folder}/out", "--drop-layers", "1", "--duplicates", "scaled")
    ],
    "reading a Parquet, .zst or .lz4 file": ["mix", "{folder}/mix.yml"],
    "recipes/smollm2/prepare.py": ["--directory", "{folder}/smollm2"],
}


def project_requirements(extra=None):
    """What pyproject.toml asks for, the extras that an extra names included."""
    for line in PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            for other in requirement.extras:
                yield from project_requirements(other)
        else:
            yield requirement


def installed_with(requirements):
    """Names of the distributions that pip brings for requirements, by the metadata of those that are here."""
    found, waiting = set(), [(one.name, frozenset(one.extras)) for one in requirements]
    while waiting:
        name, extras = waiting.pop()
        if (canonicalize_name(name), extras) in found:
            continue
        found.add((canonicalize_name(name), extras))
        try:
            lines = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # A dependency of another platform's, or an optional one that is not here.
        for one in map(Requirement, lines):
            if any(one.marker is None or one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append((one.name, frozenset(one.extras)))
    return {name for name, _ in found}


def modules_without(distributions):
    """Every installed module that none of ``distributions`` brings."""
    kept = {*distributions, "solar-plugins", "pip", "setuptools"}
    return [name for name, owners in owners_of_modules().items() if not kept & {*map(canonicalize_name, owners)}]


owners_of_modules = cache(packages_distributions)


WITHOUT = """
import sys
class Without:
    def __init__(self, finder, hidden):
        self.finder, self.hidden = finder, hidden
    def find_spec(self, name, path=None, target=None):
        return None if name.partition('.')[0] in self.hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
def hide(hidden):
    sys.meta_path[:] = [Without(finder, frozenset(hidden)) for finder in sys.meta_path]
"""
"""Packages are not found. ``sys.modules[name] = None`` would be seen: scipy asks whether ``sphinx`` is there."""


def run_with(requirements, arguments, program="from solar_plugins.cli import solar; solar()", cwd=None):
    """Run a command in a process that cannot import what an installation of the core and these would not have."""
    hidden = modules_without(installed_with([*project_requirements(), *requirements]))
    assert "mergekit" in hidden
    assert "click" not in hidden
    command = [sys.executable, "-c", f"{WITHOUT}\nhide({hidden})\n{program}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.fixture
def folder(tmp_path, base_directory, monkeypatch):
    """A folder with what every command needs, except for a trained model."""
    (tmp_path / "base").symlink_to(base_directory)
    pair = {"prompt": "Who came by?", "chosen": "The wolf.", "rejected": "Nobody."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    entry = {"path": str(tmp_path / "pairs.jsonl"), "type": "solar_plugins.preference"}
    recipe = {"base_model": str(tmp_path / "base"), "rl": "dpo", "datasets": [entry]}
    (tmp_path / "preview.yml").write_text(yaml.safe_dump(recipe))
    texts = [json.dumps({"text": f"the wolf came by {number} times"}) for number in range(4)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts) + "\n")
    (tmp_path / "grow.yml").write_text(
        yaml.safe_dump(
            {
                "base_model": str(tmp_path / "base"),
                "solar": {"init": {"strategy": "dus", "drop_layers": 1}},
                "sequence_len": 32,
                "micro_batch_size": 1,
                "gradient_accumulation_steps": 1,
                "optimizer": "adamw_torch",
            }
        )
    )
    write_mixture(tmp_path, "rows.parquet")
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    with stand_in_endpoint(embed=bag_of_words) as endpoint:
        write_recipe(tmp_path, endpoint.url, 2)
        served = {"base_url": endpoint.url, "model": MODEL, "key_variable": "STAND_IN_KEY"}
        write_similar(tmp_path, "similar.yml", {"model": str(write_model(tmp_path / "embedding_model"))})
        write_similar(tmp_path, "similar_endpoint.yml", {"endpoint": served})
        yield tmp_path


def write_similar(folder, name, similar):
    (folder / "questions.txt").write_text("how many apples are there in all the box\n")
    (folder / "rows.jsonl").write_text('{"text": "she counts them again"}\n')
    sets = {"a": {"path": str(folder / "rows.jsonl"), "text_columns": "text"}}
    decontaminate = {"against": [{"path": str(folder / "questions.txt")}], "similar": similar}
    mixture = {"output": str(folder / "mixed"), "sets": sets, "decontaminate": decontaminate}
    (folder / name).write_text(yaml.safe_dump(mixture))


def write_mixture(folder, rows):
    import pyarrow.parquet

    if rows.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "one two"}]), folder / rows)
    else:
        (folder / rows).write_text('{"text": "one two"}\n')
    mixture = {"output": str(folder / "mixed"), "sets": {"a": {"path": str(folder / rows), "text_columns": "text"}}}
    (folder / "mix.yml").write_text(yaml.safe_dump(mixture))


@pytest.fixture
def program(monkeypatch, request):
    """The click command of a key of the table."""
    if request.node.callspec.params["command"].startswith("recipes/"):
        monkeypatch.syspath_prepend(recipe_directory() / "smollm2")
        return importlib.import_module("prepare").main
    return solar


@pytest.mark.parametrize(
    ("command", "package"), [(command, package) for command in EXTRA_OF for package in PACKAGES[EXTRA_OF[command]]]
)
def test_a_command_without_a_package_says_how_to_install_it(command, package, program, folder, request, monkeypatch):
    if "test_datasets" in command:
        request.getfixturevalue("trained_chain")
    arguments = [argument.format(folder=folder) for argument in ARGUMENTS[command]]
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    result = CliRunner().invoke(program, arguments, catch_exceptions=False)
    needs = f"{command} needs {package} (not installed); run pip install 'solar_plugins[{EXTRA_OF[command]}]'"
    assert result.stderr.splitlines()[-1] in (f"Error: {needs}", f"Error: {folder / 'solar_sft.yml'}: {needs}")
    assert result.exit_code == 1
    assert result.stdout == ""


def test_the_table_names_extras_that_bring_the_packages():
    assert set(PACKAGES) == set(EXTRA_OF.values())
    for extra, packages in PACKAGES.items():
        assert sorted(packages) == sorted(one.name for one in project_requirements(extra))


def test_one_extra_brings_all_the_others_and_another_what_tests_need_too():
    extras = set(PROJECT["optional-dependencies"]) - {"all", "dev", "docs"}
    everything = {str(one) for extra in extras for one in project_requirements(extra)}
    assert {str(one) for one in project_requirements("all")} == everything
    assert {str(one) for one in project_requirements("dev")} > everything


def test_the_core_is_light():
    core = installed_with(project_requirements())
    assert core >= {"pluggy", "pydantic", "click", "pyyaml", "filelock", "huggingface-hub", "rich", "tqdm"}
    assert not core & {"torch", "transformers", "axolotl", "mergekit", "numpy", "safetensors", "tokenizers"}


@pytest.mark.parametrize(
    "arguments",
    [
        PLAN,
        ["plan", "{folder}/grow.yml"],
        ["plan", "{folder}/grow.yml", "--memory", "--gpus", "1"],
        ["upscale", "{folder}/base", "{folder}/out", "--strategy", "block_expansion", "--new-layers", "2"],
        ["mergekit", "{folder}/grow.yml"],
        ["mix", "{folder}/mix.yml"],
        ["h6", "{folder}"],
        ["recipes", "list"],
        ["recipes", "copy", "{folder}/recipes"],
    ],
    ids=" ".join,
)
def test_the_core_suffices(folder, arguments):
    from made_results import SHOTS, lm_eval_results, write_results

    write_mixture(folder, "rows.jsonl")
    write_results(folder / "results_1.json", lm_eval_results(dict.fromkeys(SHOTS, 0.5)))
    result = run_with([], [argument.format(folder=folder) for argument in arguments])
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("trained_recipe")
@pytest.mark.parametrize("command", [name for name in EXTRA_OF if EXTRA_OF[name] not in ("axolotl", "smollm2")])
def test_an_extra_suffices(folder, command):
    arguments = [argument.format(folder=folder) for argument in ARGUMENTS[command]]
    result = run_with(project_requirements(EXTRA_OF[command]), arguments)
    assert result.returncode == 0, result.stderr
    assert re.search("layers|recipes|judged|preference pairs|kept|prefers chosen|in the loss", result.stdout)


@pytest.mark.nightly
def test_the_plugin_needs_the_core_alone_inside_an_axolotl(training_folder):
    rows = [{"instruction": f"Add {n} and 1.", "output": str(n + 1)} for n in range(8)]
    (training_folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = (training_folder / "recipe.yml").read_text().replace("type: completion", "type: solar_plugins.alpaca")
    (training_folder / "recipe.yml").write_text(recipe)
    program = "import runpy; runpy.run_module('axolotl.cli.preprocess', run_name='__main__', alter_sys=True)"
    result = run_with([Requirement("axolotl")], ["recipe.yml"], program, training_folder)
    assert result.returncode == 0, result.stderr
    assert "as alpaca: 8 rows read, 8 kept" in result.stdout + result.stderr
    assert list(training_folder.glob("cache/upscaled-*/model.safetensors"))
