import pytest
from pydantic import Field

from solar_plugins.errors import ArgsError, PluginError
from solar_plugins.plugins import manager as registry
from solar_plugins.plugins.markers import hookimpl
from solar_plugins.solar_block import InitArgs, SolarArgs, parse_solar_block
from solar_plugins.upscaling.strategies import plan_of
from solar_plugins.upscaling.strategies.base import InitStrategy, StrategyArgs

GOOD = {"init": {"strategy": "dus", "drop_layers": 8}}


def plan(block, num_layers=32):
    return plan_of(parse_solar_block({"solar": block}).init, num_layers)


def test_a_good_block():
    solar = parse_solar_block({"base_model": "x", "solar": GOOD | {"cache_dir": "cache"}})
    assert solar.cache_dir == "cache"
    assert str(plan_of(solar.init, 32)) == "32 -> 48 layers: [0..23] + [8..31]"


def test_no_block():
    assert parse_solar_block({"base_model": "x"}) is None


def test_the_block_survives_axolotls_own_validation():
    """Axolotl validates what `register` left, and dumps it without None."""
    solar = parse_solar_block({"solar": GOOD})
    dumped = solar.model_dump(exclude_none=True)
    assert SolarArgs.model_validate(dumped) == solar
    assert dumped == GOOD


def test_a_block_that_does_not_upscale():
    solar = parse_solar_block({"solar": {"dpo": "sdpo", "data": {"bad_rows": "stop"}}})
    assert solar.init_args is None
    assert (solar.dpo, solar.data.bad_rows, solar.data.max_bad_share) == ("sdpo", "stop", 0.02)
    assert SolarArgs.model_validate(solar.model_dump(exclude_none=True)) == solar


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (None, "solar: None is not a map; expected for example"),
        ("dus", "solar: 'dus' is not a map"),
        ({}, "solar: {} is not allowed; expected at least one of the keys init, train, dpo, data"),
        (
            {"cache_dir": "x"},
            "solar: {'cache_dir': 'x'} is not allowed; expected at least one of the keys init, train, dpo, data",
        ),
        ({"int": {}}, "solar.int: unknown key; did you mean init?"),
        ({"dpo": "zephyr_2023_11"}, "solar.init: missing; the recipe does not upscale its base"),
        ({"dpo": ""}, "solar.dpo: '' is not allowed; expected at least 1 character"),
        ({"dpo": {"config": "x"}}, "solar.dpo: {'config': 'x'} is not allowed; expected a valid string"),
        ({"data": {"bad_row": "drop"}}, "solar.data.bad_row: unknown key"),
        ({"data": {"bad_rows": "keep"}}, "solar.data.bad_rows: 'keep' is not allowed; expected 'drop' or 'stop'"),
        (
            {"data": {"max_bad_share": 2}},
            "solar.data.max_bad_share: 2 is not allowed; expected a value less than or equal",
        ),
        (GOOD | {"cache": "x"}, "solar.cache: unknown key; did you mean cache_dir?"),
        (GOOD | {"cache_dir": ""}, "solar.cache_dir: '' is not allowed; expected at least 1 character"),
        (
            {"init": {}},
            "solar.init.strategy: missing; expected one of block_expansion, dus, interleave, repeat_block,",
        ),
        ({"init": 3}, "solar.init: 3 is not allowed; expected a map"),
        (
            {"init": {"strategy": "dus", "drop_layer": 8}},
            "solar.init.drop_layer: unknown key; did you mean drop_layers?",
        ),
        ({"init": {"strategy": "dus", "zzz": 8}}, "solar.init.zzz: unknown key; known: drop_layers, target_layers"),
        ({"init": {"strategy": "dus", "drop_layers": "eight"}}, "solar.init.drop_layers: 'eight' is not allowed"),
        (
            {"init": {"strategy": "dus", "drop_layers": True}},
            "solar.init.drop_layers: True is not allowed; expected a number",
        ),
        ({"init": {"strategy": "dus", "drop_layers": 8.5}}, "solar.init.drop_layers: 8.5 is not allowed"),
        ({"init": {"strategy": "dus", "drop_layers": 40}}, "solar.init.drop_layers: 40 is impossible for a base of 32"),
        ({"init": {"strategy": "dus", "target_layers": 47}}, "solar.init.target_layers: 47 is odd"),
        ({"init": {"strategy": "slices"}}, "solar.init.slices: missing"),
        ({"init": {"strategy": "slices", "slices": [[0, 24, 3]]}}, "solar.init.slices.0: [0, 24, 3] is not allowed"),
        ({"init": {"strategy": "slices", "slices": "0-24"}}, "expected half-open ranges"),
        (
            {"init": {"strategy": "slices", "slices": [[0, 33]]}},
            "solar.init.slices: [0, 33] is not a range of a base of 32",
        ),
    ],
)
def test_bad_blocks_are_named_by_the_key_that_the_user_wrote(block, message):
    with pytest.raises(ArgsError) as error:
        plan(block)
    assert str(error.value).startswith(message) or message in str(error.value)
    assert "pydantic" not in str(error.value)


def test_an_unknown_strategy_lists_the_known_ones():
    known = "block_expansion, dus, interleave, repeat_block, slices, stack"
    with pytest.raises(PluginError, match=f"solar.init.strategy: 'dsu' is not .* did you mean dus. known: {known}"):
        plan({"init": {"strategy": "dsu"}})


@pytest.mark.parametrize("key", ["sloar", "Solar", "solar_init", "solr"])
def test_a_misspelled_block_is_rejected_if_the_recipe_lists_the_plugin(key):
    with pytest.raises(ArgsError, match=f"{key}: unknown key"):
        parse_solar_block({"plugins": ["solar_plugins.SolarPlugin"], key: GOOD})
    assert parse_solar_block({key: GOOD}) is None, "a recipe of another plugin is not ours to judge"


@pytest.mark.parametrize(
    ("key", "spelling"),
    [
        ("solar__init__drop_layers", "--solar__init__drop_layers"),
        ("solar.init.drop_layers", "--solar__init__drop_layers"),
        ("solar_init_drop_layers", "--solar__init__drop_layers"),
        ("solar-cache_dir", "--solar__cache_dir"),
        ("solar.data.max_bad_share", "--solar__data__max_bad_share"),
    ],
)
def test_a_part_of_the_block_at_the_top_of_a_recipe_or_a_sweep_is_refused(key, spelling):
    """Axolotl drops such a key, so every run of a sweep over it would train the same model."""
    with pytest.raises(
        ArgsError, match=f"{key}: unknown key.* recipe .*`solar:` block; on the command line, write {spelling}"
    ):
        parse_solar_block({"solar": GOOD, key: 2})


def test_a_key_of_another_package_next_to_the_block_stays():
    assert parse_solar_block({"solar": GOOD, "solar_initial_charge": 2, "solarized": True}) is not None


class NoArgs(StrategyArgs):
    size: int = Field(1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda num_layers, args: [0, 1], r"'third' returned \[0, 1\], expected a LayerPlan for 4 base layers"),
        (lambda num_layers, args: 1 // 0, "'third' failed on 4 layers with ZeroDivisionError"),
    ],
)
def test_a_broken_third_party_strategy_is_named(function, message):
    class Plugin:
        @hookimpl
        def register_init_strategies(self):
            return [InitStrategy("third", NoArgs, function, summary="")]

    plugin = Plugin()
    registry.loaded_plugins().manager.register(plugin)
    try:
        with pytest.raises(PluginError, match=message):
            plan_of(InitArgs(strategy="third"), 4)
    finally:
        registry.loaded_plugins().manager.unregister(plugin)
