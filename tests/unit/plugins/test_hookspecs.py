"""The hook documentation, from which the docs page is made, is true: every example in a docstring works."""

import inspect
import re
import textwrap
import types

import pluggy
import pytest

from solar_plugins.plugins import hookspecs
from solar_plugins.plugins.markers import PROJECT_NAME

HOOKS = {
    name: function
    for name, function in vars(hookspecs).items()
    if inspect.isfunction(function) and function.__module__ == hookspecs.__name__
}


@pytest.mark.parametrize("name", HOOKS)
def test_its_example_is_a_whole_plugin(name):
    code = textwrap.dedent(re.split(r"Example::\n", inspect.getdoc(HOOKS[name]))[1])
    plugin = types.ModuleType("example")
    plugin.__file__ = __file__
    exec(compile(code, name, "exec"), vars(plugin))
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()
    (implementation,) = getattr(manager.hook, name).get_hookimpls()
    if name.startswith("register_"):
        assert len(implementation.function()) == 1
