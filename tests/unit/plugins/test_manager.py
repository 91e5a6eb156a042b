from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from solar_plugins.data import formatters
from solar_plugins.data.formatters.base import PreferenceFormatter, SFTFormatter
from solar_plugins.errors import PluginError
from solar_plugins.plugins import dpo_configs
from solar_plugins.plugins import manager as registry
from solar_plugins.plugins.dpo_configs import DPOConfig
from solar_plugins.plugins.markers import hookimpl
from solar_plugins.upscaling import strategies
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.strategies.base import InitStrategy, StrategyArgs


class Reverse:
    @hookimpl
    def register_init_strategies(self):
        return [
            InitStrategy(
                "reverse", StrategyArgs, lambda n, args: LayerPlan.from_sources(n, reversed(range(n))), summary=""
            )
        ]


class ClaimsDus:
    @hookimpl
    def register_init_strategies(self):
        return [InitStrategy("dus", StrategyArgs, lambda n, args: LayerPlan.from_sources(n, range(n)), summary="")]


class MisspeltHook:
    @hookimpl
    def register_init_strategy(self):
        return []


class TooManyArguments:
    @hookimpl
    def checkpoint_written(self, path, plan, base, color):
        pass


class ReturnsSomethingElse:
    @hookimpl
    def register_init_strategies(self):
        return ["dus"]


class WrongArguments:
    @hookimpl
    def register_init_strategies(self):
        return [InitStrategy("mine", dict, lambda num_layers, args: None, summary="")]


class Exits:
    @hookimpl
    def register_init_strategies(self):
        raise SystemExit(3)


class Fails:
    @hookimpl
    def register_init_strategies(self):
        raise RuntimeError("no disk")


def installed(monkeypatch, **plugins):
    """Pretend that packages with these entry points are installed."""

    def point(name, plugin):
        def load():
            if isinstance(plugin, BaseException):
                raise plugin
            return plugin

        dist = SimpleNamespace(name=f"solar-plugins-{name}", version="0.1")
        return SimpleNamespace(name="same", dist=dist, load=load)

    points = [point(name, plugin) for name, plugin in plugins.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    registry.loaded_plugins.cache_clear()


@pytest.fixture(autouse=True)
def _fresh_manager():
    yield
    registry.loaded_plugins.cache_clear()


def test_the_built_in_strategies_come_through_the_same_hook():
    found = registry.owned("register_init_strategies", InitStrategy)
    assert sorted(found) == ["block_expansion", "dus", "interleave", "repeat_block", "slices", "stack"]
    assert {owner for owner, _ in found.values()} == {"solar_plugins.upscaling.strategies"}


class Formats:
    """A package that adds one of each kind."""

    @hookimpl
    def register_sft_formatters(self):
        return [SFTFormatter(name="quiz", columns=(), to_messages=lambda row: [], summary="")]

    @hookimpl
    def register_preference_formatters(self):
        return [PreferenceFormatter(name="duel", columns=(), to_pair=lambda row, chance: None, summary="")]

    @hookimpl
    def register_dpo_configs(self):
        return [DPOConfig(name="my_lab", values={"rl_beta": 0.5}, global_batch=1, source="")]


def test_third_party_formatters_and_dpo_settings_are_registered_next_to_the_built_in_ones(monkeypatch):
    built_in = formatters.sft_formatters().keys(), formatters.preference_formatters().keys()
    installed(monkeypatch, formats=Formats())
    assert formatters.sft_formatters().keys() - built_in[0] == {"quiz"}
    assert formatters.preference_formatters().keys() - built_in[1] == {"duel"}
    assert dpo_configs.dpo_config("my_lab").values == {"rl_beta": 0.5}
    with pytest.raises(PluginError, match="'their_lab' is not a registered DPO setting; known: my_lab, sdpo, zephyr_2"):
        dpo_configs.dpo_config("their_lab")


@pytest.mark.parametrize(
    ("hook", "names"),
    [
        ("register_sft_formatters", ("alpaca", SFTFormatter, "data.built_in_formatters")),
        ("register_preference_formatters", ("math_pairs", PreferenceFormatter, "data.built_in_formatters")),
        ("register_dpo_configs", ("sdpo", DPOConfig, "plugins.dpo_configs")),
    ],
)
def test_the_built_in_ones_come_through_the_same_hooks(hook, names):
    name, kind, module = names
    assert registry.owned(hook, kind)[name][0] == f"solar_plugins.{module}"


def test_two_packages_with_one_formatter_name(monkeypatch):
    class Other:
        @hookimpl
        def register_sft_formatters(self):
            return [SFTFormatter(name="alpaca", columns=(), to_messages=lambda row: [], summary="")]

    installed(monkeypatch, other=Other())
    with pytest.raises(
        PluginError, match=r"'alpaca' is registered by both solar_plugins.data.built_in_formatters and solar-plugins-o"
    ):
        formatters.sft_formatters()


def test_a_third_party_strategy_is_found_by_name(monkeypatch):
    installed(monkeypatch, reverse=Reverse())
    assert strategies.init_strategy("reverse").plan(3, StrategyArgs()).sources == (2, 1, 0)


def test_entry_points_of_one_name_do_not_hide_each_other(monkeypatch):
    class Other(Reverse):
        @hookimpl
        def register_init_strategies(self):
            return [InitStrategy("other", StrategyArgs, lambda n, args: None, summary="")]

    installed(monkeypatch, a=Reverse(), b=Other())
    assert {"reverse", "other"} <= strategies.init_strategies().keys()


def test_broken_packages_are_skipped_by_name_and_named_when_something_is_missing(monkeypatch, caplog):
    installed(
        monkeypatch,
        broken=ModuleNotFoundError("No module named 'not_there'"),
        typo=MisspeltHook(),
        greedy=TooManyArguments(),
        reverse=Reverse(),
    )
    assert "reverse" in strategies.init_strategies()
    assert "skipped plugin solar-plugins-broken 0.1:same" in caplog.text
    with pytest.raises(PluginError) as error:
        strategies.init_strategy("wanted")
    lines = str(error.value).splitlines()
    assert lines[0] == (
        "'wanted' is not a registered strategy; known: "
        "block_expansion, dus, interleave, repeat_block, reverse, slices, stack"
    )
    assert "skipped plugin solar-plugins-broken 0.1:same: ModuleNotFoundError: No module named 'not_there'" in lines[1]
    assert "solar-plugins-typo" in lines[2]
    assert "register_init_strategy" in lines[2]
    assert "solar-plugins-greedy" in lines[3]


def test_two_plugins_that_claim_one_name(monkeypatch):
    installed(monkeypatch, dup=ClaimsDus())
    with pytest.raises(PluginError) as error:
        strategies.init_strategy("slices")
    assert "'dus' is registered by both solar_plugins.upscaling.strategies and solar-plugins-dup 0.1:same" in str(
        error.value
    )


def test_a_package_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("SOLAR_PLUGINS_DISABLE", "other, Solar_Plugins.dup")
    installed(monkeypatch, dup=ClaimsDus())
    owners = registry.owned("register_init_strategies", InitStrategy).values()
    assert {owner for owner, _ in owners} == {"solar_plugins.upscaling.strategies"}


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        (ReturnsSomethingElse(), "returned a str, expected InitStrategy"),
        (Fails(), f"RuntimeError: no disk ({__file__}, line "),
        (WrongArguments(), "mine: args is <class 'dict'>, expected a subclass of StrategyArgs"),
        (Exits(), "SystemExit: 3"),
    ],
)
def test_a_hook_that_fails_is_skipped_and_named_once_and_where_something_is_missing(monkeypatch, caplog, plugin, words):
    installed(monkeypatch, x=plugin)
    failure = f"skipped register_init_strategies of plugin solar-plugins-x 0.1:same: {words}"
    with caplog.at_level("WARNING"):
        assert {"dus", "slices"} <= strategies.init_strategies().keys()
        strategies.init_strategies()
    (warning,) = caplog.messages
    assert failure in warning
    with pytest.raises(PluginError) as error:
        strategies.init_strategy("mine")
    assert failure in str(error.value)


