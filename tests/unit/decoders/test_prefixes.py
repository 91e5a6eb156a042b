"""Checkpoints whose tensor names lack the usual prefix, as the hub's GPT-2 and BLOOM do, or carry more."""

import pytest
import torch
from rearranged import rearranged
from safetensors.torch import load_file, save_file
from tiny_decoders import NUM_LAYERS, tiny_config
from transformers import AutoModelForCausalLM

from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import write_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.verify import verify_checkpoint

pytestmark = pytest.mark.slow

SOURCES = [*range(6), *range(3, 9)]


def renamed(directory, rename):
    path = directory / "model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


@torch.no_grad()
@pytest.mark.parametrize(
    ("model_type", "prefix"), [("gpt2", "transformer."), ("bloom", "transformer."), ("gemma", "model.")]
)
def test_a_missing_prefix_is_preserved_and_loads(model_type, prefix, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config(model_type)).save_pretrained(tmp_path / "base")
    renamed(tmp_path / "base", lambda name: name.removeprefix(prefix))
    base, info = AutoModelForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not any(info.values()), "transformers itself must take the base"
    write_checkpoint(
        find_base(str(tmp_path / "base")), LayerPlan.from_sources(NUM_LAYERS, SOURCES), tmp_path / "deeper"
    )
    assert not any(name.startswith(prefix) for name in load_file(tmp_path / "deeper" / "model.safetensors"))
    deeper, info = AutoModelForCausalLM.from_pretrained(tmp_path / "deeper", output_loading_info=True)
    assert not any(info.values())
    tokens = torch.arange(3, 15)[None]
    reference = rearranged(base, SOURCES, NUM_LAYERS)(tokens, use_cache=False).logits
    assert torch.equal(deeper(tokens, use_cache=False).logits, reference)


@torch.no_grad()
@pytest.mark.parametrize("wrap", [lambda name: f"module.{name}", lambda name: name.replace("mlp.", "mlp._orig_mod.")])
def test_prefixes_of_a_training_wrapper_are_stripped_and_the_result_loads(wrap, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(tiny_config("llama")).eval()
    base.save_pretrained(tmp_path / "base")
    renamed(tmp_path / "base", wrap)
    write_checkpoint(
        find_base(str(tmp_path / "base")), LayerPlan.from_sources(NUM_LAYERS, SOURCES), tmp_path / "deeper"
    )
    deeper, info = AutoModelForCausalLM.from_pretrained(tmp_path / "deeper", output_loading_info=True)
    assert not any(info.values())
    tokens = torch.arange(3, 15)[None]
    reference = rearranged(base, SOURCES, NUM_LAYERS)(tokens, use_cache=False).logits
    assert torch.equal(deeper(tokens, use_cache=False).logits, reference)
    assert verify_checkpoint(tmp_path / "deeper", str(tmp_path / "base")).tensors == 3 + 12 * 9
