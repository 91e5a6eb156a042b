import pytest

from solar_plugins.errors import ArgsError
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.regrowth import grown_by_recipe


def test_whether_a_model_came_out_of_a_recipes_own_plan():
    def plan_for(num_layers):
        return LayerPlan.from_sources(num_layers, [*range(num_layers - 1), *range(1, num_layers)])

    config = {"model_type": "llama", "num_hidden_layers": 6}
    grown = config | {"solar_plugins": {"plan": plan_for(4).to_dict()}}
    assert grown_by_recipe(config, "m", plan_for) is None
    assert grown_by_recipe(grown, "m", plan_for) == plan_for(4)
    with pytest.raises(ArgsError, match=r"base_model: m was up-scaled already .4 -> 6 layers.*another plan"):
        grown_by_recipe(grown, "m", lambda num_layers: LayerPlan.from_sources(num_layers, range(num_layers)))
    with pytest.raises(ArgsError, match=r"base_model: m has 4 layers, but its own record says 4 -> 6 layers"):
        grown_by_recipe(grown | {"num_hidden_layers": 4}, "m", plan_for)
