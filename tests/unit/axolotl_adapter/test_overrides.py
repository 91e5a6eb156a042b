"""Options for the block on Axolotl's command line: those that reach the recipe, and those that Axolotl loses."""

import json
import sys
from pathlib import Path

import pytest
from axolotl.cli.main import cli
from axolotl.utils.dict import DictDefault
from click.testing import CliRunner

from solar_plugins import SolarPlugin
from solar_plugins.axolotl_adapter.overrides import refuse_lost_options, with_overrides
from solar_plugins.errors import ArgsError
from solar_plugins.solar_block import parse_solar_block

TRAIN = "/venv/lib/axolotl/cli/train.py"
DUS = {"init": {"strategy": "dus", "drop_layers": 2}}


def test_options_are_put_in_place_and_the_recipe_is_not_changed():
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


def test_they_count_for_the_plan_and_axolotl_keeps_them(base, tmp_path):
    cfg = DictDefault({"base_model": str(base), "solar": DUS | {"cache_dir": str(tmp_path / "cache")}})
    cfg["solar"]["init__drop_layers"] = 3
    SolarPlugin().register(cfg)
    assert json.loads((Path(cfg["base_model"]) / "config.json").read_text())["num_hidden_layers"] == 10
    assert cfg["solar"]["init"] == {"strategy": "dus", "drop_layers": 3}


@pytest.mark.parametrize(
    "key", [{"duplicates": {"initializer": "scaled"}}, {"slices": [{"model": "b", "layers": [0, 1]}]}]
)
def test_maps_inside_the_block_are_plain(key):
    """Pydantic takes Axolotl's own kind of map for a model, and cannot write it."""
    recipe = with_overrides(DictDefault({"solar": {"init": {"strategy": "slices"} | key}}))
    written = parse_solar_block(recipe).model_dump(exclude_none=True)
    assert written == {"init": {"strategy": "slices"} | key}


def test_they_are_kept_for_a_recipe_that_does_not_up_scale():
    """Axolotl's validation with our schema would refuse the unexpanded spelling."""
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
def test_a_spelling_that_does_not_reach_the_block_is_refused(arguments, spelling):
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
def test_other_arguments_and_other_programs_are_let_through(arguments):
    refuse_lost_options(arguments)


@pytest.mark.parametrize("command", ["train", "evaluate", "inference", "merge-sharded-fsdp-weights"])
@pytest.mark.parametrize("option", ["--solar__init__drop_layers=1", "--solar.init.drop_layers=1"])
def test_the_front_end_that_trains_by_itself_is_told(command, option, tmp_path, monkeypatch):
    """`axolotl train ... --launcher python` runs in one process and leaves out what it does not know."""
    (tmp_path / "r.yml").write_text("base_model: b\nsolar: {init: {strategy: dus, drop_layers: 2}}\n")
    monkeypatch.setattr(sys, "argv", ["axolotl"])
    arguments = [command, str(tmp_path / "r.yml"), "--launcher", "python", option]
    result = CliRunner().invoke(cli, arguments, prog_name="axolotl")
    module = f"axolotl.cli.{command.replace('-', '_')}"
    assert isinstance(result.exception, ArgsError), result.output
    assert str(result.exception).startswith(
        f"{option}: `axolotl {command}` ignores options for the solar: block; run `python -m {module} RECIPE "
        "--solar__init__drop_layers=1`"
    )


def test_the_front_end_is_not_told_of_other_options(base, tmp_path, monkeypatch):
    (tmp_path / "r.yml").write_text(f"base_model: {base}\nsolar: {{init: {{strategy: dus, drop_layers: 9}}}}\n")
    arguments = ["train", str(tmp_path / "r.yml"), "--launcher", "python", "--polar.x=1"]
    result = CliRunner().invoke(cli, arguments, prog_name="axolotl")
    assert str(result.exception).startswith("solar.init.drop_layers: 9 is impossible"), "register went on"
