import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_plugins.errors import PlanError
from solar_plugins.upscaling.layer_plan import LayerPlan, Seam
from solar_plugins.upscaling.strategies import register_init_strategies
from solar_plugins.upscaling.strategies.dus import DepthUpScalingArgs, plan_depth_up_scaling
from solar_plugins.upscaling.strategies.slices import SlicesArgs, plan_slices

PUBLISHED = [
    ("SOLAR 10.7B", 32, 8, 48),
    ("TinySolar-308m", 12, 4, 16),
    ("Granite-34B-code", 52, 8, 88),
    ("Bielik 11B v2", 32, 7, 50),
    ("Solar Pro 22B", 40, 8, 64),
]


@pytest.mark.parametrize(("model", "num_layers", "drop", "target"), PUBLISHED)
def test_published_models(model, num_layers, drop, target):
    """The table of solar.md section 1, from m and from s."""
    plan = plan_depth_up_scaling(num_layers, DepthUpScalingArgs(drop_layers=drop))
    assert plan.sources == (*range(num_layers - drop), *range(drop, num_layers))
    assert len(plan) == target
    assert plan == plan_depth_up_scaling(num_layers, DepthUpScalingArgs(target_layers=target))


def test_yi_9b_is_a_plan_of_slices():
    """solar.md section 1: 32 layers, [0..27] + [12..31]."""
    plan = plan_slices(32, SlicesArgs(slices=[[0, 28], [12, 32]]))
    assert plan.sources == (*range(28), *range(12, 32))
    assert len(plan) == 48


@given(st.integers(1, 60).flatmap(lambda half: st.tuples(st.just(2 * half))))
def test_half_the_depth_gives_the_base_back(depth):
    (num_layers,) = depth
    plan = plan_depth_up_scaling(num_layers, DepthUpScalingArgs(drop_layers=num_layers // 2))
    assert plan == LayerPlan.from_sources(num_layers, range(num_layers))
    assert plan.seams() == ()


@given(st.integers(1, 100).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))))
def test_dus_follows_its_formula(case):
    num_layers, drop = case
    plan = plan_depth_up_scaling(num_layers, DepthUpScalingArgs(drop_layers=drop))
    assert len(plan) == 2 * (num_layers - drop)
    assert all(seam.distance == abs(num_layers - 2 * drop - 1) for seam in plan.seams())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "drop_layers: missing; give drop_layers .m. or target_layers"),
        ({"drop_layers": -1}, "drop_layers: -1 is impossible for a base of 32 layers; expected 0"),
        ({"drop_layers": 32}, "drop_layers: 32 is impossible .* to 31"),
        ({"target_layers": 47}, "target_layers: 47 is odd.*46 or 48"),
        ({"target_layers": 100}, "target_layers: 100 is impossible .* 2 to 64"),
        ({"target_layers": 0}, "target_layers: 0 is impossible"),
        ({"drop_layers": 8, "target_layers": 50}, "drop_layers: 8 gives 48 layers .* target_layers is 50"),
    ],
)
def test_impossible_arguments_of_dus(arguments, message):
    with pytest.raises(PlanError, match=message):
        plan_depth_up_scaling(32, DepthUpScalingArgs(**arguments))


def test_drop_layers_and_target_layers_may_agree():
    assert len(plan_depth_up_scaling(32, DepthUpScalingArgs(drop_layers=8, target_layers=48))) == 48


@pytest.mark.parametrize(
    ("slices", "message"),
    [([], "^slices: empty"), ([[0, 24], [8, 33]], r"^slices: \[8, 33\] is not a range of a base of 32")],
)
def test_impossible_slices(slices, message):
    with pytest.raises(PlanError, match=message):
        plan_slices(32, SlicesArgs(slices=slices))


def test_slices_as_an_option_of_a_command():
    of_one = SlicesArgs(slices=[{"layers": "0:24"}])
    assert [part.layers for part in of_one.slices] == [[0, 24]]
    assert [part.layers for part in SlicesArgs(slices="0:24,8:32").slices] == [[0, 24], [8, 32]]
    of_two = "[[0, 24], {model: org/b, revision: v1, layers: [8, 32]}]"
    plan = plan_slices(32, SlicesArgs(slices=of_two))
    assert str(plan) == "32 -> 48 layers: [0..23] + org/b@v1 [8..31]"
    assert plan.seams() == (Seam(24, 23, 8, 0, 1),)


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ([{"layers": [0, 24], "revision": "v1"}], "^slices: revision: 'v1' without a model"),
        ([{"model": "b", "layers": [24, 8]}], r"^slices: \[24, 8\] is not a range"),
    ],
)
def test_impossible_slices_of_donors(slices, message):
    with pytest.raises(PlanError, match=message):
        plan_slices(32, SlicesArgs(slices=slices))


MINIMAL = {
    "dus": {"drop_layers": 8},
    "slices": {"slices": [[0, 24], [8, 32]]},
    "block_expansion": {"new_layers": 8},
    "stack": {"times": 4},
    "interleave": {},
    "repeat_block": {"blocks": [[12, 28]]},
}


def test_the_built_in_strategies():
    """By the names of design.md; each makes a plan from the fewest arguments."""
    strategies = {strategy.name: strategy for strategy in register_init_strategies()}
    assert strategies.keys() == MINIMAL.keys()
    for name, arguments in MINIMAL.items():
        plan = strategies[name].plan(32, strategies[name].args(**arguments))
        assert len(plan) > 32
        assert strategies[name].summary
