"""The parts of a GPU's memory against arithmetic by hand, the ZeRO paper, and what torch holds on a CPU.

No GPU was available: none of these tests compares with one.
"""

import pytest
import torch
from known_models import MISTRAL, SMALL, model_from

from solar_plugins.memory.estimate import PHASES, STATES, common_setups, memory_parts, peaks
from solar_plugins.memory.parameters import Model
from solar_plugins.memory.training_setup import OPTIMIZERS, Adapter, DeepSpeedBuffers, TrainingSetup

P = 10_731_524_096


def bytes_of(model, **setup):
    parts = memory_parts(model, TrainingSetup(**{"sequence_tokens": 4096} | setup))
    return {part.name: part.num_bytes for part in parts}


def states(model, **setup):
    found = bytes_of(model, **setup)
    return [found.get(name, 0) for name in STATES]


def test_solar_with_zero3_over_8(solar_model):
    """By hand: 16 bytes x 10,731,524,096 / 8 = 21,463,048,192."""
    found = states(solar_model, gpus=8, shards=8, sharding="zero3")
    assert found == [2_682_881_024, 2_682_881_024, 5_365_762_048, 10_731_524_096]
    assert sum(found) == 16 * P // 8 == 21_463_048_192


def test_activations_of_solar(solar_model):
    """By hand, 4 x 4096 tokens: 48 inputs of 4096 in 16 bits; 12 x 32000 bytes of logits, 8 x 4096 of the norm."""
    found = bytes_of(solar_model, micro_batch_size=4)
    assert found["layer inputs"] == 16_384 * 48 * 2 * 4096 == 6_442_450_944
    assert found["logits and loss"] == 16_384 * (12 * 32_000 + 8 * 4096) == 6_828_326_912
    assert found["active layer"] == 16_384 * (65_536 + 20_480 + 114_688 + 136 + 4 * 14_336)


@pytest.mark.parametrize(
    ("sharding", "shards", "gigabytes"),
    [("zero1", 1, 120.0), ("zero1", 64, 31.4), ("zero2", 64, 16.6), ("zero3", 64, 1.9)],
)
def test_the_stages_of_zero(solar_model, sharding, shards, gigabytes):
    """Rajbhandari et al. 2020, figure 1: 7.5 billion parameters, Adam, 64 devices."""
    model = Model({"w": (7_500_000_000,)}, solar_model.widths, 0, "llama")
    assert round(sum(states(model, gpus=shards, shards=shards, sharding=sharding)) / 1e9, 1) == gigabytes


def test_fsdp2_keeps_no_master_weights(solar_model):
    """Axolotl 0.21 shards bf16 weights, and torch's AdamW states are as wide: 8 bytes per parameter."""
    found = states(solar_model, gpus=8, shards=8, sharding="fsdp2")
    assert found == [2 * P // 8, 2 * P // 8, 0, 4 * P // 8]


def test_an_8_bit_optimizer(solar_model):
    found = states(solar_model, gpus=8, shards=8, sharding="fsdp2", optimizer=OPTIMIZERS["adamw_torch_8bit"])
    assert found[3] == pytest.approx(2 * P / 8, rel=0.02)


def test_ddp_copies_the_gradients_into_buckets(solar_model):
    alone, two = bytes_of(solar_model), bytes_of(solar_model, gpus=2)
    assert two["in-flight gradients"] - alone["in-flight gradients"] == 2 * P
    assert states(solar_model) == states(solar_model, gpus=2) == [2 * P, 2 * P, 0, 4 * P]


def test_adapters_alone_are_trained(solar_model):
    """LoRA of rank 16 on all maps: 48 x 16 x (2 x 8192 + 2 x 5120 + 3 x 18432) parameters in fp32."""
    added = 48 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18_432)
    found = states(solar_model, adapter=Adapter(rank=16))
    assert found == [2 * P + 4 * added, 4 * added, 0, 8 * added]


def test_a_reference_model_is_sharded_like_the_first(solar_model):
    assert bytes_of(solar_model, sharding="zero3", shards=8, reference=True)["reference model"] == 2 * P // 8
    assert bytes_of(solar_model, sharding="zero2", shards=8, reference=True)["reference model"] == 2 * P
    assert "reference model" not in bytes_of(solar_model)


