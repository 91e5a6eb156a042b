"""A new package of recipes: its names, its files, and that nothing is overwritten."""

import tomllib

import pytest
import yaml
from click.testing import CliRunner

from solar_plugins.api import check_recipes
from solar_plugins.cli import solar
from solar_plugins.plugins.recipe_packs import recipe_needs, recipe_summary
from solar_plugins.sharing.gallery import entries_of
from solar_plugins.sharing.new_pack import new_pack


@pytest.fixture
def pack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new_pack("my-recipes")
    return tmp_path / "my-recipes"


def test_the_package_registers_a_folder_of_recipes(pack):
    project = tomllib.loads((pack / "pyproject.toml").read_text())
    assert project["project"]["name"] == "my-recipes"
    assert project["project"]["entry-points"]["solar_plugins"] == {"recipes": "my_recipes"}
    assert project["tool"]["setuptools"]["packages"] == ["my_recipes"]
    compile((pack / "my_recipes/__init__.py").read_text(), "my_recipes", "exec")
    compile((pack / "tests/test_recipes.py").read_text(), "test_recipes", "exec")


@pytest.mark.slow
def test_the_sample_is_good_and_in_the_gallery(pack):
    sample = pack / "my_recipes/recipes/sample_qlora.yml"
    assert [one for one in check_recipes(sample) if one.level == "error"] == []
    assert recipe_summary(sample).endswith("GB.")
    assert recipe_needs(sample) == "1 x 24 GB GPU"
    assert "solar_dus_qlora" not in sample.read_text(), "its outputs are not those of the built-in recipe"
    assert yaml.safe_load(sample.read_text())["adapter"] == "qlora"
    (entry,) = entries_of(pack / "my_recipes/recipes", "my-recipes")
    assert (entry.stages, entry.layers_before, entry.layers) == (("upscale", "pretrain", "QLoRA"), 32, 48)
    assert entry.memory.verdict == "fits"
    assert entry.ran.status == "validated"


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("", "expected a letter"),
        ("../up", "'../up'"),
        ("a b", "expected a letter"),
        ("1st", "expected a letter"),
        ("a--b", "single - or _"),
        ("-a", "--"),
        ("a\x1b[31m", "\\x1b"),
        ("x" * 61, "at most 60"),
        ("ärger", "expected a letter"),
        ("class", "Python itself"),
        ("json", "Python itself"),
        ("Click", "the package click"),
        ("solar-plugins", "the recipe pack solar_plugins"),
    ],
)
def test_an_impossible_or_taken_name(name, fact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(solar, ["recipes", "new-pack", "--", name])
    assert result.exit_code == 1
    assert (fact if name != "-a" else "'-a'") in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(pack, tmp_path):
    (tmp_path / "file").write_text("mine")
    for arguments in (["my-recipes"], ["other", "my-recipes"], ["other", "file"]):
        result = CliRunner().invoke(solar, ["recipes", "new-pack", *arguments])
        assert result.exit_code == 1
        assert result.stderr.startswith(f"Error: {arguments[-1]}: is ")
        assert "new or empty directory" in result.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_directory_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(
        solar, ["recipes", "new-pack", "other", str(tmp_path / "empty")], catch_exceptions=False
    )
    written = {str(path.relative_to(tmp_path / "empty")) for path in (tmp_path / "empty").rglob("*") if path.is_file()}
    assert {line.removeprefix(f"{tmp_path}/empty/") for line in result.output.splitlines()} == written
    assert "other/recipes/gallery.json" in written
