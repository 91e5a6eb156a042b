import pytest

from solar_plugins.errors import ArgsError, CheckpointError
from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.provenance import plan_of_model, recorded_plan, requested_plan
from solar_plugins.upscaling.strategies import plan_of


def test_whether_a_model_came_out_of_a_recipes_own_plan():
    init = InitArgs(strategy="dus", drop_layers=1)
    plan = plan_of(init, 4)
    config = {"model_type": "llama", "num_hidden_layers": 6}
    grown = config | {"solar_plugins": {"plan": plan.to_dict()}}
    assert requested_plan(Decoder.of(config), "m", init) == (plan_of(init, 6), False)
    assert requested_plan(Decoder.of(grown), "m", init) == (plan, True)
    with pytest.raises(ArgsError, match=r"base_model: m was already upscaled .4 -> 6 layers.*another plan"):
        requested_plan(Decoder.of(grown), "m", InitArgs(strategy="dus", drop_layers=2))
    with pytest.raises(ArgsError, match=r"base_model: m has 4 layers, but its recorded plan is 4 -> 6 layers"):
        requested_plan(Decoder.of(grown | {"num_hidden_layers": 4}), "m", init)


def test_a_provenance_record_is_read_and_a_broken_one_rejected():
    plan = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])
    assert recorded_plan({}) is None
    assert recorded_plan({"solar_plugins": {"plan": plan.to_dict()}}) == plan
    for broken in ({}, {"plan": 3}, "x", {"plan": {"base_layers": 4, "ranges": []}}):
        with pytest.raises(CheckpointError, match="the record 'solar_plugins' cannot be read"):
            recorded_plan({"solar_plugins": broken})


def test_a_record_of_other_layers_than_the_models_is_refused():
    """As after mergekit, which copies config.json and changes the depth alone."""
    config = {"model_type": "llama", "num_hidden_layers": 6}
    plan = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])
    recorded = config | {"solar_plugins": {"plan": plan.to_dict()}}
    assert plan_of_model(Decoder.of(config), "m") is None
    assert plan_of_model(Decoder.of(recorded), "m") == plan
    for depth in (4, 8):
        with pytest.raises(ArgsError, match=rf"m has {depth} layers, but its recorded plan is 4 -> 6 layers.*remove"):
            plan_of_model(Decoder.of(recorded | {"num_hidden_layers": depth}), "m")
