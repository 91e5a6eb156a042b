"""A training that pushes while it runs, to the stand-in for the Hub: every commit has a card with the lineage."""

import json
import shutil

import pytest
import yaml

from solar_plugins.lineage import LINEAGE_FILE, Lineage
from solar_plugins.storage.cards import split_card
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import write_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan

pytestmark = pytest.mark.slow

PLAN = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
PUSHING = {
    "base_model": "org/dus",
    "hub_model_id": "tester/out",
    "hub_strategy": "checkpoint",
    "save_strategy": "steps",
    "save_steps": 1,
    "max_steps": 2,
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_modules": ["q_proj", "v_proj"],
    **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"), False),
}


@pytest.fixture
def folder(training_folder, hub):
    """`training_folder` with a recipe that has no key of ours; its base is on the Hub, upscaled and licensed."""
    base = training_folder / "base"
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n")
    write_checkpoint(find_base(str(base)), PLAN, training_folder / "dus")
    hub.folder("org/dus", training_folder / "dus")
    recipe = yaml.safe_load((training_folder / "recipe.yml").read_text()) | PUSHING
    for key in ("plugins", "solar"):
        recipe.pop(key)
    (training_folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    for name in ("base", "dus"):
        shutil.rmtree(training_folder / name)
    return training_folder


def test_every_push_has_the_card(folder, hub, run):
    done = run("python", "-m", "axolotl.cli.train", "recipe.yml", cwd=folder, env=hub.environment(folder / "home"))
    assert done.returncode == 0, done.stdout + done.stderr
    commits = [one for one in hub.repos["model", "tester/out"].commits.values() if one.title != "initial commit"]
    assert any("Training in progress" in one.title for one in commits)
    cards = [(one.title, path) for one in commits for path in one.files if path.endswith("README.md")]
    assert {path for _, path in cards} == {"README.md", "last-checkpoint/README.md"}
    for commit in commits:
        for path in (path for path in commit.files if path.endswith("README.md")):
            text = commit.files[path].decode()
            front, _ = split_card(text)
            assert (front["base_model"], front["base_model_relation"]) == (["org/dus"], "adapter"), commit.title
            assert (front["license"], front["license_name"], front["license_link"]) == ("other", "own", "LICENSE")
            assert {"axolotl", "depth-up-scaling", "solar_plugins"} <= set(front["tags"])
            assert str(folder) not in text
            found = Lineage.model_validate(json.loads(commit.files[path.replace("README.md", LINEAGE_FILE)]))
            assert [stage.kind for stage in found.stages] == ["upscale", "pretrain"]
            assert found.layer_plan == PLAN
            assert found.stages[0].result.name == found.stages[1].sources[0].name == "org/dus"
