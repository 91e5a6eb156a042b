import json
import math
from dataclasses import replace

import pytest

from solar_plugins.report.content import above_base, curve_note, headline, limits, parameters, title, to_json
from solar_plugins.report.loss_curve import LossCurve
from solar_plugins.report.measure import Loss


def with_losses(report, base, upscaled, trained):
    """The report with these losses, all windows alike (so without error of measurement)."""
    losses = [Loss((100 * nats, 100 * nats), (100, 100)) for nats in (base, upscaled, trained)]
    models = [replace(model, loss=loss) for model, loss in zip(report.models, losses, strict=True)]
    return replace(report, base=models[0], upscaled=models[1], trained=models[2])


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


def test_the_headline_does_not_make_much_of_noise(report):
    base, trained = Loss((100.0, 110.0), (50, 50)), Loss((101.0, 110.5), (50, 50))
    noisy = replace(report, base=replace(report.base, loss=base), trained=replace(report.trained, loss=trained))
    different = replace(noisy, trained=replace(report.trained, loss=Loss((105.0, 115.0), (50, 50))))

    assert "within the error of measurement" not in headline(different)
    assert "within the error of measurement" not in headline(noisy)  # 0.015 above, standard error 0.005.
    tiny = replace(noisy, trained=replace(report.trained, loss=Loss((101.0, 109.2), (50, 50))))
    assert "within the error of measurement" in headline(tiny)  # 0.002 above, standard error 0.018.


def test_the_headline_names_the_model_that_is_broken(report):
    assert headline(with_losses(report, 2.5, 3.0, math.nan)).startswith(
        "The held-out loss of the trained model is no finite"
    )


def test_a_report_without_a_log_still_has_a_headline(report):
    assert " Training lowered it " in headline(replace(report, curve=None))


def test_the_title_names_base_and_depths(report):
    assert title(report) == "lab/tiny-<base>: 12 to 16 layers"


def test_figures_against_the_base():
    assert above_base(Loss((3.0,), (2,)), Loss((1.0,), (2,))) == ("+1.000", "")
    assert above_base(Loss((math.nan,), (2,)), Loss((1.0,), (2,))) == ("not finite", "")


def test_few_parameters_are_written_out():
    assert parameters(999) == "999"


def test_the_note_says_what_is_wrong_with_the_curve(report):
    short = LossCurve(report.curve.train, (), last_step=40, planned_steps=1000, num_not_finite=3)

    assert "No loss curve" in curve_note(replace(report, curve=None))
    assert "`save_strategy: no`" in curve_note(replace(report, curve=LossCurve((), (), 0, 0, 0)))
    assert "ends at step 40 of 1,000" in curve_note(replace(report, curve=short))
    assert "3 logged losses were no finite number" in curve_note(replace(report, curve=short))
    assert "ends at step" not in curve_note(report)
    assert "smoothed" in curve_note(report)
    assert "smoothed" not in curve_note(replace(report, curve=LossCurve(report.curve.train[:9], (), 9, 9, 0)))


def test_the_limits_name_the_amount_of_text(report):
    assert "300 tokens" in limits(report)[0]


def test_the_json_holds_the_raw_figures(report):
    figures = json.loads(json.dumps(to_json(report), allow_nan=False))

    assert figures["models"]["base"]["nats_per_token"] == pytest.approx(2.5)
    assert figures["models"]["up-scaled"]["above_base"] == pytest.approx(0.75)
    assert figures["models"]["trained"]["perplexity"] == pytest.approx(math.exp(2.625))
    assert figures["models"]["trained"]["window_tokens"] == [100, 100, 100]
    assert figures["models"]["base"]["continuations"][0] == "<script>alert(1)</script>"
    assert figures["plan"] == report.plan.to_dict()
    assert figures["loss_curve"]["train"][0] == [1, pytest.approx(2.6 + math.exp(-0.1))]
    assert figures["conditions"]["hardware"] == {"device": "cpu", "dtype": "float32"}
    assert figures["recipe"]["text"] == report.recipe_text


def test_what_is_no_finite_number_is_null_in_the_json(report):
    figures = to_json(with_losses(report, 2.5, 1000.0, math.nan))

    assert figures["models"]["up-scaled"]["perplexity"] is None
    assert figures["models"]["trained"]["nats_per_token"] is None
    json.dumps(figures, allow_nan=False)
