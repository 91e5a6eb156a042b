import pytest

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.layer_fields import (
    derived,
    indices,
    layer_overrides,
    leading,
    leading_hint,
    listed,
    optional_list,
    recoded,
    reordered_fields,
)
from solar_plugins.upscaling.layer_plan import LayerPlan

PLAN = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])


def reordered(config, *fields, plan=PLAN):
    return reordered_fields(config, fields, plan)


def test_a_list_follows_the_plan():
    assert reordered({"kinds": list("abcd")}, listed("kinds")) == {"kinds": list("abcbcd")}


def test_an_absent_list_without_default_is_rejected_with_the_fix():
    with pytest.raises(CheckpointError, match=r"kinds is absent; expected a list of 4.*save_pretrained"):
        reordered({}, listed("kinds"))


def test_an_absent_list_is_written_if_the_new_depth_changes_its_values():
    every_other = listed("kinds", lambda config, depth: ["x" if index % 2 else "y" for index in range(depth)])
    assert reordered({}, every_other, plan=LayerPlan.from_sources(4, [0, 1, 2, 3, 2, 3])) == {}
    assert reordered({}, every_other, plan=LayerPlan.from_sources(4, [0, 1, 2, 2, 3])) == {
        "kinds": ["y", "x", "y", "y", "x"]
    }


def test_an_absent_list_stays_absent_if_the_model_derives_the_same_values():
    same = listed("kinds", lambda config, depth: ["x"] * depth)
    assert reordered({}, same) == {}


@pytest.mark.parametrize("value", ["abcd", ["a"], 3, {"0": "a"}])
def test_a_list_of_another_length_or_type_is_refused(value):
    with pytest.raises(CheckpointError, match="expected a list of 4, one per layer"):
        reordered({"kinds": value}, listed("kinds"))


def test_one_value_for_all_layers_stays():
    assert reordered({"width": 7}, optional_list("width")) == {}
    assert reordered({"width": [1, 2, 3, 4]}, optional_list("width")) == {"width": [1, 2, 3, 2, 3, 4]}
    with pytest.raises(CheckpointError, match="width"):
        reordered({"width": [1, 2, 3]}, optional_list("width"))


def test_layer_numbers_follow_their_layers():
    assert reordered({"full": [1, 3]}, indices("full")) == {"full": [1, 3, 5]}
    assert reordered({"full": None}, indices("full")) == {}


@pytest.mark.parametrize("value", [[4], [-1], [True], ["1"], "1"])
def test_layer_numbers_that_no_layer_has(value):
    with pytest.raises(CheckpointError, match="expected layer numbers below 4"):
        reordered({"full": value}, indices("full"))


def test_a_number_of_leading_layers_is_recounted():
    assert reordered({"dense": 1}, leading("dense")) == {"dense": 1}
    plan = LayerPlan.from_sources(4, [0, 1, 0, 1, 2, 3])
    assert reordered({"dense": 2}, leading("dense"), plan=plan) == {"dense": 4}
    assert reordered({"dense": 9}, leading("dense"), plan=plan) == {"dense": 6}


def test_a_leading_layer_above_its_place_is_rejected():
    with pytest.raises(CheckpointError, match=r"dense cannot express this plan: new layer 3, a copy of base layer 1"):
        reordered({"dense": 2}, leading("dense"))


def test_a_leading_layers_hint_is_updated_if_it_can_express_the_plan():
    plan = LayerPlan.from_sources(4, [0, 1, 0, 1, 2, 3])
    assert reordered({"dense": 2}, leading_hint("dense"), plan=plan) == {"dense": 4}
    assert reordered({"dense": 2}, leading_hint("dense")) == {}
    assert reordered({}, leading_hint("dense")) == {}


def test_values_derived_from_a_layers_position_must_not_change():
    even = derived("parity", lambda config, index, depth: index % 2)
    assert reordered({}, even, plan=LayerPlan.from_sources(4, [0, 1, 2, 3, 2, 3])) == {}
    with pytest.raises(CheckpointError, match=r"parity cannot express this plan: new layer 4, a copy of base layer 1"):
        reordered({}, even, plan=LayerPlan.from_sources(4, [0, 1, 2, 3, 1, 2, 3]))


def test_a_custom_notation_is_read_and_written():
    pattern = recoded("pattern", lambda text, depth: text, "".join)
    assert reordered({"pattern": "M-M*"}, pattern) == {"pattern": "M-M-M*"}
    with pytest.raises(CheckpointError, match="describes 4 layers"):
        reordered({"pattern": "M-M"}, pattern)


def test_overrides_by_layer_number():
    config = {"per_layer_config": {"1": {"head_dim": 8}, "03": {"head_dim": 9}}}
    assert reordered(config, layer_overrides()) == {
        "per_layer_config": {"1": {"head_dim": 8}, "3": {"head_dim": 8}, "5": {"head_dim": 9}}
    }
    for odd in ({"4": {}}, {"x": {}}, [1]):
        with pytest.raises(CheckpointError, match="per_layer_config"):
            reordered({"per_layer_config": odd}, layer_overrides())
