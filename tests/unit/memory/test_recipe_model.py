import json
import shutil

import pytest
import yaml

from solar_plugins.errors import ArgsError, CheckpointError
from solar_plugins.memory.recipe_model import model_of
from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.recipe import read_recipe
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan

GROWN = {"init": {"strategy": "dus", "drop_layers": 2}}


def write(path, **recipe):
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(recipe))
    return path


def found(path, base=None):
    return model_of(read_recipe(path), base)


@pytest.mark.parametrize(
    "name", ["solar_dus.yml", "solar_sft.yml", "solar_dpo.yml", "solar_sdpo_2.yml", "solar_dpo_qlora.yml"]
)
def test_every_stage_of_solar_leads_back_to_mistral(mistral_config, name):
    path = recipe_directory() / name
    made = found(path, str(mistral_config))
    stages = made.stages
    assert (made.model.parameters, made.model.num_layers) == (10_731_524_096, 48)
    assert (stages[0], stages[1], stages[-1]) == (str(mistral_config), "solar_dus.yml", name)


def test_the_chain_goes_through_a_merge(mistral_config):
    stages = found(recipe_directory() / "solar_dpo.yml", str(mistral_config)).stages
    assert stages[2:4] == ("solar_sft.yml", "mergekit/solar_sft_average.yml")


def test_the_parameters_of_a_base_with_weights_come_from_them(base, tmp_path):
    path = write(tmp_path / "r.yml", base_model=str(base), solar=GROWN)
    from_weights, from_config = found(path).model, found(path, str(base / "config.json")).model
    assert from_weights == from_config
    assert from_weights.num_layers == 12


def test_layers_of_a_donor(base, tiny_model, tmp_path):
    donor = tiny_model(tmp_path / "donor", num_hidden_layers=6, seed=1)
    slices = [[0, 6], {"model": str(donor), "layers": [2, 6]}, [6, 8]]
    path = write(tmp_path / "r.yml", base_model=str(base), solar={"init": {"strategy": "slices", "slices": slices}})
    dus = write(tmp_path / "dus.yml", base_model=str(base), solar=GROWN)
    assert found(path).model == found(dus).model, "as many layers of the same shapes"
    assert found(path).plan.donors[0].num_layers == 6


def test_a_stage_that_has_run_is_used_unchanged(base, tmp_path):
    made = ensure_checkpoint(find_base(str(base)), LayerPlan.from_sources(8, [*range(6), *range(2, 8)]), tmp_path)
    shutil.copytree(made, tmp_path / "dus")
    write(tmp_path / "recipes" / "one.yml", base_model="nowhere/else", solar=GROWN, output_dir=str(tmp_path / "dus"))
    model = found(write(tmp_path / "recipes" / "two.yml", base_model=str(tmp_path / "dus")))
    assert model.model.num_layers == 12
    assert model.stages == (str(tmp_path / "dus"), "two.yml")


def test_a_base_that_the_recipe_wrote_itself_is_used_as_it_is(base, tmp_path):
    """`axolotl inference r.yml --base-model=./trained`, or a resumed run: the plugin does not upscale it again."""
    plain = write(tmp_path / "r.yml", base_model=str(base), solar=GROWN)
    made = ensure_checkpoint(find_base(str(base)), LayerPlan.from_sources(8, [*range(6), *range(2, 8)]), tmp_path)
    again = write(tmp_path / "again.yml", base_model=str(made), solar=GROWN)
    assert found(again).model == found(plain).model == found(plain, str(made / "config.json")).model
    assert found(again).model.num_layers == 12
    assert (found(again).already_grown, found(plain).already_grown) == (True, False)
    other = write(tmp_path / "other.yml", base_model=str(made), solar={"init": {"strategy": "dus", "drop_layers": 1}})
    with pytest.raises(ArgsError, match=r"already upscaled .8 -> 12 layers"):
        found(other)


def test_a_merged_adapter_comes_from_the_recipe_of_the_adapter(base, tmp_path):
    write(tmp_path / "recipes" / "one.yml", base_model=str(base), solar=GROWN, output_dir="outputs/lora")
    model = found(write(tmp_path / "recipes" / "two.yml", base_model="outputs/lora/merged"))
    assert (model.model.num_layers, model.stages[1:]) == (12, ("one.yml", "two.yml"))


def test_a_chain_without_a_start(tmp_path):
    path = write(tmp_path / "r.yml", base_model="./outputs/nowhere")
    with pytest.raises(
        CheckpointError, match=r"r.yml start from base_model: ./outputs/nowhere, and no recipe in .* --base"
    ):
        found(path)


def test_a_cycle(tmp_path):
    write(tmp_path / "a.yml", base_model="outputs/b", output_dir="outputs/a")
    with pytest.raises(ArgsError, match=r"the recipes before it form a cycle \(.*change base_model or output_dir"):
        found(write(tmp_path / "b.yml", base_model="outputs/a", output_dir="outputs/b"))


def test_a_merge_of_slices(tmp_path):
    (tmp_path / "merge.yml").write_text("slices: []\n")
    stage = "{name: m, merge: merge.yml, output: outputs/m}"
    (tmp_path / "pipeline.yml").write_text(f"records: records\nstages:\n- {stage}\n")
    (tmp_path / "broken.yml").write_text("stages: [{name: x}]\n")  # Another file's fault is not this recipe's.
    with pytest.raises(ArgsError, match=r"merge.yml: a merge without base_model, .* r.yml"):
        found(write(tmp_path / "r.yml", base_model="outputs/m"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "config.json: quantization_config; .* --base"),
        ({"model_type": "qwen2"}, "config.json: model_type 'qwen2'; .* folder with the weights"),
    ],
)
def test_models_with_unknown_parameters(mistral_config, tmp_path, change, message):
    config = json.loads((mistral_config / "config.json").read_text())
    (mistral_config / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        found(write(tmp_path / "r.yml", base_model=str(mistral_config)))
