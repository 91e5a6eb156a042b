from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_plugins.errors import PlanError
from solar_plugins.upscaling.layer_plan import MAX_LAYERS, LayerPlan
from solar_plugins.upscaling.strategies.block_expansion import BlockExpansionArgs, plan_block_expansion
from solar_plugins.upscaling.strategies.interleave import InterleaveArgs, plan_interleave
from solar_plugins.upscaling.strategies.repeat_block import RepeatBlockArgs, plan_repeat_block
from solar_plugins.upscaling.strategies.stack import StackArgs, plan_stack


def identities(plan):
    return [position for position, layer in enumerate(plan.layers) if layer.initialization == "identity"]


@pytest.mark.parametrize("arguments", [{"new_layers": 8}, {"group_size": 4}, {"new_layers": 8, "group_size": 4}])
def test_llama_pro(arguments):
    """solar.md section 5: 32 layers in groups of 4, after each group its last layer again: 40, new are 4, 9, .. 39."""
    plan = plan_block_expansion(32, BlockExpansionArgs(**arguments))
    assert len(plan) == 40
    assert identities(plan) == list(range(4, 40, 5))
    assert plan.sources[:11] == (0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8)
    assert plan.sources[-2:] == (31, 31)


def test_yi_9b():
    """solar.md section 1: [0..27] + [12..31]."""
    plan = plan_repeat_block(32, RepeatBlockArgs(blocks=[[12, 28]]))
    assert plan.sources == (*range(28), *range(12, 32))


def test_idus_8():
    """solar.md section 5: [0..7] + 2x[8..15] + 2x[16..23] + [24..31]."""
    plan = plan_repeat_block(32, RepeatBlockArgs(blocks="8:16,16:24"))
    twice = [*range(8, 16), *range(8, 16), *range(16, 24), *range(16, 24)]
    assert plan.sources == (*range(8), *twice, *range(24, 32))
    assert len(plan) == 48


def test_a_step_of_midas():
    """solar.md section 5: the middle block once more; here the second of three blocks of 8."""
    plan = plan_repeat_block(24, RepeatBlockArgs(blocks=[[8, 16]]))
    assert plan.sources == (*range(16), *range(8, 16), *range(16, 24))


def test_g_stack():
    """solar.md section 5: [0..n-1] repeated g = 4 times."""
    assert plan_stack(6, StackArgs(times=4)).sources == tuple(range(6)) * 4


def test_interleave():
    """solar.md section 5: 0, 0, 1, 1, .."""
    assert plan_interleave(3, InterleaveArgs()).sources == (0, 0, 1, 1, 2, 2)
    assert plan_interleave(2, InterleaveArgs(times="3")).sources == (0, 0, 0, 1, 1, 1)


groups = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(groups)
def test_block_expansion_without_its_new_layers_is_the_base(case):
    number, size = case
    plan = plan_block_expansion(number * size, BlockExpansionArgs(group_size=size))
    assert [layer.source for layer in plan.layers if layer.initialization == "copy"] == list(range(number * size))
    assert identities(plan) == [size + group * (size + 1) for group in range(number)]
    assert all(plan.sources[position] == plan.sources[position - 1] for position in identities(plan))
    assert plan.seams() == ()
    assert plan == plan_block_expansion(number * size, BlockExpansionArgs(new_layers=number))
    assert LayerPlan.from_dict(plan.to_dict()) == plan


depths_and_times = st.tuples(st.integers(1, 40), st.integers(1, 5))


@given(depths_and_times)
def test_every_layer_comes_equally_often(case):
    depth, times = case
    for plan in (plan_stack(depth, StackArgs(times=times)), plan_interleave(depth, InterleaveArgs(times=times))):
        assert sorted(plan.sources) == sorted(list(range(depth)) * times)
        assert all(layer.initialization == "copy" for layer in plan.layers)
        assert LayerPlan.from_dict(plan.to_dict()) == plan


@given(depths_and_times)
def test_stacking_jumps_from_the_top_to_the_bottom_and_interleaving_never_goes_down(case):
    depth, times = case
    seams = plan_stack(depth, StackArgs(times=times)).seams()
    assert [(seam.below, seam.above) for seam in seams] == [(depth - 1, 0)] * (times - 1)
    interleaved = plan_interleave(depth, InterleaveArgs(times=times)).sources
    assert [(layer, len(list(run))) for layer, run in groupby(interleaved)] == [
        (layer, times) for layer in range(depth)
    ]


