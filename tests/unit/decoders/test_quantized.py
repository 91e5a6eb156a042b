"""A real quantized checkpoint: bitsandbytes runs on a CPU, so its 4-bit copy can be compared with the real modules."""

import json

import pytest
import torch
from rearranged import rearranged
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import write_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan

pytestmark = pytest.mark.slow

WIDTHS = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def quantized(tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **WIDTHS, **HEADS, num_hidden_layers=4)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["lm_head", "model.layers.1.mlp"]
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=four_bit)
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@torch.no_grad()
def test_a_four_bit_base_is_copied_as_it_is_with_its_exclusion_list(quantized, tmp_path):
    sources = [0, 1, 2, 1, 2, 3]
    write_checkpoint(find_base(str(quantized)), LayerPlan.from_sources(4, sources), tmp_path / "deeper")
    config = json.loads((tmp_path / "deeper" / "config.json").read_text())
    assert config["quantization_config"]["llm_int8_skip_modules"] == [
        "lm_head",
        "model.layers.1.mlp",
        "model.layers.3.mlp",
    ]
    deeper, info = AutoModelForCausalLM.from_pretrained(tmp_path / "deeper", output_loading_info=True)
    assert not any(info.values())
    kinds = [type(layer.mlp.up_proj).__name__ for layer in deeper.model.layers]
    assert kinds == ["Linear4bit", "Linear", "Linear4bit", "Linear", "Linear4bit", "Linear4bit"]
    base = AutoModelForCausalLM.from_pretrained(quantized)
    tokens = torch.arange(3, 15)[None]
    reference = rearranged(base, sources, 4)(tokens, use_cache=False).logits
    assert torch.equal(deeper(tokens, use_cache=False).logits, reference)
