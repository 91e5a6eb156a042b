"""The models of `tiny_decoders`, saved and loaded, and how their logits compare."""

from typing import NamedTuple

import torch
from tiny_decoders import tiny_config
from transformers import AutoModelForCausalLM


class Comparison(NamedTuple):
    """Two tensors of logits that should be equal."""

    difference: float
    scale: float

    @property
    def equal(self) -> bool:
        return self.difference <= 1e-5 * max(1.0, self.scale)


def compare(ours, theirs):
    return Comparison((ours - theirs).abs().max().item(), theirs.abs().max().item())


def make_base(model_type, changes, directory):
    """A random model, saved and loaded again, whose norms and biases are away from their initial values."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).float()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    model.save_pretrained(directory)
    return load(directory)


def load(directory):
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, dtype=torch.float32)
    odd = {kind: sorted(names)[:3] for kind, names in info.items() if names}
    assert not odd, f"loading is not clean: {odd}"
    return model.eval()


@torch.no_grad()
def logits(model, tokens):
    torch.manual_seed(7)  # some attention hashes at random
    return model(input_ids=tokens, use_cache=False).logits
