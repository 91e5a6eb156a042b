"""`solar recipes reproduce` with a training that is played: what it says, runs and compares."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from solar_plugins.cli import solar
from solar_plugins.sharing import reproduce as module
from solar_plugins.sharing.bundle import BundleStage, Dataset, Step, Variable, stages_json, write_bundle
from solar_plugins.sharing.reproduce import Here
from solar_plugins.sharing.run_facts import read_run, rows_hash

DUS = {
    "base_model": "${BASE_MODEL}",
    "datasets": [{"path": "${TRAIN}", "type": "completion"}],
    "output_dir": "${DUS}",
    "gradient_accumulation_steps": 2,
    "save_steps": 10,
    "wandb_project": "x",
    "load_best_model_at_end": True,
}
SFT = {"base_model": "${DUS}", "datasets": [{"path": "org/rows", "type": "completion"}], "output_dir": "${SFT}"}
VERSIONS = {"torch": "2.14.1", "transformers": "5.20.1"}
HERE = Here("NVIDIA H100", 4, VERSIONS)
LOSSES = {1: 3.5, 2: 3.25, 3: 3.0}
PIPELINE = {
    "records": "${OUTPUTS}/records",
    "launch": "rm -rf /",
    "stages": [{"name": "dus", "recipe": "recipes/dus.yml"}, {"name": "sft", "recipe": "recipes/sft.yml"}],
}


def write_run(output, losses=LOSSES, rows="row", processes=4, device="NVIDIA H100"):
    """What a training leaves."""
    run = {"processes": processes, "device": device, "precision": "bf16", "steps": 3, "batch_rows": 1, "seed": 1}
    run |= {"train_rows": 9, "eval_rows": None, "versions": VERSIONS, "datasets": []}
    (output / "solar_run").mkdir(parents=True)
    (output / "solar_run" / "run.json").write_text(json.dumps(run))
    for rank in range(processes):
        steps = [{"step": step, "rows": [f"{rows}{step}{rank}"], "loss": loss} for step, loss in losses.items()]
        (output / "solar_run" / f"steps-{rank}.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (output / "model.safetensors").write_bytes(json.dumps(losses).encode())
    (output / "config.json").write_text("{}")


@pytest.fixture
def ran():
    """The commands that were run, each with its environment."""
    return []


@pytest.fixture
def folder(tmp_path, monkeypatch, ran):
    """A bundle of two stages, data, and a training that always gives the losses of the bundle."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    write_run(tmp_path / "before")
    steps = read_run(tmp_path / "before").steps
    make_bundle(tmp_path, steps)

    def train(command, log, lock, environment):
        ran.append((command, environment))
        log.write_text("it trained\n")
        recipe = yaml.safe_load(Path(command[-1]).read_text())
        write_run(Path(recipe["output_dir"]))
        return 0

    monkeypatch.setattr(module, "run_supervised", train)
    monkeypatch.setattr(module, "machine_here", lambda: HERE)
    return tmp_path


def make_bundle(folder, steps, dus=DUS, versions=VERSIONS, **stage):
    files = {"pipeline.yml": yaml.safe_dump(PIPELINE).encode(), "README.md": b"# A card\n"}
    files |= {f"recipes/{name}.yml": yaml.safe_dump(keys).encode() for name, keys in (("dus", dus), ("sft", SFT))}
    rows, sha256 = rows_hash([folder / "train.jsonl"])
    data = {"dus": [Dataset(key="datasets[0]", name="train.jsonl", variable="TRAIN", rows=rows, sha256=sha256)]}
    files |= {
        "steps.json": stages_json({"dus": steps, "sft": steps}),
        "versions.json": stages_json({"dus": versions}),
        "data.json": stages_json(data),
    }
    facts = {"kind": "recipe", "processes": 4, "device": "NVIDIA H100", "precision": "bf16"} | stage
    stages = [
        BundleStage(name="dus", file="recipes/dus.yml", base="${BASE_MODEL}", base_commit="a" * 40, **facts),
        BundleStage(name="sft", file="recipes/sft.yml", base="${DUS}", base_digest="d" * 64, **facts),
    ]
    variables = {
        "BASE_MODEL": Variable(meaning="the base", example="org/base"),
        "TRAIN": Variable(meaning="the rows", example="train.jsonl"),
        "DUS": Variable(meaning="the model", example="outputs/dus", kind="output", producer="dus"),
        "SFT": Variable(meaning="the model", example="outputs/sft", kind="output", producer="sft"),
        "OUTPUTS": Variable(meaning="the folder", example="outputs", kind="output"),
    }
    write_bundle(
        folder / "bundle",
        files,
        name="tiny",
        stages=stages,
        variables=variables,
        pipeline="pipeline.yml",
        replace=True,
    )


