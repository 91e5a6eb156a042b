"""Misspelled keys, and options for the ``solar:`` block: those that reach the recipe, and those that Axolotl loses."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from axolotl.cli.main import cli
from axolotl.integrations.config import merge_input_args
from axolotl.utils.dict import DictDefault
from click.testing import CliRunner
from pydantic import BaseModel

from solar_plugins import SolarPlugin
from solar_plugins.axolotl_adapter.ignored_keys import refuse_lost_options, refuse_misspelled_keys, with_overrides
from solar_plugins.axolotl_adapter.recipe_checks import changes
from solar_plugins.errors import ArgsError
from solar_plugins.recipe import parse_recipe
from solar_plugins.solar_block import parse_solar_block

pytestmark = pytest.mark.slow

TRAIN = "/venv/lib/axolotl/cli/train.py"
DUS = {"init": {"strategy": "dus", "drop_layers": 2}}


@pytest.fixture(scope="module")
def schema():
    return merge_input_args()[1]


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        (
            {"micro_batchsize": 2},
            "micro_batchsize: unknown key, which Axolotl would ignore; did you mean micro_batch_size",
        ),
        ({"sequence_length": 2048}, "did you mean sequence_len?"),
        ({"wandb_projet": "x"}, "did you mean wandb_project?"),
        ({"learning_rte": 1}, "did you mean learning_rate?"),
        ({"trl": {"betta": 0.1}}, "trl.betta: unknown key, which Axolotl would ignore; did you mean trl.beta?"),
        ({"rl_betta": 0.1}, "did you mean rl_beta?"),
    ],
)
def test_a_misspelled_key_is_rejected(key, suggestion, schema):
    with pytest.raises(ArgsError) as error:
        refuse_misspelled_keys({"base_model": "b"} | key, schema)
    assert suggestion in str(error.value)


@pytest.mark.parametrize("key", [{"x-anchors": {"a": 1}}, {"my_plugin_key": 1}, {"model_revision": "r"}, {5: 1}])
def test_other_unknown_keys_are_allowed(key, schema):
    refuse_misspelled_keys({"base_model": "b"} | key, schema)


def test_every_shipped_recipe_passes(schema):
    seen = 0
    for path in sorted((Path(__file__).parents[3] / "recipes").rglob("*.yml")):
        content = yaml.safe_load(path.read_text())
        if isinstance(content.get("base_model"), str) and "plugins" in content:
            seen += 1
            refuse_misspelled_keys(content | changes(parse_recipe(content)), schema)
    assert seen >= 15


def test_a_validated_recipe_passes_again(schema):
    """`register` sees one on a Ray worker."""
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    recipe = {"base_model": "b", "micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 1e-4}
    validated = validate_config(DictDefault(recipe | {"datasets": [{"path": "p", "type": "completion"}]}))
    refuse_misspelled_keys(validated, schema)


def test_aliases_are_known_keys():
    from pydantic import Field

    class Schema(BaseModel):
        revision_of_model: str = Field("", validation_alias="model_revision")

    refuse_misspelled_keys({"model_revision": "x"}, Schema)
    with pytest.raises(ArgsError, match="did you mean model_revision"):
        refuse_misspelled_keys({"model_revison": "x"}, Schema)


def test_options_are_moved_to_their_place_in_a_copy_of_the_recipe():
    """axolotl/cli/config.py splits `--solar__init__drop_layers` at the first double underscore only."""
    block = DUS | {"init__drop_layers": 6, "cache_dir": "x", "data__bad_rows": "stop"}
    recipe = {"base_model": "b", "solar": block}
    assert with_overrides(recipe) == {
        "base_model": "b",
        "solar": {"init": {"strategy": "dus", "drop_layers": 6}, "cache_dir": "x", "data": {"bad_rows": "stop"}},
    }
    assert block["init"] == DUS["init"] == {"strategy": "dus", "drop_layers": 2}
    assert with_overrides({"solar": {"init__strategy": "dus"}}) == {"solar": {"init": {"strategy": "dus"}}}
    assert with_overrides({"solar": None}) == {"solar": None}


def test_options_change_the_plan_and_stay_in_the_recipe(base, tmp_path):
    cfg = DictDefault({"base_model": str(base), "solar": DUS | {"cache_dir": str(tmp_path / "cache")}})
    cfg["solar"]["init__drop_layers"] = 3
    SolarPlugin().register(cfg)
    assert json.loads((Path(cfg["base_model"]) / "config.json").read_text())["num_hidden_layers"] == 10
    assert cfg["solar"]["init"] == {"strategy": "dus", "drop_layers": 3}


@pytest.mark.parametrize(
    "key", [{"duplicates": {"initializer": "scaled"}}, {"slices": [{"model": "b", "layers": [0, 1]}]}]
)
def test_maps_inside_the_block_are_plain(key):
    """Pydantic treats Axolotl's own mapping as a model, and cannot serialize it."""
    recipe = with_overrides(DictDefault({"solar": {"init": {"strategy": "slices"} | key}}))
    written = parse_solar_block(recipe).model_dump(exclude_none=True)
    assert written == {"init": {"strategy": "slices"} | key}