def test_the_debug_switch_adds_the_traceback_of_a_failed_hook(monkeypatch, caplog):
    monkeypatch.setenv("SOLAR_PLUGINS_DEBUG", "1")
    installed(monkeypatch, x=Fails())
    with caplog.at_level("WARNING"):
        assert "dus" in strategies.init_strategies()
    (warning,) = caplog.messages
    assert "Traceback (most recent call last)" in warning
    assert "in register_init_strategies" in warning


def test_a_function_without_its_mark_would_never_be_called(monkeypatch, caplog):
    class Unmarked:
        def register_recipes(self):
            return []

    installed(monkeypatch, x=Unmarked())
    registry.loaded_plugins()
    assert "its function register_recipes lacks @hookimpl" in caplog.text


def test_an_import_that_ends_the_interpreter_is_skipped(monkeypatch):
    installed(monkeypatch, x=SystemExit("bye"))
    assert "SystemExit: bye" in registry.loaded_plugins().skipped[0]


@pytest.mark.parametrize("name", ["DUS", "duss", "du"])
def test_a_misspelled_name_gets_a_suggestion(name):
    with pytest.raises(PluginError, match=rf"'{name}' is not a registered strategy; did you mean dus\? known: "):
        strategies.init_strategy(name)


def test_the_entry_points_of_the_package_itself():
    from importlib.metadata import distribution

    points = {(point.group, point.name): point.value for point in distribution("solar_plugins").entry_points}
    assert points == {
        ("console_scripts", "solar"): "solar_plugins.cli:solar",
        ("axolotl.plugins", "solar"): "solar_plugins:SolarPlugin",
        ("axolotl.cli_commands", "solar"): "solar_plugins.cli:solar",
    }
    assert all(
        EntryPoint(name, value, group).load() for (group, name), value in points.items() if "axolotl" not in group
    )