def reproduce(*options, base="org/base", rows="train.jsonl"):
    values = (f"--set=BASE_MODEL={base}", f"--set=TRAIN={rows}")
    return CliRunner().invoke(solar, ["recipes", "reproduce", "bundle", *values, *options])


def test_steps_of_each_stage_with_the_schedule_of_the_entire_run(folder, ran):
    result = reproduce("--steps", "2")
    assert result.exit_code == 0, result.output
    (dus, environment), (sft, _) = ran
    assert dus[:4] == ["accelerate", "launch", "--num_processes", "4"], "never the launcher of the bundle"
    assert dus[4:-1] == sft[4:-1] == ["-m", "axolotl.cli.train"]
    assert environment == {"SOLAR_STOP_AFTER_STEPS": "2"}
    recipe = yaml.safe_load((folder / "reproduction" / "recipes" / "dus.yml").read_text())
    assert recipe == {
        "base_model": "org/base",
        "datasets": [{"path": "train.jsonl", "type": "completion"}],
        "output_dir": "reproduction/dus",
        "gradient_accumulation_steps": 2,
        "save_strategy": "no",
    }
    assert "The same packages and devices here" in result.output
    assert "3 losses exactly equal" in result.output
    assert "not compared  the base is not that of the bundle" in result.output


def test_without_steps_checkpoints_and_all_losses_count(folder, ran):
    result = reproduce()
    assert result.exit_code == 0, result.output
    assert result.output.count("3 losses exactly equal") == 2
    assert ran[0][1] == {}
    recipe = yaml.safe_load((folder / "reproduction" / "recipes" / "dus.yml").read_text())
    assert recipe["save_steps"] == 10
    assert "wandb_project" not in recipe


def test_fewer_processes_get_more_accumulation(folder, ran, monkeypatch):
    monkeypatch.setattr(module, "machine_here", lambda: Here("CPU", 1, VERSIONS | {"torch": "2.0"}))
    result = reproduce("--stage", "dus")
    for said in ("processes  4", "device", "CPU", "torch", "2.0", "gradient_accumulation_steps 2 becomes 8"):
        assert said in result.output
    assert ran[0][0][3] == "1"
    recipe = yaml.safe_load((folder / "reproduction" / "recipes" / "dus.yml").read_text())
    assert recipe["gradient_accumulation_steps"] == 8


def test_other_losses_and_rows(folder, monkeypatch):
    def other(losses, rows="row"):
        def train(command, log, lock, environment):
            write_run(Path(yaml.safe_load(Path(command[-1]).read_text())["output_dir"]), losses, rows)
            return 0

        monkeypatch.setattr(module, "run_supervised", train)

    other({1: 3.5, 2: 3.25 * 1.0004, 3: 3.0})
    result = reproduce("--stage", "dus")
    assert result.exit_code == 0, result.output
    assert "3 losses within 0.04 % (at most 0.05 % allowed)" in result.output
    other({1: 3.5, 2: 3.25 * 1.01, 3: 3.0})
    result = reproduce("--stage", "dus", "--output", "second")
    assert result.exit_code == 1
    assert "differ  step 2: 3.25 there, 3.2825 here" in result.output
    other(LOSSES, rows="other")
    result = reproduce("--stage", "dus", "--output", "third")
    assert result.exit_code == 1
    assert "differ  from step 1 on" in result.output


