"""What a pip user gets: the wheel holds the recipes, and finds them without the checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

from solar_plugins.plugins.recipe_packs import recipe_directory

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


def test_the_wheel_brings_the_recipes(tmp_path, run):
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(source)], check=True)
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(tmp_path / "site"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    code = "import solar_plugins.plugins.recipe_packs as r; print(r.__file__); print(r.recipe_directory())"
    shown = run("python", "-c", code, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}).stdout.split()
    assert all(line.startswith(str(tmp_path / "site")) for line in shown)
    installed = {
        str(path.relative_to(shown[1])) for path in Path(shown[1]).rglob("*") if path.suffix in (".yml", ".json")
    }
    ours = {
        str(p.relative_to(recipe_directory())) for p in recipe_directory().rglob("*") if p.suffix in (".yml", ".json")
    }
    assert installed == ours
