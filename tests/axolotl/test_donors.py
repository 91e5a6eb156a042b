"""A recipe whose layers come from two models, from the plan to the trained model, by Axolotl's own commands."""

import json
import shutil

import pytest
import yaml

pytestmark = pytest.mark.slow

TRAIN = ("python", "-m", "axolotl.cli.train")
SLICES = [[0, 6], {"model": "donor", "layers": [3, 6]}, [6, 8]]


@pytest.fixture
def folder(training_folder, tiny_model, sentencepiece_tokenizer):
    """`training_folder` with a donor next to the base, and a recipe that trains only the donor's layers."""
    tiny_model(training_folder / "donor", "mistral", dtype="float32", vocab_size=32000, num_hidden_layers=6, seed=1)
    for path in sentencepiece_tokenizer.iterdir():
        shutil.copy(path, training_folder / "donor")
    recipe = yaml.safe_load((training_folder / "recipe.yml").read_text())
    recipe["solar"] |= {"init": {"strategy": "slices", "slices": SLICES}, "train": {"layers": "new"}}
    (training_folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    return training_folder


def weights(directory):
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def test_a_recipe_of_two_models(folder, run_warm):
    first = run_warm(*TRAIN, "recipe.yml", cwd=folder)
    log = first.stdout + first.stderr
    assert first.returncode == 0, log
    assert "upscaling base: 8 -> 11 layers: [0..5] + donor [3..5] + [6..7], " in log
    (made,) = (folder / "cache").glob("upscaled-8-to-11-*[0-9a-f]")
    untrained, trained, base, donor = map(weights, (made, folder / "out", folder / "base", folder / "donor"))
    name = "self_attn.q_proj.weight"
    assert untrained[f"model.layers.7.{name}"].equal(donor[f"model.layers.4.{name}"])
    assert untrained[f"model.layers.10.{name}"].equal(base[f"model.layers.7.{name}"])
    changed = {
        n for n in range(11) if not trained[f"model.layers.{n}.{name}"].equal(untrained[f"model.layers.{n}.{name}"])
    }
    assert changed == {6, 7, 8}, "the donor's layers are those that are new"
    record = json.loads((folder / "out" / "config.json").read_text())["solar_plugins"]["plan"]
    assert record["donors"] == [{"name": "donor", "revision": None, "num_layers": 6}]

    again = run_warm(*TRAIN, "recipe.yml", "--base-model=./out", "--output-dir=more", "--max-steps=1", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "./out was already upscaled by this plan" in again.stdout + again.stderr


@pytest.mark.parametrize(
    "slices",
    [
        "[[0, 6], {model: ./donor, layers: [3, 6]}]",
        pytest.param('[[0,6],{"model":"donor","layers":[3,6]}]', marks=pytest.mark.nightly),
    ],
)
def test_slices_of_two_models_on_the_command_line(folder, run_warm, slices):
    result = run_warm(
        "python", "-m", "axolotl.cli.preprocess", "recipe.yml", f"--solar__init__slices={slices}", cwd=folder
    )
    assert result.returncode == 0, result.stderr
    assert "8 -> 9 layers: [0..5] + donor [3..5]" in result.stdout + result.stderr


def test_a_donor_that_does_not_fit_stops_the_run_with_the_reason(folder, run_warm):
    config = json.loads((folder / "donor" / "config.json").read_text())
    (folder / "donor" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    result = run_warm(*TRAIN, "recipe.yml", cwd=folder)
    assert result.returncode == 1
    assert "donor donor: config.json: rms_norm_eps is 0.5, the base's is 1e-06" in result.stderr
