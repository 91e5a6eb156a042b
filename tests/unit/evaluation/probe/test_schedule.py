import pytest

from solar_plugins.evaluation.probe.candidates import every_repeat
from solar_plugins.evaluation.probe.schedule import chunks, schedule
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer

PLANS = [one.plan for one in every_repeat(6)]


def paths(order):
    """The layers of every plan, walked back from its end."""
    found = []
    for node in order.ends:
        layers = []
        while node:
            layers.insert(0, order.nodes[node].layer)
            node = order.nodes[node].parent
        found.append(layers)
    return found


def test_every_plan_has_its_path():
    assert paths(schedule(PLANS)) == [[layer.source for layer in plan.layers] for plan in PLANS]


def test_every_node_is_computed_once_and_after_its_parent():
    order = schedule(PLANS)
    made = set(order.trunk)
    for step in order.steps:
        for node in step.nodes:
            assert order.nodes[node].layer == step.layer
            assert order.nodes[node].parent in made
            assert node not in made
        made |= set(step.nodes)
    assert made == set(range(len(order.nodes)))


def test_shared_prefixes_halve_the_work_of_a_full_sweep():
    """For a base of 30 layers: plans with the same ending are one batch per number of layers left."""
    plans = [one.plan for one in every_repeat(30)]
    order = schedule(plans)
    assert (len(plans), sum(map(len, plans)), order.layer_passes, len(order.steps)) == (465, 18_910, 9_455, 30)


def test_the_base_itself_needs_no_layer():
    plan = LayerPlan.from_sources(6, [*range(3), *range(3, 6)])
    order = schedule([plan])
    assert order.layer_passes == 0
    assert order.trunk[order.ends[0]] == 6


def test_identity_layers_are_skipped():
    plain = LayerPlan.from_sources(3, [0, 1, 2])
    expanded = LayerPlan(3, tuple(PlannedLayer(i, kind) for i in range(3) for kind in ("copy", "identity")))
    order = schedule([plain, expanded])
    assert order.ends[0] == order.ends[1]


def test_new_layers_are_nodes_of_their_own_by_start_and_position():
    def plan(start, *more):
        return LayerPlan(3, (*map(PlannedLayer, range(3)), *more, PlannedLayer(1, *start), PlannedLayer(2)))

    half, third = (("scaled", (("factor", factor),)) for factor in (0.5, 0.33))
    plans = [plan(()), plan(half), plan(half), plan(third), plan(half, PlannedLayer(2, "identity"))]
    order = schedule(plans)
    copy, one, same, other, moved = order.ends
    assert one == same
    assert len({copy, one, other, moved}) == 4, "noise depends on the position"
    steps = [(step.layer, len(step.nodes), step.new.position if step.new else None) for step in order.steps]
    assert sorted(steps, key=str) == [(1, 1, 3), (1, 1, 3), (1, 1, 4), (1, 1, None), (2, 4, None)]


@pytest.mark.parametrize("limit", [1, 4, 7, 100])
def test_groups_fit_into_the_limit(limit):
    groups = chunks(PLANS, limit)
    assert sorted(place for group in groups for place in group) == list(range(len(PLANS)))
    for group in groups:
        assert len(group) == 1 or schedule([PLANS[place] for place in group]).states_held() <= limit
