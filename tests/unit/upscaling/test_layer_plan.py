import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_plugins.errors import PlanError
from solar_plugins.upscaling.layer_plan import Donor, LayerPlan, LayerRange, PlannedLayer, Seam

SOLAR = LayerPlan.from_sources(32, [*range(24), *range(8, 32)])
DONOR = {"name": "b", "revision": None, "num_layers": 6}

starts = st.sampled_from(
    [
        ("copy",),
        ("identity",),
        ("scaled", (("factor", 0.5),)),
        ("scaled", (("factor", 0.25),)),
        ("third", (("layers", (1, (2, 3))), ("name", "x"), ("on", True)), True),
    ]
)
layers = st.builds(lambda source, start: PlannedLayer(source, *start), st.integers(0, 11), starts)
plans = st.builds(lambda entries: LayerPlan(12, tuple(entries)), st.lists(layers, min_size=1, max_size=40))


def test_solar_has_one_seam_of_distance_15():
    """solar.md section 1: |n - 2m - 1| = 15."""
    assert SOLAR.seams() == (Seam(position=24, below=23, above=8),)
    assert SOLAR.seams()[0].distance == 15


def test_ranges_of_solar():
    assert SOLAR.ranges() == (LayerRange(0, 24), LayerRange(8, 32))


def test_stacking_has_seam_distance_31():
    assert LayerPlan.from_sources(32, [*range(32), *range(32)]).seams()[0].distance == 31


def test_seams_are_counted_across_identity_layers():
    inserted = LayerPlan(3, (PlannedLayer(0), PlannedLayer(0, "identity"), PlannedLayer(1), PlannedLayer(2)))
    assert inserted.seams() == ()
    skipped = LayerPlan(3, (PlannedLayer(0), PlannedLayer(0, "identity"), PlannedLayer(2)))
    assert skipped.seams() == (Seam(position=2, below=0, above=2),)


@given(plans)
def test_ranges_flatten_to_the_layers(plan):
    flat = [
        PlannedLayer(i, part.initialization, part.arguments, part.passes_through)
        for part in plan.ranges()
        for i in range(part.start, part.end)
    ]
    assert tuple(flat) == plan.layers


@given(plans)
def test_json_round_trip(plan):
    assert LayerPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@given(plans)
def test_seams_are_where_acting_layers_were_not_adjacent(plan):
    acting = [layer.source for layer in plan.layers if layer.initialization in ("copy", "scaled")]
    broken = [(a, b) for a, b in pairwise(acting) if b - a != 1]
    assert [(seam.below, seam.above) for seam in plan.seams()] == broken


@pytest.mark.parametrize(
    ("base_layers", "entries", "message"),
    [
        (0, [PlannedLayer(0)], "base_layers: 0; expected at least 1"),
        (4, [], "the plan is empty"),
        (
            4,
            [PlannedLayer(0), PlannedLayer(4)],
            "new layer 1: layer 4 of the base does not exist; it has layers 0",
        ),
        (4, [PlannedLayer(-1)], "layer -1 of the base does not exist"),
        (4, [PlannedLayer(6, model=1)], "new layer 0: layer 6 of the donor b does not exist; it has layers 0 to 5"),
    ],
)
def test_impossible_plans_are_refused(base_layers, entries, message):
    with pytest.raises(PlanError, match=message):
        LayerPlan(base_layers, tuple(entries), (Donor("b", num_layers=6),))


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"base_layers": 4},
        {"base_layers": 4, "ranges": [[0, 2]]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 10**12, "initialization": "copy"}]},
        {"base_layers": 4, "ranges": [{"start": 2, "end": 2, "initialization": "copy"}]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": "2", "initialization": "copy"}]},
        {"base_layers": 4, "ranges": 7},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 2, "initialization": 7}]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 2, "initialization": "x\x1b[31m"}]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 2, "arguments": 7}]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 2, "arguments": "factor"}]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 2, "arguments": {"factor": {}}}]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 2, "passes_through": 1}]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 2, "model": 1}]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 2, "model": -1}], "donors": [DONOR]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 2, "model": True}], "donors": [DONOR]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 7, "model": 1}], "donors": [DONOR]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 2}], "donors": [DONOR | {"num_layers": 10**12}]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 2}], "donors": [DONOR | {"num_layers": None}]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 2}], "donors": [DONOR | {"name": "x\x1b[31m"}]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 2}], "donors": [DONOR | {"revision": 7}]},
        {"base_layers": 4, "ranges": [{"start": 0, "end": 2}], "donors": "b"},
    ],
)
def test_data_that_is_not_a_plan_is_rejected_quickly(data):
    with pytest.raises(PlanError, match="is not a layer plan"):
        LayerPlan.from_dict(data)


def test_text():
    assert str(SOLAR) == "32 -> 48 layers: [0..23] + [8..31]"
    scaled = LayerPlan(2, (PlannedLayer(0), PlannedLayer(0, "scaled", (("factor", 0.5),))))
    assert str(scaled) == "2 -> 2 layers: [0] + [0] as scaled (factor 0.5)"


def test_a_plan_that_was_written_before_there_were_arguments_is_read_and_written_the_same():
    """The name of a checkpoint in the cache is a hash of it."""
    old = {
        "base_layers": 2,
        "ranges": [
            {"start": 0, "end": 2, "initialization": "copy"},
            {"start": 1, "end": 2, "initialization": "identity"},
        ],
    }
    plan = LayerPlan.from_dict(old)
    assert plan.layers == (PlannedLayer(0), PlannedLayer(1), PlannedLayer(1, "identity"))
    assert plan.to_dict() == old


def test_layers_of_a_donor():
    of_base, of_donor = (tuple(PlannedLayer(source, model=model) for source in (0, 1)) for model in (0, 1))
    plan = LayerPlan(2, (*of_base, *of_donor, of_base[1]), (Donor("org/b", None, 2),))
    assert str(plan) == "2 -> 5 layers: [0..1] + org/b [0..1] + [1]"
    assert plan.seams() == (Seam(2, 1, 0, 0, 1), Seam(4, 1, 1, 1, 0))
    assert plan.duplicates() == (4,)
    assert LayerPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert [plan.seam_words(seam) for seam in plan.seams()] == [
        "layer 1 of base feeds layer 0 of org/b, another model",
        "layer 1 of org/b feeds layer 1 of base, another model",
    ]


def test_neighbors_by_number_of_two_models_make_a_seam():
    plan = LayerPlan(2, (PlannedLayer(0), PlannedLayer(1, model=1)), (Donor("b"),))
    assert [(seam.position, seam.distance) for seam in plan.seams()] == [(1, None)]
    assert len(plan.ranges()) == 2


def test_scaled_layers_act_and_make_seams():
    plan = LayerPlan(2, (PlannedLayer(0), PlannedLayer(0, "scaled", (("factor", 0.5),)), PlannedLayer(1)))
    assert plan.seams() == (Seam(position=1, below=0, above=0),)
