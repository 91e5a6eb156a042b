"""`solar recipes diff`, by what files say; with defaults of Axolotl at the end."""

import json

import pytest
import yaml
from click.testing import CliRunner

from solar_plugins.cli import solar
from solar_plugins.errors import ArgsError
from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.sharing import meaning
from solar_plugins.sharing.meaning import as_text, differences, meanings
from solar_plugins.sharing.schemas import Answers

RECIPE = """\
base_model: org/base
solar:
  init: {strategy: dus, drop_layers: 8}
datasets:
  - {path: data/a.jsonl, type: alpaca}
  - {path: data/b.jsonl, type: alpaca}
learning_rate: 1.0e-05
lora_target_modules: [q_proj, v_proj]
output_dir: out
seed: 1
"""


@pytest.fixture
def without_schemas(monkeypatch):
    monkeypatch.setattr(meaning, "ask_schemas", lambda recipes, merges: Answers(None, None))


@pytest.fixture
def changes(tmp_path, without_schemas):
    def compare(first, second):
        (tmp_path / "a.yml").write_text(first)
        (tmp_path / "b.yml").write_text(second)
        return differences(*meanings(tmp_path / "a.yml", tmp_path / "b.yml"))

    return compare


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1.0e-05", '"0.00001"'),
        ("1.0e-05", "1e-5"),
        ("seed: 1", "seed: 1.0"),
        ("drop_layers: 8", 'drop_layers: "8"'),
        ("org/base\n", "org/base\ntokenizer_type: null\n"),
        ("data/a.jsonl", "./data//a.jsonl"),
        ("output_dir: out", "output_dir: ./out/"),
        ("seed: 1", "# seed: 2\nseed: 1"),
        ("base_model: org/base", "model_revision: null\nbase_model: org/base"),
        ("solar:\n", "solar:\n  data: {bad_rows: drop}\n"),
    ],
)
def test_the_same_in_other_words(changes, old, new):
    assert changes(RECIPE, RECIPE.replace(old, new)) == []


def test_the_order_of_keys_does_not_matter(changes):
    content = yaml.safe_load(RECIPE)
    assert changes(RECIPE, yaml.safe_dump(dict(reversed(content.items())), sort_keys=False)) == []


@pytest.mark.parametrize(
    ("old", "new", "key", "before", "after", "matters"),
    [
        ("1.0e-05", "2e-5", "learning_rate", "1e-05", "2e-05", True),
        ("drop_layers: 8", "drop_layers: 6", "solar.init.drop_layers", "8", "6", True),
        ("output_dir: out", "output_dir: elsewhere", "output_dir", "out", "elsewhere", False),
        ("seed: 1", "seed: 1\nwandb_project: x", "wandb_project", "", "x", False),
        ("seed: 1", "seed: 1\neval_steps: 7", "eval_steps", "", "7", False),
        ("seed: 1\n", "", "seed", "1", "", True),
        ("q_proj, v_proj", "v_proj, q_proj", "lora_target_modules", "q_proj, v_proj", "v_proj, q_proj", True),
        ("data/b.jsonl, type: alpaca", "data/b.jsonl, type: chat_template", "datasets[data/b.jsonl].type",
         "alpaca", "chat_template", True),
    ],
)  # fmt: skip
def test_one_change(changes, old, new, key, before, after, matters):
    (change,) = changes(RECIPE, RECIPE.replace(old, new))
    assert change == ("", key, before, after, matters)


def test_evaluation_matters_where_it_chooses_the_weights(changes):
    recipe = RECIPE + "load_best_model_at_end: true\n"
    (change,) = changes(recipe, recipe + "eval_steps: 7\n")
    assert change.matters


def test_datasets_that_come_and_go_are_one_line_each(changes):
    found = changes(RECIPE, RECIPE.replace("{path: data/b.jsonl, type: alpaca}", "{path: c.jsonl, type: completion}"))
    assert [(one.key, one.before, one.after) for one in found] == [
        ("datasets", "data/b.jsonl (type alpaca)", ""),
        ("datasets", "", "c.jsonl (type completion)"),
    ]


def test_the_order_of_datasets_is_a_change(changes):
    content = yaml.safe_load(RECIPE)
    content["datasets"].reverse()
    assert [one.key for one in changes(RECIPE, yaml.safe_dump(content))] == ["order of datasets"]


def test_pipelines_are_compared_by_stage(tmp_path, without_schemas):
    for name, rate, launch in (("a", "1e-5", "accelerate launch"), ("b", "2e-5", "torchrun")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"recipe_{name}.yml").write_text(RECIPE.replace("1.0e-05", rate))
        stages = [{"name": "one", "recipe": f"recipe_{name}.yml"}]
        (folder / "p.yml").write_text(yaml.safe_dump({"records": name, "launch": launch, "stages": stages}))
    found = differences(*meanings(tmp_path / "a/p.yml", tmp_path / "b/p.yml"))
    assert {(one.where, one.key, one.matters) for one in found} == {
        ("one", "learning_rate", True),
        ("pipeline", "launch", True),
        ("pipeline", "records", False),
    }


