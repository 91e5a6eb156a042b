"""The pluggy manager: which plugins are loaded, what they registered, and who registered it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, Protocol

import pluggy

from solar_plugins.data.formatters import preference, sft
from solar_plugins.data.formatters.base import PreferenceFormatter, SFTFormatter
from solar_plugins.errors import PluginError
from solar_plugins.plugins import dpo_configs, hookspecs
from solar_plugins.plugins import recipe_packs as recipes
from solar_plugins.plugins.dpo_configs import DPOConfig
from solar_plugins.plugins.hookspecs import PROJECT_NAME
from solar_plugins.plugins.recipe_packs import RecipePack
from solar_plugins.upscaling import strategies
from solar_plugins.upscaling.strategies import InitStrategy

# Axolotl shows INFO only from loggers whose name starts with "axolotl".
LOG = logging.getLogger("axolotl.solar_plugins.registry")

BUILT_IN_PLUGINS = (strategies, sft, preference, dpo_configs, recipes)


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class LoadedPlugins(NamedTuple):
    """The manager with every plugin that loaded, and a sentence for each that did not."""

    manager: pluggy.PluginManager
    skipped: tuple[str, ...]


@cache
def loaded_plugins() -> LoadedPlugins:
    """The built-in plugins, then every installed one of the entry-point group ``solar_plugins``; once a process."""
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    for module in BUILT_IN_PLUGINS:
        manager.register(module, name=module.__name__)
    disabled = {name.strip() for name in os.environ.get("SOLAR_PLUGINS_DISABLE", "").split(",")}
    found = [point for point in entry_points(group=PROJECT_NAME) if _distribution(point) not in disabled]
    failures = [_load(manager, point) for point in found]
    return LoadedPlugins(manager, tuple(failure for failure in failures if failure))


def _load(manager: pluggy.PluginManager, point: EntryPoint) -> str | None:
    """Load and register one entry point; on failure undo it and say why.

    Our own loop, because pluggy's loader stops the host at the first broken package and silently skips the second of
    two entry points with one name.
    """
    name = f"{_distribution(point)} {point.dist.version if point.dist else '?'}:{point.name}"
    plugin = None
    try:
        plugin = point.load()
        manager.register(plugin, name=name)
        manager.check_pending()
    except Exception as error:
        # Any exception: a third party's import may raise anything, and one broken package must not stop the rest.
        if plugin is not None and manager.is_registered(plugin):
            manager.unregister(plugin)
        failure = f"skipped plugin {name}: {type(error).__name__}: {error}"
        LOG.warning(failure)
        return failure
    return None


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown distribution"


def registered[T: _Named](hook_name: str, kind: type[T]) -> dict[str, tuple[str, T]]:
    """Everything that the registration hook ``hook_name`` collects, by name: the plugin's name and the thing.

    Raises:
        PluginError: A plugin returns something other than a list of ``kind``, or two plugins claim one name.
    """
    found: dict[str, tuple[str, T]] = {}
    for plugin_name, thing in _collect(hook_name, kind):
        if thing.name in found:
            raise PluginError(
                f"{thing.name!r} is registered by both {found[thing.name][0]} and {plugin_name} ({hook_name}); "
                "uninstall or rename one of them, or set SOLAR_PLUGINS_DISABLE to the name of its package"
            )
        found[thing.name] = (plugin_name, thing)
    return found


def _collect[T: _Named](hook_name: str, kind: type[T]) -> Iterator[tuple[str, T]]:
    for implementation in getattr(loaded_plugins().manager.hook, hook_name).get_hookimpls():
        try:
            things = list(implementation.function())
        except Exception as error:
            raise PluginError(
                f"plugin {implementation.plugin_name}: {hook_name} failed with {type(error).__name__}: {error}; "
                "uninstall it, or set SOLAR_PLUGINS_DISABLE to the name of its package"
            ) from error
        for thing in things:
            if not isinstance(thing, kind):
                raise PluginError(
                    f"plugin {implementation.plugin_name}: {hook_name} returned a {type(thing).__name__}, expected "
                    f"{kind.__name__}"
                )
            yield implementation.plugin_name, thing


def init_strategies() -> dict[str, InitStrategy[Any]]:
    """Every registered initialisation strategy by name."""
    return {name: strategy for name, (_, strategy) in registered("register_init_strategies", InitStrategy).items()}


def init_strategy(name: str) -> InitStrategy[Any]:
    """The strategy called ``name``.

    Raises:
        PluginError: Nobody registered it. The text lists what is known and which plugins were skipped and why.
    """
    return _known(init_strategies(), name, "strategy")


def sft_formatters() -> dict[str, SFTFormatter]:
    """Every registered formatter of instruction sets by name."""
    return {name: formatter for name, (_, formatter) in registered("register_sft_formatters", SFTFormatter).items()}


def preference_formatters() -> dict[str, PreferenceFormatter]:
    """Every registered formatter of preference sets by name."""
    found = registered("register_preference_formatters", PreferenceFormatter)
    return {name: formatter for name, (_, formatter) in found.items()}


def dpo_config(name: str) -> DPOConfig:
    """The settings for preference training called ``name``.

    Raises:
        PluginError: Nobody registered them.
    """
    found = registered("register_dpo_configs", DPOConfig)
    return _known({known: config for known, (_, config) in found.items()}, name, "DPO setting")


def _known[T](known: Mapping[str, T], name: str, kind: str) -> T:
    if name not in known:
        raise PluginError(not_registered(name, kind, known))
    return known[name]


def not_registered(name: str, kind: str, known: Iterable[str]) -> str:
    """Words for a name that nobody registered: what is known, and which plugins were skipped and why."""
    listed = f"{name!r} is not a registered {kind}; known: {', '.join(sorted(known))}"
    return "\n  ".join([listed, *loaded_plugins().skipped])


def recipe_packs() -> dict[str, RecipePack]:
    """Every registered directory of recipes by name."""
    return {name: pack for name, (_, pack) in registered("register_recipes", RecipePack).items()}


def announce(hook_name: str, **arguments: Any) -> None:
    """Call an event hook on every plugin that has it. A failing plugin is logged by name and does not stop the rest."""
    for implementation in getattr(loaded_plugins().manager.hook, hook_name).get_hookimpls():
        try:
            implementation.function(*(arguments[name] for name in implementation.argnames))
        except Exception:
            LOG.exception("plugin %s: %s failed; the run goes on", implementation.plugin_name, hook_name)
