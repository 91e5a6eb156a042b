"""`solar recipes fetch`: what is found in repositories and folders, where it is written, and what is passed over."""

import hashlib
import json

import pytest
import yaml
from click.testing import CliRunner

from solar_plugins.cli import solar
from solar_plugins.lineage.record import Lineage, Source, Stage
from solar_plugins.lineage.record import write as write_lineage
from solar_plugins.sharing import fetch as fetch_module
from solar_plugins.sharing.bundle import BundleStage, Variable, read_bundle, write_bundle

RECIPE = """\
# SFT
base_model: org/base
datasets: [{path: org/data, type: alpaca}]
output_dir: out
learning_rate: 1.0e-5
"""
OTHER = RECIPE.replace("SFT", "DPO") + "rl: dpo\n"
MERGE = "merge_method: slerp\nmodels: [{model: org/a}, {model: org/b}]\ndtype: bfloat16\n"
MIXTURE = "output: data\nsets: {one: {path: a.jsonl, text_columns: [text]}}\n"
PIPELINE = "records: runs\nstages:\n- {name: sft, recipe: sft.yml}\n"
AXOLOTL_CARD = """\
---
license: apache-2.0
base_model: org/base
---
<!-- This model card has been generated automatically -->
[<img src="badge.png" alt="Built with Axolotl"/>](https://github.com/axolotl-ai-cloud/axolotl)
<details><summary>See axolotl config</summary>

axolotl version: `0.21.0`
```yaml
{}
```

</details><br>

# out

```python
import os
```
"""
MERGEKIT_CARD = """\
# merge

### Configuration

The following YAML configuration was used to produce this model:

```yaml
{}
```
"""


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fetch(*arguments):
    """Run the command; return the exit status and what it printed, which is always safe to print."""
    ended = CliRunner().invoke(solar, ["recipes", "fetch", *map(str, arguments)])
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    assert all(c.isprintable() or c == "\n" for c in ended.output)
    return ended.exit_code, ended.output


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def used(hub, monkeypatch, tmp_path):
    return hub.use(monkeypatch, tmp_path / "home")


def test_recipes_of_every_kind_are_found_by_their_keys(used, tmp_path):
    repo = used.repo(
        "org/model",
        {
            "sft.yml": RECIPE,
            "merge/mergekit_config.yml": MERGE,
            "mix.yaml": MIXTURE,
            "pipeline.yml": PIPELINE,
            "moe.yml": "base_model: org/a\ngate_mode: hidden\nexperts: [{source_model: org/b}]\n",
            "axolotl_config": OTHER,
            "config.yml": "name: none of these\n",
            "model.safetensors": b"\0" * 1000,
            "modeling.py": "raise SystemExit('executed')\n",
            "tokenizer.json": "{}",
        },
    )
    status, said = fetch("org/model")
    assert status == 0, said
    written = files_in(tmp_path / "model")
    assert written.keys() == {
        *("sft.yml", "merge/mergekit_config.yml", "mix.yaml", "pipeline.yml", "moe.yml", "axolotl_config"),
        "ORIGIN.json",
    }
    assert written["sft.yml"] == RECIPE
    kinds = {name: one["kind"] for name, one in json.loads(written["ORIGIN.json"])["files"].items()}
    assert kinds == {
        "sft.yml": "recipe",
        "merge/mergekit_config.yml": "merge",
        "mix.yaml": "mixture",
        "pipeline.yml": "pipeline",
        "moe.yml": "merge",
        "axolotl_config": "recipe",
    }
    assert "config.yml" in said
    assert "no recipe, merge, mixture or pipeline" in said
    assert f"solar recipes check {'model'}" in said
    asked = [path for method, path, _ in used.requests if method == "GET" and "/resolve/" in path]
    assert not [path for path in asked if path.endswith((".safetensors", ".py", "tokenizer.json"))]
    assert repo.refs["main"][:12] in said


