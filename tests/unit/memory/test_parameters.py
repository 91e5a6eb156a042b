"""Held and trained tensors against PEFT, bitsandbytes and Axolotl."""

from dataclasses import replace
from math import prod

import pytest
import torch
from known_models import SMALL

from solar_plugins.memory.parameters import NF4_BYTES, adapted_maps_of_a_layer, held_tensors
from solar_plugins.memory.training_setup import Adapter, TrainingSetup


def test_sizes_of_solar(solar_model):
    """solar.md section 1. A layer: 4096 x (2 x 4096 + 2 x 1024 + 3 x 14336 + 2); outside: two embeddings and a norm."""
    assert solar_model.parameters == 10_731_524_096
    assert solar_model.layer_parameters == 218_112_000
    assert solar_model.outer_parameters == 2 * 32000 * 4096 + 4096


def trained_elements(model, **setup):
    held = held_tensors(model, TrainingSetup(sequence_tokens=1, **setup))
    return sum(tensor.elements for tensor in held if tensor.trained)


@pytest.mark.parametrize(
    ("adapter", "config"),
    [
        (Adapter(rank=16), {"target_modules": "all-linear"}),
        (Adapter(rank=4, targets=("q_proj", "down_proj")), {"target_modules": ["q_proj", "down_proj"]}),
        (
            Adapter(rank=8, targets=("v_proj",), modules_to_save=("lm_head",)),
            {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
        ),
    ],
)
def test_adapters_have_the_parameters_that_peft_creates(small_model, adapter, config):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    kind = {key: value for key, value in SMALL.items() if key != "model_type"}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**kind, num_hidden_layers=4))
        model = get_peft_model(model, LoraConfig(r=adapter.rank, task_type="CAUSAL_LM", **config))
    assert trained_elements(small_model, adapter=adapter) == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(
    "patterns",
    [
        ("model.layers.1.",),
        ("model.layers.[23].mlp.down_proj", "^model.embed_tokens.weight$[:32]"),
        ("lm_head.*", "model.layers.0.self_attn.q_proj"),
    ],
)
def test_unfrozen_parameters_are_those_that_axolotl_leaves(small_model, patterns):
    from axolotl.utils.freeze import freeze_layers_except
    from transformers import LlamaConfig, LlamaForCausalLM

    kind = {key: value for key, value in SMALL.items() if key != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(**kind, num_hidden_layers=4))
    freeze_layers_except(model, list(patterns))
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained_elements(small_model, unfrozen=patterns) == trained > 0


def test_4_bit_weights_take_what_bitsandbytes_stores():
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(1024, 4096, dtype=torch.bfloat16)
    packed, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    stored = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert stored == NF4_BYTES * weight.numel()


def test_only_linear_maps_of_the_layers_are_quantized(small_model):
    held = held_tensors(small_model, TrainingSetup(adapter=Adapter(rank=2, bits=4), sequence_tokens=1))
    quantized = sum(tensor.elements for tensor in held if tensor.weight_bytes == NF4_BYTES)
    assert quantized == 4 * (2 * 256 * 256 + 2 * 64 * 256 + 3 * 896 * 256)
    assert sum(tensor.elements for tensor in held if tensor.weight_bytes == 2) == 2 * 8192 * 256 + (2 * 4 + 1) * 256


def test_fp32_embeddings_and_norms(small_model):
    held = held_tensors(small_model, TrainingSetup(fp32_embeddings_and_norms=True, sequence_tokens=1))
    assert sum(tensor.elements for tensor in held if tensor.weight_bytes == 4) == 2 * 8192 * 256 + (2 * 4 + 1) * 256


def test_maps_of_a_layer(small_model):
    shapes = adapted_maps_of_a_layer(small_model, Adapter(rank=1))
    assert sum(map(prod, shapes)) == 2 * 256 * 256 + 2 * 64 * 256 + 3 * 896 * 256


def mixtral(num_layers=3, experts=4):
    """Tensor names of a Mixtral, with experts numbered inside the layers, and of the layers of a vision tower."""
    shapes = {"model.embed_tokens.weight": (64, 8), "vision_tower.encoder.layers.1.q_proj.weight": (8, 8)}
    for layer in range(num_layers):
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = (8, 8)
        for expert in range(experts):
            shapes[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight"] = (16, 8)
    return shapes


def test_the_index_of_an_expert_is_not_that_of_a_layer(small_model):
    model = replace(small_model, shapes=mixtral())
    assert model.layer_parameters == 8 * 8 + 4 * 16 * 8
    adapter = Adapter(rank=2, layers=(1,), layers_pattern=(r"(?<!.)model\.layers",))
    held = held_tensors(model, TrainingSetup(adapter=adapter, sequence_tokens=1))
    assert sum(tensor.elements for tensor in held if tensor.trained) == 2 * ((8 + 8) + 4 * (16 + 8))
