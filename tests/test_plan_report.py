import pytest
import yaml

from solar_plugins.args import InitArgs
from solar_plugins.errors import ArgsError, CheckpointError
from solar_plugins.plan_report import DEFAULT_SEQUENCE_TOKENS, as_text, plan_for_base, plan_for_recipe

DUS = InitArgs(strategy="dus", drop_layers=2)


def write(path, **recipe):
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_a_recipe_gives_base_revision_and_sequence_length(base, tmp_path):
    solar = {"init": {"strategy": "dus", "drop_layers": 2}}
    path = write(tmp_path / "r.yml", base_model=str(base), solar=solar, sequence_len=64, revision_of_model="v1")
    report = plan_for_recipe(path)
    assert (report.base, report.revision, report.sequence_tokens, len(report.plan)) == (str(base), "v1", 64, 12)
    path = write(tmp_path / "r.yml", base_model=str(base), solar=solar)
    assert plan_for_recipe(path).sequence_tokens == DEFAULT_SEQUENCE_TOKENS


def test_sizes_before_and_after(base):
    report = plan_for_base(str(base), None, DUS)
    assert report.size.parameters - report.base_size.parameters == 4 * report.size.layer_parameters


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"base_model": "x"}, "r.yml: has no `solar:` block"),
        ({"solar": {"init": {"strategy": "dus"}}}, "base_model: None; expected the model"),
        ({"solar": {"init": {"strategy": "dus"}}, "base_model": ["x"]}, r"base_model: \['x'\]; expected the model"),
    ],
)
def test_recipes_that_cannot_be_planned(tmp_path, recipe, message):
    with pytest.raises(ArgsError, match=message):
        plan_for_recipe(write(tmp_path / "r.yml", **recipe))


def test_a_damaged_base_is_refused_before_training(base):
    (base / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        plan_for_base(str(base), None, DUS)


def test_the_text_marks_every_seam(base):
    text = as_text(plan_for_base(str(base), None, InitArgs(strategy="slices", slices="0:4,2:6,4:8")))
    assert text.count("seam:") == 2
    assert "2 B" not in text.splitlines()[2]
