import pytest

from solar_plugins.axolotl_adapter.new_layers import refuse_frozen_new_layers
from solar_plugins.errors import ArgsError
from solar_plugins.recipe import parse_recipe
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer

LLAMA = Decoder.of({"model_type": "llama", "num_hidden_layers": 2})
EXPANDED = LayerPlan(2, tuple(PlannedLayer(i, kind) for i in range(2) for kind in ("copy", "identity")))


def refuse(lines, plan=EXPANDED, **keys):
    refuse_frozen_new_layers(parse_recipe({"unfrozen_parameters": lines} | keys), LLAMA, plan)


@pytest.mark.parametrize(
    ("lines", "frozen"),
    [
        (["model.layers.1."], "layers 3 frozen"),
        (["model.layers.3.self_attn.q_proj"], "layers 1, 3 frozen"),
        ([], "1, 3"),
    ],
)
def test_an_identity_layer_that_stays_frozen(lines, frozen):
    with pytest.raises(ArgsError) as error:
        refuse(lines)
    assert frozen in str(error.value)
    assert str(error.value).endswith("solar:\n  train: {layers: new}")


@pytest.mark.parametrize(
    "lines",
    [None, ["model.layers.1.", "model.layers.3."], ["model.layers.[0-9]+.mlp"], ["model.layers.1.", "model.layers"]],
)
def test_what_trains_them_all_passes(lines):
    refuse(lines)


def test_another_initializer_whose_layers_pass_their_input_through_is_treated_alike():
    plan = LayerPlan(2, (PlannedLayer(0), PlannedLayer(0, "transport", (), True), PlannedLayer(1)))
    with pytest.raises(ArgsError, match="leaves layers 1 frozen"):
        refuse(["model.layers.2."], plan)
    refuse(["model.layers.1."], plan)


def test_layers_that_act_may_stay_frozen_and_adapters_are_not_concerned():
    refuse(["lm_head"], LayerPlan.from_sources(2, [0, 1, 0, 1]))
    refuse(["lm_head"], LayerPlan(2, (PlannedLayer(0), PlannedLayer(0, "scaled", (("factor", 0.5),)))))
    refuse(["lm_head"], adapter="lora")
