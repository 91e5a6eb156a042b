import math
from dataclasses import replace

import pytest

from solar_plugins.evaluation.chat_measures import JudgedPairs
from solar_plugins.evaluation.loss import Loss
from solar_plugins.recipe import parse_recipe
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
            "Upscaling raised the held-out loss from 2.500 to 3.250. 40 steps of training lowered it "
            "from 3.250 to 2.625, 0.125 above the base.",
        ),
        (
            (2.5, 3.25, 2.4),
            "Upscaling raised the held-out loss from 2.500 to 3.250. 40 steps of training lowered it "
            "from 3.250 to 2.400, 0.100 below the base.",
        ),
        (
            (2.5, 2.4, 2.6),
            "Upscaling lowered the held-out loss from 2.500 to 2.400. 40 steps of training raised it "
            "from 2.400 to 2.600, 0.100 above the base.",
        ),
        (
            (2.5, 2.5, 2.5),
            "Upscaling left the held-out loss at 2.500. 40 steps of training left it at 2.500, "
            "which is the base's level within the error of measurement.",
        ),
    ],
)
def test_the_headline_tells_what_happened_whichever_way_it_went(report, losses, sentence):
    assert headline(with_losses(report, *losses)) == sentence


@pytest.mark.parametrize(
    ("losses", "end"),
    [
        # Both are 2.500 in three decimals, though 0.0008 apart.
        ((2.4996, 2.5004, 2.4996), "left the held-out loss at 2.500. 40 steps of training left it at 2.500"),
        ((2.5, 3.0, 2.5), "lowered it from 3.000 to 2.500, which is the base's level."),
        ((2.5, 3.0, 2.5001), "lowered it from 3.000 to 2.500, which is the base's level."),
    ],
)
def test_what_three_decimals_do_not_show_is_no_difference(report, losses, end):
    # Of one window, so that there is no standard error.
    one = [Loss((1000 * nats,), (1000,)) for nats in losses]

    assert end in headline(replace(report, models=tuple(map(with_loss, report.models, one))))


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


def test_the_headline_does_not_take_pairs_for_losses(chain_report):
    first, *others = chain_report.models
    broken = replace(first, pairs=JudgedPairs((-math.inf,) * 6, (-1.0,) * 6))

    assert headline(replace(chain_report, models=(broken, *others))) == (
        "What the base model gives for held-out pairs is no finite number: weights or arithmetic are broken."
    )


def test_several_broken_models_are_listed(report):
    assert headline(with_losses(report, math.nan, math.inf, math.nan)).startswith(
        "The held-out loss of the base model, the upscaled model and the trained model is no finite number"
    )


@pytest.mark.parametrize(
    ("log", "recipe"),
    [
        ({"planned_steps": 90}, {}),  # The model may be that of step 90, of which no log was kept.
        ({}, {"load_best_model_at_end": True}),
        ({}, {"early_stopping_patience": 3}),
    ],
)
def test_the_headline_names_no_steps_that_the_model_may_not_have(report, log, recipe):
    [stage] = report.stages
    other = replace(stage, log=replace(stage.log, **log), recipe=stage.recipe.model_copy(update=recipe))

    assert "40 steps of training" in headline(report)
    assert ". Training lowered it " in headline(replace(report, stages=(other,)))


def test_one_step_is_one(report):
    [stage] = report.stages
    short = replace(stage, log=replace(stage.log, last_step=1, planned_steps=1))

    assert ". 1 step of training " in headline(replace(report, stages=(short,)))


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
        "Upscaling raised the held-out loss from 2.500 to 3.250. 4 steps of training lowered it from 3.250 to 2.625, "
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
    assert first_loss(replace(dpo, recipe=parse_recipe({"rl": "orpo"}))) == first_loss(chain_report.stages[1]) == ""
    assert first_loss(replace(dpo, log=None)) == ""


def test_a_stage_says_what_is_wrong_with_its_log(chain_report):
    dpo = chain_report.stages[2]
    short = replace(dpo, log=replace(dpo.log, planned_steps=40))

    assert stage_note(dpo) == first_loss(dpo)
    assert stage_note(short) == f"{first_loss(dpo)} The log ends at step 4 of 40."
    assert stage_note(replace(dpo, log=None)).startswith("No loss curve")


def test_the_table_says_who_was_never_trained_on_the_format(chain_report):
    assert "base, upscaled and dus were not trained on that format here." in table_note(chain_report)
    untold = tuple(replace(stage, recipe=parse_recipe({})) for stage in chain_report.stages)
    assert "not trained" not in table_note(replace(chain_report, stages=untold))
    plain = replace(chain_report.conditions, answers=None, pairs=None)
    assert "chat format" not in table_note(replace(chain_report, conditions=plain))


