"""From YAML to a `Recipe`. That its names, defaults and types are Axolotl's is in axolotl_adapter/test_contract.py."""

import json
from pathlib import Path

import pytest

from solar_plugins.errors import ArgsError, PluginError
from solar_plugins.recipe import concerns_us, parse_recipe, read_recipe, read_yaml


def test_every_command_uses_the_same_default_sequence_length(tmp_path, base, monkeypatch):
    """`solar plan` took 4096 tokens, `--memory` stopped, and `solar report` took 512, which is Axolotl's default."""
    from solar_plugins.memory.memory_report import memory_of_recipe
    from solar_plugins.report.plan_report import plan_for_recipe

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    path = tmp_path / "r.yml"
    path.write_text(f"base_model: {base}\nsolar: {{init: {{strategy: dus, drop_layers: 2}}}}\noptimizer: adamw_torch\n")
    assert read_recipe(path).sequence_len == 512
    assert plan_for_recipe(path).sequence_tokens == 512
    assert memory_of_recipe(path, None, 1, None).setup.sequence_tokens == 512


def test_the_base_and_its_revision_by_either_key():
    assert parse_recipe({"base_model": "b", "revision_of_model": "main"}).base == ("b", "main")
    assert parse_recipe({"base_model": "b", "model_revision": "abc"}).base == ("b", "abc")
    assert parse_recipe({"base_model": "b"}).base == ("b", None)
    with pytest.raises(ArgsError, match="base_model: None; expected a directory or a hub id"):
        _ = parse_recipe({}).base


def test_named_settings_are_filled_in_once_and_the_recipes_own_keys_stay():
    recipe = parse_recipe({"solar": {"dpo": "zephyr_2024_01"}, "learning_rate": 1e-6, "rl_beta": 0.5})
    assert (recipe.rl, recipe.sequence_len, recipe.optimizer) == ("dpo", 1024, "adamw_torch")
    assert recipe.named_settings.global_batch == 128
    assert recipe.kept == {"learning_rate": 1e-6, "rl_beta": 0.5}
    assert "rl_beta" not in recipe.filled_in
    again = parse_recipe({"solar": {"dpo": "zephyr_2024_01"}} | dict(recipe.filled_in))
    assert again.filled_in.keys() == {"rl_beta", "learning_rate"}
    with pytest.raises(PluginError, match=r"solar.dpo: 'nobody' is not a registered DPO setting; known: sdpo"):
        parse_recipe({"solar": {"dpo": "nobody"}})


def test_recipes_validated_by_axolotl_are_read():
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.enums import ChatTemplate, RLType

    validated = DictDefault(
        {"rl": RLType.DPO, "chat_template": ChatTemplate.jinja, "datasets": [{"path": "x"}], "solar": {"dpo": "sdpo"}}
    )
    recipe = parse_recipe(validated)
    assert (recipe.rl, type(recipe.rl), recipe.chat_template) == ("dpo", str, "jinja")
    assert [entry["path"] for _, entry in recipe.entries("datasets")] == ["x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sequence_len": "long"}, "sequence_len: 'long' is not allowed; expected a valid integer"),
        ({"sequence_len": None}, "sequence_len: None is not allowed; expected a valid integer"),
        ({"bf16": "maybe"}, "bf16: 'maybe' is not allowed; expected 'auto' or a valid boolean"),
        ({"unfrozen_parameters": "all"}, "unfrozen_parameters: 'all' is not allowed; expected a valid list"),
        ({"solar": {"init": {}}}, "solar.init.strategy: missing; expected one of block_expansion, dus, interleave"),
    ],
)
def test_values_that_axolotl_would_refuse_are_named(content, message):
    with pytest.raises(ArgsError) as error:
        parse_recipe(content)
    assert message in str(error.value)


def test_it_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        parse_recipe({}).rl = "dpo"


@pytest.mark.parametrize(
    ("content", "concerns"),
    [
        ({}, False),
        ({"base_model": "x", "datasets": "odd", "test_datasets": [None, 3]}, False),
        ({"plugins": ["axolotl.integrations.liger.LigerPlugin"], "sequence_len": "odd"}, False),
        ({"solar": {}}, True),
        ({"solar__init__drop_layers": 3}, True),
        ({"plugins": ["solar_plugins.SolarPlugin"]}, True),
        ({"chat_template": "solar"}, True),
        ({"datasets": [{"path": "x", "type": "solar_plugins.alpaca"}]}, True),
        ({"test_datasets": [{"path": "x", "type": "solar_plugins.alpaca"}]}, True),
    ],
)
def test_recipes_of_others_are_told_apart(content, concerns):
    assert concerns_us(content) is concerns


def test_the_text_stays_with_the_recipe_and_other_yaml_is_not_judged(tmp_path):
    path = tmp_path / "r.yml"
    path.write_text("# What it does.\nbase_model: b\n")
    assert (read_recipe(path).text, read_recipe(path).path) == (path.read_text(), path)
    (tmp_path / "mix.yml").write_text(json.dumps({"sequence_len": "any"}))
    assert read_yaml(Path(tmp_path / "mix.yml")) == {"sequence_len": "any"}
