import json
import os

import pytest

from solar_plugins.errors import ArgsError, CheckpointError
from solar_plugins.recipe import parse_recipe
from solar_plugins.report.inputs import (
    checked_prompts,
    held_out_path,
    read_texts,
    require_plan,
    trained_directory,
)
from solar_plugins.upscaling.layer_plan import LayerPlan

PLAN = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])


def test_the_option_goes_before_the_recipe(tmp_path):
    (tmp_path / "a.jsonl").touch()
    recipe = parse_recipe({"test_datasets": [{"path": str(tmp_path / "a.jsonl")}, {"path": "other"}]})

    assert held_out_path(recipe, None) == tmp_path / "a.jsonl"
    assert held_out_path(recipe, tmp_path / "b.jsonl") == tmp_path / "b.jsonl"


@pytest.mark.parametrize(
    ("recipe", "found"),
    [
        ({}, "test_datasets: missing"),
        ({"test_datasets": []}, "test_datasets: missing"),
        ({"test_datasets": [{"path": "lab/hub-data"}]}, "its first path, 'lab/hub-data', is no file here"),
        ({"test_datasets": ["x"]}, "its first path, None, is no file here"),
    ],
)
def test_a_recipe_without_a_file_of_held_out_text_is_told_how_to_give_one(recipe, found):
    with pytest.raises(ArgsError, match=f"{found}.*--held-out FILE.jsonl"):
        held_out_path(parse_recipe(recipe), None)


def test_texts_are_read_in_order_and_blank_lines_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": " two\\n", "source": "x"}\n', encoding="utf-8")

    assert read_texts(path) == ["one", " two\n"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "row 2: not valid JSON"),
        ('"text"', "row 2: found '\"text\"'; expected a JSON object"),
        ('{"content": "x"}', "row 2: found .*content.*; expected a JSON object"),
        ('{"text": 3}', "row 2: found"),
        ('{"text": " "}', 'row 2: found .*; expected a JSON object with a "text" that is not blank'),
        ('{"text": "a \\ud83d b"}', r"row 2: its text holds '\\ud83d', half of a UTF-16 pair"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + row + "\n")

    with pytest.raises(ArgsError, match=f"a.jsonl, {message}"):
        read_texts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl: empty"),
        ("a.jsonl", b"\n \n", "a.jsonl: empty"),
        ("a.jsonl", b'{"text": "\xff"}', "a.jsonl: the held-out text is not UTF-8"),
        ("a.txt", b"text", "a.txt: expected held-out text as .jsonl"),
        ("a.jsonl", None, r"a.jsonl: the held-out text cannot be read \(No such file"),
    ],
)
def test_a_file_that_holds_no_texts_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(ArgsError, match=message):
        read_texts(tmp_path / name)


def test_prompts_are_those_given_or_the_beginnings_of_three_texts():
    texts = ["a  short\ntext", "b " * 40, "c", "d"]

    assert checked_prompts(["mine", "and mine"], texts) == ("mine", "and mine")
    assert checked_prompts([], texts) == ("a short text", " ".join(["b"] * 12), "c")


def test_a_blank_prompt_is_refused():
    with pytest.raises(ArgsError, match="prompt 2: ' ' is blank"):
        checked_prompts(["x", " "], [])


def test_a_prompt_that_was_no_utf_8_is_refused():
    with pytest.raises(ArgsError, match=r"prompt 1: holds '\\udcff', half of"):
        checked_prompts([b"caf\xff".decode("utf-8", "surrogateescape")], [])


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
