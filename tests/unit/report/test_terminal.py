import io
import math
from dataclasses import replace

import pytest

from solar_plugins.evaluation.loss import Loss
from solar_plugins.report.terminal import show_report, unicode_chart
from solar_plugins.report.training_log import LogPoint, Series
from solar_plugins.text import printable
from solar_plugins.upscaling.layer_plan import LayerPlan


def shown(report, width=100, color=None):
    from rich.console import Console

    out = io.StringIO()
    show_report(report, Console(file=out, width=width, color_system=color, force_terminal=color is not None))
    return out.getvalue()


def test_the_terminal_says_what_the_page_says(report):
    text = " ".join(shown(report).split())

    for words in (
        "lab/tiny-<base>: 12 to 16 layers",
        "Upscaling raised the held-out loss from 2.500 to 3.250",
        "upscaled 16 16.0 M 3.250 25.79 +0.750 ± 0.000",
        "300 held-out tokens, float32 on cpu",
        "● held-out",
        "seam below layer 8: layer 7 feeds 4, distance 3",
        "garden & gate",
        "(nothing: it ends the text here)",
        "out/report.html",
        "out/report.json",
    ):
        assert words in text


def test_what_models_say_cannot_command_the_terminal(report):
    text = shown(report, color="standard")

    assert "\x1b[31mthe" not in text
    assert "[31mthe the" in text
    assert "[red]1, 2,[/red]" in text
    assert "[bold]16" in text


def test_a_narrow_terminal_wraps_prose_and_gets_tables_whole(report):
    lines = shown(report, 40).splitlines()

    assert "trained       16      16.0 M          2.625       13.80  +0.125 ± 0.000" in map(str.rstrip, lines)
    assert max(len(line) for line in lines if line.startswith(("Upscaling", "Training"))) <= 40


def test_of_many_seams_the_first_are_named_and_the_rest_counted(report):
    twice = LayerPlan.from_sources(12, [index for index in range(12) for _ in range(2)])

    text = shown(replace(report, plan=twice))

    assert text.count("seam below layer") == 8
    assert "and 4 more seams" in text


def test_without_a_log_and_with_a_broken_model_it_still_prints(report):
    broken = replace(report.models[2], loss=Loss((math.nan,) * 3, (100,) * 3))
    stages = (replace(report.stages[0], log=None),)

    text = shown(replace(report, stages=stages, models=(*report.models[:2], broken)))

    assert "No loss curve" in text
    assert "not finite" in text


def dots(character):
    """The dots of a braille character as rows of 0 and 1, by the numbering in the Unicode standard (chapter 21.1)."""
    bits = ord(character) - 0x2800
    numbered = [bits >> index & 1 for index in range(8)]
    return [[numbered[left], numbered[right]] for left, right in ((0, 3), (1, 4), (2, 5), (6, 7))]


def test_a_falling_loss_is_a_falling_line():
    series = Series(tuple(LogPoint(step, 4.0 - step) for step in range(4)), ())

    lines = unicode_chart(series, columns=2, rows=1)

    assert lines == [lines[0]]
    left, right = (dots(character) for character in lines[0])
    assert [a + b for a, b in zip(left, right, strict=True)] == [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
    ]


def test_held_out_losses_are_marked_over_the_line():
    series = Series(tuple(LogPoint(step, 10.0 - step) for step in range(11)), (LogPoint(10, 10.0),))

    lines = unicode_chart(series, columns=10, rows=4)

    assert lines[0][-1] == "●"
    assert [len(line) for line in lines] == [10] * 4


@pytest.mark.parametrize("num_points", [0, 1])
def test_a_curve_of_a_single_point_is_drawn(num_points):
    series = Series((), (LogPoint(5, 2.0),))
    if num_points:
        series = Series((LogPoint(5, 2.0),), ())

    lines = unicode_chart(series, columns=4, rows=2)

    assert sum(character not in " " for line in lines for character in line) == 1


def test_control_characters_are_replaced():
    assert printable("a\x00b\x9bc\td\ne") == "a�b�c�d\ne"
