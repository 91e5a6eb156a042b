import json
import os

import pytest

from solar_plugins.errors import CheckpointError
from solar_plugins.report.trained_models import require_plan, trained_directory
from solar_plugins.upscaling.layer_plan import LayerPlan

PLAN = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])


def write_model(directory, num_layers, **config):
    """A checkpoint as far as it is looked at before it is loaded."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", "num_hidden_layers": num_layers} | config
    (directory / "config.json").write_text(json.dumps(config))
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def test_the_trained_model_is_the_one_in_output_dir(tmp_path):
    write_model(tmp_path, 6)

    assert trained_directory(tmp_path, tmp_path / "r.yml") == tmp_path


def test_a_run_that_has_not_been_is_told_how_to_train(tmp_path):
    # Axolotl writes config.json before the first step.
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(
        CheckpointError, match=r"holds no trained model (.|\n)*accelerate launch -m axolotl.cli.train r.yml"
    ):
        trained_directory(tmp_path, "r.yml")
    with pytest.raises(CheckpointError, match="holds no trained model"):
        trained_directory(tmp_path / "absent", "r.yml")


def test_an_interrupted_run_is_recognised(tmp_path):
    for step, seconds in ((20, 2), (100, 1)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (seconds, seconds))

    with pytest.raises(CheckpointError, match=r"but checkpoint-20: .*auto_resume_from_checkpoints: true"):
        trained_directory(tmp_path, "r.yml")


def test_an_adapter_is_measured_after_merging(tmp_path):
    write_model(tmp_path, 6)
    (tmp_path / "adapter_config.json").write_text("{}")

    with pytest.raises(CheckpointError, match=r"holds a LoRA adapter(.|\n)*axolotl merge-lora r.yml"):
        trained_directory(tmp_path, "r.yml")
    write_model(tmp_path / "merged", 6)
    assert trained_directory(tmp_path, "r.yml") == tmp_path / "merged"


EXPECTED = "but the plan is another"


def test_a_model_of_the_plan_is_the_one_that_is_wanted(tmp_path):
    write_model(tmp_path / "recorded", 6, solar_plugins={"plan": PLAN.to_dict()})
    write_model(tmp_path / "unrecorded", 6)

    for directory in (tmp_path / "recorded", tmp_path / "unrecorded"):
        require_plan(directory, PLAN, "x", EXPECTED)


def test_a_model_of_another_plan_is_refused(tmp_path):
    write_model(tmp_path / "shallow", 4)
    other = LayerPlan.from_sources(4, [0, 1, 2, 3, 2, 3])
    write_model(tmp_path / "other", 6, solar_plugins={"plan": other.to_dict()})

    with pytest.raises(CheckpointError, match=r"^x holds a model of 4 layers, but the plan is another$"):
        require_plan(tmp_path / "shallow", PLAN, "x", EXPECTED)
    with pytest.raises(CheckpointError, match=r"^x holds a model of 6 layers \(4 -> 6 layers: .*\), but the plan"):
        require_plan(tmp_path / "other", PLAN, "x", EXPECTED)


def test_damaged_weights_are_found_before_anything_is_measured(tmp_path):
    write_model(tmp_path, 6)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2])

    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        require_plan(tmp_path, PLAN, "x", EXPECTED)