def test_the_optimizer_steps_by_sub_groups(solar_model):
    """bf16 and fp32 copies of at most 10^9 gradients, fewer than the 1.34 x 10^9 of a shard."""
    assert bytes_of(solar_model, shards=8, sharding="zero3")["optimizer step buffers"] == 6_000_000_000
    assert bytes_of(solar_model, shards=64, sharding="zero3")["optimizer step buffers"] == 6 * P // 64
    with_root = bytes_of(solar_model, shards=8, sharding="zero3", optimizer=OPTIMIZERS["rmsprop"])
    assert with_root["optimizer step buffers"] == 10_000_000_000


def test_axolotls_own_zero3_file_sets_both_limits_to_0(solar_model):
    """Then DeepSpeed holds the parameters of one module, and steps one parameter at a time."""
    buffers, embeddings = DeepSpeedBuffers(max_live=0, sub_group=0), 32_000 * 4096
    found = bytes_of(solar_model, shards=8, sharding="zero3", buffers=buffers)
    assert found["gathered weights"] == 2 * embeddings
    assert found["optimizer step buffers"] == 6 * embeddings // 8


def test_what_each_phase_holds(solar_model):
    parts = memory_parts(solar_model, TrainingSetup(sequence_tokens=4096))
    by_hand = {phase: sum(part.num_bytes for part in parts if phase in part.phases) for phase in PHASES}
    assert peaks(parts) == by_hand
    assert all(part.arithmetic and part.reason for part in parts)


def test_parameters_gradients_and_states_are_those_that_torch_holds(small_model):
    """Exact: 7.6 million parameters in fp32, one step of AdamW, without torch's step counters of 4 bytes per tensor."""
    from transformers import LlamaConfig, LlamaForCausalLM

    kind = {key: value for key, value in SMALL.items() if key != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(**kind, num_hidden_layers=4))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.zeros(1, 8, dtype=torch.long)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    weights = list(model.parameters())
    held = [
        sum(weight.nbytes for weight in weights),
        sum(weight.grad.nbytes for weight in weights),
        0,
        sum(state.nbytes for weight in weights for key, state in optimizer.state[weight].items() if key != "step"),
    ]
    assert states(small_model, compute_bits=32) == held
    assert held[0] == 4 * 7_604_480


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [512, 8192], ids=["layer dominates", "logits dominate"])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_peak_of_a_pass_is_what_torch_allocates(training_peak, dtype, checkpointing, vocabulary):
    """Within 5 %: forward and backward pass of transformers' model, without weights and gradients."""
    config = SMALL | {"vocab_size": vocabulary}
    measured = training_peak(config, 4, 2, 256, dtype=dtype, checkpointing=checkpointing)
    setup = {"micro_batch_size": 2, "sequence_tokens": 256, "checkpointing": checkpointing}
    assert estimated_pass(config, 4, **setup, compute_bits=8 * dtype.itemsize) == pytest.approx(measured, rel=0.05)


@pytest.mark.slow
def test_the_peak_of_solar_itself_on_tensors_without_data(training_peak):
    """Within 2 %: 10.7 billion parameters, 4 x 4096 tokens, as recipes/solar_dus.yml trains, on fake tensors."""
    measured = training_peak(MISTRAL, 48, 4, 4096, dtype=torch.bfloat16, fake=True)
    assert measured > 13e9
    assert estimated_pass(MISTRAL, 48, micro_batch_size=4, sequence_tokens=4096) == pytest.approx(measured, rel=0.02)


def estimated_pass(config, num_layers, **setup):
    """The peak of all parts but the states."""
    parts = memory_parts(model_from(config, num_layers), TrainingSetup(**setup))
    kept = [part for part in parts if part.name not in STATES]
    return max(peaks(kept).values())


def test_common_setups_of_solar(solar_model):
    """By hand: 16 and 8 bytes per parameter over 8 GPUs; LoRA of rank 16 adds 62,914,560 parameters of 16 bytes."""
    found = {memory.setup: memory for memory in common_setups(solar_model, 4096)}
    assert found["full, ZeRO-3, 8 GPUs"].state_bytes == 16 * P // 8
    assert found["full, FSDP2 in pure bf16, 8 GPUs"].state_bytes == P
    assert found["LoRA, bf16, 1 GPU"].state_bytes == 2 * P + 16 * 62_914_560
    assert found["full, fp32, 1 CPU"].state_bytes == 16 * P
    assert all(memory.total_bytes > memory.state_bytes for memory in found.values())
