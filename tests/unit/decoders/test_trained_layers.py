"""What `solar.train` calls layers, embeddings, norms and head, on every decoder that transformers can build."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from rearranged import stack_of
from test_every_decoder import NAMES
from tiny_decoders import NUM_LAYERS, tiny_config
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

from solar_plugins.errors import ArgsError, CheckpointError
from solar_plugins.memory.parameters import unfrozen_pattern
from solar_plugins.upscaling.architectures.outer_tensors import UNCHECKED
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.trained_layers import Trained, adapter_patterns, unfrozen_patterns

pytestmark = pytest.mark.slow

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
        with pytest.raises(CheckpointError, match="is not supported"):
            Decoder.of(config)
        return
    decoder = Decoder.of(config)
    expected = parts_of(model)
    every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for part in (None, *PARTS):
        trained = Trained(LAYERS, LAYERS, NUM_LAYERS, **{other: other == part for other in PARTS})
        if part in ("embeddings", "lm_head") and decoder.text_config["model_type"] in UNCHECKED:
            with pytest.raises(ArgsError, match="not known for model_type"):
                unfrozen_patterns(decoder, trained)
            continue
        patterns = [unfrozen_pattern(text) for text in unfrozen_patterns(decoder, trained)]
        found = {name for name in every if any(pattern.match(name) for pattern in patterns)}
        assert found == expected["layers"] | (expected[part] if part else set()), part


TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64, "num_local_experts": 4, "num_experts": 4}
IMAGES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 2}
IMAGES |= {"depth": NUM_LAYERS, "num_heads": 2, "out_hidden_size": 32}
WITH_IMAGES = ("gemma3", "got_ocr2", "llama4", "qwen3_5", "qwen3_5_moe")


def with_images(model_type):
    """A model of text and images, whose vision tower has as many layers as its decoder."""
    config = AutoConfig.for_model(model_type)
    for part, sizes in ((config.text_config, TEXT), (config.vision_config, IMAGES)):
        for key in sizes.keys() & set(vars(part)):
            setattr(part, key, sizes[key])
        if getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[:NUM_LAYERS]
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("model_type", WITH_IMAGES)
def test_a_vision_tower_stays_frozen(model_type):
    model = with_images(model_type)
    decoder = Decoder.of(json.loads(model.config.to_json_string()))
    text = model.get_decoder()
    text = getattr(text, "model", text)
    layers = [text.layers[number] for number in LAYERS]
    trained = Trained(LAYERS, LAYERS, NUM_LAYERS, embeddings=False, norms=True, lm_head=False)
    patterns = [unfrozen_pattern(pattern) for pattern in unfrozen_patterns(decoder, trained)]
    found = {name for name, _ in model.named_parameters() if any(pattern.match(name) for pattern in patterns)}
    norms = [module for module in text.modules() if is_norm(module)]
    assert found == names_in(model, lambda _, module: any(module is one for one in (*layers, *norms)))

    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    targets = sorted({name.rpartition(".")[2] for name in linear} - {"lm_head"})
    lora = LoraConfig(
        target_modules=targets, layers_to_transform=list(LAYERS), layers_pattern=adapter_patterns(decoder)
    )
    expected = {name for name in linear if any(model.get_submodule(name) in layer.modules() for layer in layers)}
    adapted = get_peft_model(model, lora).base_model.model
    assert {name for name, module in adapted.named_modules() if isinstance(module, LoraLayer)} == expected


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bloom", "gpt_neox"])
def test_the_head_of_a_reward_model_is_trained(model_type):
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(tiny_config(model_type))
    trained = Trained(LAYERS, LAYERS, NUM_LAYERS, embeddings=False, norms=False, lm_head=False)
    decoder = Decoder.of(json.loads(model.config.to_json_string()))
    patterns = [unfrozen_pattern(text) for text in unfrozen_patterns(decoder, trained)]
    stack = stack_of(model, NUM_LAYERS)
    found = {name for name, _ in model.named_parameters() if any(pattern.match(name) for pattern in patterns)}
    assert found == names_in(model, lambda name, _: name in [f"{stack}.{n}" for n in LAYERS]) | {"score.weight"}
