"""Recipes by name, and what is copied with one."""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from solar_plugins.cli import solar
from solar_plugins.errors import ArgsError
from solar_plugins.plugins.recipe_packs import RecipePack, copy_recipes, find_recipe, recipe_directory


@pytest.fixture
def packs(tmp_path):
    """Ours, and another with a recipe of the same name."""
    (tmp_path / "other/deep").mkdir(parents=True)
    (tmp_path / "other/solar_dus.yml").write_text("# Theirs.\nbase_model: a/b\n")
    (tmp_path / "other/deep/only.yml").write_text("# Theirs.\nbase_model: a/b\ndeepspeed: ../../outside.json\n")
    ours = RecipePack("solar_plugins", recipe_directory())
    return {"solar_plugins": ours, "other": RecipePack("other", tmp_path / "other")}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("solar_plugins/solar_dus.yml", "solar_plugins/solar_dus.yml"),
        ("other/solar_dus.yml", "other/solar_dus.yml"),
        ("deep/only.yml", "other/deep/only.yml"),
        ("only.yml", "other/deep/only.yml"),
        ("smollm2/solar_dus.yml", "solar_plugins/smollm2/solar_dus.yml"),
        ("solar_dus_lora.yml", "solar_plugins/solar_dus_lora.yml"),
    ],
)
def test_a_name_or_its_end(packs, name, found):
    pack, path = find_recipe(packs, name)
    assert f"{pack.name}/{path.relative_to(pack.directory)}" == found


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("solar_dus.yml", ["2 recipes", "solar_plugins/solar_dus.yml", "other/solar_dus.yml"]),
        ("solar_slerp_.yml", ["no recipe", "did you mean solar_slerp.yml"]),
        ("zzz.yml", ["zzz.yml", "solar recipes list"]),
    ],
)
def test_no_such_name_or_several(packs, name, facts):
    with pytest.raises(ArgsError) as error:
        find_recipe(packs, name)
    assert all(fact in str(error.value) for fact in facts), error.value


@pytest.mark.parametrize(
    ("name", "copied"),
    [
        ("solar_dus_lora.yml", ["solar_dus_lora.yml"]),
        ("solar_plugins/solar_dus.yml", ["solar_dus.yml", "deepspeed/zero3_bf16.json"]),
        ("only.yml", ["other/deep/only.yml"]),
        ("smollm2/solar_sft.yml", ["smollm2/solar_sft.yml"]),
    ],
)
def test_a_recipe_with_what_it_needs(packs, tmp_path, name, copied):
    made = copy_recipes(packs, tmp_path / "mine", [name])
    top = [str(path.relative_to(tmp_path / "mine")) for path in made]
    assert top[: len(copied)] == copied
    assert all(path.endswith(".py") for path in top[len(copied) :])


def test_a_pipeline_with_its_stages(packs, tmp_path):
    copy_recipes(packs, tmp_path / "mine", ["smollm2/pipeline.yml"])
    content = yaml.safe_load((tmp_path / "mine/smollm2/pipeline.yml").read_text())
    files = [stage.get("recipe") or stage["merge"] for stage in content["stages"]]
    assert all((tmp_path / "mine/smollm2" / file).is_file() for file in files)
    assert (tmp_path / "mine/smollm2/prepare.py").is_file()
    assert (tmp_path / "mine/smollm2/demo_rows.py").is_file(), "prepare.py imports it"
    assert not (tmp_path / "mine/solar_dus.yml").exists()


def test_a_pipeline_brings_the_recipe_of_its_math_data(packs, tmp_path):
    copy_recipes(packs, tmp_path / "mine", ["solar_maths_pipeline.yml"])
    assert (tmp_path / "mine/maths/solar_math.yml").is_file()
    assert (
        f"solar maths {tmp_path}/mine/maths/solar_math.yml" in (tmp_path / "mine/solar_maths_pipeline.yml").read_text()
    )


def test_the_command_takes_names_and_one_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(solar, ["recipes", "copy", "solar_dus_fsdp2.yml", "solar_sft_v4.yml", "mine"])
    assert result.output.split() == [
        "mine/solar_dus_fsdp2.yml",
        "mine/solar_sft_v4.yml",
        "mine/deepspeed/zero3_bf16.json",
    ]
    assert "deepspeed: mine/deepspeed/zero3_bf16.json" in Path("mine/solar_sft_v4.yml").read_text()
    assert CliRunner().invoke(solar, ["recipes", "copy", "solar_dus_lora.yml"]).output == "recipes/solar_dus_lora.yml\n"
    several = CliRunner().invoke(solar, ["recipes", "copy", "one", "two"])
    assert several.exit_code == 2
    assert "one, two" in several.stderr