def test_changed_data_and_another_base_are_said_before_the_run(folder, monkeypatch):
    (folder / "other.jsonl").write_text('{"text": "b"}\n{"text": "a"}\n')
    refs = folder / "hub" / "models--org--base" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("b" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    result = reproduce("--stage", "dus", rows="other.jsonl")
    table = result.output.partition("dus: accelerate")[0]
    assert "dus datasets[0] (train.jsonl)  2 rows, hash" in table
    assert "${BASE_MODEL} (aaaaaaaaaaaa)  org/base (bbbbbbbbbbbb)" in table
    result = reproduce("--stage", "dus", "--output", "second", rows="gone.jsonl")
    assert result.exit_code == 1
    assert "TRAIN: gone.jsonl: does not exist; expected the 2 rows of train.jsonl" in result.output


def test_a_stage_that_is_given_is_not_repeated(folder, ran):
    (folder / "finished").mkdir()
    (folder / "finished" / "model.safetensors").write_bytes(b"")
    result = reproduce("--set", "DUS=finished", "--steps", "1")
    assert "dus: given, not repeated" in result.output
    assert len(ran) == 1
    assert "--set DUS" not in result.output


def test_a_stage_without_its_base(folder, ran):
    result = reproduce("--stage", "sft")
    assert result.exit_code == 1
    assert "starts from what stage dus writes, which is not here" in result.output
    assert "nothing was compared" in result.output
    assert ran == []


def test_a_bundle_without_steps(folder, ran):
    make_bundle(folder, [])
    result = reproduce("--stage", "dus")
    assert result.exit_code == 1
    assert "the bundle has no recorded steps" in result.output


def test_code_of_others_is_not_run_without_a_word(folder, ran):
    make_bundle(folder, [Step(step=1, rows=1, sha256="0" * 64, loss=1.0)], DUS | {"plugins": ["evil.Plugin"]})
    result = reproduce("--stage", "dus")
    assert result.exit_code == 1
    assert "evil.Plugin" in result.output
    assert "--trust-code" in result.output
    assert ran == []
    reproduce("--stage", "dus", "--trust-code")
    assert len(ran) == 1


def test_nothing_is_written_outside_the_folder(folder, ran):
    places = {"dataset_prepared_path": "/elsewhere", "logging_dir": "../up", "solar": {"cache_dir": "~/cache"}}
    make_bundle(folder, [], DUS | places | {"output_dir": "/"})
    reproduce("--stage", "dus")
    recipe = yaml.safe_load((folder / "reproduction" / "recipes" / "dus.yml").read_text())
    assert recipe["output_dir"] == "reproduction/dus"
    assert recipe["dataset_prepared_path"] == "reproduction/prepared"
    assert recipe["logging_dir"] == "reproduction/logs"
    assert recipe["solar"] == {"cache_dir": "reproduction/cache"}


def test_a_stage_that_fails(folder, monkeypatch):
    def fail(command, log, lock, environment):
        log.write_text("out of memory\n")
        return 3

    monkeypatch.setattr(module, "run_supervised", fail)
    result = reproduce()
    assert result.exit_code == 1
    assert "stage dus failed with status 3" in result.output
    assert "out of memory" in result.output


def test_arguments(folder, ran):
    for options, said in (
        (("--stage", "dpo"), "no stage is called 'dpo'; its stages: dus, sft"),
        (("--set", "TRAIN"), "expected NAME=VALUE"),
        (("--set", "TRIAN=x"), "did you mean TRAIN?"),
        (("--output", "before"), "before: exists"),
    ):
        result = reproduce(*options)
        assert result.exit_code, options
        assert said in result.output
    result = CliRunner().invoke(solar, ["recipes", "reproduce", "bundle"])
    assert "--set BASE_MODEL=... --set TRAIN=..." in result.output
    result = CliRunner().invoke(solar, ["recipes", "reproduce", "bundle", "--stage", "sft"])
    assert "--set TRAIN" not in result.output, "no other stage's variables"
    assert ran == []
