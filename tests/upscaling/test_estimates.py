import pytest

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint, planned_shards
from solar_plugins.upscaling.estimates import (
    format_bytes,
    size_from_config,
    size_from_shards,
    training_memory,
)
from solar_plugins.upscaling.layer_plan import LayerPlan

MISTRAL = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
TINY_SOLAR = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def test_solar_has_its_published_parameters():
    """solar.md section 1."""
    assert size_from_config(MISTRAL, 48).parameters == 10_731_524_096
    assert size_from_config(MISTRAL, 48).checkpoint_bytes == 2 * 10_731_524_096


def test_bielik_has_its_published_parameters():
    """solar.md section 1: 50 layers, vocabulary 32128."""
    assert size_from_config(MISTRAL | {"vocab_size": 32128}, 50).parameters == 11_168_796_672


def test_tiny_solar_has_its_published_parameters():
    """solar.md section 1: 12 layers, then 16."""
    assert size_from_config(TINY_SOLAR, 12).parameters == 248_013_824
    assert size_from_config(TINY_SOLAR, 16).parameters == 308_839_424


def test_config_and_tensors_agree(any_base):
    base = find_base(str(any_base))
    plan = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
    assert size_from_config(base.config, 12) == size_from_shards(planned_shards(base, plan), base.config)


def test_parameters_are_those_of_the_loaded_model(any_base, tmp_path):
    from transformers import AutoModelForCausalLM

    base = find_base(str(any_base))
    plan = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
    model = AutoModelForCausalLM.from_pretrained(ensure_checkpoint(base, plan, tmp_path))
    assert size_from_config(base.config, 12).parameters == model.num_parameters()


@pytest.mark.parametrize(("key", "value"), [("num_key_value_heads", "8"), ("head_dim", -1), ("vocab_size", 1.5)])
def test_a_width_that_is_no_width(key, value):
    with pytest.raises(CheckpointError, match=f"{key} is {value!r}; expected a positive whole number"):
        size_from_config(MISTRAL | {key: value}, 2)


def test_widths_that_say_null_have_the_defaults_of_transformers():
    explicit = size_from_config(TINY_SOLAR | {"head_dim": 32}, 2)
    assert size_from_config(TINY_SOLAR | {"head_dim": None}, 2) == explicit
    full = size_from_config(TINY_SOLAR | {"num_key_value_heads": 32}, 2)
    assert size_from_config(TINY_SOLAR | {"num_key_value_heads": None}, 2) == full


def test_a_width_that_is_missing():
    with pytest.raises(CheckpointError, match="hidden_size is None; expected a positive whole number"):
        size_from_config({"model_type": "llama", "num_hidden_layers": 2}, 2)


def test_memory_of_solar():
    """By hand: 16 bytes x 10,731,524,096 parameters; 4096 x (2 x 4096 x 48 + 34 x 4096 + 10 x 32000) bytes."""
    size = size_from_config(MISTRAL, 48)
    estimates = {estimate.setup: estimate for estimate in training_memory(size, MISTRAL, 48, 4096)}
    full = estimates["full, bf16 mixed, AdamW"]
    assert full.model_state_bytes == 171_704_385_536
    assert full.activation_bytes == 4096 * (2 * 4096 * 48 + 34 * 4096 + 10 * 32000) == 3_491_758_080
    assert estimates["full, ZeRO-3 or FSDP2, 8 devices"].model_state_bytes == 171_704_385_536 // 8


def test_lora_parameters_are_those_that_peft_makes():
    """The frozen model and 16 bytes for each parameter that PEFT adds to all linear layers at rank 16."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=80, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    model = get_peft_model(
        AutoModelForCausalLM.from_config(config), LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trained, _ = model.get_nb_trainable_parameters()
    size = size_from_config(config.to_dict(), 3)
    lora = next(e for e in training_memory(size, config.to_dict(), 3, 128) if e.setup == "LoRA, bf16")
    assert lora.model_state_bytes == 2 * size.parameters + 16 * trained


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (21_463_048_192, "21.5 GB"), (1.5e13, "15 TB")]
)
def test_format_bytes(num_bytes, text):
    assert format_bytes(num_bytes) == text
