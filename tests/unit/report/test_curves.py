import math
import re
from dataclasses import replace
from itertools import combinations

import pytest

from solar_plugins.recipe import parse_recipe
from solar_plugins.report.picture import inline_svg
from solar_plugins.report.training_log import LEFT, Chart, LogPoint, Series, curve_figure, log_charts


@pytest.mark.parametrize(
    ("train", "held_out", "expected"),
    [
        (60, 4, ["training", "eval", "optimizer step"]),
        (1, 0, ["training"]),
        (0, 1, ["eval"]),
    ],
)
def test_lines_and_axis_are_labeled(train, held_out, expected):
    series = Series(
        train=tuple(LogPoint(step, 3 - step / 100) for step in range(1, train + 1)),
        held_out=tuple(LogPoint(step, 3.0) for step in range(held_out)),
    )

    svg = inline_svg(curve_figure(Chart(series, "loss")), "x")

    assert all(text in svg for text in expected)
    assert ("training" in svg) == bool(train)
    assert ("eval" in svg) == bool(held_out)


LINE = (LogPoint(1, 3.0), LogPoint(2, 2.0))


def test_labels_of_lines_that_end_together_do_not_overlap():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    line = (LogPoint(1, 1.0), LogPoint(2, math.log(2)))
    figure = curve_figure(Chart(Series(line, line), "loss", ln_2=True))
    renderer = FigureCanvasAgg(figure).get_renderer()
    ends = [
        text.get_window_extent(renderer) for text in figure.axes[0].texts if re.search(r"0.69$|ln 2", text.get_text())
    ]

    assert len(ends) == 3
    assert not any(one.overlaps(other) for one, other in combinations(ends, 2))
    assert max(end.x1 for end in ends) <= figure.bbox.x1


def test_a_level_outside_the_values_is_visible():
    figure = curve_figure(Chart(Series(LINE, ()), "loss", ln_2=True))

    low, high = figure.axes[0].get_ylim()
    assert low < math.log(2) < 3.0 < high
    assert "ln 2" in inline_svg(figure, "x")
    assert "ln 2" not in inline_svg(curve_figure(Chart(Series(LINE, ()), "loss")), "x")


def test_values_have_the_decimals_that_are_asked_for():
    svg = inline_svg(
        curve_figure(Chart(Series((LogPoint(1, 0.69314),), (LogPoint(1, 0.69214),)), "loss", decimals=4)), "x"
    )

    assert "training 0.6931" in svg
    assert "eval 0.6921" in svg


def test_the_mark_at_step_0_is_not_clipped():
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = curve_figure(Chart(Series((), (LogPoint(0, 3.0), LogPoint(9, 3.0))), "loss"))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()

    before_the_edge = numpy.asarray(canvas.buffer_rgba())[:, : int(LEFT * figure.dpi / 72) - 1].astype(int)
    orange = before_the_edge[..., 0] - before_the_edge[..., 2] > 100
    assert orange.any()


def charts_of(stage):
    return log_charts(stage.log, ln_2=stage.starts_at_ln_2)


def test_dpo_is_drawn_with_ln_2_and_its_rewards(chain_report):
    dpo = chain_report.stages[2]

    loss, margin, accuracy = charts_of(dpo)
    assert (loss.ln_2, margin.ln_2, accuracy.ln_2) == (True, False, False)
    assert charts_of(replace(dpo, recipe=parse_recipe({"rl": "orpo"})))[0].ln_2 is False
    [alone] = charts_of(chain_report.stages[1])
    assert (alone.quantity, alone.ln_2) == ("loss", False)
    assert charts_of(chain_report.stages[3]) == []


def test_the_alternative_text_has_the_first_and_last_values(chain_report):
    loss, margin, _ = charts_of(chain_report.stages[2])

    assert loss.alternative_text == "Loss by optimizer step: training from 0.693 to 0.650, eval from 0.650 to 0.650"
    assert margin.alternative_text == "Reward margin by optimizer step: training from 0.000 to 0.037"
