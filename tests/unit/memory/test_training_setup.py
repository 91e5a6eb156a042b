import pytest

from solar_plugins.memory.training_setup import EIGHT_BIT, OPTIMIZERS, TrainingSetup


def test_tokens_of_pairs():
    assert TrainingSetup(micro_batch_size=3, sequences=2, sequence_tokens=10).tokens == 60


@pytest.mark.parametrize(
    ("sharding", "deepspeed", "weights"), [("zero2", True, False), ("zero3", True, True), ("fsdp2", False, True)]
)
def test_what_is_sharded(sharding, deepspeed, weights):
    setup = TrainingSetup(sharding=sharding, sequence_tokens=1)
    assert (setup.deepspeed, setup.shards_weights) == (deepspeed, weights)


@pytest.mark.parametrize("name", [name for name, optimizer in OPTIMIZERS.items() if optimizer.state_bytes is None])
def test_optimizers_of_torch_keep_that_many_states(name):
    import torch

    made = {
        "adamw_torch": torch.optim.AdamW,
        "adamw_torch_fused": torch.optim.AdamW,
        "rmsprop": torch.optim.RMSprop,
        "sgd": torch.optim.SGD,
    }
    weight = torch.nn.Parameter(torch.ones(7, 5))
    weight.grad = torch.ones(7, 5)
    optimizer = made[name]([weight], lr=0.1)
    optimizer.step()
    states = [state for state in optimizer.state[weight].values() if state is not None and state.shape == weight.shape]
    assert len(states) == OPTIMIZERS[name].states


def test_8_bit_states_take_what_torchao_stores():
    from torchao.optim.subclass_8bit import OptimState8bit

    state = OptimState8bit.zeros((512, 256), block_size=256)
    assert state.codes.nbytes + state.scale.nbytes == EIGHT_BIT * 512 * 256
