"""The arithmetic and the page of the recovery step, on made figures."""

import json
from types import SimpleNamespace

import pytest
from gpu_curves import best_rate, best_runs, crossing, curve, mean_curve
from gpu_picture import COLORS
from gpu_recovery import ORDER
from gpu_report import page_text, write_report
from study_arms import BASE, EQUAL_COMPUTE, SOLAR, STEPS, arms

KINDS = {"wiki[0]": "articles", "numpy": "docstrings"}


def evaluation(step, losses, file="test.jsonl"):
    """A made evaluation: of each document 100 tokens with a loss."""
    documents = {
        name: {"kind": KINDS[name], "nats": 100 * loss, "tokens": 100} for name, loss in zip(KINDS, losses, strict=True)
    }
    return {"step": step, "tokens": 1000 * step, "order_sha256": "", "file": file, "documents": documents}


def made_run(arm, losses, rate=1e-4, seed=42, validation=None):
    """A run measured before and after each step; the two documents are 0.1 nats apart."""
    points = [evaluation(step, (loss - 0.1, loss + 0.1)) for step, loss in enumerate(losses)]
    last = losses[-1] if validation is None else validation
    return {
        "arm": arm,
        "learning_rate": rate,
        "seed": seed,
        "device": "made up",
        "num_layers": 48,
        "parameters": 2_000_000,
        "trained_parameters": 1_000_000,
        "step_tokens": [1000 * step for step in range(1, len(losses))],
        "evaluations": [*points, evaluation(len(losses) - 1, (last, last), "validation.jsonl")],
    }


def made_step(runs):
    settings = {"tiny": False, "seeds": [42, 43], "packages": {}, "driver": None, "python": "3",
                "recovery_batch": 2, "sequence_tokens": 500}  # fmt: skip
    return {"finished": True, "failures": {}, "settings": settings, "runs": dict(enumerate(runs))}


PASSING = [made_run(BASE, (3.0, 2.9, 2.8, 2.8)), made_run(SOLAR, (3.5, 3.1, 2.7, 2.6))]


def row(text, arm):
    (found,) = [line for line in text.splitlines() if line.startswith(f"| {arm} | 48 |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_curves_cross_where_their_difference_is_zero():
    assert crossing(*map(curve, PASSING)) == pytest.approx(1000 + 1000 * 0.2 / 0.3)
    assert crossing(*map(curve, reversed(PASSING))) is None
    assert crossing(curve(PASSING[0], "articles"), curve(PASSING[1], "articles")) == pytest.approx(5000 / 3)


def test_the_best_rate_is_chosen_on_the_validation_documents_alone():
    runs = [
        made_run(BASE, (3.0, 2.0, 2.0, 2.0), rate=1e-4, validation=2.5),
        made_run(BASE, (3.0, 2.0, 2.0, 2.4), rate=3e-4, validation=2.1),
        made_run(BASE, (3.0, 2.0, 2.0, 2.0), rate=9e-4, validation=2.3),
        made_run(BASE, (3.0, 2.0, 2.0, 2.0), rate=3e-4, seed=43),
        made_run(BASE, (3.0, 2.0, 2.0, 2.0), rate=9e-4, seed=43),
    ]
    assert best_rate(runs, BASE, 42) == (3e-4, (1e-4, 3e-4, 9e-4))
    assert best_rate(runs, SOLAR, 42) is None
    assert best_runs(runs, (42, 43)) == {BASE: {42: runs[1], 43: runs[3]}}


def test_a_mean_is_over_the_seeds_of_each_document():
    runs = {42: made_run(BASE, (3.0, 2.0)), 43: made_run(BASE, (4.0, 3.0), seed=43)}
    points = mean_curve(runs, (42, 43))
    assert [point.loss.nats_per_token for point in points] == pytest.approx([3.5, 2.5])
    assert points[1].loss.window_nats == pytest.approx((260.0, 240.0))  # numpy, wiki[0]
    assert mean_curve(runs, (42,)) == curve(runs[42])


def test_the_page_says_whether_the_base_was_passed():
    text = page_text({"recovery": made_step(PASSING)})
    assert row(text, SOLAR)[3:] == ["1e-04 (1e-04)", "3.500", "2.600", "-0.200 ± 0.000", "", "0.00 M tokens"]
    assert row(text, BASE)[4:] == ["3.000", "2.800", "", "+0.200 ± 0.000", ""]
    assert f"| {BASE} | 1e-04 | 42 | 3,000 | 3.000 | 2.800 | 2.700 | 2.900 |" in text
    later = [made_run(BASE, (3.0, 2.9, 2.8, 2.8)), made_run(SOLAR, (3.5, 3.1, 2.9, 2.81))]
    assert row(page_text({"recovery": made_step(later)}), SOLAR)[-1] == "never"


def test_a_difference_is_over_the_seeds_that_both_arms_have():
    runs = [
        *PASSING,
        made_run(BASE, (3.0, 2.9, 2.8, 2.6), seed=43),
        made_run(SOLAR, (3.5, 3.1, 2.7, 2.8), seed=43),
        made_run(EQUAL_COMPUTE, (3.0, 2.9, 2.8, 2.8, 2.7)),
    ]
    runs[3]["evaluations"][3] = evaluation(3, (2.5, 3.1))  # the two documents differ
    text = page_text({"recovery": made_step(runs)})
    assert row(text, SOLAR)[5:7] == ["2.600, 2.800", "+0.000 ± 0.100"]
    assert row(text, EQUAL_COMPUTE)[5:] == ["2.700", "-0.100 ± 0.000", "+0.100 ± 0.000", ""]


def test_every_arm_has_a_place_and_a_color(monkeypatch):
    sizes = SimpleNamespace(size=SimpleNamespace(parameters=3), base_size=SimpleNamespace(parameters=2))
    monkeypatch.setattr("study_arms.plan_for_base", lambda *_: sizes)
    found = arms(2, "base")
    assert {arm.name for arm in found} == set(ORDER) == set(COLORS)
    assert {arm.name: arm.steps for arm in found} == dict.fromkeys(ORDER, STEPS) | {EQUAL_COMPUTE: 1.5 * STEPS}


def test_notes_written_by_hand_are_on_the_page(tmp_path):
    (tmp_path / "recovery.json").write_text(json.dumps(made_step(PASSING)))
    (tmp_path / "notes.txt").write_text("One machine.")
    text = write_report(tmp_path).read_text()
    assert text.index("# On a GPU") < text.index("One machine.") < text.index("## Recovery")
    assert (tmp_path / "recovery.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_run_and_an_unfinished_step_are_said():
    step = made_step(PASSING[:1]) | {"finished": False, "failures": {"upscaled": "CUDA\nout of memory"}}
    text = page_text({"recovery": step})
    assert "- **upscaled failed**: CUDA out of memory" in text
    assert "This step is not complete." in text
    assert "recovery.png" not in text
