import re
import sys
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_plugins.errors import SolarError
from solar_plugins.report.plan_picture import FOOT_HEIGHT, PlanLayout, draw_plan, plan_figure, seam_label
from solar_plugins.upscaling.layer_plan import Donor, LayerPlan, PlannedLayer


def depth_up_scaled(num_layers, drop):
    return LayerPlan.from_sources(num_layers, [*range(num_layers - drop), *range(drop, num_layers)])


def block_expanded(num_layers, every):
    layers = []
    for index in range(num_layers):
        layers.append(PlannedLayer(index))
        if (index + 1) % every == 0:
            layers.append(PlannedLayer(index, "identity"))
    return LayerPlan(num_layers, tuple(layers))


def of_models(base_layers, parts, *depths):
    layers = (PlannedLayer(source, model=model) for model, start, end in parts for source in range(start, end))
    names = (f"Some-Org/Large-Model-{number}-Instruct-v0.{number}" for number in range(len(depths)))
    donors = (Donor(name, "a" * 40, depth) for name, depth in zip(names, depths, strict=True))
    return LayerPlan(base_layers, tuple(layers), tuple(donors))


SCALED = ("scaled", (("factor", 0.5),))
PLANS = {
    "SmolLM2": depth_up_scaled(30, 6),
    "SOLAR": depth_up_scaled(32, 8),
    "tiny": depth_up_scaled(12, 4),
    "Granite": depth_up_scaled(52, 8),
    "each layer twice": LayerPlan.from_sources(32, [index for index in range(32) for _ in range(2)]),
    "64 layers, each twice": LayerPlan.from_sources(64, [index for index in range(64) for _ in range(2)]),
    "seams close together": LayerPlan.from_sources(40, [*range(20), 18, 17, 16, 15, *range(16, 40)]),
    "LLaMA Pro": block_expanded(32, 4),
    "scaled": LayerPlan(32, (*map(PlannedLayer, range(24)), *(PlannedLayer(i, *SCALED) for i in range(8, 32)))),
    "no seam": LayerPlan.from_sources(16, range(16)),
    "two models": of_models(32, [(0, 0, 24), (1, 8, 32)], 32),
    "three models with long names": of_models(40, [(0, 0, 20), (1, 30, 64), (2, 7, 9), (0, 39, 40)], 64, 12),
    "five models, each layer alone": of_models(2, [(number % 5, 0, 1) for number in range(30)], 4, 4, 4, 4),
    "one layer": LayerPlan.from_sources(1, [0]),
}


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_no_words_overlap_or_leave_the_picture(plan):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = plan_figure(plan)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = {text: text.get_window_extent(renderer) for text in figure.axes[0].texts}

    for (one, box), (other, other_box) in combinations(boxes.items(), 2):
        assert not box.overlaps(other_box), (one.get_text(), other.get_text())
    sheet = figure.bbox
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= sheet.x1 and box.y1 <= sheet.y1 for box in boxes.values())


def test_the_svg_names_the_seam_and_the_ranges(tmp_path):
    draw_plan(PLANS["SOLAR"], tmp_path / "plan.svg")

    svg = (tmp_path / "plan.svg").read_text()
    for words in ("32 → 48 layers", "seam: layer 23 feeds 8, distance 15", "0..23", "8..31"):
        assert f">{words}</text>" in svg


def test_every_seam_of_many_has_its_label(tmp_path):
    draw_plan(PLANS["64 layers, each twice"], tmp_path / "plan.svg")

    svg = (tmp_path / "plan.svg").read_text()
    labels = re.findall(r">(seam: [^<]*)<", svg)
    assert labels == [f"seam: layer {index} feeds its copy" for index in range(64)]
    assert len(set(re.findall(r'id="(seam-\d+)"', svg))) == 64


def test_a_plan_without_seams_says_so(tmp_path):
    draw_plan(PLANS["no seam"], tmp_path / "plan.svg")

    svg = (tmp_path / "plan.svg").read_text()
    assert "no seams" in svg
    assert "seam:" not in svg


def test_identity_layers_are_hatched_and_counted(tmp_path):
    draw_plan(PLANS["LLaMA Pro"], tmp_path / "plan.svg")

    svg = (tmp_path / "plan.svg").read_text()
    assert "8 identity layers, no seams" in svg
    assert "Hatched: starts as identity" in svg


def test_initializers_are_named_with_their_arguments(tmp_path):
    draw_plan(PLANS["scaled"], tmp_path / "plan.svg")

    svg = (tmp_path / "plan.svg").read_text()
    assert "24 scaled layers, 1 seam" in svg
    assert "Hatched: starts as scaled (factor 0.5)." in svg


def test_the_png_is_written(tmp_path):
    draw_plan(PLANS["tiny"], tmp_path / "plan.png")

    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_another_suffix_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(SolarError, match=r"expected .png or .svg"):
        draw_plan(PLANS["tiny"], tmp_path / "plan.gif")


def test_a_missing_matplotlib_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(SolarError, match="solar plan --plot needs matplotlib "):
        draw_plan(PLANS["tiny"], tmp_path / "plan.svg")
    assert not (tmp_path / "plan.svg").exists()


plans = st.integers(1, 40).flatmap(
    lambda depth: st.builds(
        LayerPlan.from_sources, st.just(depth), st.lists(st.integers(0, depth - 1), min_size=1, max_size=120)
    )
)


def test_a_seam_label_has_both_layers_and_the_distance():
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
