"""A pipeline file: what its stages run, and what is wrong with a bad one."""

import json
from pathlib import Path

import pytest
from known_models import MISTRAL

from solar_plugins.errors import ArgsError
from solar_plugins.pipeline import is_pipeline, read_pipeline, report_stages
from solar_plugins.plugins.recipe_packs import recipe_directory


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/a.yml").write_text("base_model: base\noutput_dir: out/a\nlearning_rate: 1.0e-4\n")
    (tmp_path / "recipes/m.yml").write_text("models: [{model: out/a}]\nmerge_method: linear\n")
    (tmp_path / "recipes/d.yml").write_text("output: data\nsets: {}\n")
    return tmp_path


def pipeline(folder, stages, head="records: records\n"):
    path = folder / "recipes/p.yml"
    path.write_text(f"{head}stages:\n" + "".join(f"  - {stage}\n" for stage in stages))
    return path


def test_the_command_of_each_kind(folder):
    found = read_pipeline(
        pipeline(
            folder,
            [
                "{name: one, recipe: a.yml}",
                "{name: two, recipe: a.yml, launch: srun torchrun --nproc_per_node 8, "
                "overrides: {learning_rate: 3.0e-7, output_dir: out/b}}",
                "{name: merged, merge: m.yml, output: out/m}",
                "{name: data, mixture: d.yml}",
                "{name: lora, command: axolotl merge-lora 'a b.yml', inputs: [x], outputs: [y], launch: nice}",
            ],
        )
    )
    recipes = folder / "recipes"
    assert [stage.command for stage in found.stages] == [
        ("accelerate", "launch", "-m", "axolotl.cli.train", f"{recipes}/a.yml"),
        (
            *("srun", "torchrun", "--nproc_per_node", "8", "-m", "axolotl.cli.train", f"{recipes}/a.yml"),
            *("--learning_rate=3e-07", "--output_dir=out/b"),
        ),
        ("mergekit-yaml", f"{recipes}/m.yml", "out/m"),
        ("solar", "mix", f"{recipes}/d.yml"),
        ("nice", "axolotl", "merge-lora", "a b.yml"),
    ]
    assert [stage.outputs for stage in found.stages] == [("out/a",), ("out/b",), ("out/m",), ("data",), ("y",)]
    assert found.stages[1].content["learning_rate"] == 3e-7


def test_memory_is_estimated_for_the_gpus_of_the_pipeline(folder, run):
    (folder / "config.json").write_text(json.dumps(MISTRAL))
    stages = ["{name: one, recipe: a.yml}"]
    command = ("solar", "plan", "recipes/p.yml", "--memory", "--json", "--base", "config.json")

    def gpus(head, *options):
        pipeline(folder, stages, f"records: records\n{head}")
        (stage,) = json.loads(run(*command, *options, cwd=folder).stdout)
        return stage["gpus"], stage["gpu_memory_bytes"]

    assert gpus("gpus: 8\ngpu_memory: 80\n") == (8, 80e9)
    assert gpus("gpus: 8\ngpu_memory: 80\n", "--gpus", "16", "--gpu-memory", "40") == (16, 40e9)
    assert gpus("") == (1, None)


@pytest.mark.parametrize(
    ("stages", "facts"),
    [
        (["{name: one}"], ["stages.0", "recipe, merge, mixture, command"]),
        (["{name: one, recipe: a.yml, merge: m.yml}"], ["recipe and merge"]),
        (["{name: one, merge: m.yml}"], ["a merge needs output"]),
        (["{name: one, recipe: a.yml, output: x}"], ["only a merge has output"]),
        (["{name: one, command: ls}"], ["a command needs outputs"]),
        (["{name: one, recipe: a.yml, inputs: [x]}"], ["for commands only"]),
        (["{name: one, merge: m.yml, output: x, overrides: {a: 1}}"], ["only a recipe has overrides"]),
        (["{name: one, recipe: a.yml}", "{name: one, recipe: a.yml}"], ["two stages are called one"]),
        (["{name: one, recipe: b.yml}"], ["stage one", "b.yml", "cannot be read"]),
        (["{name: one, command: ls, outputs: [.]}"], ["stage one", "'.'", "working directory"]),
        (["{name: one, command: ls, outputs: [/]}"], ["stage one", "'/'", "working directory"]),
        (["{name: one, command: ls, outputs: [x]}", "{name: two, command: ls, outputs: [./x]}"], ["two", "stage one"]),
        (["{name: '../x', recipe: a.yml}"], ["stages.0.name", "'../x'"]),
        (["{name: one, recipy: a.yml}"], ["recipy", "did you mean recipe?"]),
        (["{name: one, command: 'echo \"x', outputs: [y]}"], ["close every quote"]),
        (["{name: one, recipe: a.yml, overrides: {datasets: [x]}}"], ["stages.0.overrides.datasets"]),
    ],
)
def test_a_bad_file_is_one_sentence_with_the_key(folder, stages, facts):
    with pytest.raises(ArgsError) as error:
        read_pipeline(pipeline(folder, stages))
    assert "recipes/p.yml" in str(error.value)
    for fact in facts:
        assert fact in str(error.value)


def test_the_folder_of_records_is_asked_for(folder):
    with pytest.raises(ArgsError, match=r"p\.yml: records: missing"):
        read_pipeline(pipeline(folder, ["{name: one, recipe: a.yml}"], head=""))


@pytest.mark.parametrize("name", ["smollm2/pipeline.yml", "solar_pipeline.yml"])
def test_stages_of_our_pipelines_start_from_the_output_of_an_earlier_one(name):
    found = read_pipeline(recipe_directory() / name)
    assert is_pipeline(found.path)
    written = {found.stages[0].content["base_model"]}
    for stage in found.stages:
        models = [stage.content.get("base_model"), *(one["model"] for one in stage.content.get("models", []))]
        if stage.kind in ("recipe", "merge"):
            assert {model for model in models if model} <= written, stage.name
        written |= set(stage.outputs)


def test_report_stages_of_a_pipeline():
    """The recipes of training stages, and the folders of what is merged or has overrides."""
    small, large = (recipe_directory() / name for name in ("smollm2/pipeline.yml", "solar_pipeline.yml"))
    recipes = [small.parent / f"solar_{name}.yml" for name in ("dus", "probe_plan", "sft", "dpo", "sdpo_1", "sdpo_2")]
    assert report_stages(read_pipeline(small)) == (*recipes, Path("runs/smollm2/average"))
    assert report_stages(read_pipeline(large))[-2:] == (Path("outputs/solar_dpo_2"), Path("outputs/solar_average"))


@pytest.mark.parametrize("stage", ["{name: one, recipe: a.yml}", "{name: one, merge: m.yml, output: x}"])
def test_a_report_begins_with_a_recipe_that_upscales(folder, stage):
    with pytest.raises(ArgsError, match=r"p\.yml: .* solar\.init"):
        report_stages(read_pipeline(pipeline(folder, [stage])))
