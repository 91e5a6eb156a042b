import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from lineages import PLAN, SFT, UPSCALE, lineage

from solar_plugins.cli import solar
from solar_plugins.errors import ArgsError
from solar_plugins.lineage import LINEAGE_FILE, License, Source, read, write
from solar_plugins.lineage.merges import describe
from solar_plugins.storage.cards import split_card

CONFIG = {"model_type": "llama", "num_hidden_layers": len(PLAN)}
APACHE = License(id="apache-2.0", source="org/other")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def model(name, found=None):
    folder = Path(name)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    if found is not None:
        write(folder, found)
    return folder


def tuned(name, **changes):
    return lineage(UPSCALE, SFT.model_copy(update={"result": Source(name=name)}), **changes)


def merge(content, name="outputs/average", layers=6):
    folder = model(name)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    (folder / "mergekit_config.yml").write_text(yaml.safe_dump(content))
    (folder / "README.md").write_text(
        "---\ntags: [mergekit, merge]\n---\nlanguage models created using [mergekit](x)\n"
    )
    return folder


def two(**more):
    return {"models": [{"model": "outputs/a"}, {"model": "outputs/b"}], "base_model": "outputs/a"} | more


@pytest.fixture
def models():
    return model("outputs/a", tuned("outputs/a")), model("outputs/b", tuned("outputs/b"))


def test_a_merge_has_the_stages_of_its_models(models):
    folder = merge(two())
    described = describe(folder)
    found = read(folder)
    assert [stage.result.short for stage in found.stages] == ["solar_dus", "a", "b", "average"]
    assert [source.name for source in found.stages[-1].sources] == ["outputs/a", "outputs/b"]
    assert (found.layer_plan, described.warnings) == (PLAN, [])
    front, text = split_card((folder / "README.md").read_text())
    assert (front["base_model"], front["base_model_relation"], front["license"]) == (["org/base"], "merge", "mit")
    assert {"mergekit", "merge", "depth-up-scaling", "axolotl", "solar_plugins"} <= set(front["tags"])
    assert "outputs/" not in text.replace("outputs/a\n", "").replace("outputs/b\n", ""), "only in the recipe"


def test_writing_it_again_changes_nothing(models):
    folder = merge(two())
    describe(folder)
    before = (folder / "README.md").read_text(), (folder / LINEAGE_FILE).read_text()
    describe(folder)
    assert ((folder / "README.md").read_text(), (folder / LINEAGE_FILE).read_text()) == before


def test_licenses_are_compared(models):
    write(models[1], tuned("outputs/b", licenses=(APACHE,)))
    folder = merge(two())
    (warning,) = describe(folder).warnings
    assert "mit" in warning
    assert "apache-2.0" in warning
    assert "license" not in split_card((folder / "README.md").read_text())[0]


@pytest.mark.parametrize(
    ("references", "found"),
    [
        ({"models": [{"model": {"model": {"path": "outputs/a"}, "lora": {"path": "outputs/b"}}}]}, ["a", "b"]),
        ({"models": [{"model": "outputs/a+outputs/b"}]}, ["a", "b"]),
        ({"slices": [{"sources": [{"model": "outputs/b", "layer_range": [0, 6]}]}]}, ["b"]),
        ({"base_model": {"path": "outputs/a"}, "models": []}, ["a"]),
    ],
)
def test_every_form_of_a_model_is_read(models, references, found):
    folder = merge(references)
    describe(folder)
    assert [source.short for source in read(folder).stages[-1].sources] == found


@pytest.mark.parametrize(
    ("ranges", "kept"),
    [
        ([(0, 6)], True),
        ([(0, 2), (2, 6)], True),
        ([(2, 6), (0, 2)], False),
        ([(0, 4), (2, 4)], False),
        ([(0, 5)], False),
    ],
)
def test_the_plan_is_that_of_the_models_only_if_each_layer_stays_where_it_was(models, ranges, kept):
    both = ("outputs/a", "outputs/b")
    slices = [{"sources": [{"model": name, "layer_range": [*one]} for name in both]} for one in ranges]
    folder = merge({"slices": slices})
    describe(folder)
    assert (read(folder).layer_plan == PLAN) is kept


def test_layers_that_are_not_the_plans_have_no_plan(models):
    folder = merge(two(), layers=9)
    describe(folder)
    assert read(folder).plan is None


def test_a_model_that_is_not_here_is_a_warning(models):
    shutil.rmtree("outputs/b")
    folder = merge(two())
    warnings = " ".join(describe(folder).warnings)
    assert "outputs/b" in warnings
    assert read(folder).earlier_unknown
    assert "outputs/b" not in split_card((folder / "README.md").read_text())[0].get("base_model", [])


def test_a_users_card_of_a_merge_is_kept(models):
    folder = merge(two())
    (folder / "README.md").write_text("# Mine\n")
    describe(folder)
    assert split_card((folder / "README.md").read_text())[1].startswith("# Mine\n")


def test_a_trained_model_with_the_recipe_of_its_base_is_not_called_a_merge(models):
    folder = merge(two())
    write(folder, lineage(UPSCALE, SFT))
    describe(folder)
    assert [stage.kind for stage in read(folder).stages] == ["upscale", "sft"]


@pytest.mark.parametrize(
    "text", ["[", "- a", "!!python/object/apply:os.system [ls]", "models: [{model: 7}]\n", "a: " + "x" * 2_000_000]
)
def test_a_broken_recipe_is_an_error_or_names_no_model(text):
    folder = merge({})
    (folder / "mergekit_config.yml").write_text(text)
    done = CliRunner().invoke(solar, ["recipes", "card", str(folder)])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert done.exit_code == 0 or "mergekit_config.yml" in done.output


def test_the_command_names_the_card_and_warns(models):
    folder = merge(two())
    shutil.rmtree("outputs/b")
    done = CliRunner().invoke(solar, ["recipes", "card", str(folder)])
    assert done.exit_code == 0
    assert str(folder / "README.md") in done.output
    assert "Warning" in done.output


def test_a_folder_without_anything_to_say_is_an_error(tmp_path):
    with pytest.raises(ArgsError) as error:
        describe(model("plain"))
    for fact in ("plain", "mergekit_config.yml", LINEAGE_FILE):
        assert fact in str(error.value)
