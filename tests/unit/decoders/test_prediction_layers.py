"""Multi-token-prediction layers stored past the last layer, as DeepSeek-V3 and GLM-4.5 do."""

import json

import pytest
import torch
from rearranged import rearranged
from safetensors.torch import load_file, save_file
from tiny_decoders import LATENT, NUM_LAYERS, tiny_config
from transformers import AutoModelForCausalLM

from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import write_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan

pytestmark = pytest.mark.slow


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["deepseek_v3", "glm4_moe"])
def test_prediction_layers_follow_the_new_last_layer(model_type, tmp_path):
    torch.manual_seed(0)
    widths = {**LATENT, "first_k_dense_replace": 2} if model_type == "deepseek_v3" else {}
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, num_nextn_predict_layers=1, **widths))
    model.save_pretrained(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    prediction = {f"model.layers.{NUM_LAYERS}.{part}": torch.randn(4, 4) for part in ("eh_proj.weight", "enorm.weight")}
    save_file(weights | prediction, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})

    sources = [*range(6), *range(3, 9)]
    write_checkpoint(find_base(str(tmp_path / "base")), LayerPlan.from_sources(9, sources), tmp_path / "deeper")
    written = load_file(tmp_path / "deeper" / "model.safetensors")
    for name, tensor in prediction.items():
        assert torch.equal(written[name.replace(".9.", ".12.")], tensor)
    assert json.loads((tmp_path / "deeper" / "config.json").read_text())["num_nextn_predict_layers"] == 1

    deeper, info = AutoModelForCausalLM.from_pretrained(tmp_path / "deeper", output_loading_info=True)
    assert not info["missing_keys"]
    assert not [name for name in info["unexpected_keys"] if ".12." not in name], "only the prediction layer is not used"
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokens = torch.arange(3, 15)[None]
    reference = rearranged(base, sources, NUM_LAYERS)(tokens, use_cache=False).logits
    assert torch.equal(deeper(tokens, use_cache=False).logits, reference)
