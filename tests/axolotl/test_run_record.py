"""What a training run records of itself: its rows and losses by step, and what it ran on."""

import json
import shutil

import pytest
import yaml

TRAIN = ("python", "-m", "axolotl.cli.train", "recipe.yml")


def steps(folder):
    return [json.loads(line) for line in (folder / "solar_run" / "steps-0.jsonl").read_text().splitlines()]


def edit(folder, **keys):
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys))


@pytest.mark.slow
def test_a_run_records_its_rows_and_losses_and_stops_where_it_is_told(training_folder, run_warm):
    edit(training_folder, max_steps=6, logging_steps=2)
    result = run_warm(*TRAIN, cwd=training_folder)
    assert result.returncode == 0, result.stderr
    entire = steps(training_folder / "out")
    assert [step["step"] for step in entire] == [1, 2, 3, 4, 5, 6]
    rows = [row for step in entire for row in step["rows"]]
    assert len(rows) == len(set(rows)) == 12, "two rows a step, of one epoch"
    log = json.loads((training_folder / "out" / "solar_run" / "log.json").read_text())
    logged = {entry["step"]: entry["loss"] for entry in log["log_history"] if "loss" in entry}
    for step in (2, 4, 6):
        assert logged[step] == pytest.approx((entire[step - 2]["loss"] + entire[step - 1]["loss"]) / 2, abs=1e-6)
    run = json.loads((training_folder / "out" / "solar_run" / "run.json").read_text())
    facts = {"processes": 1, "device": "CPU", "precision": "fp32", "steps": 6, "batch_rows": 2}
    assert run.items() >= facts.items()
    for path in (training_folder / "out" / "solar_run").iterdir():
        assert str(training_folder) not in path.read_text()

    shutil.move(training_folder / "out", training_folder / "entire")
    edit(training_folder, save_strategy="epoch")
    result = run_warm(*TRAIN, cwd=training_folder, env={"SOLAR_STOP_AFTER_STEPS": "3"})
    assert result.returncode == 0, result.stderr
    assert steps(training_folder / "out") == entire[:3]
    assert not list((training_folder / "out").glob("checkpoint-*"))
    log = json.loads((training_folder / "out" / "solar_run" / "log.json").read_text())
    assert (log["global_step"], log["max_steps"]) == (3, 6), "the schedule is that of the entire run"