def test_the_origin_names_commit_file_and_hash(used, tmp_path):
    repo = used.repo("org/model", {"a.yml": RECIPE})
    first = repo.refs["main"]
    second = repo.commit({"b.yml": OTHER})
    assert fetch("org/model@main", "--output", "got")[0] == 0
    origin = json.loads((tmp_path / "got/ORIGIN.json").read_text())
    assert (origin["source"], origin["commit"], origin["hub"]) == ("org/model", second, used.url)
    assert origin["files"]["a.yml"] == {
        "kind": "recipe",
        "from": "a.yml",
        "sha256": hashlib.sha256(RECIPE.encode()).hexdigest(),
    }
    assert fetch(f"org/model@{first}", "--output", "old")[0] == 0
    assert files_in(tmp_path / "old").keys() == {"a.yml", "ORIGIN.json"}


def test_the_cards_of_axolotl_and_mergekit_hold_recipes(used, tmp_path):
    used.repo("org/trained", {"README.md": AXOLOTL_CARD.format(RECIPE.rstrip("\n"))})
    assert fetch("org/trained")[0] == 0
    assert (tmp_path / "trained/card-1.yml").read_text() == RECIPE
    used.repo("org/merged", {"README.md": MERGEKIT_CARD.format(MERGE), "mergekit_config.yml": MERGE})
    status, said = fetch("org/merged")
    assert status == 0
    assert files_in(tmp_path / "merged").keys() == {"mergekit_config.yml", "ORIGIN.json"}
    assert "the same merge as mergekit_config.yml" in said


def test_a_fence_inside_axolotls_recipe_does_not_end_it(used, tmp_path):
    recipe = RECIPE + "chat_template_jinja: |\n  ```\n  {{ messages }}\n  ```\nseed: 1\n"
    used.repo("org/trained", {"README.md": AXOLOTL_CARD.format(recipe.rstrip("\n"))})
    assert fetch("org/trained")[0] == 0
    assert (tmp_path / "trained/card-1.yml").read_text() == recipe


def test_the_card_that_the_installed_mergekit_writes(used, tmp_path):
    card = pytest.importorskip("mergekit.card")
    text = card.CARD_TEMPLATE.format(
        metadata="base_model: [org/a]",
        name="x",
        merge_method="SLERP",
        base_text="",
        model_list="* a",
        config_yaml=MERGE,
    )
    used.repo("org/merged", {"README.md": text})
    assert fetch("org/merged")[0] == 0
    assert yaml.safe_load((tmp_path / "merged/card-1.yml").read_text()) == yaml.safe_load(MERGE)


def test_the_stages_of_a_lineage(tmp_path):
    source = tmp_path / "trained"
    source.mkdir()
    stages = tuple(
        Stage(kind=kind, result=Source(name=kind), sources=(Source(name="org/base", on_hub=True),), recipe=text)
        for kind, text in (("pretrain", RECIPE), ("merge", MERGE), ("sft", "a: !!python/object/apply:os.abort []"))
    )
    write_lineage(source, Lineage(bases=(Source(name="org/base", on_hub=True),), stages=stages))
    status, said = fetch(source, "--output", "got")
    assert status == 0, said
    written = files_in(tmp_path / "got")
    assert written.keys() == {"solar_lineage.json", "lineage/1-pretrain.yml", "lineage/2-merge.yml", "ORIGIN.json"}
    assert written["lineage/1-pretrain.yml"] == RECIPE
    assert "org/base -> pretrain -> merge -> sft" in said
    assert "could not determine a constructor" in said


@pytest.fixture
def bundle(tmp_path):
    files = {"recipes/sft.yml": RECIPE.replace("org/base", "${BASE}").encode(), "README.md": b"# a card\n"}
    variables = {"BASE": Variable(meaning="the base", example="base")}
    folder = tmp_path / "bundle"
    write_bundle(
        folder,
        files,
        name="sft",
        stages=[BundleStage(name="sft", kind="recipe", file="recipes/sft.yml")],
        variables=variables,
    )
    return folder


def test_a_bundle_is_fetched_completely_and_is_one_again(used, tmp_path, bundle):
    used.folder("org/shared", bundle)
    status, said = fetch("org/shared")
    assert status == 0, said
    assert read_bundle(tmp_path / "shared").manifest.name == "sft"
    assert files_in(tmp_path / "shared").keys() == {*files_in(bundle), "ORIGIN.json"}
    assert "solar recipes reproduce shared" in said
    assert fetch(tmp_path / "shared", "--output", "local")[0] == 0
    assert read_bundle(tmp_path / "local").manifest == read_bundle(bundle).manifest


