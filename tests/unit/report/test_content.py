import json
import math
from dataclasses import replace

import pytest

from solar_plugins.evaluation.loss import Loss
from solar_plugins.recipe import parse_recipe
from solar_plugins.report.content import above_base, parameters, share, to_json


def test_the_title_names_base_and_depths(report):
    assert report.title == "lab/tiny-<base>: 12 to 16 layers"


def test_losses_against_the_base():
    assert above_base(Loss((3.0,), (2,)), Loss((1.0,), (2,))) == "+1.000"
    assert above_base(Loss((math.nan,), (2,)), Loss((1.0,), (2,))) == "not finite"


def test_few_parameters_are_written_out():
    assert parameters(999) == "999"


def test_models_have_roles(chain_report):
    assert chain_report.roles == ("base", "upscaled", "trained", "trained", "trained", "trained")


def test_one_recipe_has_metrics_on_text_alone(report):
    [text] = report.metrics()

    assert (text.data, text.size) == ("text", "300 tokens")
    assert dict(zip(text.headings, text.rows[1], strict=True)) == {
        "model": "upscaled",
        "layers": "16",
        "parameters": "16.0 M",
        "nats/token": "3.250",
        "vs. base": "+0.750 ± 0.000",
        "perplexity": "25.79",  # exp(3.25)
    }
    assert text.rows[0][4] == ""


def test_a_chain_has_metrics_on_responses_and_pairs_too(chain_report):
    text, responses, pairs = chain_report.metrics()

    assert responses.size == "3 responses, 300 tokens"
    assert responses.rows[3] == ["sft", "2.000", "-1.000 ± 0.000"]
    assert list(responses.losses) == pytest.approx([3.0, 3.5, 2.75, 2.0, 2.0, 2.0])
    assert (pairs.size, pairs.losses) == ("6 pairs", ())
    assert pairs.headings == ["model", "chosen more likely", "margin up vs. sft"]
    # In this synthetic report dpo flipped 3 pairs of sft and average 1; for the other pairs they agree with sft.
    assert pairs.rows[3:] == [
        ["sft", "50 % ± 16", ""],
        ["dpo", "100 % ± 13", "50 % ± 16"],
        ["average", "67 % ± 15", "17 % ± 14"],
    ]
    assert len(text.rows) == 6


def test_a_share_of_pairs_has_its_error():
    # With two more of either kind 3 of 4 is 5 of 8 (Agresti and Coull): sqrt(5/8 * 3/8 / 8) = 0.171.
    assert share(3, 4) == "75 % ± 17"


def test_pairs_that_are_not_finite_have_no_share(broken_report):
    *_, pairs = broken_report.metrics()
    assert pairs.rows[-1] == ["average", "not finite", "not finite"]


def test_without_pairs_there_is_no_reference(report):
    assert report.pair_reference is None


def test_a_held_out_file_that_was_trained_on_is_found(chain_report, with_stage):
    pairs = {"path": "p.jsonl", "split": "train"}
    trained = with_stage(chain_report, 2, recipe=parse_recipe({"datasets": [pairs], "test_datasets": [pairs]}))
    other_part = [pairs | {"split": "train[9:]"}, pairs | {"name": "x"}]
    not_trained = with_stage(chain_report, 2, recipe=parse_recipe({"datasets": other_part, "test_datasets": [pairs]}))
    text = with_stage(
        chain_report, 0, recipe=parse_recipe({"pretraining_dataset": [{"path": "./data/held_out.jsonl"}]})
    )

    assert trained.trained_on == {"p.jsonl": ["dpo"]}
    assert text.trained_on == {"data/held_out.jsonl": ["dus"]}
    assert chain_report.trained_on == not_trained.trained_on == {}


def test_the_json_has_the_raw_metrics(report):
    found = json.loads(json.dumps(to_json(report), allow_nan=False))

    assert found["models"]["base"]["nats_per_token"] == pytest.approx(2.5)
    assert found["models"]["upscaled"]["above_base"] == pytest.approx(0.75)
    assert found["models"]["trained"]["perplexity"] == pytest.approx(math.exp(2.625))
    assert found["models"]["trained"]["window_tokens"] == [100, 100, 100]
    assert found["models"]["base"]["continuations"][0] == "<script>alert(1)</script>"
    assert found["plan"] == report.plan.to_dict()
    assert found["loss_curve"]["train"][0] == [1, pytest.approx(2.6 + math.exp(-0.1))]
    assert found["conditions"]["hardware"] == {"device": "cpu", "dtype": "float32"}
    assert found["recipe"] == {"path": "recipes/tiny.yml", "text": report.stages[0].recipe.text}
    assert found["later_stages"] == []
    assert found["models"]["base"]["answers"] is found["models"]["base"]["pairs"] is None


def test_what_is_not_finite_is_null_in_the_json(report):
    losses = [Loss((100 * nats,), (100,)) for nats in (2.5, 1000.0, math.nan)]
    models = tuple(replace(model, loss=loss) for model, loss in zip(report.models, losses, strict=True))
    found = to_json(replace(report, models=models))

    assert found["models"]["upscaled"]["perplexity"] is None
    assert found["models"]["trained"]["nats_per_token"] is None
    json.dumps(found, allow_nan=False)


def test_the_json_of_a_chain_has_every_stage_with_its_raw_metrics(chain_report):
    found = json.loads(json.dumps(to_json(chain_report), allow_nan=False))

    assert list(found["models"]) == ["base", "upscaled", "dus", "sft", "dpo", "average"]
    sft, dpo, average = found["later_stages"]
    assert (sft["name"], sft["loss_curve"]["held_out"], sft["loss_curve"]["margins"]) == ("sft", [[4, 2.0]], None)
    assert dpo["loss_curve"]["margins"]["train"] == [[1, 0.0], [2, 0.0125], [3, -0.0125], [4, 0.0375]]
    assert dpo["recipe"] == {"path": "recipes/solar_dpo.yml", "text": "# dpo <i>recipe</i>\n"}
    assert average == {"name": "average", "loss_curve": None, "recipe": None}
    assert found["recipe"]["path"] == "recipes/solar_dus.yml"
    assert found["conditions"]["answers"] == {
        "stage": "sft",
        "sets": ["test_datasets[0] (a.jsonl) as alpaca: 5 rows read, 3 kept, 2 dropped"],
        "size": 3,
    }
    assert found["models"]["sft"]["answers"]["above_base"] == pytest.approx(-1.0)
    pairs = found["models"]["average"]["pairs"]
    assert (pairs["pairs"], pairs["preferred"]) == (6, 4)
    assert pairs["standard_error"] == pytest.approx(math.sqrt(6 / 10 * 4 / 10 / 10))
    assert (pairs["reference"], pairs["gained_on_reference"]) == ("sft", 1)
    assert pairs["rejected_log_probability"] == [-10.0] * 4 + [-8.0] * 2
