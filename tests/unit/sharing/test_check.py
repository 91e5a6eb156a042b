"""`solar recipes check`."""

import pytest

from solar_plugins.errors import ArgsError
from solar_plugins.sharing.check import check

RECIPE = """\
base_model: org/model
plugins: [solar_plugins.SolarPlugin]
solar: {init: {strategy: dus, drop_layers: 2}}
datasets: [{path: org/data, type: alpaca}]
output_dir: out
seed: 1
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_text(RECIPE)
    return path


def levels(findings, kind):
    return [(one.level, one.key) for one in findings if one.kind == kind]


def test_a_token_in_a_comment_is_an_error(recipe):
    token = "hf_" + "a" * 34
    recipe.write_text(RECIPE + f"# {token}\n")
    findings = check(recipe, offline=True)
    assert levels(findings, "secrets") == [("error", "line 7")]
    assert token not in str(findings)


def test_a_wrong_key_of_the_block_is_an_error(recipe):
    recipe.write_text(RECIPE.replace("solar: {", "solar: {inti: 1, "))
    assert levels(check(recipe, offline=True), "keys") == [("error", "solar.inti")]


def test_a_path_without_recipes(tmp_path):
    with pytest.raises(ArgsError, match="no recipe"):
        check(tmp_path)
    with pytest.raises(ArgsError, match="does not exist"):
        check(tmp_path / "missing.yml")
