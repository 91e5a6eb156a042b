"""`solar_plugins.api` is frozen, light, and enough for a plugin."""

import ast
import inspect
import re
import subprocess
import sys
import textwrap
import types
import typing
from pathlib import Path

import pluggy
from pydantic import TypeAdapter

from solar_plugins import api
from solar_plugins.plugins import hookspecs

ROOT = Path(__file__).parents[2]
HOOKS = [function for function in vars(hookspecs).values() if isinstance(function, types.FunctionType)]

FROZEN = Path(__file__).with_name("frozen_api.txt")
ADVICE = """
solar_plugins.api differs from tests/unit/frozen_api.txt. Published plugins depend on it, so decide on purpose:
- added (a name, a hook, an argument with a default): note it in CHANGELOG.md under "Added".
- renamed, removed, or stricter: note it under "Changed" with what plugin authors must do, and raise the version: the
  minor number before 1.0, the major number after.
Then put the lines printed above into that file."""


def annotation(value):
    return str(getattr(value, "__forward_arg__", value))


def arguments(function):
    """A signature whose annotations are as the source has them."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return ""  # An exception without a constructor of its own.
    said = []
    for parameter in signature.parameters.values():
        kind = "*, " if parameter.kind is parameter.KEYWORD_ONLY and "*" not in "".join(said) else ""
        typed = "" if parameter.annotation is parameter.empty else f": {annotation(parameter.annotation)}"
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        said.append(f"{kind}{str(parameter).partition(':')[0].partition('=')[0]}{typed}{default}")
    returned = signature.return_annotation
    gives = "" if returned in (signature.empty, None, "None") else f" -> {annotation(returned)}"
    return f"({', '.join(said)}){gives}"


def members(cls):
    """The public methods and properties that a class has of its own."""
    for name, member in sorted(vars(cls).items()):
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if inspect.isfunction(function) and not name.startswith("_"):
            kind = "" if member is function else f"{type(member).__name__} "
            yield f"    {kind}{name}{arguments(function)}"


def described(name, thing):
    """A name of the API with what a plugin can rely on: arguments or fields, base classes, methods."""
    if isinstance(thing, typing.TypeAliasType):
        return [f"type {name} = " + re.sub(r"[a-z_.]+\.(?=[A-Z])", "", str(thing.__value__))]
    if typing.is_typeddict(thing):
        fields = ", ".join(f"{key}: {annotation(value)}" for key, value in thing.__annotations__.items())
        return [f"class {name}(TypedDict): {fields}"]
    if isinstance(thing, type):
        (base,) = thing.__bases__
        inherits = "" if base is object else f", a {base.__name__}"
        methods = [] if thing is api.BaseCheckpoint else [*members(thing)]  # Only its fields are promised.
        return [f"class {name}{arguments(thing)}{inherits}", *methods]
    if inspect.isfunction(thing):
        return [f"def {name}{arguments(thing)}"]
    if isinstance(thing, pluggy.HookimplMarker):
        return [f"{name} of {thing.project_name}"]
    return [f"{name}: {TypeAdapter(thing).json_schema()}"]


def test_it_is_frozen():
    found = [line for name in sorted(api.__all__) for line in described(name, getattr(api, name))]
    found += [f"hook {hook.__name__}{arguments(hook)}" for hook in HOOKS]
    print("\n".join(found))
    assert found == FROZEN.read_text(encoding="utf-8").splitlines(), ADVICE


def examples():
    """Every code example of a plugin, by its place."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)):
            yield f"{path.relative_to(ROOT)} {number}", code
    for hook in HOOKS:
        yield hook.__name__, textwrap.dedent(re.split(r"Example::\n", inspect.getdoc(hook))[1])
    for path in sorted((ROOT / "tests" / "plugins").rglob("*.py")):
        yield str(path.relative_to(ROOT)), path.read_text()


def imported(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_what_is_shown_to_authors_imports_nothing_else_of_the_package():
    code_of = {where: code for where, code in examples() if "solar_plugins" in code}
    shown = {
        where: [name for name in imported(code) if name.startswith("solar_plugins")] for where, code in code_of.items()
    }
    assert len(shown) >= 11, "three guides, six hooks, the example package"
    assert shown == {where: ["solar_plugins.api"] for where in shown}


def test_importing_it_loads_nothing_heavy():
    code = "import sys, solar_plugins.api; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"solar_plugins", "pydantic"} <= set(loaded)
    heavy = {"torch", "numpy", "transformers", "axolotl", "mergekit", "datasets", "rich", "tqdm", "huggingface_hub"}
    assert heavy & set(loaded) == set()


def test_older_plugins_still_find_the_marker():
    import solar_plugins

    assert solar_plugins.hookimpl is api.hookimpl
