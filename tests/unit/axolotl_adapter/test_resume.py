import json

import pytest

from solar_plugins.axolotl_adapter.resume import refuse_other_plans_checkpoint
from solar_plugins.errors import CheckpointError
from solar_plugins.recipe import parse_recipe
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.provenance import provenance

PLAN = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
OTHER = LayerPlan.from_sources(8, [*range(7), *range(1, 8)])


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "out" / "checkpoint-5"
    folder.mkdir(parents=True)
    return folder


def refuse(checkpoint, **keys):
    recipe = parse_recipe({"output_dir": str(checkpoint.parent), "auto_resume_from_checkpoints": True} | keys)
    refuse_other_plans_checkpoint(recipe, PLAN, checkpoint.parents[1] / "cache" / "upscaled-8-to-12-mine")


def config(checkpoint, plan):
    (checkpoint / "config.json").write_text(json.dumps(provenance("b", None, plan)))


def adapter(checkpoint, base):
    (checkpoint / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))


def test_a_model_of_another_plan_is_rejected(checkpoint):
    config(checkpoint, OTHER)
    with pytest.raises(CheckpointError, match=r"^auto_resume_from_checkpoints: .*another plan, 8 -> 14 .*8 -> 12"):
        refuse(checkpoint)
    with pytest.raises(CheckpointError, match=r"^resume_from_checkpoint: "):
        refuse(checkpoint, resume_from_checkpoint=str(checkpoint))
    refuse(checkpoint, auto_resume_from_checkpoints=False)


def test_an_adapter_of_another_model_is_rejected(checkpoint):
    adapter(checkpoint, "/cache/upscaled-8-to-14-other")
    with pytest.raises(CheckpointError, match="another upscaled checkpoint, upscaled-8-to-14-other"):
        refuse(checkpoint)


def test_a_checkpoint_of_the_same_model_passes(checkpoint):
    refuse(checkpoint)  # A sharded state without a config.
    config(checkpoint, PLAN)
    adapter(checkpoint, "/elsewhere/upscaled-8-to-12-mine")
    refuse(checkpoint)
    adapter(checkpoint, "mistralai/Mistral-7B-v0.1")
    refuse(checkpoint)