def test_options_of_a_recipe_that_does_not_upscale():
    """Axolotl's validation with our schema would reject the unexpanded spelling."""
    cfg = DictDefault({"base_model": "b", "solar": {"dpo": "sdpo", "data__bad_rows": "stop"}})
    SolarPlugin().register(cfg)
    assert cfg["solar"] == {
        "dpo": "sdpo",
        "data": {"bad_rows": "stop", "max_bad_share": 0.02, "examples_per": "answer"},
    }


@pytest.mark.parametrize(
    ("arguments", "spelling"),
    [
        (["--solar.init.drop_layers=1"], "--solar__init__drop_layers=1,"),
        (["--solar.init.drop_layers", "1"], "--solar__init__drop_layers,"),
        (["-solar.init.drop_layers=1"], "--solar__init__drop_layers=1,"),
        (["--solar-init-drop_layers=1"], "--solar__init__drop_layers=1,"),
        (["--solar_cache_dir=x.y"], "--solar__cache_dir=x.y,"),
        (["solar.init.drop_layers=1"], "--solar__init__drop_layers=1,"),
        (["--max_steps=1", "--", "--solar__init__drop_layers=1"], "--solar__init__drop_layers=1, before any bare --"),
    ],
)
def test_a_spelling_that_axolotl_loses_is_rejected(arguments, spelling):
    with pytest.raises(ArgsError, match=f"Axolotl ignores this; write {spelling}"):
        refuse_lost_options([TRAIN, "r.yml", *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        [TRAIN, "solar_dus.yml", "--solar__init__drop_layers=1", "--solar--cache-dir", "x", "--micro_batch_size=1"],
        [TRAIN, "runs/solar.lr=1e-5/r.yml", "--", "--verbose"],
        ["/home/me/my_script.py", "--solar.mode=1", "--solar_mode=2"],
        ["-c", "--solar.init.drop_layers=1"],
        [""],
        [],
    ],
)
def test_other_arguments_and_other_programs_pass(arguments):
    refuse_lost_options(arguments)


@pytest.mark.parametrize("command", ["train", "evaluate", "inference", "merge-sharded-fsdp-weights"])
@pytest.mark.parametrize("option", ["--solar__init__drop_layers=1", "--solar.init.drop_layers=1"])
def test_options_that_the_front_end_drops_are_rejected(command, option, tmp_path, monkeypatch):
    """`axolotl train ... --launcher python` runs in one process and drops unknown options."""
    (tmp_path / "r.yml").write_text("base_model: b\nsolar: {init: {strategy: dus, drop_layers: 2}}\n")
    monkeypatch.setattr(sys, "argv", ["axolotl"])
    arguments = [command, str(tmp_path / "r.yml"), "--launcher", "python", option]
    result = CliRunner().invoke(cli, arguments, prog_name="axolotl")
    module = f"axolotl.cli.{command.replace('-', '_')}"
    assert isinstance(result.exception, ArgsError), result.output
    assert str(result.exception).startswith(f"{option}: `axolotl {command}` ignores options for the solar: block")
    assert f"run `python -m {module} RECIPE --solar__init__drop_layers=1`" in str(result.exception)


def test_other_options_of_the_front_end_pass(base, tmp_path, monkeypatch):
    (tmp_path / "r.yml").write_text(f"base_model: {base}\nsolar: {{init: {{strategy: dus, drop_layers: 9}}}}\n")
    arguments = ["train", str(tmp_path / "r.yml"), "--launcher", "python", "--polar.x=1"]
    result = CliRunner().invoke(cli, arguments, prog_name="axolotl")
    assert str(result.exception).startswith("solar.init.drop_layers: 9 "), "register continued"
