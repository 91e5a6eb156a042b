"""The rules that keep the package readable, checked over its syntax trees."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "solar_plugins"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_recipes" not in path.parts)
HEAVY = {"torch", "transformers", "axolotl", "matplotlib", "numpy", "datasets", "jinja2", "rich", "tokenizers"}
PURE = {"layer_plan", "strategies", "strategies_repeating", "strategy_args", "architecture", "estimates", "model_card"}
PURE |= {"merging", "errors", "regrowth"}
PURE |= {"training_setup", "parameters", "activations", "parts", "common_setups"}

each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))


def imported_at_module_level(tree):
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@each_module
def test_only_the_plugin_module_imports_something_heavy_at_its_top(path):
    names = {name.partition(".")[0] for name in imported_at_module_level(ast.parse(path.read_text()))}
    assert names & HEAVY == ({"axolotl"} if path.name == "axolotl_plugin.py" else set())


@each_module
def test_pure_modules_touch_no_files_and_no_processes(path):
    if path.stem in PURE:
        names = set(imported_at_module_level(ast.parse(path.read_text())))
        assert not names & {"os", "shutil", "subprocess", "tempfile", "pathlib", "logging"}


@each_module
def test_upscaling_knows_nothing_of_the_layers_above_it(path):
    if path.parent.name == "upscaling":
        ours = {
            name for name in imported_at_module_level(ast.parse(path.read_text())) if name.startswith("solar_plugins")
        }
        allowed = {f"solar_plugins.{name}" for name in ("errors", "hookspecs", "launch", "registry")}
        assert all(name.startswith("solar_plugins.upscaling") or name in allowed for name in ours)


@each_module
def test_modules_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 310
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"


@each_module
def test_every_module_has_its_test_file(path):
    if path.name in ("__init__.py", "errors.py"):
        return
    relative = path.relative_to(PACKAGE)
    assert (PACKAGE.parent / "tests" / relative.parent / f"test_{relative.name}").is_file()
