import json

import pytest

from solar_plugins.errors import ArgsError
from solar_plugins.memory.recipe_setup import devices_of, not_counted, setup_of
from solar_plugins.memory.training_setup import Adapter, DeepSpeedBuffers
from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.recipe import parse_recipe, read_recipe

HEAD = "# What it does.\n#\n# needs:   {}; 22 GB disk\n# run:     x\n\nbase_model: b\n"


def setup(tmp_path, gpus=1, **recipe):
    return setup_of(parse_recipe({"sequence_len": 8} | recipe, tmp_path / "r.yml"), gpus)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.parametrize(
    ("needs", "gpus", "world", "expected"),
    [
        ("8 x 80 GB GPU", None, None, (8, "the recipe's head", 80_000_000_000)),
        ("8 x 80 GB GPU", None, "16", (16, "WORLD_SIZE", 80_000_000_000)),
        ("8 x 80 GB GPU", 4, "16", (4, "--gpus", 80_000_000_000)),
        ("no GPU", None, None, (1, "nothing said otherwise", None)),
    ],
)
def test_how_many_gpus(tmp_path, monkeypatch, needs, gpus, world, expected):
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    (tmp_path / "r.yml").write_text(HEAD.format(needs))
    recipe = read_recipe(tmp_path / "r.yml")
    assert devices_of(recipe, gpus, None) == expected
    assert devices_of(recipe, gpus, 141).memory_bytes == 141_000_000_000


def test_a_world_size_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "many")
    (tmp_path / "r.yml").write_text(HEAD.format("no GPU"))
    with pytest.raises(ArgsError, match="WORLD_SIZE: 'many' in the environment; expected a positive whole number"):
        devices_of(read_recipe(tmp_path / "r.yml"), None, None)


def test_a_recipe_that_says_nothing(tmp_path):
    found = setup(tmp_path)
    assert (found.half, found.checkpointing, found.optimizer.name) == (True, False, "adamw_torch_fused")
    assert found.micro_batch_size == 1


def test_the_recipe_of_solar():
    path = recipe_directory() / "solar_dus.yml"
    found = setup_of(read_recipe(path), 8)
    assert (found.sharding, found.shards, found.half, found.checkpointing) == ("zero3", 8, True, True)
    assert (found.micro_batch_size, found.sequence_tokens, found.optimizer.name) == (4, 4096, "adamw_torch_fused")
    assert found.buffers == DeepSpeedBuffers(reduce_bucket=None, overlap=True)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"bf16": False}, {"half": False, "wide_ends": False}),
        ({"bf16": False, "fp16": True}, {"half": True}),
        ({"attn_implementation": "sdpa"}, {"wide_ends": True}),
        ({"attn_implementation": "flash_attention_2"}, {"wide_ends": False}),
        ({"flash_attention": True}, {"wide_ends": False}),
        ({"gradient_checkpointing": True}, {"checkpointing": True, "offload_activations": False}),
        ({"gradient_checkpointing": "offload"}, {"checkpointing": True, "offload_activations": True}),
        ({"cut_cross_entropy": True}, {"full_logits": False, "wide_ends": False}),
        ({"rl": "dpo"}, {"sequences": 2, "reference": True}),
        ({"rl": "dpo", "precompute_ref_log_probs": True}, {"sequences": 2, "reference": False}),
        ({"rl": "orpo"}, {"sequences": 2, "reference": False}),
        ({"rl": "dpo", "adapter": "lora", "lora_r": 8}, {"reference": False, "adapter": Adapter(rank=8)}),
        ({"unfrozen_parameters": ["model.layers.4."]}, {"unfrozen": ("model.layers.4.",)}),
        ({"fsdp_config": {"offload_params": True}}, {"sharding": "fsdp2", "shards": 16, "offload_weights": True}),
        ({"fsdp_config": {"activation_checkpointing": True}}, {"checkpointing": True}),
        ({"fsdp_config": {"reshard_after_forward": True}, "dp_replicate_size": 2}, {"shards": 8}),
    ],
)  # fmt: skip
def test_keys_of_a_recipe(tmp_path, recipe, expected):
    found = setup(tmp_path, gpus=16, **recipe)
    assert {key: getattr(found, key) for key in expected} == expected


def test_an_adapter(tmp_path):
    recipe = {"adapter": "qlora", "load_in_4bit": True, "lora_r": 16, "lora_dropout": 0.1}
    assert setup(tmp_path, **recipe, lora_target_linear=True).adapter == Adapter(rank=16, dropout=0.1, bits=4)
    named = setup(tmp_path, **recipe, lora_target_modules=["q_proj"], lora_modules_to_save=["lm_head"]).adapter
    assert (named.targets, named.copied) == (("q_proj",), ("lm_head",))


def test_a_deepspeed_file_is_found_here_or_above_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "deepspeed").mkdir(parents=True)
    config = {
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": 5e6},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    (tmp_path / "recipes" / "deepspeed" / "z.json").write_text(json.dumps(config))
    recipe = {"sequence_len": 8, "deepspeed": "recipes/deepspeed/z.json"}
    monkeypatch.chdir(tmp_path)
    here = setup_of(parse_recipe(recipe, tmp_path / "r.yml"), 4)
    monkeypatch.chdir("/")
    assert setup_of(parse_recipe(recipe, tmp_path / "recipes" / "r.yml"), 4) == here
    assert (here.sharding, here.shards, here.offload_optimizer, here.offload_weights) == ("zero2", 4, True, False)
    assert here.buffers == DeepSpeedBuffers(reduce_bucket=5_000_000, gradient_bytes=4)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"sequence_len": None}, "sequence_len: None is not allowed; expected a valid integer"),
        ({"micro_batch_size": -1}, "micro_batch_size: -1; expected a positive whole number"),
        ({"optimizer": "adamww"}, "optimizer: 'adamww'; what it keeps for each parameter is not known here"),
        ({"adapter": "mixlora"}, "adapter: 'mixlora'; the memory of this adapter is not known here"),
        ({"adapter": "lora"}, "lora_r: None; expected a positive whole number"),
        ({"rl": "grpo"}, "rl: 'grpo'; the memory of this training is not known here, only of dpo,"),
        ({"deepspeed": "nowhere.json"}, "deepspeed: nowhere.json is no file here, nor above"),
        ({"deepspeed": {"zero_optimization": {"stage": 0}}}, "zero_optimization.stage is 0; expected 1, 2 or 3"),
        ({"unfrozen_parameters": "all"}, "unfrozen_parameters: 'all' is not allowed; expected a valid list"),
        ({"adapter": "lora", "lora_target_modules": "all-linear"}, "lora_target_modules: 'all-linear'; expected"),
    ],
)  # fmt: skip
def test_what_cannot_be_counted(tmp_path, recipe, message):
    with pytest.raises(ArgsError, match=message):
        setup(tmp_path, **recipe)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "z.json: not valid JSON"), ("[]", "z.json: holds a list, expected")]
)
def test_a_deepspeed_file_that_is_none(tmp_path, text, message):
    (tmp_path / "z.json").write_text(text)
    with pytest.raises(ArgsError, match=message):
        setup(tmp_path, deepspeed=str(tmp_path / "z.json"))


def test_keys_that_are_not_counted_are_named():
    recipe = {
        "tensor_parallel_size": 2,
        "context_parallel_size": 1,
        "fp8": True,
        "relora": False,
        "attn_implementation": "eager",
    }
    assert not_counted(parse_recipe(recipe)) == ["tensor_parallel_size", "fp8", "attn_implementation"]
