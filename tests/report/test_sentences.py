import math
from dataclasses import replace

import pytest

from solar_plugins.report.loss import Loss
from solar_plugins.report.sentences import (
    curve_note,
    curves_note,
    first_loss,
    headline,
    limits,
    stage_note,
    table_note,
)
from solar_plugins.report.training_log import NO_SERIES, LogPoint, Series, TrainingLog


def with_losses(report, base, upscaled, trained):
    """The report with these losses, all windows alike (so without error of measurement)."""
    losses = [Loss((100 * nats, 100 * nats), (100, 100)) for nats in (base, upscaled, trained)]
    return replace(report, models=tuple(map(with_loss, report.models, losses)))


def with_loss(model, loss):
    return replace(model, loss=loss)


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        (
            (2.5, 3.25, 2.625),
            "Up-scaling raised the held-out loss from 2.500 to 3.250. 40 steps of training lowered it "
            "from 3.250 to 2.625, 0.125 above the base.",
        ),
        (
            (2.5, 3.25, 2.4),
            "Up-scaling raised the held-out loss from 2.500 to 3.250. 40 steps of training lowered it "
            "from 3.250 to 2.400, 0.100 below the base.",
        ),
        (
            (2.5, 2.4, 2.6),
            "Up-scaling lowered the held-out loss from 2.500 to 2.400. 40 steps of training raised it "
            "from 2.400 to 2.600, 0.100 above the base.",
        ),
        (
            (2.5, 2.5, 2.5),
            "Up-scaling left the held-out loss at 2.500. 40 steps of training left it at 2.500, "
            "which is the base's level within the error of measurement.",
        ),
    ],
)
def test_the_headline_tells_what_happened_whichever_way_it_went(report, losses, sentence):
    assert headline(with_losses(report, *losses)) == sentence


def of_losses(report, base, trained):
    upscaled = Loss((200.0, 200.0), (50, 50))
    return replace(report, models=tuple(map(with_loss, report.models, (base, upscaled, trained))))


def test_the_headline_does_not_make_much_of_noise(report):
    base, trained = Loss((100.0, 110.0), (50, 50)), Loss((101.0, 110.5), (50, 50))
    noisy = of_losses(report, base, trained)
    different = of_losses(report, base, Loss((105.0, 115.0), (50, 50)))

    assert "within the error of measurement" not in headline(different)
    assert "within the error of measurement" not in headline(noisy)  # 0.015 above, standard error 0.005.
    tiny = of_losses(report, base, Loss((101.0, 109.2), (50, 50)))
    assert "within the error of measurement" in headline(tiny)  # 0.002 above, standard error 0.018.


def test_the_headline_names_the_model_that_is_broken(report):
    assert headline(with_losses(report, 2.5, 3.0, math.nan)).startswith(
        "The held-out loss of the trained model is no finite"
    )


def test_a_report_without_a_log_still_has_a_headline(report):
    assert " Training lowered it " in headline(replace(report, stages=(replace(report.stages[0], log=None),)))


def test_the_note_says_what_is_wrong_with_the_curve(report):
    log = report.stages[0].log
    short = TrainingLog(Series(log.loss.train, ()), last_step=40, planned_steps=1000, num_not_finite=3)

    assert "No loss curve" in curve_note(None)
    assert "`save_strategy: no`" in curve_note(TrainingLog(NO_SERIES, 0, 0, 0))
    assert "ends at step 40 of 1,000" in curve_note(short)
    assert "3 logged losses were no finite number" in curve_note(short)
    assert "ends at step" not in curve_note(log)
    assert "smoothed" in curve_note(log)
    assert "smoothed" not in curve_note(TrainingLog(Series(log.loss.train[:9], ()), 9, 9, 0))


def test_the_limits_name_the_amount_of_text(report):
    assert "300 tokens" in limits(report)[0]


def test_the_headline_of_a_chain_goes_on_with_answers_and_pairs(chain_report):
    assert headline(chain_report) == (
        "Up-scaling raised the held-out loss from 2.500 to 3.250. 4 steps of training lowered it from 3.250 to 2.625, "
        "0.125 above the base. "
        "sft lowered the loss on held-out answers from 2.750 to 2.000, 1.000 below the base; "
        "average ends at 2.000, as sft within the error of measurement. "
        "Of 6 held-out pairs sft holds the chosen answer to be likelier in 3, average in 4; "
        "in 1 the chosen answer gained on the rejected one, where chance gives 3.0 ± 1.2."
    )


def test_a_change_of_answers_that_is_one_is_not_called_none(chain_report):
    *others, last = chain_report.models
    better = replace(last, answers=Loss((180.0,) * 3, (100,) * 3))

    assert "average ends at 1.800. Of 6 held-out pairs" in headline(replace(chain_report, models=(*others, better)))


def test_the_last_stage_is_not_compared_with_itself(chain_report):
    short = replace(
        chain_report,
        models=chain_report.models[:4],
        stages=chain_report.stages[:2],
        conditions=replace(chain_report.conditions, pairs=None),
    )

    assert headline(short).endswith("lowered the loss on held-out answers from 2.750 to 2.000, 1.000 below the base.")


def test_a_chain_names_the_model_whose_answers_are_broken(chain_report):
    *others, last = chain_report.models
    broken = replace(last, answers=Loss((math.nan,), (10,)))

    assert headline(replace(chain_report, models=(*others, broken))).startswith(
        "The held-out loss of the average model is no finite number"
    )


def test_the_first_loss_of_dpo_stands_beside_ln_2(chain_report):
    dpo = chain_report.stages[2]
    every_ten = replace(dpo, log=replace(dpo.log, loss=Series((LogPoint(10, 0.68),), ())))

    assert first_loss(dpo).startswith("The first loss is 0.6931.")
    assert first_loss(dpo).endswith("ln 2 = 0.6931.")
    assert first_loss(every_ten).startswith("The first logged loss, the mean of 10 steps, is 0.6800.")
    assert first_loss(replace(dpo, recipe={"rl": "orpo"})) == first_loss(chain_report.stages[1]) == ""
    assert first_loss(replace(dpo, log=None)) == ""


def test_a_stage_says_what_is_wrong_with_its_log(chain_report):
    dpo = chain_report.stages[2]
    short = replace(dpo, log=replace(dpo.log, planned_steps=40))

    assert stage_note(dpo) == first_loss(dpo)
    assert stage_note(short) == f"{first_loss(dpo)} The log ends at step 4 of 40."
    assert stage_note(replace(dpo, log=None)).startswith("No loss curve")


def test_the_table_says_who_was_never_trained_on_the_format(chain_report):
    assert "base, up-scaled and dus were not trained on that format here." in table_note(chain_report)
    untold = tuple(replace(stage, recipe={}) for stage in chain_report.stages)
    assert "not trained" not in table_note(replace(chain_report, stages=untold))
    plain = replace(chain_report.conditions, answers=None, pairs=None)
    assert "chat format" not in table_note(replace(chain_report, conditions=plain))


def test_rewards_are_explained_where_there_are_any(chain_report):
    assert "Margin:" in curves_note(chain_report)
    assert "Margin:" not in curves_note(replace(chain_report, stages=chain_report.stages[:2]))


def test_the_limits_of_a_chain_name_its_sets(chain_report):
    found = limits(chain_report)

    assert "300 tokens of one file of text and judge 3 answers and 6 pairs" in found[0]
    assert found[-1].startswith("How much of what comes after dus is better answers")


def test_pairs_are_explained_by_the_model_with_which_they_are_compared(chain_report):
    assert "gained more of it over sft than the rejected one" in table_note(chain_report)
