"""The plugin with Axolotl's own configuration objects; complete runs are in tests/axolotl."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import axolotl
import pytest
from axolotl.utils.dict import DictDefault

from solar_plugins import SolarPlugin
from solar_plugins.axolotl_adapter.plugin import TESTED_AXOLOTL, _warn_of_untested_axolotl
from solar_plugins.errors import ArgsError, CheckpointError, SolarError

pytestmark = pytest.mark.slow

DUS = {"init": {"strategy": "dus", "drop_layers": 2}}


def registered(cfg):
    SolarPlugin().register(cfg)
    return cfg


def recipe(base, tmp_path, **changes):
    return DictDefault({"base_model": str(base), "solar": DUS | {"cache_dir": str(tmp_path / "cache")}} | changes)


def test_the_base_is_replaced_by_the_upscaled_checkpoint(base, tmp_path):
    cfg = registered(recipe(base, tmp_path))
    assert Path(cfg["base_model"]).parent == tmp_path / "cache"
    assert json.loads((Path(cfg["base_model"]) / "config.json").read_text())["num_hidden_layers"] == 12


def test_registering_twice_has_no_effect(base, tmp_path):
    cfg = registered(recipe(base, tmp_path))
    again = registered(DictDefault(cfg.to_dict()))
    assert again["base_model"] == cfg["base_model"]
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_without_a_block_nothing_changes():
    cfg = DictDefault({"base_model": "some/model", "base_model_config": "other", "plugins": ["x.Y"]})
    assert registered(cfg).to_dict() == {"base_model": "some/model", "base_model_config": "other", "plugins": ["x.Y"]}


def test_a_misspelled_key_is_rejected_before_anything_is_written(base, tmp_path):
    with pytest.raises(ArgsError, match=r"micro_batchsize: unknown key.*did you mean micro_batch_size"):
        registered(recipe(base, tmp_path, micro_batchsize=2))
    assert not (tmp_path / "cache").exists()


def test_a_run_does_not_resume_from_another_plans_checkpoint(base, tmp_path):
    keys = {"output_dir": str(tmp_path / "out"), "auto_resume_from_checkpoints": True}
    trained = registered(recipe(base, tmp_path, **keys))["base_model"]
    shutil.copytree(trained, tmp_path / "out" / "checkpoint-7")
    registered(recipe(base, tmp_path, **keys))
    with pytest.raises(CheckpointError, match=r"checkpoint-7 .* another plan, 8 -> 12 .* 8 -> 14 "):
        registered(recipe(base, tmp_path, solar={"init": {"strategy": "dus", "drop_layers": 1}}, **keys))


def test_the_revision_is_removed_because_the_base_is_local(base, tmp_path):
    cfg = registered(recipe(base, tmp_path, revision_of_model="main", model_revision="main"))
    assert "revision_of_model" not in cfg
    assert "model_revision" not in cfg


def test_a_model_that_this_recipe_trained_is_used_as_it_is(base, tmp_path):
    """`axolotl inference recipe.yml --base-model=./trained` must not answer with the untrained model."""
    trained = registered(recipe(base, tmp_path))["base_model"]
    assert registered(recipe(trained, tmp_path))["base_model"] == trained
    by_target = recipe(trained, tmp_path, solar={"init": {"strategy": "dus", "target_layers": 12}})
    assert registered(by_target)["base_model"] == trained, "the same plan by another argument"


def test_a_model_that_another_plan_upscaled_is_rejected(base, tmp_path):
    trained = registered(recipe(base, tmp_path))["base_model"]
    with pytest.raises(ArgsError, match=r"already upscaled .8 -> 12 layers.*solar upscale"):
        registered(recipe(trained, tmp_path, solar={"init": {"strategy": "dus", "drop_layers": 1}}))


def test_an_upscaled_model_whose_depth_contradicts_its_record(base, tmp_path):
    trained = Path(registered(recipe(base, tmp_path))["base_model"])
    config = json.loads((trained / "config.json").read_text())
    (trained / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 8}))
    with pytest.raises(ArgsError, match="has 8 layers, but its recorded plan is 8 -> 12"):
        registered(recipe(trained, tmp_path))


def test_another_models_config_is_rejected(base, tmp_path):
    with pytest.raises(ArgsError, match=r"base_model_config: other .*remove the key"):
        registered(recipe(base, tmp_path, base_model_config="other"))
    assert "base_model_config" not in registered(recipe(base, tmp_path, base_model_config=str(base)))


@pytest.mark.parametrize("name", ["overrides_of_model_config", "model_config"])
@pytest.mark.parametrize("key", ["num_hidden_layers", "num_layers", "layer_types", "per_layer_config"])
def test_other_layers_than_the_plans_are_rejected(base, tmp_path, name, key):
    """Axolotl would load the upscaled weights into a model of that depth, with random layers."""
    message = f"overrides_of_model_config: {key}: 16 .*remove the key"
    with pytest.raises(ArgsError, match=message):
        registered(recipe(base, tmp_path, **{name: {key: 16}}))
    trained = registered(recipe(base, tmp_path, **{name: {"rope_theta": 5e5}}))["base_model"]
    with pytest.raises(ArgsError, match=message):
        registered(recipe(trained, tmp_path, **{name: {key: 16}}))


@pytest.mark.parametrize("value", [None, 3, ""])
def test_a_recipe_without_a_base(tmp_path, value):
    with pytest.raises(ArgsError, match=r"base_model: .*expected (a directory|a valid string)"):
        registered(recipe(value, tmp_path, base_model=value))


def test_a_name_that_is_too_long_for_a_file(tmp_path):
    with pytest.raises(SolarError, match=r"base_model: .*(cannot be read|neither a local directory)"):
        registered(recipe("./" + "x" * 300, tmp_path))


@pytest.fixture
def untested_axolotl(monkeypatch):
    """An untested version of Axolotl, before this process has warned of it."""
    monkeypatch.setattr(axolotl, "__version__", "0.99.1")
    _warn_of_untested_axolotl.cache_clear()
    yield "0.99.1"
    _warn_of_untested_axolotl.cache_clear()


def warnings_of(caplog, version):
    return [record.message for record in caplog.records if version in record.message]


@pytest.mark.parametrize(
    "changes", [{}, {"solar": None, "datasets": [{"path": "x", "type": "solar_plugins.alpaca"}], "sequence_len": 8}]
)
def test_an_untested_axolotl_is_used_with_one_warning(base, tmp_path, caplog, untested_axolotl, changes):
    cfg = {key: value for key, value in recipe(base, tmp_path, **changes).items() if value is not None}
    registered(DictDefault(cfg))
    registered(DictDefault(cfg))
    [warning] = warnings_of(caplog, untested_axolotl)
    assert f"tested with {TESTED_AXOLOTL}" in warning
    assert f"pip install 'axolotl=={TESTED_AXOLOTL}.*'" in warning


def test_only_the_first_rank_of_a_node_warns(base, tmp_path, caplog, untested_axolotl, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    registered(recipe(base, tmp_path))
    assert warnings_of(caplog, untested_axolotl) == []


def test_a_recipe_without_this_plugin_gets_no_warning(caplog, untested_axolotl):
    registered(DictDefault({"base_model": "some/model"}))
    assert warnings_of(caplog, untested_axolotl) == []


@pytest.mark.parametrize(
    ("version", "tested"),
    [("0.21", True), ("0.21.0.dev0", True), ("0.2.1", False), ("0.210.0", False), ("1.21", False), ("unknown", False)],
)
def test_the_tested_versions(caplog, monkeypatch, version, tested):
    monkeypatch.setattr(axolotl, "__version__", version)
    _warn_of_untested_axolotl.__wrapped__()
    assert bool(warnings_of(caplog, version)) is not tested


def test_the_extra_installs_the_tested_version():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    [requirement] = project["optional-dependencies"]["axolotl"]
    assert requirement.startswith(f"axolotl[deepspeed]>={TESTED_AXOLOTL},<")


def test_the_installed_axolotl_is_tested(base, tmp_path, caplog):
    _warn_of_untested_axolotl.cache_clear()
    registered(recipe(base, tmp_path))
    assert "tested with" not in caplog.text


def test_importing_the_package_loads_neither_torch_nor_axolotl():
    code = "import sys, solar_plugins; print(*{name.partition('.')[0] for name in sys.modules})"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "solar_plugins" in modules
    assert not set(modules) & {"torch", "axolotl", "transformers", "numpy", "pydantic", "yaml", "click"}
