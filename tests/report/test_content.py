import math

from solar_plugins.report.chat_measures import JudgedPairs
from solar_plugins.report.content import above_base, parameters, preferred, title
from solar_plugins.report.loss import Loss


def test_the_title_names_base_and_depths(report):
    assert title(report) == "lab/tiny-<base>: 12 to 16 layers"


def test_figures_against_the_base():
    assert above_base(Loss((3.0,), (2,)), Loss((1.0,), (2,))) == ("+1.000", "")
    assert above_base(Loss((math.nan,), (2,)), Loss((1.0,), (2,))) == ("not finite", "")


def test_few_parameters_are_written_out():
    assert parameters(999) == "999"


def test_models_have_the_colours_of_their_making(report, chain_report):
    assert [role for role, _ in report.rows()] == ["base", "up-scaled", "trained"]
    assert [(role, model.name) for role, model in chain_report.rows()][2:] == [
        ("trained", name) for name in ("dus", "sft", "dpo", "average")
    ]


def test_a_share_of_pairs_has_its_error():
    # With two more of either kind 3 of 4 is 5 of 8 (Agresti and Coull): sqrt(5/8 * 3/8 / 8) = 0.171.
    assert preferred(JudgedPairs((-1.0, -1.0, -1.0, -3.0), (-2.0, -2.0, -2.0, -2.0))) == "75 % ± 17"
    assert preferred(JudgedPairs((math.nan,), (-2.0,))) == "not finite"
