"""A model that brings its own code: copied if the user trusts it, rejected otherwise."""

import json

import pytest
import torch
from rearranged import rearranged
from tiny_decoders import tiny_config
from transformers import AutoModelForCausalLM

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import write_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan

CODE = """\
from transformers import LlamaConfig, LlamaForCausalLM

class MineConfig(LlamaConfig):
    model_type = "mine"

class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(0)
    directory = tmp_path / "base"
    AutoModelForCausalLM.from_config(tiny_config("llama")).save_pretrained(directory)
    (directory / "modeling_mine.py").write_text(CODE)
    config = json.loads((directory / "config.json").read_text())
    names = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    config |= {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": names}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_refused_unless_trusted(base):
    with pytest.raises(CheckpointError, match=r"auto_map.*trust_remote_code: true.*--trust-remote-code"):
        find_base(str(base))


@torch.no_grad()
def test_the_code_goes_along_and_runs(base, tmp_path):
    sources = [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8]
    write_checkpoint(
        find_base(str(base), trust_remote_code=True), LayerPlan.from_sources(9, sources), tmp_path / "deeper"
    )
    assert (tmp_path / "deeper" / "modeling_mine.py").read_text() == CODE
    deeper, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "deeper", trust_remote_code=True, output_loading_info=True
    )
    assert type(deeper).__name__ == "MineForCausalLM"
    assert not any(info.values())
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True)
    tokens = torch.arange(3, 15)[None]
    reference = rearranged(model, sources, 9)(tokens, use_cache=False).logits
    assert torch.equal(deeper(tokens, use_cache=False).logits, reference)
