import json

import pytest

from solar_plugins.errors import ArgsError
from solar_plugins.memory.recipe_setup import devices_of, not_estimated, setup_of
from solar_plugins.memory.training_setup import Adapter, DeepSpeedBuffers
from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.recipe import parse_recipe, read_recipe


def setup(tmp_path, gpus=1, **recipe):
    return setup_of(parse_recipe({"sequence_len": 8} | recipe, tmp_path / "r.yml"), gpus)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.parametrize(("gpus", "world", "expected"), [(None, None, 1), (None, "16", 16), (4, "16", 4), (4, None, 4)])
def test_how_many_gpus(monkeypatch, gpus, world, expected):
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    found = devices_of(gpus, None)
    assert (found.gpus, found.memory_bytes) == (expected, None)
    assert ("--gpus" in found.gpus_from) == (gpus is not None or not world)
    assert devices_of(gpus, 141).memory_bytes == 141_000_000_000


def test_an_invalid_world_size(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ArgsError, match=r"WORLD_SIZE: 'many' .*expected a positive integer.*--gpus"):
        devices_of(None, None)


def test_an_empty_recipe(tmp_path):
    found = setup(tmp_path)
    assert (found.compute_bits, found.checkpointing, found.optimizer.name) == (16, False, "adamw_torch_fused")
    assert found.micro_batch_size == 1


def test_the_recipe_of_solar():
    path = recipe_directory() / "solar_dus.yml"
    found = setup_of(read_recipe(path), 8)
    assert (found.sharding, found.shards, found.compute_bits, found.checkpointing) == ("zero3", 8, 16, True)
    assert (found.micro_batch_size, found.sequence_tokens, found.optimizer.name) == (4, 4096, "adamw_torch_fused")
    assert found.buffers == DeepSpeedBuffers(reduce_bucket=None, overlap=True)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"bf16": False}, {"compute_bits": 32, "fp32_embeddings_and_norms": False}),
        ({"bf16": False, "fp16": True}, {"compute_bits": 16}),
        ({"attn_implementation": "sdpa"}, {"fp32_embeddings_and_norms": True}),
        ({"attn_implementation": "flash_attention_2"}, {"fp32_embeddings_and_norms": False}),
        ({"flash_attention": True}, {"fp32_embeddings_and_norms": False}),
        ({"gradient_checkpointing": True}, {"checkpointing": True}),
        ({"gradient_checkpointing": "offload"}, {"checkpointing": True}),
        ({"cut_cross_entropy": True}, {"full_logits": False, "fp32_embeddings_and_norms": False}),
        ({"rl": "dpo"}, {"sequences": 2, "reference": True}),
        ({"rl": "orpo"}, {"sequences": 2, "reference": False}),
        ({"rl": "dpo", "adapter": "lora", "lora_r": 8}, {"reference": False, "adapter": Adapter(rank=8)}),
        ({"unfrozen_parameters": ["model.layers.4."]}, {"unfrozen": ("model.layers.4.",)}),
        ({"fsdp_config": {"reshard_after_forward": True}}, {"sharding": "fsdp2", "shards": 16}),
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
    assert (named.targets, named.modules_to_save) == (("q_proj",), ("lm_head",))


def test_a_deepspeed_file_is_found_here_or_above_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "deepspeed").mkdir(parents=True)
    config = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e6}}
    (tmp_path / "recipes" / "deepspeed" / "z.json").write_text(json.dumps(config))
    recipe = {"sequence_len": 8, "deepspeed": "recipes/deepspeed/z.json"}
    monkeypatch.chdir(tmp_path)
    here = setup_of(parse_recipe(recipe, tmp_path / "r.yml"), 4)
    monkeypatch.chdir("/")
    assert setup_of(parse_recipe(recipe, tmp_path / "recipes" / "r.yml"), 4) == here
    assert (here.sharding, here.shards, here.buffers) == ("zero2", 4, DeepSpeedBuffers(reduce_bucket=5_000_000))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"sequence_len": None}, "sequence_len: None is not allowed; expected a valid integer"),
        ({"micro_batch_size": -1}, "micro_batch_size: -1; expected a positive integer"),
        ({"optimizer": "adamww"}, "optimizer: 'adamww'; memory is not estimated .*adamw_torch_fused"),
        ({"adapter": "mixlora"}, "adapter: 'mixlora'; memory is not estimated .*lora and qlora"),
        ({"adapter": "lora"}, "lora_r: None; expected a positive integer"),
        ({"rl": "grpo"}, "rl: 'grpo'; memory is not estimated .*dpo,"),
        ({"deepspeed": "nowhere.json"}, "deepspeed: nowhere.json does not exist.*zero3_bf16.json"),
        ({"deepspeed": {"zero_optimization": {"stage": 0}}}, "zero_optimization.stage is 0; .* 1, 2 and 3"),
        ({"unfrozen_parameters": "all"}, "unfrozen_parameters: 'all' is not allowed; expected a valid list"),
        ({"adapter": "lora", "lora_target_modules": "all-linear"}, "lora_target_modules: 'all-linear'; .*list"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_estimated(tmp_path, recipe, message):
    with pytest.raises(ArgsError, match=message):
        setup(tmp_path, **recipe)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "z.json: not valid JSON"), ("[]", "z.json: holds a list, expected")]
)
def test_an_invalid_deepspeed_file(tmp_path, text, message):
    (tmp_path / "z.json").write_text(text)
    with pytest.raises(ArgsError, match=message):
        setup(tmp_path, deepspeed=str(tmp_path / "z.json"))


def test_settings_that_are_not_estimated_are_listed():
    recipe = {
        "tensor_parallel_size": 2,
        "context_parallel_size": 1,
        "fp8": True,
        "relora": False,
        "precompute_ref_log_probs": True,
        "load_in_8bit": True,
        "gradient_checkpointing": "offload",
        "attn_implementation": "eager",
    }
    deepspeed = {
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "none"}},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    assert set(not_estimated(parse_recipe(recipe | {"deepspeed": deepspeed}))) == {
        "tensor_parallel_size: 2",
        "fp8: True",
        "precompute_ref_log_probs: True",
        "load_in_8bit: True",
        "gradient_checkpointing: offload",
        "attn_implementation: eager",
        "deepspeed: zero_optimization.offload_optimizer: cpu",
        "deepspeed: data_types.grad_accum_dtype: fp32",
    }
    fsdp = {"fsdp_config": {"offload_params": True}}
    assert not_estimated(parse_recipe(fsdp)) == ["fsdp_config.offload_params: True"]
