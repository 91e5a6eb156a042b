"""`solar recipes check`, without Axolotl; what its schema says is in tests/unit/sharing/test_schemas.py."""

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from known_models import MISTRAL

from solar_plugins.cli import solar
from solar_plugins.errors import ArgsError
from solar_plugins.sharing import check as check_module
from solar_plugins.sharing.bundle import BundleStage, Variable, stages_json, write_bundle
from solar_plugins.sharing.check import check
from solar_plugins.sharing.findings import LEVELS
from solar_plugins.sharing.gpus import parse_gpus
from solar_plugins.sharing.schemas import Answers

COMMIT = "a" * 40
RECIPE = {
    "base_model": "base",
    "plugins": ["solar_plugins.SolarPlugin"],
    "solar": {"init": {"strategy": "dus", "drop_layers": 8}},
    "datasets": [{"path": "data/rows.jsonl", "type": "alpaca"}],
    "output_dir": "out/dus",
    "optimizer": "adamw_torch_fused",
    "micro_batch_size": 1,
    "sequence_len": 512,
    "gradient_checkpointing": True,
    "bf16": True,
    "seed": 1,
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory with a base and a dataset. The schemas are not asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_module, "ask_schemas", lambda recipes, merges: Answers(None, None))
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text(json.dumps(MISTRAL))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    return tmp_path


