import io
import math
from dataclasses import replace

import pytest

from solar_plugins.evaluation.chat_measures import JudgedPairs
from solar_plugins.evaluation.loss import Loss
from solar_plugins.report.terminal import show_report


def shown(report, width=100):
    from rich.console import Console

    out = io.StringIO()
    show_report(report, Console(file=out, width=width))
    return out.getvalue()


def test_every_model_has_its_line_and_every_stage_too(chain_report):
    text = " ".join(shown(chain_report).split())

    for words in (
        "layers, text answers 6 pairs: gained model parameters 300 tokens 3, 300 tokens likelier on sft",
        "base 12, 16.0 M 2.500 3.000 50 % ± 16",
        "sft 16, 16.0 M 2.650 2.000 50 % ± 16 +0.150 ± 0.000 -1.000 ± 0.000",
        "average 16, 16.0 M 2.655 2.000 67 % ± 15 17 % ± 14",
        "base, upscaled and dus were not trained on that format here",
        "dpo 4 0.6931 → 0.6500 0.6500 0.037 1.00",
        "sft 4 2.75 → 2.00 2.00",
        "DPO begins at ln 2 = 0.6931.",
        "average average says & <i>so</i>",
        "out/report.json",
    ):
        assert words in text


def test_nothing_is_cut(chain_report):
    long = tuple(replace(model, continuations=("word " * 60, "")) for model in chain_report.models)
    text = shown(replace(chain_report, models=long), width=60)

    assert text.count("word") == 60 * 6
    assert "average   16, 16.0 M           2.655           2.000   67 % ± 15  17 % ± 14" in text


def test_nothing_is_said_of_what_was_not_measured(chain_report):
    plain = tuple(replace(model, answers=None, pairs=None) for model in chain_report.models)
    conditions = replace(chain_report.conditions, answers=None, pairs=None)
    stages = tuple(replace(stage, log=None) for stage in chain_report.stages)

    text = shown(replace(chain_report, models=plain, conditions=conditions, stages=stages))

    assert "answers" not in text.split("The <b>wall")[0]
    assert "pairs" not in text.split("The <b>wall")[0]
    assert "steps" not in text


def test_a_log_that_ends_early_says_so(chain_report):
    first, *others = chain_report.stages
    short = replace(first, log=replace(first.log, planned_steps=40))

    assert "dus 4 of 40 3.25 → 2.62" in " ".join(shown(replace(chain_report, stages=(short, *others))).split())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_model_still_has_a_line(chain_report, value):
    *others, last = chain_report.models
    broken = replace(last, answers=Loss((value,) * 3, (100,) * 3), pairs=JudgedPairs((math.nan,) * 6, (-1.0,) * 6))

    text = " ".join(shown(replace(chain_report, models=(*others, broken))).split())

    assert "average 16, 16.0 M 2.655 not finite not finite not finite +0.155 ± 0.000 not finite" in text


def test_a_name_with_brackets_is_no_markup(chain_report):
    *others, last = chain_report.models
    odd = replace(chain_report, models=(*others, replace(last, name="mean[bold]")))
    closing = tuple(replace(stage, name="[/x]") for stage in chain_report.stages[:1])

    assert shown(odd).count("mean[bold]") == 5  # Twice in the headline, in the table, before two answers.
    assert "[/x]" in shown(replace(odd, stages=closing + chain_report.stages[1:]))
