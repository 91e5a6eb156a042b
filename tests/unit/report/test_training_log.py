import json
import math
import os

import pytest

from solar_plugins.errors import SolarError
from solar_plugins.report.training_log import LogPoint, Series, TrainingLog, read_training_log, smoothed, training_log


def write_state(path, history, seconds, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = max((entry["step"] for entry in history), default=0)
    path.write_text(json.dumps({"global_step": steps, "max_steps": 60, "log_history": history} | fields))
    os.utime(path, (seconds, seconds))


def losses(*values):
    return [{"step": step, "loss": value} for step, value in enumerate(values, start=1)]


def test_a_log_of_axolotl_is_read():
    # Entries as Axolotl 0.21 wrote them on a CPU; the summary at the end has no loss of a step.
    history = [
        {"epoch": 0, "eval_loss": 4.855163, "eval_ppl": 128.4, "eval_runtime": 1.27, "step": 0},
        {
            "epoch": 0.0125,
            "grad_norm": 1.5,
            "learning_rate": 0.0,
            "loss": 4.9,
            "ppl": 134.3,
            "step": 1,
            "tokens/total": 1024,
        },
        {"epoch": 0.025, "loss": 4.8, "step": 2},
        {"epoch": 0.025, "eval_loss": 4.774343, "step": 2},
        {"epoch": 0.025, "step": 2, "train_loss": 4.85, "train_runtime": 45.0},
    ]

    log = training_log({"global_step": 2, "max_steps": 60, "log_history": history})

    assert log == TrainingLog(
        loss=Series((LogPoint(1, 4.9), LogPoint(2, 4.8)), (LogPoint(0, 4.855163), LogPoint(2, 4.774343))),
        last_step=2,
        planned_steps=60,
        num_not_finite=0,
    )


def test_losses_that_are_not_finite_are_counted_and_left_out(tmp_path):
    write_state(tmp_path / "checkpoint-3" / "trainer_state.json", losses(3.0, math.nan, math.inf), 100)

    log = read_training_log(tmp_path)

    assert log.loss.train == (LogPoint(1, 3.0),)
    assert log.num_not_finite == 2


def test_the_log_written_last_counts_not_that_of_an_earlier_run(tmp_path):
    write_state(tmp_path / "checkpoint-4" / "trainer_state.json", losses(9.0, 8.0, 7.0, 6.0), 100)
    write_state(tmp_path / "checkpoint-1" / "trainer_state.json", losses(3.0), 200)
    write_state(tmp_path / "checkpoint-2" / "trainer_state.json", losses(3.0, 2.0), 300)

    assert read_training_log(tmp_path).loss.train == (LogPoint(1, 3.0), LogPoint(2, 2.0))


def test_a_longer_log_of_the_same_run_is_found_though_copying_mixed_up_the_times(tmp_path):
    write_state(tmp_path / "checkpoint-100" / "trainer_state.json", losses(3.0, 2.0, 1.0), 100)
    write_state(tmp_path / "checkpoint-50" / "trainer_state.json", losses(3.0, 2.0), 200)

    assert len(read_training_log(tmp_path).loss.train) == 3


def test_of_equal_logs_that_of_the_later_step_counts(tmp_path):
    # With logging_steps 10 and a checkpoint after 12 and after 15 steps, both hold what was logged at step 10.
    logged = [{"step": 10, "loss": 3.0}]
    write_state(tmp_path / "checkpoint-12" / "trainer_state.json", logged, 100, global_step=12)
    write_state(tmp_path / "checkpoint-15" / "trainer_state.json", logged, 200, global_step=15)

    assert read_training_log(tmp_path).last_step == 15


def test_a_log_next_to_the_final_model_is_read(tmp_path):
    write_state(tmp_path / "trainer_state.json", losses(3.0), 100)

    assert read_training_log(tmp_path).loss.train == (LogPoint(1, 3.0),)


def test_a_run_without_a_log_has_no_curve(tmp_path):
    assert read_training_log(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"log_history": [1]}', r"log_history is \[1\], expected"),
        ('{"log_history": [{"step": "x", "loss": 1.0}]}', r"step of log_history\[0\] is 'x', expected a number"),
        ('{"log_history": [{"step": NaN, "loss": 1.0}]}', r"step of log_history\[0\] is nan, expected a number"),
        ('{"log_history": [{"step": 1, "eval_loss": null}]}', r"eval_loss of log_history\[0\] is None, expected"),
        ('{"log_history": [{"step": 1, "rewards/margins": [1]}]}', r"margins of log_history\[0\] is \[1\], expected"),
        (f'{{"log_history": [{{"step": 1, "loss": 1{"0" * 400}}}]}}', r"loss of log_history\[0\] is 1000"),
        ('{"log_history": [], "global_step": "9"}', "global_step is '9', expected a number of steps"),
        ('{"log_history": [], "max_steps": Infinity}', "max_steps is inf, expected a number of steps"),
    ],
)
def test_a_damaged_log_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "trainer_state.json").write_text(content)

    with pytest.raises(SolarError, match=f"trainer_state.json: .*{message}"):
        read_training_log(tmp_path)


def test_few_points_are_not_smoothed_and_many_keep_their_steps():
    few = [LogPoint(step, 1.0) for step in range(29)]
    many = [LogPoint(step, float(step)) for step in range(240)]

    assert smoothed(few) is few
    assert [point.step for point in smoothed(many)] == list(range(240))
    assert smoothed(many)[100].value == pytest.approx(100.0)  # The mean of a straight line's neighbors is on the line.
