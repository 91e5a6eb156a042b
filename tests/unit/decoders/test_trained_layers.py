"""What `solar.train` calls layers, embeddings, norms and head, on every decoder that transformers can build."""

import json

import pytest
import torch
from rearranged import stack_of
from test_every_decoder import NAMES
from tiny_decoders import NUM_LAYERS, tiny_config
from transformers import AutoModelForCausalLM

from solar_plugins.errors import ArgsError, CheckpointError
from solar_plugins.memory.parameters import unfrozen_pattern
from solar_plugins.upscaling.architectures.outer_tensors import UNCHECKED
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.trained_layers import Trained, unfrozen_patterns

LAYERS = (1, 4)
NEVER_UPSCALED = ("gemma4_text, keys shared", "gpt2, scaled by position")
PARTS = ("embeddings", "norms", "lm_head")


def names_in(model, wanted):
    """The parameters of the modules that ``wanted`` chooses by name and class, and of all modules in them."""
    chosen = [f"{name}." for name, module in model.named_modules() if wanted(name, module)]
    return {name for name, _ in model.named_parameters(remove_duplicate=False) if name.startswith(tuple(chosen))}


def is_norm(module):
    """A norm holds vectors alone; some blocks have a class of that name, and the weights of attention too."""
    return "norm" in type(module).__name__.lower() and all(p.dim() == 1 for p in module.parameters())


def parts_of(model):
    """The names of the parameters of each part, by the classes and places of its modules."""
    stack = stack_of(model, NUM_LAYERS)
    decoder = stack.rpartition(".")[0] + "."
    head = model.get_output_embeddings()
    return {
        "layers": names_in(model, lambda name, _: name in [f"{stack}.{number}" for number in LAYERS]),
        "embeddings": names_in(
            model,
            lambda name, module: (
                isinstance(module, torch.nn.Embedding) and name.startswith(decoder) and not name.startswith(f"{stack}.")
            ),
        ),
        "norms": names_in(model, lambda name, module: name.startswith(decoder) and is_norm(module)),
        "lm_head": names_in(model, lambda _, module: module is head),
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_patterns_choose_the_parameters_of_these_modules(name):
    model_type, changes = NAMES[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes))
    config = json.loads(model.config.to_json_string())
    if name in NEVER_UPSCALED:
        with pytest.raises(CheckpointError, match="such a model is refused"):
            Decoder.of(config)
        return
    decoder = Decoder.of(config)
    expected = parts_of(model)
    every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for part in (None, *PARTS):
        trained = Trained(LAYERS, LAYERS, NUM_LAYERS, **{other: other == part for other in PARTS})
        if part in ("embeddings", "lm_head") and decoder.text_config["model_type"] in UNCHECKED:
            with pytest.raises(ArgsError, match="is not known here"):
                unfrozen_patterns(decoder, trained)
            continue
        patterns = [unfrozen_pattern(text) for text in unfrozen_patterns(decoder, trained)]
        found = {name for name in every if any(pattern.match(name) for pattern in patterns)}
        assert found == expected["layers"] | (expected[part] if part else set()), part
