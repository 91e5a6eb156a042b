import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from solar_plugins.errors import ArgsError, CheckpointError, PluginError
from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.recipe import parse_recipe, read_recipe, read_yaml
from solar_plugins.report.stages import Stage, check_tokenizer, find_stages, model_directory, require_plan
from solar_plugins.report.training_log import LogPoint
from solar_plugins.upscaling.layer_plan import LayerPlan

PLAN = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])
OTHER_PLAN = LayerPlan.from_sources(4, [0, 1, 0, 1, 2, 3])


def found(chain, plan=PLAN):
    recipe, *later = chain
    return find_stages(read_recipe(recipe), plan, later, lambda _: OTHER_PLAN)


def parsed(recipe):
    return None if recipe is None else parse_recipe(recipe)


def change(path, **keys):
    recipe = yaml.safe_load(path.read_text()) | keys
    path.write_text(yaml.safe_dump(recipe))


def test_one_recipe_is_one_stage_named_trained(trained_recipe, tmp_path):
    [stage] = found([trained_recipe])

    assert (stage.name, stage.directory, stage.recipe.path) == ("trained", tmp_path / "trained", trained_recipe)
    assert stage.log.last_step == 2


def test_stages_are_named_after_their_recipes_and_folders(trained_chain, tmp_path):
    stages = found(trained_chain)

    assert [stage.name for stage in stages] == ["recipe", "sft", "dpo", "mean"]
    assert [stage.directory.name for stage in stages] == ["trained", "sft", "dpo", "mean"]
    assert stages[1].recipe.text == (tmp_path / "solar_sft.yml").read_text()
    assert stages[1].log is None
    assert stages[2].log.margins.held_out == (LogPoint(2, 0.01),)
    assert (stages[3].recipe, stages[3].log) == (None, None)


def test_an_adapter_is_taken_from_the_folder_of_its_merge(trained_chain, tmp_path):
    (tmp_path / "sft" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"solar_sft.yml: output_dir: (.|\n)*axolotl merge-lora .*solar_sft.yml"):
        found(trained_chain[:2])
    shutil.copytree(tmp_path / "dpo", tmp_path / "sft" / "merged")

    assert found(trained_chain[:2])[1].directory == tmp_path / "sft" / "merged"


def test_a_merged_folder_may_be_given_as_a_dot(trained_chain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "mean")

    assert found([trained_chain[0], Path(".")])[1].name == "mean"


def test_named_settings_say_the_method(trained_chain):
    dpo = found(trained_chain)[2]

    assert "rl" not in read_yaml(trained_chain[2])
    assert (dpo.method, dpo.starts_at_ln_2) == ("dpo", True)


@pytest.mark.parametrize(
    ("recipe", "starts"),
    [
        ({"rl": "dpo"}, True),
        ({"rl": "dpo", "dpo_loss_type": ["sigmoid"]}, True),
        ({"rl": "dpo", "dpo_loss_type": ["ipo"]}, False),
        ({"rl": "dpo", "dpo_loss_type": ["sigmoid", "sft"]}, False),
        ({"rl": "dpo", "dpo_use_weighting": True}, False),
        ({"rl": "dpo", "dpo_loss_type": ["sigmoid"], "dpo_loss_weights": [0.5]}, False),
        ({"rl": "dpo", "lora_model_dir": "runs/dpo"}, False),
        ({"rl": "ipo"}, False),
        ({"rl": "orpo"}, False),
        ({}, False),
        (None, False),
    ],
)
def test_only_plain_dpo_starts_at_ln_2(recipe, starts):
    assert Stage("x", Path("x"), recipe=parsed(recipe)).starts_at_ln_2 is starts


@pytest.mark.parametrize(
    ("recipe", "uses"),
    [
        ({"datasets": [{"type": "completion"}, {"type": "solar_plugins.alpaca"}]}, True),
        ({"chat_template": "chatml", "datasets": [{"type": "chat_template"}]}, True),
        ({"datasets": [{"type": "chat_template"}]}, True),  # The tokenizer's own, which is Axolotl's default.
        ({"datasets": [{"type": "completion"}]}, False),
        ({"datasets": [{"path": "x"}]}, False),
        ({"datasets": "x"}, False),
        (None, False),
    ],
)
def test_whether_a_stage_trains_on_a_chat_format(recipe, uses):
    assert Stage("x", Path("x"), recipe=parsed(recipe)).uses_chat_format is uses


