from pathlib import Path

import pytest
import yaml
from axolotl.integrations.config import merge_input_args
from pydantic import BaseModel

from solar_plugins.axolotl_adapter.axolotl_keys import refuse_misspelt_keys
from solar_plugins.axolotl_adapter.recipe_checks import changes
from solar_plugins.errors import ArgsError
from solar_plugins.recipe import parse_recipe


@pytest.fixture(scope="module")
def schema():
    return merge_input_args()[1]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        (
            {"micro_batchsize": 2},
            "micro_batchsize: unknown key, which Axolotl would ignore; did you mean micro_batch_size?",
        ),
        ({"sequence_length": 2048}, "did you mean sequence_len?"),
        ({"wandb_projet": "x"}, "did you mean wandb_project?"),
        ({"learning_rte": 1}, "did you mean learning_rate?"),
        ({"trl": {"betta": 0.1}}, "trl.betta: unknown key, which Axolotl would ignore; did you mean trl.beta?"),
        ({"rl_betta": 0.1}, "did you mean rl_beta?"),
    ],
)
def test_a_key_that_means_another_is_refused(key, meant, schema):
    with pytest.raises(ArgsError) as error:
        refuse_misspelt_keys({"base_model": "b"} | key, schema)
    assert meant in str(error.value)


@pytest.mark.parametrize("key", [{"x-anchors": {"a": 1}}, {"my_plugin_key": 1}, {"model_revision": "r"}, {5: 1}])
def test_other_keys_are_left_alone(key, schema):
    refuse_misspelt_keys({"base_model": "b"} | key, schema)


def test_every_recipe_of_ours_passes(schema):
    seen = 0
    for path in sorted((Path(__file__).parents[3] / "recipes").rglob("*.yml")):
        content = yaml.safe_load(path.read_text())
        if isinstance(content.get("base_model"), str) and "plugins" in content:
            seen += 1
            refuse_misspelt_keys(content | changes(parse_recipe(content)), schema)
    assert seen >= 15


def test_what_axolotl_has_validated_passes_again(schema):
    """A Ray worker registers with it."""
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    recipe = {"base_model": "b", "micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 1e-4}
    validated = validate_config(DictDefault(recipe | {"datasets": [{"path": "p", "type": "completion"}]}))
    refuse_misspelt_keys(validated, schema)


def test_an_alias_counts_as_known():
    from pydantic import Field

    class Schema(BaseModel):
        revision_of_model: str = Field("", validation_alias="model_revision")

    refuse_misspelt_keys({"model_revision": "x"}, Schema)
    with pytest.raises(ArgsError, match="did you mean model_revision"):
        refuse_misspelt_keys({"model_revison": "x"}, Schema)
