"""The facts in the sentences; their wording is free."""

import math
import re
from dataclasses import replace

import pytest

from solar_plugins.evaluation.loss import Loss
from solar_plugins.evaluation.measure import PairLogProbs
from solar_plugins.recipe import parse_recipe
from solar_plugins.report.page import template
from solar_plugins.report.training_log import NO_SERIES, LogPoint, Series, TrainingLog


def said(macro, *arguments):
    """What a sentence of the template says, on one line."""
    return " ".join(str(getattr(template("sentences.jinja", autoescape=False).module, macro)(*arguments)).split())


def headline(report):
    return said("headline", report)


def with_loss(model, loss):
    return replace(model, loss=loss)


def with_losses(report, *losses):
    """The report with these losses, all windows alike (so without a standard error)."""
    of_windows = [Loss((100 * nats, 100 * nats), (100, 100)) for nats in losses]
    return replace(report, models=tuple(map(with_loss, report.models, of_windows)))


@pytest.mark.parametrize(
    ("losses", "facts"),
    [
        ((2.5, 3.25, 2.625), ["raised", "from 2.500 to 3.250", "lowered", "from 3.250 to 2.625", "0.125 above"]),
        ((2.5, 3.25, 2.4), ["raised", "from 2.500 to 3.250", "lowered", "from 3.250 to 2.400", "0.100 below the base"]),
        ((2.5, 2.4, 2.6), ["lowered", "from 2.500 to 2.400", "raised", "from 2.400 to 2.600", "0.100 above the base"]),
        ((2.5, 2.5, 2.5), ["left", "at 2.500", "left", "at 2.500", "equal to the base within two standard errors"]),
    ],
)  # fmt: skip
def test_the_headline_says_what_happened(report, losses, facts):
    assert re.search(".*".join(["Upscaling", *facts]), headline(with_losses(report, *losses)))


@pytest.mark.parametrize(
    ("losses", "facts"),
    [
        # Both are 2.500 in three decimals, though 0.0008 apart.
        ((2.4996, 2.5004, 2.4996), ["left", "at 2.500", "left", "at 2.500"]),
        ((2.5, 3.0, 2.5), ["from 3.000 to 2.500", "equal to the base"]),
        ((2.5, 3.0, 2.5001), ["from 3.000 to 2.500", "equal to the base"]),
    ],
)
def test_a_difference_below_three_decimals_is_none(report, losses, facts):
    # Of one window, so that there is no standard error.
    one = [Loss((1000 * nats,), (1000,)) for nats in losses]

    found = headline(replace(report, models=tuple(map(with_loss, report.models, one))))
    assert re.search(".*".join(facts), found)
    assert "standard error" not in found


@pytest.mark.parametrize(
    ("trained", "within"),
    [
        ((105.0, 115.0), False),
        ((101.0, 110.5), False),  # 0.015 above, standard error 0.005.
        ((101.0, 109.2), True),  # 0.002 above, standard error 0.018.
    ],
)
def test_the_headline_says_when_a_difference_is_within_the_error(report, trained, within):
    losses = [Loss(nats, (50, 50)) for nats in ((100.0, 110.0), (200.0, 200.0), trained)]
    noisy = replace(report, models=tuple(map(with_loss, report.models, losses)))

    assert ("within two standard errors" in headline(noisy)) is within


def test_the_headline_names_the_models_that_are_not_finite(report, chain_report):
    base, *others = chain_report.models
    pairs = replace(base, pairs=PairLogProbs((-math.inf,) * 6, (-1.0,) * 6))
    answers = replace(others[-1], answers=Loss((math.nan,), (10,)))

    found = headline(with_losses(report, math.nan, math.inf, math.nan))
    assert found.startswith("Not finite: the held-out loss of base, upscaled, trained.")
    found = headline(replace(chain_report, models=(base, *others[:-1], answers)))
    assert found.startswith("Not finite: the held-out loss of average.")
    found = headline(replace(chain_report, models=(pairs, *others)))
    assert re.match("Not finite: .* pairs of base.", found)


@pytest.mark.parametrize(
    ("log", "recipe"),
    [
        ({"planned_steps": 90}, {}),  # The model may be that of step 90, of which no log was kept.
        ({}, {"load_best_model_at_end": True}),
        ({}, {"early_stopping_patience": 3}),
    ],
)
def test_the_headline_names_no_steps_that_the_model_may_not_have(report, with_stage, log, recipe):
    [stage] = report.stages
    changes = {"log": replace(stage.log, **log), "recipe": stage.recipe.model_copy(update=recipe)}

    assert "40 training steps" in headline(report)
    assert "step" not in headline(with_stage(report, 0, **changes))
    assert "step" not in headline(with_stage(report, 0, log=None))
    assert "1 training step " in headline(with_stage(report, 0, log=replace(stage.log, last_step=1, planned_steps=1)))


def test_the_headline_of_a_chain_has_responses_and_pairs(chain_report):
    found = headline(chain_report)

    assert "sft lowered the loss on held-out responses from 2.750 to 2.000, 1.000 below the base" in found
    assert "average ends at 2.000, equal to sft within two standard errors" in found
    assert re.search(r"6 held-out pairs, sft .* 3, average in 4; .* grew in 1 .*chance: 3.0 ± 1.2", found)


