"""The arithmetic and the page of the recovery step, on made figures."""

import pytest
from gpu_curves import BASE, UPSCALED, best_rate, crossing, curve, loss_at_seconds
from gpu_report import page_text

KINDS = {"wiki[0]": "articles", "numpy": "docstrings"}


def evaluation(step, losses, file="test.jsonl"):
    """A made evaluation: of each document 100 tokens with a loss."""
    documents = {
        name: {"kind": KINDS[name], "nats": 100 * loss, "tokens": 100} for name, loss in zip(KINDS, losses, strict=True)
    }
    return {"step": step, "tokens": 1000 * step, "file": file, "documents": documents}


def made_run(model, losses, rate=1e-4, seed=42, seconds=1.0, validation=None):
    """A run of three steps, measured before and after each; the two documents are 0.1 nats apart."""
    points = [evaluation(step, (loss - 0.1, loss + 0.1)) for step, loss in enumerate(losses)]
    last = losses[-1] if validation is None else validation
    return {
        "model": model,
        "learning_rate": rate,
        "seed": seed,
        "device": "made up",
        "parameters": 1000,
        "step_seconds": [seconds] * 3,
        "step_tokens": [1000, 2000, 3000],
        "evaluations": [*points, evaluation(3, (last, last), "validation.jsonl")],
    }


def made_step(runs):
    settings = {"tiny": False, "seeds": [42, 43], "packages": {}, "driver": None, "python": "3"}
    return {"finished": True, "failures": {}, "settings": settings, "runs": dict(enumerate(runs))}


PASSING = [made_run(BASE, (3.0, 2.9, 2.8, 2.8)), made_run(UPSCALED, (3.5, 3.1, 2.7, 2.6), seconds=2.0)]


def test_the_curves_cross_where_their_difference_is_zero():
    assert crossing(*map(curve, PASSING)) == pytest.approx(1000 + 1000 * 0.2 / 0.3)
    assert crossing(*map(curve, reversed(PASSING))) is None
    assert crossing(curve(PASSING[0], "articles"), curve(PASSING[1], "articles")) == pytest.approx(5000 / 3)


def test_seconds_are_those_of_training():
    assert [point.seconds for point in curve(PASSING[1])] == [0.0, 2.0, 4.0, 6.0]
    assert loss_at_seconds(curve(PASSING[1]), 3.0) == pytest.approx((3.1 + 2.7) / 2)
    assert loss_at_seconds(curve(PASSING[1]), 99.0) == pytest.approx(2.6)


def test_the_best_rate_is_chosen_on_the_validation_documents_alone():
    runs = [
        made_run(BASE, (3.0, 2.0, 2.0, 2.0), rate=1e-4, validation=2.5),
        made_run(BASE, (3.0, 2.0, 2.0, 2.4), rate=3e-4, validation=2.1),
        made_run(BASE, (3.0, 2.0, 2.0, 2.0), rate=9e-4, validation=2.3),
    ]
    assert best_rate(runs, BASE, 42) == (3e-4, False)
    assert best_rate(runs[1:], BASE, 42) == (3e-4, True)
    assert best_rate(runs, UPSCALED, 42) is None


def test_the_page_says_whether_the_base_was_passed():
    text = page_text({"recovery": made_step(PASSING)})
    assert "Seed 42: the upscaled model overtook the base for good after 0.00 M tokens" in text
    assert "0.500 above the base's and ended 0.200 ± 0.000 below it" in text
    assert "training time of 3 s, before the end of its own schedule, it was 0.100 above" in text
    assert "| base | 1e-04 | 42 | 1,000 | 3,000 | 3 s | 3.000 | 2.800 | 2.700 | 2.900 |" in text
    later = [made_run(BASE, (3.0, 2.9, 2.8, 2.8)), made_run(UPSCALED, (3.5, 3.1, 2.9, 2.81))]
    assert "the upscaled model did not overtake the base" in page_text({"recovery": made_step(later)})


def test_a_difference_within_its_error_shows_nothing():
    base, upscaled = made_run(BASE, (3.0, 3.0, 3.0, 3.0)), made_run(UPSCALED, (3.0, 3.0, 3.0, 3.0))
    upscaled["evaluations"][3] = evaluation(3, (2.4, 3.5))  # one document much better, one much worse
    assert "less than two standard errors" in page_text({"recovery": made_step([base, upscaled])})


def test_a_failed_run_and_an_unfinished_step_are_said():
    step = made_step(PASSING[:1]) | {"finished": False, "failures": {"upscaled": "CUDA\nout of memory"}}
    text = page_text({"recovery": step})
    assert "- **upscaled failed**: CUDA out of memory" in text
    assert "This step is not complete." in text
    assert "recovery.png" not in text