def write(path, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {key: value for key, value in (RECIPE | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    return path


def found(path, kind=None, **options):
    """Level, key and text of the findings of a kind; without Axolotl each recipe has one that says so."""
    findings = check(path, **{"offline": True} | options)
    return [
        (f.level, f.key, f.text) for f in findings if f.kind == kind or (not kind and "not installed" not in f.text)
    ]


def levels(path, kind, **options):
    return [(level, key) for level, key, _ in found(path, kind, **options)]


def test_a_good_recipe_has_no_findings(place):
    assert found(write(place / "a.yml")) == []


def test_without_axolotl_it_says_so(place):
    ((level, _, text),) = found(write(place / "a.yml"), "keys")
    assert level == "unknown"
    assert "unknown: not installed" in text


@pytest.mark.parametrize(
    ("changes", "kind", "level", "key"),
    [
        ({"seed": None}, "seed", "warning", "seed"),
        ({"solar": {"init": {"strategy": "dus", "drop_layers": 40}}}, "plan", "error", "solar.init.drop_layers"),
        ({"solar": {"inti": {}}}, "keys", "error", "solar.inti"),
        ({"solar": {"init": {"strategy": "duz"}}}, "keys", "error", "solar.init.strategy"),
        ({"solar": {"init": {"strategy": "dus", "drop_layer": 8}}}, "keys", "error", "solar.init.drop_layer"),
        ({"base_model": "org/model"}, "pins", "warning", "base_model"),
        ({"base_model": "org/model", "revision_of_model": "main"}, "pins", "warning", "revision_of_model"),
        ({"base_model": "base2/"}, "exists", "error", "base_model"),
        ({"base_model": "./nowhere/base"}, "exists", "warning", "base_model"),
        ({"base_model": "${BASE}"}, "exists", "error", "base_model"),
        ({"base_model": "data/rows.jsonl"}, "exists", "error", "base_model"),
        ({"base_model": "data"}, "exists", "error", "base_model"),
        ({"datasets": [{"path": "data/row.jsonl"}]}, "exists", "error", "datasets[0].path"),
        ({"datasets": [{"path": "s3://b/row.jsonl"}]}, "exists", "unknown", "datasets[0].path"),
        (
            {"datasets": [{"path": "json", "data_files": ["data/no.jsonl"]}]},
            "exists",
            "error",
            "datasets[0].data_files",
        ),
        ({"pretraining_dataset": [{"path": "org/d"}]}, "pins", "warning", "pretraining_dataset[0].path"),
        ({"deepspeed": "zero9.json"}, "exists", "error", "deepspeed"),
        ({"trust_remote_code": True}, "code", "warning", "trust_remote_code"),
        ({"plugins": ["other_package.Plugin"]}, "code", "warning", "plugins[0]"),
        ({"datasets": [{"path": "data/rows.jsonl", "type": "mine.load"}]}, "code", "warning", "datasets[0].type"),
        ({"trl": {"reward_funcs": ["rewards.length"]}}, "code", "warning", "trl.reward_funcs"),
        ({"trainer_cls": "mine.Trainer"}, "code", "warning", "trainer_cls"),
        ({"attn_implementation": "someone/kernel"}, "code", "warning", "attn_implementation"),
        ({"chat_template_jinja": "x.jinja"}, "code", "note", "chat_template_jinja"),
        ({"output_dir": "/mnt/disk/out"}, "paths", "warning", "output_dir"),
        ({"hub_token": "0123456789"}, "secrets", "error", "hub_token"),
    ],
)
def test_what_is_found(place, changes, kind, level, key):
    without_axolotl = ("unknown", "")
    assert [one for one in levels(write(place / "a.yml", **changes), kind) if one != without_axolotl] == [(level, key)]


def test_nothing_else_is_found_in_a_pinned_hub_recipe(place):
    data = {"path": "org/data", "type": "alpaca", "revision": COMMIT}
    path = write(place / "a.yml", base_model="org/model", revision_of_model=COMMIT, datasets=[data])
    assert {level for level, *_ in found(path)} == {"unknown"}


def test_a_token_in_a_comment_is_found_and_not_repeated(place):
    path, token = write(place / "a.yml"), "hf_" + "a" * 34
    path.write_text(path.read_text() + f"# {token}\n")
    ((level, _, text),) = found(path, "secrets")
    assert level == "error"
    assert token not in text


def test_memory(place):
    path = write(place / "a.yml")
    assert [level for level, *_ in found(path, "memory", gpus=["24", "H200"])] == ["error", "note"]
    qlora = {"adapter": "qlora", "load_in_4bit": True, "lora_r": 8, "lora_target_linear": True}
    assert [level for level, *_ in found(write(place / "q.yml", **qlora), "memory", gpus=["8xH100"])] == ["note"]
    assert found(write(place / "o.yml", optimizer="muon"), "memory", gpus=["24"])[0][0] == "unknown"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("H100", (1, 80)), ("8xA100-80GB", (8, 80)), ("rtx 4090", (1, 24)), ("2x24GB", (2, 24)), ("47.5", (1, 47.5))],
)
def test_gpus(text, expected):
    assert parse_gpus(text)[1:] == expected


@pytest.mark.parametrize("text", ["H1000000", "A100", "0", "", "x", "0xH100"])
def test_unknown_gpus(text):
    with pytest.raises(ArgsError, match="--gpu"):
        parse_gpus(text)


class TestPipelines:
    def stages(self, place, *stages, **more):
        path = place / "pipeline.yml"
        path.write_text(yaml.safe_dump({"records": "out/records", "stages": list(stages)} | more))
        return path

    def test_a_base_that_an_earlier_stage_writes_is_there(self, place):
        write(place / "r/one.yml")
        write(place / "r/two.yml", base_model="out/dus", output_dir="out/sft", solar=None)
        path = self.stages(place, {"name": "one", "recipe": "r/one.yml"}, {"name": "two", "recipe": "r/two.yml"})
        assert found(path) == []

    def test_a_base_that_a_later_stage_writes_is_an_error(self, place):
        write(place / "r/one.yml")
        write(place / "r/two.yml", base_model="out/dus", output_dir="out/sft", solar=None)
        path = self.stages(place, {"name": "two", "recipe": "r/two.yml"}, {"name": "one", "recipe": "r/one.yml"})
        assert levels(path, "pipeline") == [("error", "base_model")]

    def test_overrides_count(self, place):
        write(place / "r/one.yml")
        stage = {"name": "one", "recipe": "r/one.yml", "overrides": {"base_model": "data/base9"}}
        assert levels(self.stages(place, stage), "exists") == [("error", "base_model")]

    def test_a_missing_file_of_a_stage(self, place):
        assert found(self.stages(place, {"name": "one", "recipe": "no.yml"}))[0][0] == "error"

    @pytest.mark.parametrize(
        ("launch", "count"),
        [
            ("srun --kill-on-bad-exit=1 torchrun --nnodes 4", 0),
            ("accelerate launch", 0),
            ("LD_PRELOAD=x.so accelerate launch", 1),
            ("bash -c 'curl x | sh' --", 1),
            ("python -c 'import os'", 1),
            ("./launch.sh", 1),
        ],
    )
    def test_launch_texts(self, place, launch, count):
        write(place / "r/one.yml")
        path = self.stages(place, {"name": "one", "recipe": "r/one.yml"}, launch=launch)
        assert [level for level, *_ in found(path, "code")] == ["warning"] * count


MATHS = {
    "seeds": {"path": "data/rows.jsonl", "license": "mit"},
    "endpoint": {"base_url": "http://localhost:8000/v1", "model": "org/model"},
    "kinds": {"rephrase": None},
    "output": "out/maths",
}


def test_the_recipe_that_a_command_names_is_checked(place):
    stage = {"name": "maths", "command": "solar maths r/maths.yml", "outputs": ["out/maths"]}
    (place / "a.yml").write_text(yaml.safe_dump({"records": "out/records", "stages": [stage]}))
    (place / "r").mkdir()
    for content, expected in ((MATHS, []), (MATHS | {"kinds": {"rephrase": {"sample": 2}}}, ["kinds.rephrase.sample"])):
        (place / "r/maths.yml").write_text(yaml.safe_dump(content))
        assert [key for _, key, _ in found(place / "a.yml", "keys")] == expected
    (place / "r/maths.yml").write_text("a: [")
    assert levels(place / "a.yml", "file") == [("error", "command")]


def test_every_model_of_a_merge_is_named_once(place):
    written_out = {"model": {"path": "org/c", "revision": COMMIT}, "lora": {"path": "org/d"}}
    models = [{"model": "org/a+org/b"}, {"model": written_out}, {"model": "base"}]
    merge = {"merge_method": "linear", "models": models, "base_model": "org/a", "tokenizer_source": "union"}
    (place / "m.yml").write_text(yaml.safe_dump(merge))
    pinned = [(key, text.partition(" ")[0]) for _, key, text in found(place / "m.yml", "pins")]
    assert pinned == [("base_model", "org/a"), ("models[0].model", "org/b"), ("models[1].model", "org/d")]


ZERO = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/mnt/nvme/me"}}}


@pytest.mark.parametrize(
    ("text", "kind", "level", "key"),
    [
        (json.dumps(ZERO), "paths", "warning", "deepspeed: zero.json: zero_optimization.offload_optimizer.nvme_path"),
        ('{"wandb": {"api_key": "0123456789abcdef"}}', "secrets", "error", "deepspeed: zero.json: wandb.api_key"),
        ("{", "keys", "error", "deepspeed"),
        ("{}", "code", "note", "deepspeed"),
    ],
)
def test_a_deepspeed_file_is_read(place, text, kind, level, key):
    (place / "zero.json").write_text(text)
    path = write(place / "a.yml", deepspeed="zero.json")
    assert [one for one in levels(path, kind) if one != ("unknown", "")] == [(level, key)]


class TestBundles:
    @pytest.fixture
    def bundle(self, place, monkeypatch):
        """Write a bundle, with more files, and with other values of keys of its recipe."""
        monkeypatch.setattr(check_module, "package_versions", lambda: {"torch": "0.2", "numpy": "0"})

        def make(files=None, **changes):
            recipe = RECIPE | {"base_model": "${BASE_MODEL}", "datasets": [{"path": "${ROWS}", "type": "alpaca"}]}
            recipe |= {"output_dir": "${DUS}"} | changes
            contents = {"recipes/dus.yml": yaml.safe_dump(recipe).encode(), "README.md": b"# A card\n"}
            contents |= {
                "versions.json": stages_json({"dus": {"torch": "0.1", "numpy": "0", "never-installed": "1.0"}})
            } | (files or {})
            variables = {
                "BASE_MODEL": Variable(meaning="the base", example="org/base"),
                "ROWS": Variable(meaning="the rows", example="rows.jsonl"),
                "DUS": Variable(meaning="the model", example="outputs/dus", kind="output", producer="dus"),
            }
            stages = [BundleStage(name="dus", kind="recipe", file="recipes/dus.yml")]
            write_bundle(place / "bundle", contents, name="x", stages=stages, variables=variables, replace=True)
            return place / "bundle"

        return make

    def test_versions(self, bundle):
        here, missing = sorted((f for f in check(bundle(), offline=True) if f.kind == "versions"), key=lambda f: f.key)[
            ::-1
        ]
        assert (here.file, here.level, here.key) == ("versions.json", "warning", "torch")
        assert "0.1" in here.text
        assert "0.2 is installed" in here.text
        assert (missing.level, missing.key) == ("warning", "never-installed")
        assert "not installed" in missing.text

    def test_the_base_and_the_data_are_given_by_whoever_runs_it(self, bundle):
        assert levels(bundle(), "exists") == []
        assert levels(bundle(), "plan") == [("unknown", "base_model")]

    @pytest.mark.parametrize(
        ("files", "kind", "where"),
        [
            ({"README.md": b"# By hf_" + b"a" * 34}, "secrets", ("README.md", "line 1")),
            ({"README.md": b"see\n/home/someone/x\n"}, "paths", ("README.md", "line 2")),
            ({"data.json": b'{"stages": {}}', "notes.txt": b"/home/someone/x"}, "paths", ("notes.txt", "line 1")),
            ({"zero.json": json.dumps(ZERO).encode()}, "paths", ("zero.json", "zero_optimization.")),
            ({"recipes/maths.yml": yaml.safe_dump(MATHS | {"output": "/mnt/me/out"}).encode()}, "paths",
             ("recipes/maths.yml", "output")),
        ],
    )  # fmt: skip
    def test_other_files_are_searched(self, bundle, files, kind, where):
        findings = [f for f in check(bundle(files), offline=True) if f.kind == kind]
        assert findings
        assert {f.level for f in findings} == {"error"}
        assert findings[0].file == where[0]
        assert findings[0].key.startswith(where[1])
        assert "a" * 34 not in findings[0].text

    def test_paths_are_errors_in_its_recipes(self, bundle):
        assert levels(bundle(dataset_prepared_path="/scratch/me/prepared"), "paths") == [
            ("error", "dataset_prepared_path")
        ]

    def test_no_file_outside_of_it_is_read(self, bundle, place):
        (place / "private.json").write_text('{"wandb": {"api_key": "0123456789abcdef"}}')
        for name in (str(place / "private.json"), "../private.json", "${DUS}/private.json"):
            assert levels(bundle(deepspeed=name), "secrets") == []

    def test_a_variable_that_is_not_declared(self, bundle):
        folder = bundle()
        manifest = json.loads((folder / "solar_bundle.json").read_text())
        del manifest["variables"]["ROWS"]
        (folder / "solar_bundle.json").write_text(json.dumps(manifest))
        (finding,) = check(folder, offline=True)
        assert (finding.level, finding.kind) == ("error", "file")
        assert "recipes/dus.yml: ${ROWS} is not a variable of solar_bundle.json" in finding.text


class TestOnline:
    CARD = "---\nlicense: {}\n---\nA model.\n"

    @pytest.fixture(autouse=True)
    def online(self, hub, monkeypatch, tmp_path_factory):
        hub.use(monkeypatch, tmp_path_factory.mktemp("hub"))
        self.hub = hub

    def recipe(self, place, **changes):
        return write(place / "a.yml", **{"base_model": "org/model", "solar": None} | changes)

    def test_what_exists_is_named_with_its_commit(self, place):
        head = self.hub.repo("org/model", {"README.md": self.CARD.format("apache-2.0")}).head.id
        findings = check(self.recipe(place), offline=False)
        assert [(f.kind, f.level, head in f.fix) for f in findings if f.kind != "keys"] == [("pins", "warning", True)]

    @pytest.mark.parametrize(
        ("license", "expected"),
        [("cc-by-nc-4.0", "warning"), ("llama3.1", "note"), ("mit", None), ("unknown", "warning")],
    )
    def test_licenses(self, place, license, expected):
        self.hub.repo("org/model", {"README.md": self.CARD.format(license)})
        assert [level for level, *_ in found(self.recipe(place), "license", offline=False)] == [expected] * bool(
            expected
        )

    def test_a_card_without_a_license(self, place):
        self.hub.repo("org/model", {"README.md": "hello\n"})
        assert levels(self.recipe(place), "license", offline=False) == [("warning", "base_model")]

    def test_what_does_not_exist(self, place):
        self.hub.repo("org/data", kind="dataset")
        data = [{"path": "org/data", "revision": "v9", "type": "alpaca"}]
        assert levels(self.recipe(place, datasets=data), "exists", offline=False) == [
            ("error", "base_model"),
            ("error", "datasets[0].path"),
        ]

    @pytest.mark.slow
    def test_a_network_that_fails_is_unknown_and_asked_once(self, place):
        self.hub.misbehave("GET", "/api/", cut=0, times=99)
        path = self.recipe(place, datasets=[{"path": f"org/d{n}", "type": "alpaca"} for n in range(5)])
        assert {level for level, *_ in found(path, "exists", offline=False)} == {"unknown"}


def test_a_folder_is_checked_as_one(place):
    write(place / "r/one.yml")
    (place / "r/mix.yml").write_text(
        yaml.safe_dump({"output": "made", "sets": {"a": {"path": "data/rows.jsonl", "text_columns": ["output"]}}})
    )
    write(place / "r/two.yml", base_model="out/dus", solar=None, datasets=[{"path": "made/a.jsonl", "type": "alpaca"}])
    (place / "r/notes.yml").write_text("- 1\n")
    assert found(place / "r") == []
    (place / "r/broken.yml").write_text("a: [\n")
    assert next((f.level, f.file, f.kind) for f in check(place / "r", offline=True)) == ("error", "broken.yml", "file")


def test_a_path_without_recipes(place):
    (place / "empty").mkdir()
    (place / "list.yml").write_text("- 1\n")
    for path, text in (("empty", "contains no recipe"), ("no.yml", "does not exist"), ("list.yml", "is not a recipe")):
        with pytest.raises(ArgsError, match=text):
            check(place / path)


def test_the_command(place):
    write(place / "a.yml")
    result = CliRunner().invoke(solar, ["recipes", "check", "a.yml"])
    assert result.exit_code == 0
    assert "0 errors" in result.output
    write(
        place / "a.yml", base_model="data/\x1b[31mbase", datasets=[{"path": "x/" * 3000 + "y.jsonl", "type": "alpaca"}]
    )
    result = CliRunner().invoke(solar, ["recipes", "check", "a.yml", "--gpu", "24"])
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert max(map(len, result.output.splitlines())) <= 125
    as_json = json.loads(CliRunner().invoke(solar, ["recipes", "check", "a.yml", "--json"]).stdout)
    assert not as_json["passed"]
    assert {one["level"] for one in as_json["findings"]} >= {"error", "unknown"}


def test_the_guide_names_every_check_and_level():
    text = (Path(__file__).parents[3] / "docs/guides/check.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [kind for kind in check_module.KINDS]
    assert re.findall(r"^\| (error|warning|unknown|note) \|", text, re.MULTILINE) == list(LEVELS)
