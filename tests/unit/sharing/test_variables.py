"""`sharing.variables`: a recipe without what belongs to its machine, otherwise as its author wrote it."""

import pytest
import yaml

from solar_plugins.errors import ArgsError
from solar_plugins.sharing.secrets import Machine
from solar_plugins.sharing.variables import Variables, names_machine

MACHINE = Machine("alicia", "node-17", "/home/alicia", "/scratch/alicia/work")

RECIPE = """\
# A recipe of ours.
# by alicia on node-17
base_model: models/base  # a local folder
tokenizer_config: models/base
plugins: [solar_plugins.SolarPlugin]
wandb_project: alicia-private   # where curves go
wandb_entity: alicia
datasets:
  - {path: rows/train.jsonl, ds_type: json, type: completion}  # the rows
  - path: org/public-rows
    type: alpaca
    split: train
test_datasets: [{path: "rows/alicia_held_out.jsonl", type: completion}]
deepspeed: zero.json
dataset_prepared_path: prepared
output_dir: out
hub_model_id: alicia/model
learning_rate: 1.0e-4  # see /home/alicia/notes.txt
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "rows").mkdir()
    for name in ("rows/train.jsonl", "rows/alicia_held_out.jsonl", "zero.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def variables(**outputs):
    found = Variables(MACHINE)
    for stage, path in outputs.items():
        found.add_output(stage, stage, path, f"the model of {stage}")
    return found


def test_paths_become_variables_and_the_rest_stays(folder):
    found = variables(dus="out")
    text, left_out = found.in_file(RECIPE, "recipe.yml")
    content = yaml.safe_load(text)
    assert content["base_model"] == content["tokenizer_config"] == "${BASE_MODEL}"
    assert content["datasets"][0] == {"path": "${TRAIN}", "ds_type": "json", "type": "completion"}
    assert content["datasets"][1] == {"path": "org/public-rows", "type": "alpaca", "split": "train"}
    assert content["deepspeed"] == "${BUNDLE}/recipes/zero.json"
    assert found.included == {"recipes/zero.json": folder / "zero.json"}
    assert content["dataset_prepared_path"] == "${OUTPUTS}/prepared"
    assert content["output_dir"] == "${DUS}"
    assert content["learning_rate"] == 1e-4
    assert not any(key.startswith(("wandb", "hub")) for key in content)
    for kept in ("# A recipe of ours.", "# a local folder", "# the rows", "learning_rate: 1.0e-4"):
        assert kept in text
    assert "alicia" not in text
    assert "node-17" not in text
    assert "alicia" not in str(found.declared)
    assert set(found.declared) == {"DUS", "BASE_MODEL", "TRAIN", "OUTPUTS", "DATA", "BUNDLE"}
    for said in ("wandb_project", "wandb_entity", "hub_model_id", "comment on line 2", "comment on line 18"):
        assert any(said in one for one in left_out)
    assert len(left_out) == 5


def test_a_later_stage_names_what_an_earlier_one_wrote(folder):
    found = variables(dus="out", sft="out/../sft")
    text, _ = found.in_file(f"base_model: {folder}/out/checkpoint-90\noutput_dir: sft\n", "sft.yml")
    assert yaml.safe_load(text) == {"base_model": "${DUS}/checkpoint-90", "output_dir": "${SFT}"}
    assert found.declared["DUS"].producer == "dus"


def test_a_merge_with_adapters_and_a_command(folder):
    found = variables(dus="out", lora="lora")
    text, _ = found.in_file("models: [{model: out+lora}, {model: org/name}]\nmerge_method: linear\n", "merge.yml")
    assert yaml.safe_load(text)["models"] == [{"model": "${DUS}+${LORA}"}, {"model": "org/name"}]
    text, _ = found.in_file("stages: [{command: 'solar verify out --base models/base'}]\n", "pipeline.yml")
    assert yaml.safe_load(text)["stages"][0]["command"] == "solar verify '${DUS}' --base '${BASE}'"


def test_a_path_that_is_gone_and_a_launch_with_an_account(folder):
    found = variables()
    text, left_out = found.in_file(
        "records: records\nlaunch: srun --account=lab accelerate launch\ncommand: cat /data/x/rows.jsonl\n", "p.yml"
    )
    content = yaml.safe_load(text)
    assert content == {"records": "${OUTPUTS}/records", "launch": "accelerate launch", "command": "cat '${ROWS}'"}
    assert left_out == ("p.yml: launch, which is now accelerate launch",)
    for launch in ("accelerate launch", "torchrun --nproc_per_node 8"):
        assert launch in variables().in_file(f"launch: {launch}\n", "p.yml").text
    assert "python" not in variables().in_file("launch: /opt/bin/python x.py\n", "p.yml").text


def test_the_files_of_a_pipeline(folder):
    text, _ = variables(dus="out").in_file(
        "stages:\n  - {name: dus, recipe: ../x/dus.yml, overrides: {output_dir: out}}\n",
        "p.yml",
        {"../x/dus.yml": "recipes/dus.yml"},
    )
    stage = {"name": "dus", "recipe": "recipes/dus.yml", "overrides": {"output_dir": "${DUS}"}}
    assert yaml.safe_load(text) == {"stages": [stage]}


def test_other_forms_of_yaml(folder):
    text, left_out = variables().in_file(
        "wandb_run_id:\n  - 1\n  - 2\n# kept\nx: 'a # no comment by alicia_x'\ny: |\n  # in a block of alicia\n"
        "base_model: &b models/base\nz: *b\n",
        "r.yml",
    )
    content = yaml.safe_load(text)
    assert content["x"] == "a # no comment by alicia_x", "values are not changed: the check refuses them"
    assert content["z"] == content["base_model"] == "${BASE_MODEL}"
    assert "wandb" not in text
    assert "# kept" in text
    assert left_out == ("r.yml: wandb_run_id",)


def test_files_of_the_same_name_are_both_copied(folder):
    (folder / "other").mkdir()
    (folder / "other/zero.json").write_text("{}")
    found = variables()
    texts = [
        found.in_file(f"deepspeed: {name}\n", "r.yml").text for name in ("zero.json", "other/zero.json", "zero.json")
    ]
    one, two = folder / "zero.json", folder / "other/zero.json"
    assert found.included == {"recipes/zero.json": one, "recipes/zero_2.json": two}
    assert [yaml.safe_load(text)["deepspeed"].rpartition("/")[2] for text in texts] == [
        "zero.json",
        "zero_2.json",
        "zero.json",
    ]


def test_a_variable_of_the_author_is_refused(folder):
    with pytest.raises(ArgsError, match=r"r\.yml: base_model: .*would be a variable"):
        variables().in_file("base_model: ${HOME}/base\n", "r.yml")


@pytest.mark.parametrize("text", ["alicia", "by_alicia_2", "/home/alicia/x", "node-17:8000", "x.node-17.y"])
def test_names_of_the_machine(text):
    assert names_machine(text, MACHINE)