@st.composite
def bases_with_blocks(draw):
    depth = draw(st.integers(1, 40))
    ends = sorted(draw(st.sets(st.integers(0, depth), min_size=2)))
    return depth, [list(pair) for pair in zip(ends[::2], ends[1::2], strict=False)], draw(st.integers(1, 4))


@given(bases_with_blocks())
def test_each_block_is_repeated_and_the_rest_comes_once_in_order(case):
    depth, blocks, times = case
    plan = plan_repeat_block(depth, RepeatBlockArgs(blocks=blocks, times=times))
    inside = {layer for start, end in blocks for layer in range(start, end)}
    assert all(plan.sources.count(layer) == (times if layer in inside else 1) for layer in range(depth))
    returns = [(end - 1, start) for start, end in blocks for _ in range(times - 1)]
    assert [(seam.below, seam.above) for seam in plan.seams()] == returns
    assert LayerPlan.from_dict(plan.to_dict()) == plan


@given(depths_and_times)
def test_stacking_and_interleaving_repeat_the_largest_and_the_smallest_blocks(case):
    depth, times = case
    assert plan_stack(depth, StackArgs(times=times)) == plan_repeat_block(
        depth, RepeatBlockArgs(blocks=[[0, depth]], times=times)
    )
    assert plan_interleave(depth, InterleaveArgs(times=times)) == plan_repeat_block(
        depth, RepeatBlockArgs(blocks=[[layer, layer + 1] for layer in range(depth)], times=times)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "^new_layers: missing; give new_layers or group_size .M."),
        (
            {"new_layers": 6},
            "^new_layers: 6 does not divide a base of 32 .* expected one of 1, 2, 4, 8, 16, 32$",
        ),
        ({"group_size": 5}, "^group_size: 5 does not divide a base of 32 layers"),
        ({"new_layers": 0}, "^new_layers: 0 does not divide"),
        ({"group_size": -4}, "^group_size: -4 does not divide"),
        ({"new_layers": 64}, "^new_layers: 64 does not divide"),
        (
            {"new_layers": 8, "group_size": 8},
            "^group_size: 8 adds 4 layers to a base of 32, but new_layers is 8",
        ),
    ],
)
def test_impossible_arguments_of_block_expansion(arguments, message):
    with pytest.raises(PlanError, match=message):
        plan_block_expansion(32, BlockExpansionArgs(**arguments))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "^blocks: empty"),
        ([[8, 33]], r"^blocks: \[8, 33\] is not a range of a base of 32"),
        ([[8, 8]], r"\[8, 8\] is not a range"),
        (
            [[8, 16], [15, 20]],
            r"^blocks: \[15, 20\] starts below .* \[8, 16\]; .* base of 32 layers .* slices$",
        ),
        ([[16, 24], [8, 16]], r"^blocks: \[8, 16\] starts below the end of \[16, 24\]"),
    ],
)
def test_impossible_blocks(blocks, message):
    with pytest.raises(PlanError, match=message):
        plan_repeat_block(32, RepeatBlockArgs(blocks=blocks))


@pytest.mark.parametrize(
    ("plan", "arguments", "most"),
    [
        (plan_stack, StackArgs, 312),
        (plan_interleave, InterleaveArgs, 312),
        (plan_repeat_block, lambda times: RepeatBlockArgs(blocks=[[8, 16]], times=times), 1247),
    ],
)
def test_impossible_times(plan, arguments, most):
    """The most that a plan may have is a bound of ours: 32 + 8 x 1246 = 10,000."""
    assert len(plan(32, arguments(times=most))) <= MAX_LAYERS
    for times in (0, -1, most + 1, 10**15):
        with pytest.raises(PlanError, match=f"^times: {times} is impossible for a base of 32 layers; .* to {most:,} "):
            plan(32, arguments(times=times))


def test_stacking_once_is_the_base():
    assert plan_stack(4, StackArgs(times=1)) == LayerPlan.from_sources(4, range(4))
