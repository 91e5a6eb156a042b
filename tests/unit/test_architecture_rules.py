"""Rules that import-linter (pyproject.toml) cannot state, checked over the syntax trees."""

import ast
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "solar_plugins"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_recipes" not in path.parts)
HEAVY = {"torch", "transformers", "axolotl", "matplotlib", "numpy", "datasets", "jinja2", "rich", "tokenizers"}
NO_FILES = ["memory/activations.py", "memory/estimate.py", "memory/parameters.py"]
NO_FILES += ["memory/training_setup.py", "errors.py", "text.py", "upscaling/estimates.py", "upscaling/layer_plan.py"]
NO_FILES += ["upscaling/model_card.py", "upscaling/provenance.py"]
NO_FILES += [str(path.relative_to(PACKAGE)) for path in (PACKAGE / "upscaling" / "strategies").glob("*.py")]
NO_FILES += [str(path.relative_to(PACKAGE)) for path in (PACKAGE / "upscaling" / "architectures").glob("*.py")]


def imported_at_module_level(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_plugin_module_imports_something_heavy_at_its_top(path):
    allowed = {"axolotl"} if path.relative_to(PACKAGE).as_posix() == "axolotl_adapter/plugin.py" else set()
    assert set(imported_at_module_level(path)) & HEAVY == allowed


@pytest.mark.parametrize("name", NO_FILES)
def test_pure_modules_touch_no_files_and_no_processes(name):
    touching = {"os", "shutil", "subprocess", "tempfile", "pathlib", "logging"}
    assert not set(imported_at_module_level(PACKAGE / name)) & touching


def test_the_wheel_lists_every_package():
    # setuptools' own search cannot be used: the recipes are a package whose folder lies elsewhere.
    listed = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(PACKAGE.parent) for path in MODULES if path.name == "__init__.py"}
    assert set(listed) == {".".join(folder.parts) for folder in folders} | {"solar_plugins._recipes"}