def test_a_stage_that_was_not_trained_is_named(trained_chain, tmp_path):
    shutil.rmtree(tmp_path / "dpo")

    with pytest.raises(CheckpointError, match=r"solar_dpo.yml: output_dir: .*dpo holds no trained model(.|\n)*train "):
        found(trained_chain)


def test_a_mergekit_recipe_as_a_stage_is_an_error(trained_recipe):
    merge = recipe_directory() / "smollm2" / "mergekit" / "solar_average.yml"

    with pytest.raises(ArgsError, match=r"solar_average.yml: a recipe for mergekit.*give the folder"):
        found([trained_recipe, merge])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "absent: neither a recipe nor a folder"),
        ("absent.yml", r"absent.yml: cannot be read \(No such file"),
        ("empty", "empty holds no trained model .*expected the folder of a merged model"),
        ("adapter", r"adapter holds a LoRA adapter.*merge it, and give"),
    ],
)
def test_an_argument_that_is_not_a_stage_is_an_error(trained_recipe, tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").touch()

    with pytest.raises((ArgsError, CheckpointError), match=message):
        found([trained_recipe, tmp_path / name])


def test_a_model_of_another_plan_is_not_a_stage(trained_chain, base_directory):
    with pytest.raises(
        CheckpointError, match=r"tiny-base holds a model of 4 layers, but .*recipe.yml, the first stage"
    ):
        found([*trained_chain, base_directory])


def test_a_recipe_that_changed_since_training_is_an_error(trained_recipe):
    other = LayerPlan.from_sources(4, [0, 1, 0, 1, 2, 3])

    with pytest.raises(
        CheckpointError, match=r"output_dir: .* but this recipe's plan is .*it comes from another recipe"
    ):
        found([trained_recipe], other)


def test_equal_names_are_refused(trained_chain, tmp_path):
    with pytest.raises(ArgsError, match=r"solar_sft.yml: .*'sft'.*solar_sft.yml;.* rename"):
        found([*trained_chain, trained_chain[1]])
    (tmp_path / "mean").rename(tmp_path / "base")
    with pytest.raises(ArgsError, match=r"base: .*'base', like that of the report itself"):
        found([trained_chain[0], tmp_path / "base"])


def test_two_stages_with_one_model_are_rejected(trained_chain, tmp_path):
    change(trained_chain[2], output_dir=str(tmp_path / "sft"))
    with pytest.raises(ArgsError, match=r"solar_dpo.yml: its model's folder is .*sft', like that of .*solar_sft.yml;"):
        found(trained_chain)
    with pytest.raises(ArgsError, match=r"merged: its model's folder is .*merged', like that of .*solar_sft.yml;"):
        found([*trained_chain[:2], merged_in(tmp_path / "sft")])


def merged_in(directory):
    """The folder of a merged adapter, which is what the report measures of its recipe."""
    (directory / "adapter_config.json").touch()
    shutil.copytree(directory, directory / "merged")
    (directory / "merged" / "adapter_config.json").unlink()
    return directory / "merged"


def test_a_stage_starts_from_the_stage_that_its_recipe_names(trained_chain, tmp_path):
    assert [stage.began_with for stage in found(trained_chain)] == [None] * 4
    change(trained_chain[1], base_model=str(tmp_path / "trained"))
    change(trained_chain[2], base_model=str(tmp_path / "mean" / ".." / "trained"))

    assert [stage.began_with for stage in found(trained_chain)] == [None, "recipe", "recipe", None]


@pytest.mark.parametrize(
    ("solar", "error", "message"),
    [
        ({"dpo": "unheard_of"}, PluginError, r"solar_dpo.yml: solar.dpo: 'unheard_of' is not a registered"),
        ({"dpo": "sdpo", "beta": 1}, ArgsError, r"solar_dpo.yml: solar.beta: unknown key"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named(trained_chain, solar, error, message):
    change(trained_chain[2], solar=solar)

    with pytest.raises(error, match=message):
        found(trained_chain)


STAGE = Stage("sft", Path("runs/sft"))


def read(tokenizer):
    return [tokenizer("Once upon a time a wolf came by.", add_special_tokens=False)["input_ids"]]


def test_a_tokenizer_with_additional_tokens_is_accepted(tokenizer, own_tokenizer):
    own_tokenizer.add_special_tokens({"pad_token": "[PAD]"})

    check_tokenizer(STAGE, tokenizer, own_tokenizer, read)
    with pytest.raises(CheckpointError, match=r"runs/sft: .* stage sft .*'\[PAD\]' is token none in it and 320"):
        check_tokenizer(STAGE, own_tokenizer, tokenizer, read)


def test_a_tokenizer_that_splits_words_differently_is_rejected(tokenizer, own_tokenizer):
    from tokenizers import pre_tokenizers

    own_tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )

    with pytest.raises(CheckpointError, match="encodes the held-out text differently"):
        check_tokenizer(STAGE, tokenizer, own_tokenizer, read)


def write_model(directory, num_layers, **config):
    """A checkpoint as far as it is looked at before it is loaded."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", "num_hidden_layers": num_layers} | config
    (directory / "config.json").write_text(json.dumps(config))
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def test_the_trained_model_is_the_one_in_output_dir(tmp_path):
    write_model(tmp_path, 6)

    assert model_directory(tmp_path, tmp_path / "r.yml") == tmp_path


def test_an_untrained_recipe_is_told_how_to_train(tmp_path):
    # Axolotl writes config.json before the first step.
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(
        CheckpointError, match=r"holds no trained model (.|\n)*accelerate launch -m axolotl.cli.train r.yml"
    ):
        model_directory(tmp_path, "r.yml")
    with pytest.raises(CheckpointError, match="holds no trained model"):
        model_directory(tmp_path / "absent", "r.yml")


def test_an_interrupted_run_is_recognized(tmp_path):
    for step, seconds in ((20, 2), (100, 1)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (seconds, seconds))

    with pytest.raises(CheckpointError, match=r"but checkpoint-20: .*auto_resume_from_checkpoints: true"):
        model_directory(tmp_path, "r.yml")


def test_an_adapter_is_measured_after_merging(tmp_path):
    write_model(tmp_path, 6)
    (tmp_path / "adapter_config.json").write_text("{}")

    with pytest.raises(CheckpointError, match=r"holds a LoRA adapter(.|\n)*axolotl merge-lora r.yml"):
        model_directory(tmp_path, "r.yml")
    write_model(tmp_path / "merged", 6)
    assert model_directory(tmp_path, "r.yml") == tmp_path / "merged"


EXPECTED = "but the plan is another"


def test_a_model_of_the_plan_is_accepted(tmp_path):
    write_model(tmp_path / "recorded", 6, solar_plugins={"plan": PLAN.to_dict()})
    write_model(tmp_path / "unrecorded", 6)

    for directory in (tmp_path / "recorded", tmp_path / "unrecorded"):
        require_plan(Stage("x", directory), PLAN, EXPECTED)


def test_a_model_of_another_plan_is_refused(tmp_path):
    write_model(tmp_path / "shallow", 4)
    other = LayerPlan.from_sources(4, [0, 1, 2, 3, 2, 3])
    write_model(tmp_path / "other", 6, solar_plugins={"plan": other.to_dict()})

    with pytest.raises(CheckpointError, match=r"shallow holds a model of 4 layers, but the plan is another$"):
        require_plan(Stage("x", tmp_path / "shallow"), PLAN, EXPECTED)
    with pytest.raises(CheckpointError, match=r"other holds a model of 6 layers \(4 -> 6 layers: .*\), but the plan"):
        require_plan(Stage("x", tmp_path / "other"), PLAN, EXPECTED)


def test_damaged_weights_are_found_before_anything_is_measured(tmp_path):
    write_model(tmp_path, 6)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2])

    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        require_plan(Stage("x", tmp_path), PLAN, EXPECTED)


def test_a_recipe_that_upscales_the_same_base_has_its_own_plan(trained_chain, other_plan):
    stages = found([trained_chain[0], other_plan, *trained_chain[1:]])
    assert [stage.plan for stage in stages] == [None, OTHER_PLAN, None, None, None]
    assert stages[1].untrained == "other, upscaled"


def test_another_plan_of_another_base_is_refused(trained_chain, other_plan):
    change(other_plan, base_model="elsewhere")
    with pytest.raises(ArgsError) as error:
        found([trained_chain[0], other_plan])
    for fact in (str(other_plan), "elsewhere", str(trained_chain[0])):
        assert fact in str(error.value)


def test_another_plan_must_be_the_one_that_was_trained(trained_chain, other_plan, tmp_path):
    change(other_plan, output_dir=str(tmp_path / "trained"))
    with pytest.raises(CheckpointError, match=r"solar_other\.yml"):
        found([trained_chain[0], other_plan])
