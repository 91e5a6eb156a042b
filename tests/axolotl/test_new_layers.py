"""Block expansion: the expanded model equals its base until it is trained, and training changes only the new layers."""

import pytest
import torch
import yaml

from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.recipe import read_recipe
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.mergekit import passthrough_merge
from solar_plugins.upscaling.strategies import plan_of
from solar_plugins.upscaling.strategies.block_expansion import BlockExpansionArgs, plan_block_expansion
from solar_plugins.upscaling.trained_layers import training_keys

EXPANDED = plan_block_expansion(8, BlockExpansionArgs(new_layers=2))
NEW = ("model.layers.4.", "model.layers.9.")
TRAINED_ALONE = {
    "solar": {
        "init": {"strategy": "block_expansion", "new_layers": 2},
        "train": {"layers": "new"},
        "cache_dir": "cache",
    },
    "gradient_checkpointing": True,  # as in the recipe: frozen layers below must not stop the gradient
    "weight_decay": 0.1,
}


def tensors_of(directory):
    from safetensors.torch import load_file

    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def same_bytes(one, other):
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@torch.no_grad()
def what_it_says(directory):
    """Logits of random tokens, and of a greedy continuation that uses the cache."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    tokens = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(3))
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    generated = model.generate(tokens, return_dict_in_generate=True, **settings)
    return model(tokens).logits, torch.stack(generated.logits)


def test_the_untrained_model_computes_what_its_base_computes(any_base, tmp_path):
    base = find_base(str(any_base))
    expected = what_it_says(any_base)
    expanded = what_it_says(ensure_checkpoint(base, EXPANDED, tmp_path / "cache"))
    copied = what_it_says(ensure_checkpoint(base, LayerPlan.from_sources(8, EXPANDED.sources), tmp_path / "cache"))
    assert all(torch.equal(*pair) for pair in zip(expanded, expected, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(copied, expected, strict=True)), "plain copies are no identity"


def test_new_layers_keep_all_tensors_of_their_source_but_the_output_projections(any_base, tmp_path):
    """LLaMA Pro, sec. 3.2: norms are kept; with zero norms no gradient would reach the layer."""
    made = tensors_of(ensure_checkpoint(find_base(str(any_base)), EXPANDED, tmp_path / "cache"))
    source = tensors_of(any_base)
    for new, old in (("model.layers.4.", "model.layers.3."), ("model.layers.9.", "model.layers.7.")):
        for name in (name for name in source if name.startswith(old)):
            tensor = made[new + name.removeprefix(old)]
            writes = ".o_proj." in name or ".down_proj." in name
            assert same_bytes(tensor, torch.zeros_like(tensor) if writes else source[name]), name


def test_the_recipe_trains_the_new_layers_of_its_plan_and_nothing_else():
    """By Axolotl's own freezing, with the parameter names of a real model of that depth."""
    from axolotl.utils.freeze import freeze_layers_except
    from transformers import MistralConfig, MistralForCausalLM

    recipe = read_recipe(recipe_directory() / "block_expansion.yml")
    plan = plan_of(recipe.solar.init, 32)
    new = {i for i, layer in enumerate(plan.layers) if layer.initialization == "identity"}
    assert new == {4, 9, 14, 19, 24, 29, 34, 39}
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    with torch.device("meta"):
        model = MistralForCausalLM(MistralConfig(num_hidden_layers=len(plan), num_key_value_heads=2, **sizes))
    decoder = Decoder.of({"model_type": "mistral", "num_hidden_layers": 32})
    freeze_layers_except(model, training_keys(recipe, recipe.solar.train, decoder, plan)["unfrozen_parameters"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"model.layers.{i}.{name}" for i in new for name, _ in model.model.layers[0].named_parameters()}


@pytest.mark.slow
def test_training_changes_every_tensor_of_the_new_layers_and_no_other(training_folder, run_warm):
    recipe = yaml.safe_load((training_folder / "recipe.yml").read_text())
    (training_folder / "recipe.yml").write_text(yaml.safe_dump(recipe | TRAINED_ALONE))
    result = run_warm("python", "-m", "axolotl.cli.train", "recipe.yml", cwd=training_folder)
    assert result.returncode == 0, result.stdout + result.stderr
    (upscaled,) = (training_folder / "cache").glob("upscaled-8-to-10-*")
    before, after = tensors_of(upscaled), tensors_of(training_folder / "out")
    base = tensors_of(training_folder / "base")
    changed = {name for name in before if not same_bytes(after[name], before[name])}
    assert after.keys() == before.keys()
    assert changed == {name for name in before if name.startswith(NEW)}
    for position, layer in enumerate(EXPANDED.layers):
        if layer.initialization == "copy":
            prefix = f"model.layers.{layer.source}."
            for name in (name for name in base if name.startswith(prefix)):
                assert same_bytes(after[f"model.layers.{position}.{name.removeprefix(prefix)}"], base[name]), name
    outside = {name for name in base if not name.startswith("model.layers.")}
    assert len(outside) == 3
    assert all(same_bytes(after[name], base[name]) for name in outside)
    assert "solar.train: 2 of 10 layers are trained" in result.stdout + result.stderr


@pytest.mark.slow
def test_a_later_stage_reads_the_plan_from_the_trained_model(training_folder, run_warm):
    recipe = yaml.safe_load((training_folder / "recipe.yml").read_text()) | TRAINED_ALONE
    ensure_checkpoint(find_base(str(training_folder / "base")), EXPANDED, training_folder / "cache")
    (made,) = (training_folder / "cache").glob("upscaled-*")
    stage = recipe | {"base_model": str(made), "solar": {"train": {"layers": "new", "lm_head": True}}, "max_steps": 1}
    (training_folder / "recipe.yml").write_text(yaml.safe_dump(stage))
    result = run_warm("python", "-m", "axolotl.cli.train", "recipe.yml", cwd=training_folder)
    assert result.returncode == 0, result.stdout + result.stderr
    before, after = tensors_of(made), tensors_of(training_folder / "out")
    # The first step changes only the output projections of a new layer: zero weights pass no gradient to the rest.
    changed = {name for name in before if not same_bytes(after[name], before[name])}
    assert changed >= {f"{prefix}mlp.down_proj.weight" for prefix in NEW} | {"lm_head.weight"}
    assert all(name.startswith((*NEW, "lm_head.")) for name in changed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_the_exported_merge_makes_the_same_model(made_bases, kind, tmp_path, run_warm):
    """mergekit multiplies by zero, which gives -0.0 for negative weights; all other tensors must be bit-identical."""
    base, written = find_base(str(made_bases / kind)), ("o_proj.weight", "down_proj.weight")
    merge = passthrough_merge(str(made_bases / kind), base.decoder, EXPANDED)
    (tmp_path / "merge.yml").write_text(yaml.safe_dump(merge))
    merged = run_warm("mergekit-yaml", tmp_path / "merge.yml", tmp_path / "merged")
    assert merged.returncode == 0, merged.stderr
    ours, theirs = tensors_of(ensure_checkpoint(base, EXPANDED, tmp_path / "cache")), tensors_of(tmp_path / "merged")
    assert ours.keys() == theirs.keys()
    differing = {name for name in ours if not same_bytes(ours[name], theirs[name])}
    assert differing <= {name for name in ours if name.startswith(NEW) and name.endswith(written)}
    assert all(torch.equal(ours[name], theirs[name]) for name in differing)
    said = what_it_says(made_bases / kind), what_it_says(tmp_path / "merged")
    assert all(torch.equal(*pair) for pair in zip(*said, strict=True))
