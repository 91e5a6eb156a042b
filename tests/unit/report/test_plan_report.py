import re
from math import prod

import pytest
import yaml

from solar_plugins.errors import ArgsError, CheckpointError
from solar_plugins.report.plan_report import NOT_CHECKED, as_json, as_text, plan_for_base, plan_for_recipe
from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import write_checkpoint
from solar_plugins.upscaling.strategies import plan_of

SOLAR = {"init": {"strategy": "dus", "drop_layers": 2}}
DUS = InitArgs(strategy="dus", drop_layers=2)


def write(path, **recipe):
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_a_recipe_gives_base_revision_and_sequence_length(base, tmp_path):
    path = write(tmp_path / "r.yml", base_model=str(base), solar=SOLAR, sequence_len=64, revision_of_model="v1")
    report = plan_for_recipe(path)
    assert (report.base.name, report.base.revision, report.sequence_tokens, len(report.plan)) == (
        str(base),
        "v1",
        64,
        12,
    )
    path = write(tmp_path / "r.yml", base_model=str(base), solar=SOLAR)
    assert plan_for_recipe(path).sequence_tokens == 512, "Axolotl's default"


def test_sizes_before_and_after(base):
    report = plan_for_base(str(base), None, DUS)
    assert report.size.parameters - report.base_size.parameters == 4 * report.size.layer_parameters


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"base_model": "x"}, "r.yml: has no `solar:` block"),
        ({"solar": {"init": {"strategy": "dus"}}}, "base_model: None; expected a directory"),
        (
            {"solar": {"init": {"strategy": "dus"}}, "base_model": ["x"]},
            r"base_model: \['x'\] is not allowed; expected a valid string",
        ),
    ],
)
def test_recipes_that_cannot_be_planned(tmp_path, recipe, message):
    with pytest.raises(ArgsError, match=message):
        plan_for_recipe(write(tmp_path / "r.yml", **recipe))


def test_a_damaged_base_is_refused_before_training(base):
    (base / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        plan_for_base(str(base), None, DUS)


def test_the_text_marks_every_seam(base):
    text = as_text(plan_for_base(str(base), None, InitArgs(strategy="slices", slices="0:4,2:6,4:8")))
    assert text.count("seam:") == 2
    assert "2 B" not in text.splitlines()[2]


def test_the_text_says_how_layers_start(base):
    duplicates = {"initializer": "scaled", "factor": 0.25}
    text = as_text(plan_for_base(str(base), None, InitArgs(strategy="dus", drop_layers=2, duplicates=duplicates)))
    lines = [line for line in text.splitlines() if line.startswith("  new")]
    assert lines == [
        "  new    10..11   = base 6..7",
        "  new      6..9   = base 2..5 as scaled (factor 0.25)",
        "  new      0..5   = base 0..5",
    ]


@pytest.fixture
def grown(base, tmp_path):
    """`base` with 8 layers, upscaled to 12 by the plan of `SOLAR`."""
    write_checkpoint(find_base(str(base)), plan_of(DUS, 8), tmp_path / "grown")
    return tmp_path / "grown"


@pytest.mark.parametrize("name", ["", "config.json"])
def test_a_base_upscaled_by_the_recipes_own_plan_is_reported_unchanged(base, grown, tmp_path, name):
    """As the plugin uses it: the same sizes and memory as what the recipe makes of the plain base."""
    before = plan_for_recipe(write(tmp_path / "r.yml", base_model=str(base), solar=SOLAR))
    after = plan_for_recipe(write(tmp_path / "r.yml", base_model=str(grown / name), solar=SOLAR))
    assert after.already_grown
    assert not before.already_grown
    assert (after.plan, after.size, after.base_size) == (before.plan, before.size, before.base_size)
    changed = {"base": str(grown / name), "already_grown": True, "weights_checked": name == ""}
    assert as_json(after) == as_json(before) | changed
    first, second, *rest = as_text(after).splitlines()
    assert first.endswith("8 -> 12 layers by dus")
    assert re.match(r"upscaled .* 12 layers, NOT upscaled again$", second)
    assert [line for line in rest if line != NOT_CHECKED] == as_text(before).splitlines()[1:]
    assert (NOT_CHECKED in rest) == (name == "config.json")


def test_an_unknown_base_size_of_an_upscaled_model_is_omitted(tiny_model, tmp_path):
    write_checkpoint(find_base(str(tiny_model(tmp_path / "b", "qwen2"))), plan_of(DUS, 8), tmp_path / "grown")
    report = plan_for_recipe(write(tmp_path / "r.yml", base_model=str(tmp_path / "grown"), solar=SOLAR))
    assert as_json(report)["base_parameters"] is None
    tensors = find_base(str(tmp_path / "grown")).tensors.values()
    assert f"parameters  {sum(prod(tensor.shape) for tensor in tensors):,}" in as_text(report).splitlines()


def test_a_base_upscaled_by_another_plan_is_rejected_as_in_training(grown, tmp_path):
    other = {"init": {"strategy": "dus", "drop_layers": 1}}
    with pytest.raises(ArgsError, match=r"was already upscaled .8 -> 12 layers.*solar.init asks for another plan"):
        plan_for_recipe(write(tmp_path / "r.yml", base_model=str(grown), solar=other))


def test_upscaling_an_upscaled_base_again_is_noted(base, grown):
    report = plan_for_base(str(grown), None, DUS)
    assert (len(report.plan), report.already_grown) == (20, False)
    assert re.match("upscaled .* once more$", as_text(report).splitlines()[1])
    assert "once more" not in as_text(plan_for_base(str(base), None, DUS))


def test_the_text_says_which_layers_are_trained(base, tmp_path):
    train = {"layers": "seam", "around": 1, "lm_head": True}
    report = plan_for_recipe(write(tmp_path / "r.yml", base_model=str(base), solar=SOLAR | {"train": train}))
    assert "training    2 of 12 layers are trained (5..6), and the head" in as_text(report)
    assert as_json(report)["trained"]["layers"] == (5, 6)
    without = plan_for_recipe(write(tmp_path / "r.yml", base_model=str(base), solar=SOLAR))
    assert "training " not in as_text(without)
    assert as_json(without)["trained"] is None
