"""The plugin with Axolotl's own configuration objects; whole runs are in tests/axolotl."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import axolotl
import pytest
from axolotl.utils.dict import DictDefault

from solar_plugins import SolarPlugin
from solar_plugins.axolotl_adapter.plugin import _warn_of_untried_axolotl
from solar_plugins.axolotl_adapter.tried_versions import TRIED_AXOLOTL
from solar_plugins.errors import ArgsError, CheckpointError, SolarError

DUS = {"init": {"strategy": "dus", "drop_layers": 2}}


def registered(cfg):
    SolarPlugin().register(cfg)
    return cfg


def recipe(base, tmp_path, **changes):
    return DictDefault({"base_model": str(base), "solar": DUS | {"cache_dir": str(tmp_path / "cache")}} | changes)


def test_the_base_is_replaced_by_the_up_scaled_checkpoint(base, tmp_path):
    cfg = registered(recipe(base, tmp_path))
    assert Path(cfg["base_model"]).parent == tmp_path / "cache"
    assert json.loads((Path(cfg["base_model"]) / "config.json").read_text())["num_hidden_layers"] == 12


def test_registering_twice_is_registering_once(base, tmp_path):
    cfg = registered(recipe(base, tmp_path))
    again = registered(DictDefault(cfg.to_dict()))
    assert again["base_model"] == cfg["base_model"]
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_without_a_block_nothing_changes():
    cfg = DictDefault({"base_model": "some/model", "base_model_config": "other", "plugins": ["x.Y"]})
    assert registered(cfg).to_dict() == {"base_model": "some/model", "base_model_config": "other", "plugins": ["x.Y"]}


def test_a_misspelt_key_of_axolotls_is_refused_before_anything_is_written(base, tmp_path):
    with pytest.raises(ArgsError, match=r"micro_batchsize: unknown key.*did you mean micro_batch_size"):
        registered(recipe(base, tmp_path, micro_batchsize=2))
    assert not (tmp_path / "cache").exists()


def test_a_run_does_not_resume_from_another_plans_checkpoint(base, tmp_path):
    keys = {"output_dir": str(tmp_path / "out"), "auto_resume_from_checkpoints": True}
    trained = registered(recipe(base, tmp_path, **keys))["base_model"]
    shutil.copytree(trained, tmp_path / "out" / "checkpoint-7")
    registered(recipe(base, tmp_path, **keys))
    with pytest.raises(CheckpointError, match=r"checkpoint-7 holds a model of another plan, 8 -> 12 .* 8 -> 14 "):
        registered(recipe(base, tmp_path, solar={"init": {"strategy": "dus", "drop_layers": 1}}, **keys))


def test_the_revision_is_cleared_once_the_base_is_local(base, tmp_path):
    cfg = registered(recipe(base, tmp_path, revision_of_model="main", model_revision="main"))
    assert "revision_of_model" not in cfg
    assert "model_revision" not in cfg


def test_a_model_that_came_out_of_this_recipe_is_used_as_it_is(base, tmp_path):
    """`axolotl inference recipe.yml --base-model=./trained` must not answer with the untrained model."""
    trained = registered(recipe(base, tmp_path))["base_model"]
    assert registered(recipe(trained, tmp_path))["base_model"] == trained
    by_target = recipe(trained, tmp_path, solar={"init": {"strategy": "dus", "target_layers": 12}})
    assert registered(by_target)["base_model"] == trained, "the same plan in other words"


def test_a_model_that_was_grown_otherwise_is_refused(base, tmp_path):
    trained = registered(recipe(base, tmp_path))["base_model"]
    with pytest.raises(ArgsError, match=r"was upscaled already .8 -> 12 layers.*solar upscale"):
        registered(recipe(trained, tmp_path, solar={"init": {"strategy": "dus", "drop_layers": 1}}))


def test_a_grown_model_whose_depth_contradicts_its_record(base, tmp_path):
    trained = Path(registered(recipe(base, tmp_path))["base_model"])
    config = json.loads((trained / "config.json").read_text())
    (trained / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 8}))
    with pytest.raises(ArgsError, match="has 8 layers, but its own record says 8 -> 12"):
        registered(recipe(trained, tmp_path))


def test_another_models_config_is_refused(base, tmp_path):
    with pytest.raises(
        ArgsError, match=r"base_model_config: other would give the upscaled weights another model's depth"
    ):
        registered(recipe(base, tmp_path, base_model_config="other"))
    assert "base_model_config" not in registered(recipe(base, tmp_path, base_model_config=str(base)))


@pytest.mark.parametrize("name", ["overrides_of_model_config", "model_config"])
@pytest.mark.parametrize("key", ["num_hidden_layers", "num_layers", "layer_types", "per_layer_config"])
def test_other_layers_than_the_plans_are_refused(base, tmp_path, name, key):
    """Axolotl would load the upscaled weights into a model of that depth, and begin with random layers."""
    message = f"overrides_of_model_config: {key}: 16 would give the upscaled weights other layers than the plan's"
    with pytest.raises(ArgsError, match=message):
        registered(recipe(base, tmp_path, **{name: {key: 16}}))
    trained = registered(recipe(base, tmp_path, **{name: {"rope_theta": 5e5}}))["base_model"]
    with pytest.raises(ArgsError, match=message):
        registered(recipe(trained, tmp_path, **{name: {key: 16}}))


@pytest.mark.parametrize("value", [None, 3, ""])
def test_a_recipe_without_a_base(tmp_path, value):
    with pytest.raises(ArgsError, match=r"base_model: .*expected (a model|a valid string)"):
        registered(recipe(value, tmp_path, base_model=value))


def test_a_name_that_no_file_system_takes(tmp_path):
    with pytest.raises(SolarError, match=r"base_model: .*(cannot be read|neither a local directory)"):
        registered(recipe("./" + "x" * 300, tmp_path))


@pytest.fixture
def other_axolotl(monkeypatch):
    """An Axolotl of a version that nobody tried, which this process has not warned of yet."""
    monkeypatch.setattr(axolotl, "__version__", "0.99.1")
    _warn_of_untried_axolotl.cache_clear()
    yield "0.99.1"
    _warn_of_untried_axolotl.cache_clear()


def warnings_of(caplog, version):
    return [record.message for record in caplog.records if version in record.message]


@pytest.mark.parametrize(
    "changes", [{}, {"solar": None, "datasets": [{"path": "x", "type": "solar_plugins.alpaca"}], "sequence_len": 8}]
)
def test_an_untried_axolotl_is_named_once_and_used(base, tmp_path, caplog, other_axolotl, changes):
    cfg = {key: value for key, value in recipe(base, tmp_path, **changes).items() if value is not None}
    registered(DictDefault(cfg))
    registered(DictDefault(cfg))
    [warning] = warnings_of(caplog, other_axolotl)
    assert f"tried with Axolotl {TRIED_AXOLOTL} and meets {other_axolotl}" in warning


def test_one_rank_of_a_node_names_it(base, tmp_path, caplog, other_axolotl, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    registered(recipe(base, tmp_path))
    assert warnings_of(caplog, other_axolotl) == []


def test_a_recipe_that_is_not_ours_gets_no_warning(caplog, other_axolotl):
    registered(DictDefault({"base_model": "some/model"}))
    assert warnings_of(caplog, other_axolotl) == []


def test_the_installed_axolotl_was_tried(base, tmp_path, caplog):
    _warn_of_untried_axolotl.cache_clear()
    registered(recipe(base, tmp_path))
    assert "was tried with Axolotl" not in caplog.text


def test_importing_the_package_loads_neither_torch_nor_axolotl():
    code = "import sys, solar_plugins; print(*{name.partition('.')[0] for name in sys.modules})"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "solar_plugins" in modules
    assert not set(modules) & {"torch", "axolotl", "transformers", "numpy", "pydantic", "yaml", "click"}
