"""Tiny models with a tokenizer of their own, and the folders of finished runs: no network, no files from elsewhere."""

import json
import shutil

import pytest
import yaml

from solar_plugins.upscaling.layer_plan import LayerPlan

TEXTS = [
    f"Once upon a time there were {number} little pigs who built a house of {thing}, and the wolf came by." * 3
    for number, thing in enumerate(["straw", "sticks", "bricks", "glass", "sand"])
]


@pytest.fixture(scope="session")
def texts():
    """A few texts, all long enough for several windows."""
    return TEXTS


def make_tokenizer(*, adds_bos):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer that begins texts with <s>, as Llama's and Mistral's do."""
    return make_tokenizer(adds_bos=True)


@pytest.fixture(scope="session")
def plain_tokenizer():
    """A tokenizer that has <s> but does not use it, as SmolLM2's."""
    return make_tokenizer(adds_bos=False)


@pytest.fixture
def own_tokenizer():
    """As `tokenizer`; a test may change it."""
    return make_tokenizer(adds_bos=True)


def tiny_llama(num_layers):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,  # Wide, so that different inputs and depths give clearly different outputs.
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def llama():
    """A random Llama of 4 layers. No test changes it."""
    return tiny_llama(num_layers=4)


@pytest.fixture
def own_llama():
    """A random Llama of 1 layer that a test may change."""
    return tiny_llama(num_layers=1)


@pytest.fixture(scope="session")
def base_directory(tmp_path_factory, llama, tokenizer):
    """A base of 4 layers on the disk."""
    directory = tmp_path_factory.mktemp("models") / "tiny-base"
    llama.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def trained_recipe(tmp_path, base_directory):
    """The recipe of a finished run, with its held-out text, and an output_dir whose model is not the upscaled one."""
    import torch
    from transformers import AutoModelForCausalLM

    from solar_plugins.upscaling.base_model import find_base
    from solar_plugins.upscaling.checkpoint import ensure_checkpoint

    plan = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])  # What dus makes of 4 layers with m = 1.
    upscaled = ensure_checkpoint(find_base(str(base_directory)), plan, tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(upscaled)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.9)
    output_dir = tmp_path / "trained"
    model.save_pretrained(output_dir)
    checkpoint = output_dir / "checkpoint-2"
    checkpoint.mkdir()
    history = [{"step": 1, "loss": 6.0}, {"step": 2, "loss": 5.5}, {"step": 2, "eval_loss": 5.75}]
    state = {"global_step": 2, "max_steps": 2, "log_history": history}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    recipe = {
        "base_model": str(base_directory),
        "solar": {"init": {"strategy": "dus", "drop_layers": 1}, "cache_dir": str(tmp_path / "cache")},
        "test_datasets": [{"path": str(held_out), "ds_type": "json", "type": "completion"}],
        "output_dir": str(output_dir),
        "sequence_len": 32,
    }
    path = tmp_path / "recipe.yml"
    path.write_text(yaml.safe_dump(recipe))
    return path


INSTRUCTIONS = [
    {"instruction": "Who built a house of straw?", "output": "The little pigs."},
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    {"instruction": "Say it all. " * 40, "output": "Too long."},
    {"instruction": "Who came by?", "output": "The wolf."},
    {"instruction": "Of what was the last house?", "output": "Of sand."},
]
PAIRS = [
    {"question": "Who came by?", "chosen": "The wolf came by.", "rejected": "Nobody."},
    {
        "system": "Be brief.",
        "question": "Of what was the house?",
        "chosen": "Straw.",
        "rejected": "Of bricks and of straw.",
    },
]


@pytest.fixture
def trained_chain(trained_recipe, tmp_path, tokenizer):
    """Arguments of a report on a chain: the recipe of `trained_recipe`, then SFT, DPO, and the folder of a merge."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer.save_pretrained(tmp_path / "trained")
    names = {"sft": 1.05, "dpo": 1.1, "merged": 1.15}
    for name, factor in names.items():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(factor)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    shutil.move(tmp_path / "merged", tmp_path / "mean")
    history = [
        {"step": 1, "loss": 0.6931, "rewards/margins": 0.0, "rewards/accuracies": 0.0},
        {"step": 2, "loss": 0.68, "rewards/margins": 0.02, "rewards/accuracies": 1.0},
        {"step": 2, "eval_loss": 0.69, "eval_rewards/margins": 0.01, "eval_rewards/accuracies": 0.5},
    ]
    (tmp_path / "dpo" / "checkpoint-2").mkdir()
    state = {"global_step": 2, "max_steps": 2, "log_history": history}
    (tmp_path / "dpo" / "checkpoint-2" / "trainer_state.json").write_text(json.dumps(state))
    for name, rows in (("instructions", INSTRUCTIONS), ("pairs", PAIRS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def entries(name, formatter):
        path = str(tmp_path / f"{name}.jsonl")
        return [{"path": path, "ds_type": "json", "split": "train", "type": f"solar_plugins.{formatter}"}]

    recipes = {
        "sft": {"test_datasets": entries("instructions", "alpaca"), "sequence_len": 64},
        "dpo": {"solar": {"dpo": "sdpo"}, "test_datasets": entries("pairs", "orca_dpo_pairs"), "sequence_len": 128},
    }
    for name, keys in recipes.items():
        recipe = {"base_model": "before", "output_dir": str(tmp_path / name), "datasets": keys["test_datasets"]} | keys
        (tmp_path / f"solar_{name}.yml").write_text(yaml.safe_dump(recipe))
    return [trained_recipe, tmp_path / "solar_sft.yml", tmp_path / "solar_dpo.yml", tmp_path / "mean"]


@pytest.fixture
def other_plan(trained_chain, tmp_path, base_directory, tokenizer):
    """A recipe that upscales the base of `trained_recipe` by another plan, and its finished run."""
    from transformers import AutoModelForCausalLM

    from solar_plugins.upscaling.base_model import find_base
    from solar_plugins.upscaling.checkpoint import ensure_checkpoint

    plan = LayerPlan.from_sources(4, [0, 1, 0, 1, 2, 3])
    upscaled = ensure_checkpoint(find_base(str(base_directory)), plan, tmp_path / "cache")
    AutoModelForCausalLM.from_pretrained(upscaled).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    recipe = yaml.safe_load(trained_chain[0].read_text())
    recipe["solar"]["init"] = {"strategy": "slices", "slices": [[0, 2], [0, 4]]}
    path = tmp_path / "solar_other.yml"
    path.write_text(yaml.safe_dump(recipe | {"output_dir": str(tmp_path / "other")}))
    return path
