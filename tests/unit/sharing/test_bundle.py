"""`sharing.bundle`: what is written is read back, and a bundle that was tampered with is refused before it is used."""

import json
import shutil

import pytest

from solar_plugins.errors import ArgsError
from solar_plugins.sharing.bundle import (
    CARD,
    MANIFEST,
    MAX_TEXT_BYTES,
    BundleStage,
    Dataset,
    Step,
    Variable,
    is_bundle,
    read_bundle,
    stages_json,
    write_bundle,
)

RECIPE = 'base_model: "${BASE_MODEL}"\ndatasets: [{path: "${ROWS}", type: completion}]\noutput_dir: "${OUTPUTS}/dus"\n'
STEPS = [Step(step=1, rows=2, sha256="a" * 64, loss=3.25), Step(step=2, rows=2, sha256="b" * 64, loss=None)]
VARIABLES = {
    "BASE_MODEL": Variable(meaning="the base", example="org/model"),
    "ROWS": Variable(meaning="the rows of datasets[0]", example="rows.jsonl"),
    "OUTPUTS": Variable(meaning="where the run writes", example="outputs", kind="output"),
}
VALUES = {"BASE_MODEL": "models/base", "ROWS": "data/${ROWS}.jsonl", "OUTPUTS": "out"}


def write(folder, **more):
    dataset = Dataset(key="datasets[0]", name="rows.jsonl", variable="ROWS", sha256="c" * 64, dropped={"bad": 1})
    files = {
        CARD: b"# A card\n",
        "recipes/dus.yml": RECIPE.encode(),
        "data.json": stages_json({"dus": [dataset]}),
        "steps.json": stages_json({"dus": STEPS}),
        "versions.json": stages_json({"dus": {"torch": "2.9"}}),
    }
    stages = [BundleStage(name="dus", kind="recipe", file="recipes/dus.yml", steps=90)]
    return write_bundle(folder, files | more, name="tiny", stages=stages, variables=VARIABLES)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "bundle")
    return tmp_path / "bundle"


def change(folder, **keys):
    """Change keys of the manifest."""
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_what_is_written_is_read_back(tmp_path):
    written = write(tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle")
    assert is_bundle(tmp_path / "bundle")
    assert bundle == written
    assert bundle.steps == {"dus": STEPS}
    assert bundle.data["dus"][0].dropped == {"bad": 1}
    assert bundle.versions == {"dus": {"torch": "2.9"}}
    assert bundle.plans == {}


def test_two_writings_are_equal_byte_by_byte(tmp_path, folder):
    write(tmp_path / "other")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) == 6
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_values_replace_variables_once(folder):
    """A value is text of the user: it is not searched for variables again."""
    opened = read_bundle(folder).open(VALUES)["recipes/dus.yml"]
    assert opened["base_model"] == "models/base"
    assert opened["datasets"][0]["path"] == "data/${ROWS}.jsonl"
    assert opened["output_dir"] == "out/dus"


def test_all_missing_variables_are_named_in_one_error(folder):
    with pytest.raises(ArgsError) as error:
        read_bundle(folder).open({"OUTPUTS": "out"})
    for fact in ("BASE_MODEL: the base, such as org/model", "ROWS: the rows", "--set BASE_MODEL=... --set ROWS=..."):
        assert fact in str(error.value)
    with pytest.raises(ArgsError, match="did you mean BASE_MODEL"):
        read_bundle(folder).open({"BASEMODEL": "x"})
    with pytest.raises(ArgsError, match="expected a path or a hub id"):
        read_bundle(folder).open({"BASE_MODEL": "a\nb"})


def test_a_changed_card_is_no_damage(folder):
    (folder / CARD).write_text("edited on the Hub")
    (folder / "unlisted.bin").write_bytes(b"never opened")
    read_bundle(folder)


def _missing(folder):
    (folder / "steps.json").unlink()


def _changed(folder):
    (folder / "recipes/dus.yml").write_text(RECIPE.replace("dus", "sft"))


def _large(folder):
    (folder / "data.json").write_bytes(b" " * (MAX_TEXT_BYTES + 1))


def _link(folder):
    shutil.move(folder / "data.json", folder.parent / "data.json")
    (folder / "data.json").symlink_to(folder.parent / "data.json")


def _link_to_a_folder(folder):
    shutil.move(folder / "recipes", folder.parent / "recipes")
    (folder / "recipes").symlink_to(folder.parent / "recipes")


def _outside(folder):
    files = json.loads((folder / MANIFEST).read_text())["files"]
    change(folder, files=files | {"../outside": {"sha256": "0" * 64, "bytes": 1}})


def _other_format(folder):
    change(folder, format=2)


def _unknown_key(folder):
    change(folder, surprise=1)


def _twice(folder):
    stage = {"name": "dus", "kind": "recipe", "file": "recipes/dus.yml"}
    change(folder, stages=[stage, stage])


def _unlisted_recipe(folder):
    change(folder, stages=[{"name": "dus", "kind": "recipe", "file": "recipes/other.yml"}])


def _undeclared_variable(folder):
    change(folder, variables={})


def _escape_codes(folder):
    change(folder, name="tiny\x1b[2J")


def _no_json(folder):
    (folder / MANIFEST).write_text("{")


@pytest.mark.parametrize(
    ("damage", "fact"),
    [
        (_missing, "steps.json: missing"),
        (_changed, "dus.yml: was changed"),
        (_large, "expected at most 1,000,000"),
        (_link, "data.json: a link"),
        (_link_to_a_folder, "recipes: a link"),
        (_outside, "'../outside' is not the path"),
        (_other_format, "format 2, expected 1"),
        (_unknown_key, "surprise: unknown key"),
        (_twice, "two have the same name"),
        (_unlisted_recipe, "'recipes/other.yml' is missing"),
        (_undeclared_variable, "is not a variable of solar_bundle.json"),
        (_escape_codes, "name: "),
        (_no_json, "not valid JSON"),
    ],
)
def test_a_damaged_bundle_is_refused(folder, damage, fact):
    damage(folder)
    with pytest.raises(ArgsError) as error:
        read_bundle(folder)
    assert fact in str(error.value)
    assert "\x1b" not in str(error.value)


def test_only_a_bundle_is_replaced(tmp_path, folder):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ArgsError, match="mine: exists"):
        write(tmp_path / "mine")
    with pytest.raises(ArgsError, match="bundle: exists"):
        write(folder)
    with pytest.raises(ArgsError, match=r"no solar_bundle\.json"):
        read_bundle(tmp_path / "mine")


def test_a_file_that_is_too_large_is_not_written(tmp_path):
    with pytest.raises(ArgsError, match="without pictures"):
        write(tmp_path / "bundle", **{"a.csv": b"x" * 600_000, "b.csv": b"x" * 600_000})
    assert not (tmp_path / "bundle").exists()
