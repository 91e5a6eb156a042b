import io
import math
from dataclasses import replace

import pytest

from solar_plugins.evaluation.loss import Loss
from solar_plugins.evaluation.measure import PairLogProbs
from solar_plugins.report.page import show_report


def shown(report, width=100, color=None, terminal=False):
    from rich.console import Console

    out = io.StringIO()
    show_report(report, Console(file=out, width=width, color_system=color, force_terminal=terminal))
    return out.getvalue()


def test_the_terminal_has_what_the_page_has(report):
    text = " ".join(shown(report).split())

    for fact in (
        "lab/tiny-<base>: 12 to 16 layers",
        "from 2.500 to 3.250",
        "Held-out text: 300 tokens",
        "upscaled 16 16.0 M 3.250 +0.750 ± 0.000 25.79",
        "trained 40 3.50 → 2.62 3.50 → 2.70",
        "12 -> 16 layers: [0..7] + [4..11]",
        "trained garden & gate",
        "upscaled (nothing: the text ends here)",
        "out/report.html",
        "out/report.json",
    ):
        assert fact in text


def test_a_chain_has_a_row_for_each_model_and_each_stage(chain_report):
    text = " ".join(shown(chain_report).split())

    for fact in (
        "Held-out responses: 3 responses, 300 tokens",
        "sft 16 16.0 M 2.650 +0.150 ± 0.000 14.15",
        "sft 2.000 -1.000 ± 0.000",
        "average 67 % ± 15 17 % ± 14",
        "base, upscaled, dus: not trained on that format here",
        "sft 4 2.75 → 2.00 2.00",
        "dpo 4 0.6931 → 0.6500 0.6500 0.037 1.00",
        "average average says & <i>so</i>",
    ):
        assert fact in text


def test_a_chain_without_responses_pairs_and_logs_does_not_mention_them(chain_report):
    plain = tuple(replace(model, answers=None, pairs=None) for model in chain_report.models)
    conditions = replace(chain_report.conditions, answers=None, pairs=None)
    stages = tuple(replace(stage, log=None) for stage in chain_report.stages)

    text = shown(replace(chain_report, models=plain, conditions=conditions, stages=stages)).partition("The <b>wall")[0]

    assert not any(name in text for name in ("responses", "pairs", "reward"))
    assert text.count("No training curve") == 3


def test_text_of_models_cannot_control_the_terminal(report):
    text = shown(report, color="standard", terminal=True)

    assert "\x1b[31mthe" not in text
    assert "[31mthe the" in text
    assert "[red]1, 2,[/red]" in text
    assert "[bold]16" in text


def test_names_are_not_markup(chain_report, with_stage):
    *others, last = chain_report.models
    odd = replace(chain_report, models=(*others, replace(last, name="mean[bold]")))

    assert shown(odd).count("mean[bold]") == 7  # Twice in the headline, in three tables, before two responses.
    assert "[/x]" in shown(with_stage(odd, 0, name="[/x]"))


def test_a_file_has_no_colors_and_the_same_text_at_any_width(chain_report):
    long = tuple(replace(model, continuations=("word " * 60, "")) for model in chain_report.models)
    long = replace(chain_report, models=long)

    assert shown(long, width=30) == shown(long, width=300)
    assert shown(long).count("word") == 60 * 6
    assert not {"…", "\x1b"} & set(shown(long))


def test_a_narrow_terminal_wraps_prose_and_keeps_tables_whole(report):
    lines = [line.rstrip() for line in shown(report, width=40, terminal=True).splitlines()]

    assert any("3.250  +0.750 ± 0.000       25.79" in line for line in lines)
    [first] = [line for line in lines if line.startswith("Upscaling")]
    assert len(first) <= 40


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_model_still_has_a_row(chain_report, value):
    *others, last = chain_report.models
    broken = replace(last, answers=Loss((value,) * 3, (100,) * 3), pairs=PairLogProbs((math.nan,) * 6, (-1.0,) * 6))

    text = " ".join(shown(replace(chain_report, models=(*others, broken))).split())

    assert text.count("average not finite not finite") == 2