def test_rewards_are_explained_where_there_are_any(chain_report):
    assert "Margin:" in curves_note(chain_report)
    assert "Margin:" not in curves_note(replace(chain_report, stages=chain_report.stages[:2]))


def with_stage(report, place, **changes):
    stages = list(report.stages)
    stages[place] = replace(stages[place], **changes)
    return replace(report, stages=tuple(stages))


def test_stages_are_compared_with_the_model_that_they_began_with(chain_report):
    # dpo was trained from dus, not from sft; its pairs are compared with dus then.
    other = with_stage(chain_report, 2, began_with="dus")

    assert "Of 6 held-out pairs dus holds" in headline(other)
    assert "gained more of it over dus than the rejected one, for dpo the reward accuracy of DPO." in table_note(other)
    # sft from the average: its loss on answers was 2.000 before.
    odd = with_stage(chain_report, 1, began_with="average")
    assert "sft left the loss on held-out answers at 2.000" in headline(odd)


@pytest.mark.parametrize("changes", [{"began_with": None}, {"recipe": parse_recipe({"rl": "orpo"})}])
def test_no_share_is_called_reward_accuracy_that_may_not_be_one(chain_report, changes):
    assert "for dpo the reward accuracy of DPO" in table_note(chain_report)
    assert "reward accuracy" not in table_note(with_stage(chain_report, 2, **changes))


def test_a_reward_without_a_reference_is_not_explained_by_one(chain_report):
    gained = "over the model that the stage began with"
    orpo = with_stage(chain_report, 2, recipe=parse_recipe({"rl": "orpo"}))
    both = replace(orpo, stages=(*orpo.stages, replace(chain_report.stages[2], name="later")))

    assert gained in curves_note(chain_report)
    assert "Reward: beta times the mean log-probability of a token (dpo: no reference)." in curves_note(orpo)
    assert gained not in curves_note(orpo)
    assert f"{gained}; beta times the mean log-probability of a token (dpo: no reference)." in curves_note(both)


def test_the_note_on_curves_speaks_of_those_that_are_there(chain_report):
    def of(**series):
        logs = [stage.log and replace(stage.log, **series) for stage in chain_report.stages]
        return curves_note(
            replace(
                chain_report,
                stages=tuple(replace(stage, log=log) for stage, log in zip(chain_report.stages, logs, strict=True)),
            )
        )

    points = (LogPoint(1, 0.5),)
    kto = of(accuracies=NO_SERIES)
    assert "Held-out:" in curves_note(chain_report)
    assert "Held-out:" not in of(loss=Series(points, ()))
    assert "Training:" not in of(loss=Series((), points))
    assert "Margin:" in kto
    assert "Accuracy:" not in kto
    assert curves_note(replace(chain_report, stages=tuple(replace(one, log=None) for one in chain_report.stages))) == ""


def test_a_file_that_was_trained_on_is_not_called_held_out(chain_report):
    pairs = {"path": "p.jsonl", "split": "train"}
    trained = with_stage(
        chain_report, 2, recipe=parse_recipe({"rl": "dpo", "datasets": [pairs], "test_datasets": [pairs]})
    )
    other_part = with_stage(
        chain_report,
        2,
        recipe=parse_recipe(
            {"datasets": [pairs | {"split": "train[9:]"}, pairs | {"name": "x"}], "test_datasets": [pairs]}
        ),
    )
    text = with_stage(
        chain_report, 0, recipe=parse_recipe({"pretraining_dataset": [{"path": "./data/held_out.jsonl"}]})
    )

    assert limits(trained)[1] == (
        "What is new to the models in p.jsonl: dpo trained on it. Its figures are not held-out."
    )
    assert limits(text)[1].startswith("What is new to the models in data/held_out.jsonl: dus trained on it.")
    assert not any("trained on it" in limit for limit in limits(chain_report) + limits(other_part))


def test_the_limits_of_a_chain_name_its_sets(chain_report, report):
    found = limits(chain_report)

    assert "Whether the held-out text, answers and pairs are new to the base" in found[1]
    assert "Whether the held-out text is new to the base" in limits(report)[1]
    assert any("one standard error over windows, answers and pairs as if" in limit for limit in found)

    assert "300 tokens of one file of text and judge 3 answers and 6 pairs" in found[0]
    assert found[-1].startswith("How much of what comes after dus is better answers")


def test_pairs_are_explained_by_the_model_with_which_they_are_compared(chain_report):
    assert "gained more of it over sft than the rejected one" in table_note(chain_report)
