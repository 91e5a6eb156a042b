import math
from dataclasses import replace

from solar_plugins.evaluation.chat_measures import JudgedPairs
from solar_plugins.evaluation.loss import Loss
from solar_plugins.report.content import above_base, gained, parameters, preferred, share, title


def test_the_title_names_base_and_depths(report):
    assert title(report) == "lab/tiny-<base>: 12 to 16 layers"


def test_figures_against_the_base():
    assert above_base(Loss((3.0,), (2,)), Loss((1.0,), (2,))) == ("+1.000", "")
    assert above_base(Loss((math.nan,), (2,)), Loss((1.0,), (2,))) == ("not finite", "")


def test_few_parameters_are_written_out():
    assert parameters(999) == "999"


def test_models_have_the_colours_of_their_making(report, chain_report):
    assert [role for role, _ in report.rows()] == ["base", "upscaled", "trained"]
    assert [(role, model.name) for role, model in chain_report.rows()][2:] == [
        ("trained", name) for name in ("dus", "sft", "dpo", "average")
    ]


def test_a_share_of_pairs_has_its_error():
    # With two more of either kind 3 of 4 is 5 of 8 (Agresti and Coull): sqrt(5/8 * 3/8 / 8) = 0.171.
    assert share(3, 4) == "75 % ± 17"


def test_pairs_are_compared_with_the_model_before_preference_training(chain_report):
    assert chain_report.pair_reference.name == "sft"
    assert [preferred(model) for model in chain_report.models][3:] == ["50 % ± 16", "100 % ± 13", "67 % ± 15"]
    # Of the made-up models dpo turned 3 pairs of sft, average 1; the other pairs are judged as by sft.
    assert [gained(chain_report, model) for model in chain_report.models] == ["", "", "", "", "50 % ± 16", "17 % ± 14"]


def test_a_broken_judgement_is_no_share(chain_report):
    *others, last = chain_report.models
    broken = replace(last, pairs=JudgedPairs((math.nan,) * 6, (-1.0,) * 6))
    report = replace(chain_report, models=(*others, broken))

    assert preferred(broken) == gained(report, broken) == "not finite"


def test_without_pairs_there_is_nothing_to_compare_with(report):
    assert report.pair_reference is None
