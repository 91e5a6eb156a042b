import json
import math
from dataclasses import replace

import pytest

from solar_plugins.evaluation.loss import Loss
from solar_plugins.report.figures import to_json


def test_the_json_holds_the_raw_figures(report):
    figures = json.loads(json.dumps(to_json(report), allow_nan=False))

    assert figures["models"]["base"]["nats_per_token"] == pytest.approx(2.5)
    assert figures["models"]["upscaled"]["above_base"] == pytest.approx(0.75)
    assert figures["models"]["trained"]["perplexity"] == pytest.approx(math.exp(2.625))
    assert figures["models"]["trained"]["window_tokens"] == [100, 100, 100]
    assert figures["models"]["base"]["continuations"][0] == "<script>alert(1)</script>"
    assert figures["plan"] == report.plan.to_dict()
    assert figures["loss_curve"]["train"][0] == [1, pytest.approx(2.6 + math.exp(-0.1))]
    assert figures["conditions"]["hardware"] == {"device": "cpu", "dtype": "float32"}
    assert figures["recipe"] == {"path": "recipes/tiny.yml", "text": report.stages[0].recipe.text}


def test_what_is_no_finite_number_is_null_in_the_json(report):
    losses = [Loss((100 * nats,), (100,)) for nats in (2.5, 1000.0, math.nan)]
    models = tuple(replace(model, loss=loss) for model, loss in zip(report.models, losses, strict=True))
    figures = to_json(replace(report, models=models))

    assert figures["models"]["upscaled"]["perplexity"] is None
    assert figures["models"]["trained"]["nats_per_token"] is None
    json.dumps(figures, allow_nan=False)


def test_later_stages_have_figures_of_their_own(chain_report):
    figures = json.loads(json.dumps(to_json(chain_report), allow_nan=False))

    assert list(figures["models"]) == ["base", "upscaled", "dus", "sft", "dpo", "average"]
    sft, dpo, average = figures["later_stages"]
    assert (sft["name"], sft["loss_curve"]["held_out"], sft["loss_curve"]["margins"]) == ("sft", [[4, 2.0]], None)
    assert dpo["loss_curve"]["margins"]["train"] == [[1, 0.0], [2, 0.0125], [3, -0.0125], [4, 0.0375]]
    assert dpo["recipe"] == {"path": "recipes/solar_dpo.yml", "text": "# dpo <i>recipe</i>\n"}
    assert average == {"name": "average", "loss_curve": None, "recipe": None}
    assert figures["recipe"]["path"] == "recipes/solar_dus.yml"
    assert figures["conditions"]["answers"]["size"] == 3


def test_answers_and_pairs_have_their_raw_figures(chain_report):
    figures = to_json(chain_report)["models"]

    assert figures["sft"]["answers"]["nats_per_token"] == pytest.approx(2.0)
    assert figures["sft"]["answers"]["above_base"] == pytest.approx(-1.0)
    pairs = figures["average"]["pairs"]
    assert (pairs["pairs"], pairs["preferred"]) == (6, 4)
    assert pairs["standard_error"] == pytest.approx(math.sqrt(6 / 10 * 4 / 10 / 10))
    assert (pairs["reference"], pairs["gained_on_reference"]) == ("sft", 1)
    assert pairs["rejected_log_probability"] == [-10.0] * 4 + [-8.0] * 2


def test_a_report_on_one_recipe_has_none(report):
    figures = to_json(report)

    assert figures["later_stages"] == []
    assert figures["models"]["base"]["answers"] is figures["models"]["base"]["pairs"] is None
