import pytest
from known_models import MISTRAL

from solar_plugins.text import format_bytes
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.estimates import (
    shapes_from_config,
    shapes_from_shards,
    size_from_config,
    size_from_shards,
)
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.upscaled_tensors import planned_shards

TINY_SOLAR = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def test_solar_has_its_published_parameters():
    """solar.md section 1."""
    assert size_from_config(Decoder.of(MISTRAL), 48).parameters == 10_731_524_096
    assert size_from_config(Decoder.of(MISTRAL), 48).checkpoint_bytes == 2 * 10_731_524_096


def test_bielik_has_its_published_parameters():
    """solar.md section 1: 50 layers, vocabulary 32128."""
    assert size_from_config(Decoder.of(MISTRAL | {"vocab_size": 32128}), 50).parameters == 11_168_796_672


def test_tiny_solar_has_its_published_parameters():
    """solar.md section 1: 12 layers, then 16."""
    assert size_from_config(Decoder.of(TINY_SOLAR), 12).parameters == 248_013_824
    assert size_from_config(Decoder.of(TINY_SOLAR), 16).parameters == 308_839_424


def test_config_and_tensors_agree(any_base):
    base = find_base(str(any_base))
    plan = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
    assert size_from_config(base.decoder, 12) == size_from_shards(planned_shards(base, plan), base.decoder)


def test_parameters_are_those_of_the_loaded_model(any_base, tmp_path):
    from transformers import AutoModelForCausalLM

    base = find_base(str(any_base))
    plan = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
    model = AutoModelForCausalLM.from_pretrained(ensure_checkpoint(base, plan, tmp_path))
    assert size_from_config(base.decoder, 12).parameters == model.num_parameters()


def test_shapes_are_those_of_the_loaded_model(any_base):
    from transformers import AutoModelForCausalLM

    base = find_base(str(any_base))
    model = AutoModelForCausalLM.from_pretrained(any_base)
    assert shapes_from_config(base.decoder, 8) == {name: tuple(w.shape) for name, w in model.named_parameters()}
    assert shapes_from_config(base.decoder, 8) == shapes_from_shards(planned_shards(base, unchanged(8)))


def unchanged(num_layers):
    return LayerPlan.from_sources(num_layers, range(num_layers))


def test_shapes_of_what_only_the_tensors_tell():
    assert shapes_from_config(Decoder.of(MISTRAL | {"model_type": "qwen2"}), 2) is None
    assert shapes_from_config(Decoder.of(MISTRAL | {"quantization_config": {"quant_method": "gptq"}}), 2) is None


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (21_463_048_192, "21.5 GB"), (1.5e13, "15 TB")]
)
def test_format_bytes(num_bytes, text):
    assert format_bytes(num_bytes) == text