def test_a_bundle_that_was_changed_is_an_error(used, tmp_path, bundle):
    (bundle / "recipes/sft.yml").write_text("other: text\n")
    used.folder("org/shared", bundle)
    status, said = fetch("org/shared")
    assert status == 1
    assert "recipes/sft.yml: was changed" in said
    assert not (tmp_path / "shared").exists()


def test_a_folder(tmp_path):
    source = tmp_path / "runs/model"
    source.mkdir(parents=True)
    (source / "sft.yml").write_text(RECIPE)
    (source / ".hidden").mkdir()
    (source / ".hidden/other.yml").write_text(OTHER)
    status, _ = fetch(source)
    assert status == 0
    assert files_in(tmp_path / "model-recipes").keys() == {"sft.yml", "ORIGIN.json"}
    origin = json.loads((tmp_path / "model-recipes/ORIGIN.json").read_text())
    assert origin["source"] == "model"
    assert "commit" not in origin
    status, said = fetch(source, "--output", source / "inside")
    assert status == 1
    assert "--output" in said


def test_the_same_fetch_again_changes_nothing_and_another_one_overwrites_nothing(used, tmp_path):
    repo = used.repo("org/model", {"sft.yml": RECIPE})
    assert fetch("org/model")[0] == 0
    before = files_in(tmp_path / "model")
    assert fetch("org/model")[0] == 0
    repo.commit({"sft.yml": OTHER})
    status, said = fetch("org/model")
    assert status == 1
    assert "model/sft.yml: exists with other content" in said
    repo.commit({"sft.yml": RECIPE, "dpo.yml": OTHER})
    status, said = fetch("org/model")
    assert status == 1
    assert "model/ORIGIN.json" in said
    assert files_in(tmp_path / "model") == before


def test_offline_what_is_cached_is_fetched(used, tmp_path, monkeypatch):
    used.repo("org/model", {"sft.yml": RECIPE})
    assert fetch("org/model")[0] == 0
    before = files_in(tmp_path / "model")
    used.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, said = fetch("org/model")
    assert status == 0, said
    assert "the Hub is offline" in said
    assert files_in(tmp_path / "model") == before
    status, said = fetch("org/other")
    assert status == 1
    assert "HF_HUB_OFFLINE" in said
    assert used.requests == []


def test_nothing_found(used):
    used.repo("org/model", {"config.yml": "x: 1\n", "model.safetensors": b"0"})
    status, said = fetch("org/model")
    assert status == 1
    assert "org/model: has no recipe" in said
    assert "config.yml" in said


@pytest.mark.parametrize("name", ["", "model", "./model", "a/b/c", "/no/such", "~/x", "org/mo del"])
def test_a_name_that_is_neither_folder_nor_repository(used, name):
    status, said = fetch(name)
    assert status == 1
    assert "ORG/" in said


def test_json_says_the_same(used):
    used.repo("org/model", {"sft.yml": RECIPE, "x.yml": "a: 1\n"})
    _, said = fetch("org/model", "--json")
    told = json.loads(said)
    assert told["origin"]["files"]["sft.yml"]["kind"] == "recipe"
    assert told["passed_over"] == [{"file": "x.yml", "why": "no recipe, merge, mixture or pipeline"}]


def test_a_key_that_is_there_twice_is_said(used):
    used.repo("org/model", {"sft.yml": RECIPE + "output_dir: /\n"})
    _, said = fetch("org/model")
    assert "set twice: output_dir (line 6)" in said


def test_many_files_are_bounded(used, monkeypatch):
    monkeypatch.setattr(fetch_module, "MAX_FILES", 3)
    used.repo(
        "org/model", {f"{n}.yml": RECIPE + f"seed: {n}\n" for n in range(5)} | {"big.yml": "a: '" + "x" * 1_000_001}
    )
    _, said = fetch("org/model")
    assert "more than 3 YAML files" in said
    assert "1 MB, too large for a recipe" in said
    assert not used.asked("GET", "/resolve/.*/big.yml")
