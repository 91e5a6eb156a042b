"""The pluggy manager: which plugins are loaded, what they registered, and who registered it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

import pluggy

from solar_plugins.errors import PluginError
from solar_plugins.logs import logger
from solar_plugins.plugins import hookspecs
from solar_plugins.plugins.markers import PROJECT_NAME

LOG = logger("plugins")

BUILT_IN_PLUGINS = (
    "solar_plugins.upscaling.strategies",
    "solar_plugins.upscaling.initializers",
    "solar_plugins.data.built_in_formatters",
    "solar_plugins.plugins.dpo_configs",
    "solar_plugins.plugins.recipe_packs",
)
"""By name, because they stand above this module; imported with the other plugins, on the first look-up."""


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
        manager.register(import_module(module), name=module)
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


def registered[T](hook_name: str, kind: type[T]) -> dict[str, T]:
    """Everything that the registration hook ``hook_name`` collects, by name.

    Raises:
        PluginError: As `owned`.
    """
    return {name: thing for name, (_, thing) in owned(hook_name, kind).items()}


def owned[T](hook_name: str, kind: type[T]) -> dict[str, tuple[str, T]]:
    """As `registered`, each thing with the name of the plugin that registered it.

    Raises:
        PluginError: A plugin returns something other than a list of ``kind``, or two plugins claim one name.
    """
    found: dict[str, tuple[str, T]] = {}
    for plugin_name, thing in _collect(hook_name, kind):
        name = str(thing.name)  # type: ignore[attr-defined]  # every registered kind has one
        if name in found:
            raise PluginError(
                f"{name!r} is registered by both {found[name][0]} and {plugin_name} ({hook_name}); "
                "uninstall or rename one of them, or set SOLAR_PLUGINS_DISABLE to the name of its package"
            )
        found[name] = (plugin_name, thing)
    return found


def _collect[T](hook_name: str, kind: type[T]) -> Iterator[tuple[str, T]]:
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


def names(hook_name: str) -> list[str]:
    """What a registration hook collects, by name alone, sorted."""
    return sorted(owned(hook_name, object))


def known[T](things: Mapping[str, T], name: str, kind: str) -> T:
    """The registered thing called ``name``.

    Raises:
        PluginError: Nobody registered it. The text lists what is known and which plugins were skipped and why.
    """
    if name not in things:
        raise PluginError(not_registered(name, kind, things))
    return things[name]


def not_registered(name: str, kind: str, known: Iterable[str]) -> str:
    """Words for a name that nobody registered: what is known, and which plugins were skipped and why."""
    listed = f"{name!r} is not a registered {kind}; known: {', '.join(sorted(known))}"
    return "\n  ".join([listed, *loaded_plugins().skipped])


def announce(hook_name: str, **arguments: Any) -> None:
    """Call an event hook on every plugin that has it. A failing plugin is logged by name and does not stop the rest."""
    for implementation in getattr(loaded_plugins().manager.hook, hook_name).get_hookimpls():
        try:
            implementation.function(*(arguments[name] for name in implementation.argnames))
        except Exception:
            LOG.exception("plugin %s: %s failed; the run goes on", implementation.plugin_name, hook_name)
