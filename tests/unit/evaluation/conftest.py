"""A tiny model with a SentencePiece tokenizer of 32,000 pieces."""

import shutil

import pytest
from trained_models import *  # noqa: F403  fixtures


@pytest.fixture(scope="session")
def tiny_chat_model(tmp_path_factory, sentencepiece_tokenizer):
    """Random weights far enough from zero that answers get different log-probabilities; 256 positions, float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("chat") / "model"
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 32000}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    model.save_pretrained(directory)
    for path in sentencepiece_tokenizer.iterdir():
        shutil.copy(path, directory)
    return directory


@pytest.fixture(scope="session")
def encoder(tiny_chat_model):
    from solar_plugins.data.encoder import make_encoder
    from solar_plugins.evaluation.models import load_tokenizer

    return make_encoder(load_tokenizer(tiny_chat_model), "model")
