from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_plugins.report.plan_layout import FOOT_HEIGHT, PlanLayout, seam_label, spread
from solar_plugins.upscaling.layer_plan import LayerPlan

plans = st.integers(1, 40).flatmap(
    lambda depth: st.builds(
        LayerPlan.from_sources, st.just(depth), st.lists(st.integers(0, depth - 1), min_size=1, max_size=120)
    )
)


def test_a_label_says_what_meets():
    plan = LayerPlan.from_sources(32, [*range(24), *range(8, 32)])
    assert seam_label(plan, *plan.seams()) == "seam: layer 23 feeds 8, distance 15"


@given(plans)
def test_layers_never_overlap_and_stay_in_the_column(plan):
    layout = PlanLayout(plan)
    low, high = FOOT_HEIGHT, FOOT_HEIGHT + layout.column_height
    for count, lower_edge in ((plan.base_layers, layout.base_y), (len(plan), layout.new_y)):
        edges = [lower_edge(index) for index in range(count)]
        assert all(above - below >= layout.layer_height - 1e-6 for below, above in pairwise(edges))
        assert edges[0] >= low - 1e-6
        assert edges[-1] + layout.layer_height <= high + 1e-6


@given(plans)
def test_a_seam_lies_between_the_two_layers_that_it_joins(plan):
    layout = PlanLayout(plan)
    for seam in layout.seams:
        assert layout.new_y(seam.position - 1) + layout.layer_height < layout.seam_y(seam) < layout.new_y(seam.position)


@given(plans)
def test_labels_never_touch_and_stay_in_the_column(plan):
    layout = PlanLayout(plan)
    labels = layout.label_ys
    assert all(above - below >= layout.label_distance - 1e-6 for below, above in pairwise(labels))
    assert all(FOOT_HEIGHT - 1e-6 <= y <= FOOT_HEIGHT + layout.column_height + 1e-6 for y in labels)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], []),
        ([5], [5]),
        ([20, 40], [20, 40]),
        ([30, 30], [25, 35]),
        ([0, 0, 0], [0, 10, 20]),
        ([100, 100], [90, 100]),
    ],
)
def test_spread_moves_as_little_as_it_can(wanted, expected):
    assert spread(wanted, 10, 0, 100) == expected
