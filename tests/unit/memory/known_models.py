"""Configs of models with known sizes."""

from solar_plugins.memory.parameters import Model
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.estimates import shapes_from_config

MISTRAL = {
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
"""The config.json of mistralai/Mistral-7B-v0.1, as published, without the keys that do not affect sizes."""

SMALL = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 896,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def model_from(config, num_layers):
    decoder = Decoder.of({"num_hidden_layers": num_layers} | config)
    return Model(shapes_from_config(decoder, num_layers), decoder.widths, num_layers, decoder.model_type)
