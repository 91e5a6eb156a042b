"""`axolotl merge-lora` and the next stage: the commands in the head comments of the LoRA recipes, on a tiny model."""

import json
import shutil

import pytest
import yaml

from solar_plugins import lineage
from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.recipe import read_yaml
from solar_plugins.storage.cards import split_card

pytestmark = pytest.mark.slow

INSTRUCTIONS = [{"instruction": f"Add {n} and 1.", "input": "", "output": f"It is {n + 1}."} for n in range(40)]
PAIRS = [
    {"system": "", "question": f"Add {n} and 1.", "chosen": f"It is {n + 1}.", "rejected": f"It is {n}."}
    for n in range(8)
]
ON_A_CPU = {
    "bf16": False, "tf32": False, "attn_implementation": "sdpa", "optimizer": "adamw_torch", "sample_packing": False,
    "gradient_checkpointing": False, "micro_batch_size": 1, "gradient_accumulation_steps": 1, "num_epochs": 1,
    "max_steps": 1, "sequence_len": 128, "dataset_num_proc": 1, "lora_r": 4,
    **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"), False),
}  # fmt: skip


@pytest.fixture
def folder(training_folder):
    """`training_folder` with rows."""
    for name, rows in (("rows", INSTRUCTIONS), ("pairs", PAIRS)):
        (training_folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return training_folder


def shipped(folder, name, data, **changes):
    """A shipped recipe with a tiny dataset, for a CPU. Its models, tokens and folders are unchanged."""
    recipe = read_yaml(recipe_directory() / name) | ON_A_CPU | changes
    recipe["datasets"] = [recipe["datasets"][0] | data]
    for key in ("test_datasets", "eval_strategy", "deepspeed"):
        recipe.pop(key, None)
    (folder / name).write_text(yaml.safe_dump(recipe))
    return recipe["output_dir"]


def trained_and_merged(run, folder, name, *options):
    for command in (("python", "-m", "axolotl.cli.train", name), ("axolotl", "merge-lora", name, *options)):
        done = run(*command, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr


def loaded(directory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory), json.loads((directory / "config.json").read_text())


QUESTION = [{"role": "user", "content": "u"}]


def assert_valid(merged, adapter):
    """Tokenizer, config, plan file and card of the merged model."""
    (ours, config), (trained, _) = loaded(merged), loaded(adapter)
    assert ours.chat_template == trained.chat_template
    assert ours.get_vocab() == trained.get_vocab()
    assert ours.apply_chat_template(QUESTION, tokenize=False) == "### User:\nu\n\n"
    assert config["eos_token_id"] == ours.eos_token_id == trained.eos_token_id
    assert config["solar_plugins"]["plan"]["base_layers"] == 8
    assert not (merged / "solar_plan.json").exists()
    for folder, relation in ((adapter, "adapter"), (*adapter.glob("checkpoint-*"), "adapter"), (merged, "merge_lora")):
        last = lineage.read(folder).stages[-1]
        assert last.adapter == "lora"
        assert (last.kind == "merge_lora") == (relation == "merge_lora")
        front, text = split_card((folder / "README.md").read_text())
        assert front["library_name"] == ("transformers" if folder == merged else "peft")
        assert {"axolotl", "depth-up-scaling", "solar_plugins"} <= set(front["tags"])
        assert "not been trained" not in text
        for private in (str(merged.parent), "upscaled-"):
            assert private not in f"{front}{text}"


@pytest.mark.nightly
def test_the_commands_in_the_head_comments(folder, run, run_warm):
    """Upscale, SFT with LoRA, merge, then DPO with LoRA from the result, and merge again."""
    upscaled = run("solar", "upscale", "base", "outputs/solar_dus", "--drop-layers", "2", cwd=folder)
    assert upscaled.returncode == 0, upscaled.stderr
    assert (folder / "outputs" / "solar_dus" / "solar_plan.json").exists()
    rows = {"path": "rows.jsonl", "ds_type": "json"}
    out = shipped(folder, "solar_sft_lora.yml", rows)
    assert read_yaml(folder / "solar_sft_lora.yml")["base_model"] == "outputs/solar_dus"
    trained_and_merged(run, folder, "solar_sft_lora.yml")
    assert_valid(folder / out / "merged", folder / out)

    pairs = {"path": "pairs.jsonl", "type": "solar_plugins.orca_dpo_pairs"}
    then = shipped(folder, "solar_dpo_lora.yml", pairs, base_model=f"{out}/merged")
    trained_and_merged(run_warm, folder, "solar_dpo_lora.yml")
    assert_valid(folder / then / "merged", folder / then)
    kinds = [stage.kind for stage in lineage.read(folder / then / "merged").stages]
    assert kinds == ["upscale", "sft", "merge_lora", "dpo", "merge_lora"]


@pytest.mark.parametrize("method", ["memory_efficient", pytest.param("legacy", marks=pytest.mark.nightly)])
def test_a_new_eos_token(folder, run_warm, method):
    from datasets import load_from_disk
    from transformers import AutoModelForCausalLM, GenerationConfig

    recipe = yaml.safe_load((folder / "recipe.yml").read_text()) | ON_A_CPU
    recipe |= {"adapter": "lora", "lora_alpha": 8, "lora_target_linear": True, "merge_method": method}
    recipe |= {"special_tokens": {"eos_token": "<|im_end|>"}, "lora_modules_to_save": ["embed_tokens", "lm_head"]}
    recipe["datasets"] = [{"path": "rows.jsonl", "ds_type": "json", "type": "solar_plugins.alpaca"}]
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    trained_and_merged(run_warm, folder, "recipe.yml", "--lora-model-dir=out")
    assert_valid(folder / "out" / "merged", folder / "out")
    ours, config = loaded(folder / "out" / "merged")
    (prepared,) = (folder / "prepared" / "solar_plugins").iterdir()
    assert load_from_disk(str(prepared))[0]["labels"][-1] == ours.eos_token_id == 32000
    assert 32000 in GenerationConfig.from_pretrained(folder / "out" / "merged").eos_token_id
    assert config["vocab_size"] == 32001
    _, info = AutoModelForCausalLM.from_pretrained(folder / "out" / "merged", output_loading_info=True)
    assert not any(info.values()), info


def test_merging_an_adapter_without_a_tokenizer_gives_a_warning(folder, run_warm):
    recipe = yaml.safe_load((folder / "recipe.yml").read_text()) | ON_A_CPU
    recipe |= {"adapter": "lora", "lora_alpha": 8, "lora_target_linear": True}
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    done = run_warm("python", "-m", "axolotl.cli.train", "recipe.yml", cwd=folder)
    assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "out", folder / "bare", ignore=shutil.ignore_patterns("tokenizer*", "checkpoint-*"))
    done = run_warm("axolotl", "merge-lora", "recipe.yml", "--lora-model-dir=bare", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "bare: has no tokenizer_config.json, so the merged model in" in done.stdout + done.stderr
