"""The guide "Make a pack of recipes", command by command: made, installed, listed, copied, shown and tested."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from commands import cold, run

pytestmark = pytest.mark.slow

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "recipe-packs.md"
OFFLINE = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet"]


def commands():
    blocks = re.findall(r"^```bash\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What each command of the guide printed. Of `pip install` only the network and the editable mode are left out."""
    folder, site = tmp_path_factory.mktemp("guide"), tmp_path_factory.mktemp("site")
    printed = {}
    for words in commands():
        given = words
        if words[:2] == ["pip", "install"]:
            source = words[-1].partition("[")[0]
            given = ["python", "-m", "pip", "install", *OFFLINE, "--target", str(site), source]
        result = run(cold(*given), cwd=folder, env={"PYTHONPATH": str(site)})
        assert result.returncode == 0, f"{shlex.join(words)}: {result.stdout} {result.stderr}"
        printed[shlex.join(words)] = result.stdout
    return folder, printed


def test_every_kind_of_command_is_in_the_guide(done):
    _, printed = done
    starts = [" ".join(shlex.split(command)[:3]) for command in printed]
    assert {"solar recipes new-pack", "solar recipes list", "solar recipes copy", "solar recipes gallery"} <= set(
        starts
    )
    assert any(start.startswith("pip install") for start in starts)


def test_the_installed_pack_is_listed_and_copied(done):
    folder, printed = done
    (line,) = [line for line in printed["solar recipes list"].splitlines() if line.startswith("my-recipes/")]
    assert line.startswith("my-recipes/sample_qlora.yml  A sample: upscale Mistral 7B")
    assert line.endswith("[1 x 24 GB GPU]")
    assert printed["solar recipes copy my-recipes/sample_qlora.yml"] == "recipes/my-recipes/sample_qlora.yml\n"
    assert (folder / "recipes/my-recipes/sample_qlora.yml").is_file()


def test_it_is_in_the_gallery_next_to_ours(done):
    folder, _ = done
    page = (folder / "gallery.html").read_text()
    assert re.findall(r'<tr data-pack="my-recipes" data-status="(\w+)"', page) == ["validated"]
    assert page.count('<tr data-pack="solar_plugins"') > 30
    assert "<option>my-recipes</option>" in page


@pytest.mark.nightly
def test_its_own_test_passes_and_sees_a_bad_recipe(done):
    folder, printed = done
    tested = next(command for command in printed if "pytest" in command)
    assert "2 passed" in printed[tested]
    recipes = folder / "my-recipes/my_recipes/recipes"
    (recipes / "bad.yml").write_text("base_model: a/b\nsolar: {init: {strateg: dus}}\n")
    local = {"PYTHONPATH": str(folder / "my-recipes")}
    result = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "my-recipes"], cwd=folder, env=local)
    (recipes / "bad.yml").unlink()
    assert result.returncode == 1
    assert "strateg" in result.stdout
