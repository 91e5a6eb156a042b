"""Complete runs of Axolotl's own commands on a tiny base."""

import json
import shutil

import pytest
import yaml

pytestmark = pytest.mark.slow

LAUNCH = ("accelerate", "launch", "--cpu", "--num_processes", "1", "-m", "axolotl.cli.train")
TRAIN = ("python", "-m", "axolotl.cli.train")


def depth(directory):
    return json.loads((directory / "config.json").read_text())["num_hidden_layers"]


def checkpoints(folder):
    return sorted(path.name[:16] for path in (folder / "cache").glob("upscaled-*"))


def edit(folder, **changes):
    recipe = yaml.safe_load((folder / "recipe.yml").read_text())
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe | changes))


def test_training_twice_and_inference_with_the_trained_model(training_folder, run, run_warm):
    from transformers import AutoModelForCausalLM

    first = run(*LAUNCH, "recipe.yml", cwd=training_folder)
    assert first.returncode == 0, first.stdout + first.stderr
    log = first.stdout + first.stderr
    assert "upscaling base: 8 -> 12 layers: [0..5] + [2..7], " in log
    assert "upscaling: 100%" in log
    assert depth(training_folder / "out") == 12
    assert checkpoints(training_folder) == ["upscaled-8-to-12"]
    _, info = AutoModelForCausalLM.from_pretrained(training_folder / "out", output_loading_info=True)
    assert not any(info.values()), info

    second = run_warm(*TRAIN, "recipe.yml", "--output_dir=again", "--max_steps=1", cwd=training_folder)
    assert second.returncode == 0, second.stderr
    assert "using the cached upscaled checkpoint" in second.stdout + second.stderr
    assert checkpoints(training_folder) == ["upscaled-8-to-12"]

    asked = run_warm("axolotl", "inference", "recipe.yml", "--base-model=./out", "--launcher", "python",
                cwd=training_folder, stdin="")  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    assert "./out was already upscaled by this plan" in asked.stdout + asked.stderr


def test_a_base_with_different_layers_is_trained_with_its_layers_in_the_plans_order(
    training_folder, tiny_model, sentencepiece_tokenizer, run_warm
):
    """Gemma 3's windows, tied embeddings and extra norms, through Axolotl's own loading and saving."""
    shutil.rmtree(training_folder / "base")
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2 + ["sliding_attention", "full_attention"]
    tiny_model(training_folder / "base", kind="gemma3_text", dtype="float32", vocab_size=32000, layer_types=kinds,
               sliding_window=16)  # fmt: skip
    for path in sentencepiece_tokenizer.iterdir():
        shutil.copy(path, training_folder / "base")
    result = run_warm(*TRAIN, "recipe.yml", cwd=training_folder)
    assert result.returncode == 0, result.stdout + result.stderr
    config = json.loads((training_folder / "out" / "config.json").read_text())
    assert config["layer_types"] == [kinds[source] for source in (*range(6), *range(2, 8))]


def test_a_recipe_that_does_not_list_the_plugin_is_upscaled_too(training_folder, run_warm):
    edit(training_folder, plugins=[])
    result = run_warm("axolotl", "preprocess", "recipe.yml", cwd=training_folder)
    assert result.returncode == 0, result.stderr
    assert checkpoints(training_folder) == ["upscaled-8-to-12"]


def test_overrides_reach_the_plan(training_folder, run_warm):
    result = run_warm(*TRAIN, "recipe.yml", "--solar__init__drop_layers=3", "--max_steps=1", cwd=training_folder)
    assert result.returncode == 0, result.stderr
    assert depth(training_folder / "out") == 10


@pytest.mark.parametrize("launcher", ["python", pytest.param("accelerate", marks=pytest.mark.nightly)])
def test_sweeps_over_the_block(training_folder, run_warm, launcher):
    sweep = [{"init": {"strategy": "dus", "drop_layers": m}, "cache_dir": "cache"} for m in (1, 3)]
    (training_folder / "sweep.yml").write_text(yaml.safe_dump({"solar": sweep}))
    options = ["--sweep", "sweep.yml", "--max-steps", "1", "--launcher", launcher]
    result = run_warm("axolotl", "train", "recipe.yml", *options, cwd=training_folder)
    assert result.returncode == 0, result.stderr
    assert checkpoints(training_folder) == ["upscaled-8-to-10", "upscaled-8-to-14"]


def test_lora_is_trained_on_and_merged_into_the_upscaled_model(training_folder, run_warm):
    from safetensors.torch import load_file

    lora = dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"), False)
    edit(training_folder, adapter="lora", lora_r=4, lora_alpha=8, lora_target_linear=True, **lora)
    trained = run_warm(*TRAIN, "recipe.yml", cwd=training_folder)
    assert trained.returncode == 0, trained.stderr
    merged = run_warm("axolotl", "merge-lora", "recipe.yml", "--lora-model-dir=out", cwd=training_folder)
    assert merged.returncode == 0, merged.stdout + merged.stderr
    assert depth(training_folder / "out" / "merged") == 12
    (upscaled,) = (training_folder / "cache").glob("upscaled-*/model.safetensors")
    before, after = load_file(upscaled), {}
    for path in (training_folder / "out" / "merged").glob("*.safetensors"):
        after |= load_file(path)
    assert before.keys() == after.keys()
    assert (before["model.norm.weight"] == after["model.norm.weight"]).all()


def test_a_run_with_an_unknown_key_ends_with_its_error(training_folder, run):
    edit(training_folder, solar={"init": {"strategy": "dus", "drop_layer": 2}})
    result = run(*TRAIN, "recipe.yml", cwd=training_folder)
    assert_stopped(result, training_folder, "solar.init.drop_layer: unknown key; did you mean")


def test_a_run_with_a_missing_base_ends_with_its_error(training_folder, run_warm):
    edit(training_folder, base_model="./nowhere")
    result = run_warm(*TRAIN, "recipe.yml", cwd=training_folder)
    assert_stopped(result, training_folder, "base_model: './nowhere' is neither a local directory")


def assert_stopped(result, folder, message):
    assert result.returncode == 1
    assert f"\nsolar_plugins: {message}" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "out").exists()
    assert not list(folder.glob("cache/upscaled-*"))


def test_solar_commands_are_also_under_axolotl(base, run_warm):
    result = run_warm("axolotl", "solar", "plan", "--base", base, "--drop-layers", "2", "--json")
    assert result.returncode == 0, result.stderr
    assert '"num_layers": 12' in result.stdout
    wrong = run_warm("axolotl", "solar", "plan", "--base", base, "--drop-layers", "20")
    assert wrong.returncode == 1
    assert "Error: drop_layers: 20 is impossible for a base of 8 layers" in wrong.stderr
    assert "Traceback" not in wrong.stderr
