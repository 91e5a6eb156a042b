"""The plugin manager: loads plugins and looks up what they registered."""

from __future__ import annotations

import importlib
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

import pluggy

from solar_plugins.errors import PluginError
from solar_plugins.logs import debug_trace, logger
from solar_plugins.plugins import hookspecs
from solar_plugins.plugins.markers import PROJECT_NAME
from solar_plugins.text import close_match

LOG = logger("plugins")

BUILT_IN_PLUGINS = (
    "solar_plugins.upscaling.strategies",
    "solar_plugins.upscaling.initializers",
    "solar_plugins.data.built_in_formatters",
    "solar_plugins.plugins.dpo_configs",
    "solar_plugins.plugins.recipe_packs",
)
"""Strings, because these modules import this one. They are loaded with the other plugins, on the first look-up."""


class LoadedPlugins(NamedTuple):
    """The manager with the loaded plugins, and a message for each plugin that was skipped."""

    manager: pluggy.PluginManager
    skipped: list[str]


@cache
def loaded_plugins() -> LoadedPlugins:
    """Load the built-in plugins, then all installed ones of the entry-point group ``solar_plugins``. Cached."""
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    for module in BUILT_IN_PLUGINS:
        manager.register(import_module(module), name=module)
    disabled = {_normalized(name) for name in os.environ.get("SOLAR_PLUGINS_DISABLE", "").split(",")}
    found = [point for point in entry_points(group=PROJECT_NAME) if _normalized(_distribution(point)) not in disabled]
    failures = [_load(manager, point) for point in found]
    return LoadedPlugins(manager, [failure for failure in failures if failure])


def _normalized(distribution: str) -> str:
    """A distribution's name as pip normalizes it: ``solar_plugins-Example`` becomes ``solar-plugins-example``."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def _load(manager: pluggy.PluginManager, point: EntryPoint) -> str | None:
    """Load and register one entry point. If that fails, unregister it and return why.

    pluggy's own loader is not used: it stops at the first broken package, and silently skips the second of two entry
    points with the same name.
    """
    name = f"{_distribution(point)} {point.dist.version if point.dist else '?'}:{point.name}"
    plugin = None
    try:
        plugin = point.load()
        manager.register(plugin, name=name)
        manager.check_pending()
        _require_hookimpl(plugin)
    except (Exception, SystemExit) as error:
        # Any exception: importing a third-party package may raise anything, and must not break the others.
        if plugin is not None and manager.is_registered(plugin):
            manager.unregister(plugin)
        failure = f"skipped plugin {name}: {_described(error)}"
        LOG.warning(failure)
        return failure
    return None


def _require_hookimpl(plugin: object) -> None:
    for name in vars(hookspecs):
        function = getattr(plugin, name, None) if hasattr(getattr(hookspecs, name), f"{PROJECT_NAME}_spec") else None
        if function is not None and not hasattr(function, f"{PROJECT_NAME}_impl"):
            raise PluginError(f"its function {name} lacks @hookimpl, so it would never be called; add @hookimpl to it")


def _described(error: BaseException) -> str:
    """An error in a plugin's code, with its file and line."""
    if isinstance(error, PluginError):
        return str(error)
    ours = (__file__, pluggy.__path__[0], importlib.__path__[0])
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(("<", *ours))]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    trace = debug_trace(error)
    return f"{type(error).__name__}: {error}{place}" + (f"\n{trace}" if trace else "")


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown distribution"


def registered[T](hook_name: str, kind: type[T]) -> dict[str, T]:
    """All objects registered through the hook ``hook_name``, by name. A plugin whose hook fails is skipped.

    Raises:
        PluginError: As `owned`.
    """
    return {name: thing for name, (_, thing) in owned(hook_name, kind).items()}


def owned[T](hook_name: str, kind: type[T]) -> dict[str, tuple[str, T]]:
    """As `registered`, with the name of the plugin that registered each object.

    Raises:
        PluginError: Two plugins register the same name.
    """
    found: dict[str, tuple[str, T]] = {}
    for plugin_name, thing in _collect(hook_name, kind):
        name = str(thing.name)  # type: ignore[attr-defined]  # All kinds have a name.
        if name in found:
            raise PluginError(
                f"{name!r} is registered by both {found[name][0]} and {plugin_name} ({hook_name}); "
                "uninstall or rename one of them, or disable its package with SOLAR_PLUGINS_DISABLE=PACKAGE"
            )
        found[name] = (plugin_name, thing)
    return found


def _collect[T](hook_name: str, kind: type[T]) -> Iterator[tuple[str, T]]:
    for implementation in getattr(loaded_plugins().manager.hook, hook_name).get_hookimpls():
        try:
            things = list(implementation.function())
            odd = [type(thing).__name__ for thing in things if not (isinstance(thing, kind) and hasattr(thing, "name"))]
            if odd:
                raise PluginError(f"returned a {odd[0]}, expected {kind.__name__}")
        except (Exception, SystemExit) as error:
            _skip(f"skipped {hook_name} of plugin {implementation.plugin_name}: {_described(error)}")
            continue
        yield from ((implementation.plugin_name, thing) for thing in things)


def _skip(failure: str) -> None:
    skipped = loaded_plugins().skipped
    if failure not in skipped:  # Each look-up calls the hook again.
        LOG.warning(failure)
        skipped.append(failure)


def names(hook_name: str) -> list[str]:
    """The names registered through a hook, sorted."""
    return sorted(owned(hook_name, object))


def known[T](things: Mapping[str, T], name: str, kind: str) -> T:
    """The registered object called ``name``.

    Raises:
        PluginError: It is not registered. The message lists the known names, and the skipped plugins with the reason.
    """
    if name not in things:
        raise PluginError(not_registered(name, kind, things))
    return things[name]


def not_registered(name: str, kind: str, known: Iterable[str]) -> str:
    """The message for a name that is not registered: the known names, and the skipped plugins with the reason."""
    close = close_match(name.lower(), known)
    hint = f"did you mean {close}? " if close else ""
    listed = f"{name!r} is not a registered {kind}; {hint}known: {', '.join(sorted(known))}"
    return "\n  ".join([listed, *loaded_plugins().skipped])


def announce(hook_name: str, **arguments: Any) -> None:
    """Call an event hook of all plugins that have it. A plugin that fails is logged by name; the others still run."""
    for implementation in getattr(loaded_plugins().manager.hook, hook_name).get_hookimpls():
        try:
            implementation.function(*(arguments[name] for name in implementation.argnames))
        except Exception:
            LOG.exception("plugin %s: %s failed; the run continues", implementation.plugin_name, hook_name)