def test_responses_that_changed_after_sft_are_not_called_equal(chain_report):
    *others, last = chain_report.models
    better = replace(last, answers=Loss((180.0,) * 3, (100,) * 3))

    assert "average ends at 1.800. Of 6" in headline(replace(chain_report, models=(*others, better)))


def test_the_last_stage_is_not_compared_with_itself(chain_report):
    conditions = replace(chain_report.conditions, pairs=None)
    short = replace(chain_report, models=chain_report.models[:4], stages=chain_report.stages[:2], conditions=conditions)

    assert headline(short).endswith("from 2.750 to 2.000, 1.000 below the base.")


def test_stages_are_compared_with_the_model_that_they_started_from(chain_report, with_stage):
    # dpo was trained from dus, not from sft; its pairs are compared with dus then.
    other = with_stage(chain_report, 2, began_with="dus")
    # sft from the average: its loss on responses was 2.000 before.
    odd = with_stage(chain_report, 1, began_with="average")

    assert "6 held-out pairs, dus " in headline(other)
    assert re.search("dus's, which for dpo is .*reward accuracy", said("metrics_note", other))
    assert "sft left the loss on held-out responses at 2.000" in headline(odd)


def test_the_note_on_metrics_names_models_that_were_not_trained_on_the_format(chain_report):
    assert "base, upscaled, dus: not trained on that format here." in said("metrics_note", chain_report)
    unknown = tuple(replace(stage, recipe=parse_recipe({})) for stage in chain_report.stages)
    assert "not trained" not in said("metrics_note", replace(chain_report, stages=unknown))
    plain = replace(chain_report.conditions, answers=None, pairs=None)
    assert "chat format" not in said("metrics_note", replace(chain_report, conditions=plain))


@pytest.mark.parametrize("changes", [{"began_with": None}, {"recipe": parse_recipe({"rl": "orpo"})}])
def test_no_share_is_called_reward_accuracy_that_may_not_be_one(chain_report, with_stage, changes):
    assert "reward accuracy" in said("metrics_note", chain_report)
    assert "reward accuracy" not in said("metrics_note", with_stage(chain_report, 2, **changes))


def test_a_stage_says_what_is_wrong_with_its_log(report, with_stage):
    [stage] = report.stages
    short = TrainingLog(Series(stage.log.loss.train, ()), last_step=40, planned_steps=1000, num_not_finite=3)

    def note(log):
        return said("stage_note", replace(stage, log=log))

    assert note(stage.log) == ""
    assert "40 of 1,000" in note(short)
    assert "3 logged losses" in note(short)
    for without in (None, TrainingLog(NO_SERIES, 0, 0, 0)):
        assert all(fact in note(without) for fact in ("No training curve", "save_strategy", "logging_steps"))


def test_the_first_loss_of_dpo_is_compared_with_ln_2(chain_report):
    dpo = chain_report.stages[2]
    every_ten = replace(dpo, log=replace(dpo.log, loss=Series((LogPoint(10, 0.68),), ())))

    assert re.match(r"The first logged loss is 0.6931. .* ln 2 = 0.6931", said("stage_note", dpo))
    assert re.match(r"The first logged loss, .* 10 steps, is 0.6800. ", said("stage_note", every_ten))
    for other in (replace(dpo, recipe=parse_recipe({"rl": "orpo"})), chain_report.stages[1]):
        assert said("stage_note", other) == ""
    assert "ln 2" not in said("stage_note", replace(dpo, log=None))


def test_curves_are_explained_as_far_as_there_are_any(chain_report):
    def note(**series):
        logs = [stage.log and replace(stage.log, **series) for stage in chain_report.stages]
        return said(
            "curves_note", [replace(stage, log=log) for stage, log in zip(chain_report.stages, logs, strict=True)]
        )

    points = (LogPoint(1, 0.5),)
    explained = re.findall(r"(\w+):", note())
    assert explained == ["Training", "Eval", "Reward", "Margin", "Accuracy"]
    assert "Eval:" not in note(loss=Series(points, ()))
    assert "Training:" not in note(loss=Series((), points))
    assert "Accuracy:" not in note(accuracies=NO_SERIES)
    assert "Margin:" not in said("curves_note", chain_report.stages[:2])
    assert said("curves_note", [replace(stage, log=None) for stage in chain_report.stages]) == ""


def test_a_reward_without_a_reference_is_explained_as_such(chain_report):
    dus, sft, dpo, average = chain_report.stages
    orpo = replace(dpo, name="orpo", recipe=parse_recipe({"rl": "orpo"}))

    gained, mean = "over the model that the stage started from", "mean log-probability of a token (orpo: no reference)"
    for stages, expected in (((dpo,), (True, False)), ((orpo,), (False, True)), ((dpo, orpo), (True, True))):
        note = said("curves_note", [dus, sft, *stages, average])
        assert (gained in note, mean in note) == expected