def test_deepspeed_files_are_compared_by_what_they_say(tmp_path, changes):
    for name, stage in (("a", 2), ("b", 2), ("c", 3)):
        content = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": "auto"}}
        (tmp_path / f"{name}.json").write_text(json.dumps(dict(sorted(content.items(), reverse=name == "b"))))
    first, same, other = (RECIPE + f"deepspeed: {tmp_path}/{name}.json\n" for name in "abc")
    assert changes(first, same) == []
    (change,) = changes(first, other)
    assert change == ("", "deepspeed.zero_optimization.stage", "2", "3", True)
    assert "gone.json" in [change.after for change in changes(first, RECIPE + "deepspeed: gone.json\n")]


def test_folders_name_what_only_one_has(tmp_path, without_schemas):
    for name, files in (("a", ("x", "y")), ("b", ("x", "z"))):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / f"{file}.yml").write_text(RECIPE)
    found = differences(*meanings(tmp_path / "a", tmp_path / "b"))
    assert [(one.where, one.before, one.after) for one in found] == [("y.yml", "recipe", ""), ("z.yml", "", "recipe")]


def test_other_kinds_of_files(changes):
    mixture = "output: o\nsets: {a: {path: x.jsonl, text_columns: [t], rows: 5}}\n"
    assert changes(mixture, mixture.replace("text_columns: [t]", "text_columns: t, seed: 42")) == []
    assert [one.key for one in changes(mixture, mixture.replace("rows: 5", "rows: 6"))] == ["sets.a.rows"]
    assert [one.before for one in changes(mixture, RECIPE)] == ["a mixture"]


def test_the_command(tmp_path, without_schemas):
    (tmp_path / "a.yml").write_text(RECIPE)
    (tmp_path / "c.yml").write_text("a: [")

    def diff(*arguments):
        return CliRunner().invoke(
            solar, ["recipes", "diff", *(str(tmp_path / one) for one in arguments[:2]), *arguments[2:]]
        )

    assert diff("a.yml", "a.yml").exit_code == 0
    (tmp_path / "b.yml").write_text(RECIPE.replace("output_dir: out", 'output_dir: "o\\e[31mut"'))
    changed = diff("a.yml", "b.yml")
    assert changed.exit_code == 1
    assert "\x1b" not in changed.output
    assert "without effect" in changed.output
    assert json.loads(diff("a.yml", "b.yml", "--json").stdout)["same"] is False
    for other in ("c.yml", "missing.yml"):
        failed = diff("a.yml", other)
        assert failed.exit_code == 2
        assert other in failed.output


def test_a_hub_name_says_how_to_fetch_it(tmp_path, without_schemas, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(solar, ["recipes", "diff", "org/model", "org/other"])
    assert "solar recipes fetch org/model" in result.output


@pytest.mark.slow
def test_with_the_schemas_of_axolotl_and_mergekit(tmp_path):
    """Our recipes dumped in another order; and recipes that say the same by defaults and deprecated names."""
    ours, copies = recipe_directory(), tmp_path / "copies"
    for path in ours.rglob("*.yml"):
        copy = copies / path.relative_to(ours)
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = yaml.safe_load(path.read_text())
        copy.write_text(yaml.safe_dump(dict(sorted(content.items(), reverse=True)), sort_keys=False))
    base = "base_model: org/b\ndatasets: [{path: org/d, type: alpaca}]\noutput_dir: o\nlearning_rate: 1e-5\n"
    base += "micro_batch_size: 1\ngradient_accumulation_steps: 2\nnum_epochs: 1\n"
    merge = "merge_method: linear\nmodels: [{model: a/b, parameters: {weight: 0.5}}, {model: c/d}]\n"
    pairs = {
        "defaults": (base, base + "optimizer: adamw_torch_fused\nlr_scheduler: cosine\nadapter: null\n"),
        "deprecated": (base + "flash_attention: true\nmodel_revision: x\n",
                       base + "attn_implementation: flash_attention_2\nrevision_of_model: x\n"),
        "real": (base, base + "optimizer: adamw_torch\n"),
        "attention": (base + "flash_attention: true\n", base + "sdp_attention: true\n"),
        "merge": (merge, merge + "dtype: null\n"),
    }  # fmt: skip
    for side in (0, 1):
        (tmp_path / str(side)).mkdir()
        for name, texts in pairs.items():
            (tmp_path / str(side) / f"{name}.yml").write_text(texts[side])
    first, second, left, right = meanings(ours, copies, tmp_path / "0", tmp_path / "1")
    assert differences(first, second) == []
    found = [(one.where, one.key, one.before) for one in differences(left, right)]
    assert found == [
        ("attention.yml", "attn_implementation", "flash_attention_2"),
        ("real.yml", "optimizer", "adamw_torch_fused (default)"),
    ]
    (tmp_path / "bad.yml").write_text(base + "num_epochs: many\n")
    with pytest.raises(ArgsError, match=r"bad\.yml.*num_epochs"):
        meanings(tmp_path / "bad.yml")
    assert as_text([]) == "no difference in meaning"
