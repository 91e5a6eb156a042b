"""`solar recipes share`: what a bundle of a finished run has, what it never has, and how it gets to the Hub."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from click.testing import CliRunner

from solar_plugins.cli import solar
from solar_plugins.errors import ArgsError, SolarError
from solar_plugins.sharing import secrets
from solar_plugins.sharing.bundle import read_bundle
from solar_plugins.sharing.check import check
from solar_plugins.sharing.run_facts import MAX_CURVE_POINTS, read_run, rows_hash
from solar_plugins.sharing.schemas import Answers
from solar_plugins.sharing.secrets import Machine
from solar_plugins.sharing.share import build, find_run
from solar_plugins.sharing.show import show
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.provenance import provenance

MACHINE = Machine("alicia", "node-17", "/home/alicia", "/scratch/alicia/work")
TOKEN = "hf_" + "aB3dE6gH9j" * 4

RECIPE = """\
# A tiny model, upscaled.
base_model: base
plugins: [solar_plugins.SolarPlugin]
solar:
  init: {strategy: dus, drop_layers: 2}
datasets:
  - {path: rows/train.jsonl, type: solar_plugins.alpaca}
  - {path: org/public-rows, type: alpaca, revision: v1}
test_datasets: [{path: rows/held_out.jsonl, type: completion, split: train}]
output_dir: out
dataset_prepared_path: prepared
sequence_len: 128
max_steps: 3
learning_rate: 1.0e-4
seed: 1
"""

RUN = {
    "format": 1,
    "processes": 2,
    "device": "NVIDIA H100",
    "precision": "bf16",
    "steps": 3,
    "batch_rows": 2,
    "seed": 1,
    "train_rows": 20,
    "eval_rows": 4,
    "versions": {"axolotl": "0.21.0", "torch": "2.14.1"},
    "datasets": [
        {
            "key": "datasets[0]",
            "formatter": "alpaca",
            "rows": 3,
            "rows_kept": 2,
            "examples": 2,
            "truncated": 0,
            "dropped": {"instruction is empty": 1},
        }
    ],
}
HISTORY = [
    {"step": 1, "loss": 3.5, "learning_rate": 1e-4},
    {"step": 2, "loss": 3.25, "eval_loss": 3.4},
    {"step": 3, "loss": 3.0, "eval_loss": 3.125},
    {"step": 3, "train_runtime": 12.5},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A finished run, with the paths of a machine wherever a run leaves them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(secrets, "this_machine", lambda: MACHINE)
    monkeypatch.setattr("solar_plugins.sharing.variables.this_machine", lambda: MACHINE)
    (tmp_path / "recipe.yml").write_text(RECIPE)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 3)
    (tmp_path / "rows" / "held_out.jsonl").write_text('{"text": "a"}\n' * 4)
    out = tmp_path / "out"
    (out / "solar_run").mkdir(parents=True)
    plan = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
    (out / "config.json").write_text(json.dumps(provenance("base", None, plan)))
    (out / "model.safetensors").write_bytes(b"weights")
    write(out / "solar_run" / "run.json", RUN)
    write(out / "solar_run" / "log.json", {"global_step": 3, "max_steps": 3, "log_history": HISTORY})
    for rank in (0, 1):
        steps = [{"step": step, "rows": [f"{rank}{step:015d}"], "loss": 3.0 + rank} for step in (1, 2, 3)]
        lines = [json.dumps(step) + "\n" for step in ({"step": 2, "rows": ["old"], "loss": 1.0}, *steps)]
        (out / "solar_run" / f"steps-{rank}.jsonl").write_text("".join(lines))
    return tmp_path


def write(path, content):
    path.write_text(json.dumps(content))


def edit(folder, text="", **keys):
    """Change keys of the recipe, and add text at its end."""
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys, sort_keys=False) + text)


def shared(folder, name="bundle", **options):
    return build(find_run(Path("recipe.yml")), folder / name, "me/tiny", **options)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(*arguments):
    return CliRunner().invoke(solar, ["recipes", "share", "recipe.yml", "--to", "me/tiny", *arguments])


class TestContent:
    def test_what_a_bundle_has(self, folder):
        bundle = shared(folder).bundle
        (stage,) = bundle.manifest.stages
        assert (stage.name, stage.steps, stage.processes, stage.device) == ("recipe", 3, 2, "NVIDIA H100")
        assert stage.base == "${BASE_MODEL}"
        assert stage.base_digest
        assert bundle.versions["recipe"] == RUN["versions"]
        assert bundle.plans["recipe"].plan == LayerPlan.from_sources(8, [*range(6), *range(2, 8)]).to_dict()
        first, hub, test = bundle.data["recipe"]
        assert (first.variable, first.rows, first.rows_kept, first.dropped) == (
            "TRAIN",
            3,
            2,
            {"instruction is empty": 1},
        )
        assert (hub.name, hub.revision, hub.sha256) == ("org/public-rows", "v1", None)
        assert (test.rows, test.sha256) == (4, rows_hash([folder / "rows" / "held_out.jsonl"])[1])
        values = {metric.name: (metric.value, metric.step) for metric in bundle.metrics["recipe"]}
        expected = {"train_loss": (3.0, 3), "eval_loss": (3.125, 3), "first_eval_loss": (3.4, 2)}
        assert values == expected | {"train_seconds": (12.5, 3)}
        assert all("bf16 on 2 x NVIDIA H100" in metric.how for metric in bundle.metrics["recipe"])
        assert (folder / "bundle" / "curves.csv").read_text().splitlines()[2:4] == [
            "recipe,2,3.25,3.4,,,,",
            "recipe,3,3.0,3.125,,,,",
        ]
        assert {"pictures/plan-recipe.png", "pictures/loss-recipe.png"} <= set(bundle.manifest.files)

    def test_a_step_has_the_rows_and_the_mean_loss_of_all_processes(self, folder):
        steps = shared(folder, pictures=False).bundle.steps["recipe"]
        assert [(step.step, step.rows, step.loss) for step in steps] == [(1, 2, 3.5), (2, 2, 3.5), (3, 2, 3.5)]
        rows = "\n".join([f"0{2:015d}", f"1{2:015d}"])
        assert steps[1].sha256 == hashlib.sha256(rows.encode()).hexdigest(), "the last record of a step counts"

    def test_the_same_run_gives_the_same_bytes(self, folder):
        shared(folder, "first")
        for path in (*folder.glob("out/**/*"), *folder.glob("rows/*")):
            os.utime(path)
        shared(folder, "second")
        assert files(folder / "first") == files(folder / "second")
        assert len(files(folder / "first")) == 11

    def test_a_long_run_stays_small(self, folder):
        history = [
            {"step": step, "loss": 3.123456789, "learning_rate": 1e-4, "grad_norm": 1.0} for step in range(30_000)
        ]
        history[777]["eval_loss"] = 3.0
        write(folder / "out" / "solar_run" / "log.json", {"global_step": 3, "max_steps": 3, "log_history": history})
        shared(folder, pictures=False)
        rows = (folder / "bundle" / "curves.csv").read_text().splitlines()
        assert MAX_CURVE_POINTS <= len(rows) <= MAX_CURVE_POINTS + 3
        assert any(row.startswith("recipe,777,") for row in rows), "held-out losses stay"
        assert sum(map(len, files(folder / "bundle").values())) < 200_000

    def test_a_run_of_before_runs_were_recorded(self, folder):
        shutil.rmtree(folder / "out" / "solar_run")
        state = {"global_step": 3, "max_steps": 3, "log_history": HISTORY}
        (folder / "out" / "checkpoint-3").mkdir()
        write(folder / "out" / "checkpoint-3" / "trainer_state.json", state)
        built = shared(folder, pictures=False)
        assert built.bundle.steps == {}
        assert built.bundle.metrics["recipe"][0].value == 3.0
        assert any("not recorded" in note for note in built.notes)
        shutil.rmtree(folder / "out" / "checkpoint-3")
        assert any("no log of the Trainer" in note for note in shared(folder, pictures=False).notes)

    def test_the_steps_of_one_process_are_not_those_of_the_run(self, folder):
        (folder / "out" / "solar_run" / "steps-1.jsonl").unlink()
        facts = read_run(folder / "out")
        assert facts.steps == []
        assert "1 of its 2 processes" in facts.notes[0]

    def test_results_of_lm_eval_are_in_the_hubs_own_form(self, folder):
        results = {
            "results": {"arc_challenge": {"alias": "arc", "acc_norm,none": 0.5, "acc_norm_stderr,none": 0.01}},
            "n-shot": {"arc_challenge": 25},
            "n-samples": {"arc_challenge": {"original": 1172, "effective": 1172}},
        }
        (folder / "out" / "name").mkdir()
        write(folder / "out" / "name" / "results_2026-01-01.json", results | {"results": {}})
        write(folder / "out" / "name" / "results_2026-01-02.json", results)
        bundle = shared(folder, pictures=False).bundle
        assert bundle.metrics["recipe"][-1].how == "lm_eval, 25 shots, 1172 examples"
        from huggingface_hub import ModelCard

        (result,) = ModelCard.load(folder / "bundle" / "README.md").data.eval_results
        assert (result.dataset_name, result.metric_type, result.metric_value) == ("arc_challenge", "acc_norm", 0.5)
        assert result.dataset_args == {"num_few_shot": 25}

    def test_the_metrics_of_a_report(self, folder):
        model = {"nats_per_token": 3.25, "tokens": 8192, "answers": {"nats_per_token": 2.5, "tokens": 64}}
        conditions = {"hardware": {"device": "cpu", "dtype": "float32"}, "held_out": "/home/alicia/held_out.jsonl"}
        models = {"base": model, "recipe": model | {"answers": None, "pairs": {"preferred": 3, "pairs": 4}}}
        write(folder / "report.json", {"conditions": conditions, "models": models})
        metrics = shared(folder, pictures=False, report=folder / "report.json").bundle.metrics["recipe"]
        found = {metric.name: metric for metric in metrics}
        assert found["held_out_loss of base"].value == 3.25
        assert "8192 tokens of held_out.jsonl; float32 on cpu" in found["held_out_loss of base"].how
        assert found["response_loss of base"].value == 2.5
        assert found["pair_accuracy of recipe"].value == 0.75
        write(folder / "report.json", {"models": {}})
        with pytest.raises(SolarError, match=r"report\.json: not the metrics of `solar report`"):
            shared(folder, pictures=False, report=folder / "report.json")

    def test_rows_count_and_not_bytes(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"a": 1, "b": "é"}\n\n{"a": 2}\n')
        (tmp_path / "b.json").write_text('[{"b": "\\u00e9", "a": 1}, {"a": 2}]')
        (tmp_path / "c.jsonl").write_text('{"a": 2}\n{"a": 1, "b": "é"}\n')
        first, second, third = (rows_hash([tmp_path / name]) for name in ("a.jsonl", "b.json", "c.jsonl"))
        assert first == second
        assert first[0] == third[0] == 2
        assert first[1] != third[1], "the order counts"


class TestPrivate:
    def test_no_path_or_name_of_the_machine_is_in_a_bundle(self, folder):
        """Wherever a run leaves them: the bytes are searched, pictures too."""
        planted = folder / "alicia_node-17_private"
        planted.mkdir()
        (planted / "alicia.jsonl").write_text('{"text": "a"}\n')
        (folder / "zero_alicia.json").write_text("{}")
        edit(
            folder,
            "# by alicia on node-17, see /home/alicia/notes\n",
            base_model=str(folder / "base"),
            test_datasets=[{"path": str(planted / "alicia.jsonl"), "type": "completion"}],
            deepspeed="zero_alicia.json",
            output_dir=str(folder / "out"),
            dataset_prepared_path="/scratch/alicia/prepared",
            wandb_project="alicia",
            wandb_name="node-17 run",
            hub_model_id="alicia/secret-model",
            mlflow_tracking_uri="http://node-17:5000",
            resume_from_checkpoint="/scratch/alicia/models/out/checkpoint-2",
        )
        out = folder / "out"
        state = {"global_step": 3, "max_steps": 3, "best_model_checkpoint": "/scratch/alicia/models/out/checkpoint-2"}
        state |= {"log_history": [{"step": 1, "loss": 3.5, "where": ["/home/alicia", {"user": "alicia"}]}, *HISTORY]}
        (out / "checkpoint-3").mkdir()
        write(out / "checkpoint-3" / "trainer_state.json", state)
        write(out / "solar_run" / "run.json", RUN | {"hostname": "node-17", "cwd": "/scratch/alicia/work"})
        write(out / "training_args.json", {"output_dir": "/scratch/alicia/models/out"})
        built = shared(folder)
        for name, content in files(folder / "bundle").items():
            for private in (b"alicia", b"node-17", b"/scratch", b"/home", str(folder).encode(), folder.name.encode()):
                assert private not in content, name
                assert private not in name.encode()
        recipe = yaml.safe_load((folder / "bundle" / "recipes" / "recipe.yml").read_text())
        assert recipe["dataset_prepared_path"] == "${OUTPUTS}/prepared"
        assert {"wandb_project", "hub_model_id", "resume_from_checkpoint", "mlflow_tracking_uri"}.isdisjoint(recipe)
        assert len(built.left_out) == 6
        read_bundle(folder / "bundle")

    @pytest.mark.parametrize(
        ("text", "keys", "fact"),
        [
            (f"# export HF_TOKEN={TOKEN}\n", {}, "line"),
            ("", {"wandb_api_key": "0123456789abcdef" * 2}, "wandb_api_key"),
            ("", {"hub_token": TOKEN}, "hub_token"),
            ("", {"special": [1, [{"deep": [f"x {TOKEN}"]}]]}, "special"),
            ("", {"datasets": [{"path": "https://me:pw123456@host/rows.jsonl", "type": "alpaca"}]}, "datasets"),
            ("", {"optim_args": {"password": "correct horse"}}, "optim_args.password"),
        ],
    )
    def test_a_secret_in_a_recipe_is_refused(self, folder, text, keys, fact):
        edit(folder, text, **keys)
        with pytest.raises(ArgsError) as error:
            shared(folder)
        assert "recipe.yml" in str(error.value)
        assert fact in str(error.value)
        for secret in (TOKEN, "0123456789abcdef", "pw123456", "correct horse"):
            assert secret not in str(error.value)
        assert not (folder / "bundle").exists()

    def test_the_value_of_a_secret_environment_variable_is_refused(self, folder, monkeypatch):
        monkeypatch.setenv("WANDB_API_KEY", "plain-words-as-a-key")
        edit(folder, special_tokens={"pad_token": "plain-words-as-a-key"})
        with pytest.raises(ArgsError, match="the environment variable WANDB_API_KEY"):
            shared(folder, pictures=False)
        assert not (folder / "bundle").exists()

    def test_a_secret_in_a_record_of_the_run_is_refused(self, folder):
        write(folder / "out" / "solar_run" / "run.json", RUN | {"device": TOKEN})
        with pytest.raises(ArgsError, match="Hugging Face token"):
            shared(folder, pictures=False)

    @pytest.mark.parametrize("value", ["alicia", "of_alicia", "see /home/alicia/x", "node-17:29500"])
    def test_a_name_in_a_value_that_stays_is_refused(self, folder, value):
        edit(folder, special_tokens={"pad_token": value})
        with pytest.raises(ArgsError, match="Change it in the recipe"):
            shared(folder, pictures=False)

    def test_names_of_files_are_private_too(self, folder):
        (folder / "recipe.yml").rename(folder / "alicia_dus.yml")
        built = build(find_run(Path("alicia_dus.yml")), folder / "bundle", "me/tiny", pictures=False)
        (stage,) = built.bundle.manifest.stages
        assert (stage.name, stage.file) == ("run", "recipes/recipe.yml")
        assert b"alicia" not in b"".join(files(folder / "bundle").values())


MATHS = """\
seeds: {path: rows/train.jsonl, question: instruction, answer: output, license: mit}
endpoint: {base_url: "http://node-17:8000/v1", model: org/model}
kinds: {solve: }
prompts: {solve: solve.txt}
output: data/maths
store: /scratch/alicia/maths.sqlite
"""


class TestCommands:
    """A stage that is a command takes the recipe along that it names."""

    @pytest.fixture
    def bundle(self, folder, monkeypatch):
        (folder / "maths").mkdir()
        (folder / "maths" / "recipe.yml").write_text(MATHS)
        (folder / "maths" / "solve.txt").write_text("Solve {question}\n")
        command = {"name": "maths", "command": "solar maths maths/recipe.yml", "inputs": ["maths/recipe.yml"]}
        stages = [{"name": "dus", "recipe": "recipe.yml"}, command | {"outputs": ["data/maths"]}]
        (folder / "pipeline.yml").write_text(yaml.safe_dump({"records": "records", "stages": stages}))
        done = SimpleNamespace(verdict=SimpleNamespace(action="skip"), record=SimpleNamespace(versions={}, seconds=1))
        monkeypatch.setattr("solar_plugins.sharing.share.situation_of", lambda pipeline, stage: done)
        return build(find_run(Path("pipeline.yml")), folder / "bundle", "me/tiny", pictures=False).bundle

    def test_the_recipe_and_its_prompts_are_in_the_bundle(self, folder, bundle):
        assert [stage.file for stage in bundle.manifest.stages] == ["recipes/recipe.yml", "recipes/recipe_2.yml"]
        stage = bundle.contents["pipeline.yml"]["stages"][1]
        assert stage["command"] == "solar maths '${BUNDLE}/recipes/recipe_2.yml'"
        assert stage["inputs"] == ["${BUNDLE}/recipes/recipe_2.yml"]
        recipe = bundle.contents["recipes/recipe_2.yml"]
        assert recipe["seeds"]["path"] == "${TRAIN}"
        assert recipe["endpoint"]["base_url"] == "${ENDPOINT}"
        assert recipe["prompts"] == {"solve": "solve.txt"}
        assert (recipe["output"], recipe["store"]) == ("${MATHS}", "${OUTPUTS}/answers.sqlite")
        assert (folder / "bundle" / "recipes" / "solve.txt").read_text() == "Solve {question}\n"

    def test_it_is_checked_and_shown(self, folder, bundle, monkeypatch):
        monkeypatch.setattr("solar_plugins.sharing.check.ask_schemas", lambda recipes, merges: Answers(None, None))
        findings = [one for one in check(folder / "bundle", offline=True) if one.level == "error"]
        assert findings == []
        assert "mathematics data from a served model" in show(folder / "bundle")
        (folder / "maths" / "recipe.yml").write_text(MATHS.replace("solve: }", "solv: }"))
        built = build(find_run(Path("pipeline.yml")), folder / "second", "me/tiny", pictures=False)
        keys = [one.key for one in check(built.bundle.folder, offline=True) if one.level == "error"]
        assert keys == ["kinds.solv.[key]"]

    def test_a_prompt_that_is_gone(self, folder, bundle):
        (folder / "maths" / "solve.txt").unlink()
        with pytest.raises(ArgsError, match=r"solve\.txt.*restore the file"):
            build(find_run(Path("pipeline.yml")), folder / "second", "me/tiny", pictures=False)


class TestRuns:
    def test_what_is_not_finished_is_refused(self, folder):
        (folder / "out" / "model.safetensors").rename(folder / "model.safetensors")
        with pytest.raises(ArgsError, match="no trained model; run the recipe first"):
            shared(folder)
        (folder / "model.safetensors").rename(folder / "out" / "model.safetensors")
        log = {"global_step": 2, "max_steps": 3, "log_history": HISTORY[:2]}
        write(folder / "out" / "solar_run" / "log.json", log)
        with pytest.raises(ArgsError, match="step 2 of 3"):
            shared(folder)

    def test_what_is_no_run_is_refused(self, folder):
        (folder / "mixture.yml").write_text("sets: []\noutput: out\n")
        with pytest.raises(ArgsError, match="no base_model"):
            find_run(Path("mixture.yml"))
        with pytest.raises(SolarError, match="with the recipe of the run is missing; give the recipe file"):
            find_run(Path("out"))
        (folder / "pipeline.yml").write_text("records: records\nstages: [{name: dus, recipe: recipe.yml}]\n")
        with pytest.raises(ArgsError, match="stage dus is not done"):
            find_run(Path("pipeline.yml"))

    def test_the_output_folder_is_a_run_too(self, folder):
        from solar_plugins import lineage

        stage = lineage.Stage(kind="sft", result=lineage.Source(name="out"), recipe=RECIPE)
        lineage.write(folder / "out", lineage.Lineage(bases=(lineage.Source(name="base"),), stages=(stage,)))
        built = build(find_run(Path("out")), folder / "of_folder", "me/tiny", pictures=False)
        assert [stage.name for stage in built.bundle.manifest.stages] == ["out"]
        assert built.bundle.data["out"][0].rows == 3


class TestUpload:
    @pytest.fixture(autouse=True)
    def _local_rows(self, folder):
        """The check asks the Hub about every dataset there."""
        edit(folder, datasets=[{"path": "rows/train.jsonl", "type": "solar_plugins.alpaca"}])

    @pytest.fixture
    def passing(self, monkeypatch):
        """Without the check, which imports Axolotl for 10 s."""
        monkeypatch.setattr("solar_plugins.sharing.check.check", lambda folder: [])

    @pytest.mark.usefixtures("passing")
    def test_nothing_is_sent_without_yes(self, folder, hub, monkeypatch, tmp_path):
        hub.use(monkeypatch, tmp_path / "hf")
        result = command()
        assert result.exit_code == 0, result.output
        for said in ("recipes/recipe.yml", "TRAIN", "# tiny", "0 errors", "Nothing was sent"):
            assert said in result.output
        assert hub.requests == [] or not hub.asked("POST", ".")
        assert not hub.repos

    @pytest.mark.usefixtures("passing")
    def test_one_private_commit_and_the_same_again_is_none(self, folder, hub, monkeypatch, tmp_path):
        hub.use(monkeypatch, tmp_path / "hf")
        hub.organizations.append("me")
        result = command("--yes")
        assert result.exit_code == 0, result.output
        repo = hub.repos["model", "me/tiny"]
        assert repo.private
        commits = len(repo.commits)
        uploaded = repo.find("main").files
        for name, content in files(folder / "tiny").items():
            assert uploaded[name] == content
        assert command("--yes").exit_code == 0
        assert len(repo.commits) == commits

    @pytest.mark.usefixtures("passing")
    def test_what_an_earlier_bundle_had_is_deleted(self, folder, hub, monkeypatch, tmp_path):
        hub.use(monkeypatch, tmp_path / "hf")
        hub.organizations.append("me")
        assert command("--yes").exit_code == 0
        (folder / "recipe.yml").rename(folder / "other.yml")
        hub.repos["model", "me/tiny"].commit({"mine.yml": "kept: true"})
        result = CliRunner().invoke(solar, ["recipes", "share", "other.yml", "--to", "me/tiny", "--yes"])
        assert result.exit_code == 0, result.output
        there = hub.repos["model", "me/tiny"].find("main").files
        assert "recipes/other.yml" in there
        assert "mine.yml" in there
        assert "recipes/recipe.yml" not in there

    @pytest.mark.usefixtures("passing")
    def test_public_and_a_card_of_others_that_stays(self, folder, hub, monkeypatch, tmp_path):
        hub.use(monkeypatch, tmp_path / "hf")
        hub.organizations.append("me")
        hub.repo("me/tiny", {"README.md": "# The model's own card\n"})
        result = command("--yes", "--public")
        assert result.exit_code == 0, result.output
        assert "card of its own" in result.output
        found = hub.repos["model", "me/tiny"].find("main").files
        assert b"own card" in found["README.md"]
        assert "solar_bundle.json" in found

    @pytest.mark.slow
    def test_a_bundle_that_does_not_pass_the_check_is_not_sent(self, folder, hub, monkeypatch, tmp_path):
        hub.use(monkeypatch, tmp_path / "hf")
        edit(folder, lerning_rate=1)
        result = command("--yes")
        assert result.exit_code == 1
        assert "the check found errors" in result.output
        assert not hub.repos

    def test_the_name_of_a_repository(self, folder):
        result = CliRunner().invoke(solar, ["recipes", "share", "recipe.yml", "--to", "tiny"])
        assert "expected ORG/NAME" in result.output
