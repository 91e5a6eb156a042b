from solar_plugins.memory.common_setups import common_setups


def test_common_setups_of_solar(solar_model):
    """By hand: 16 and 8 bytes a parameter over 8 GPUs; LoRA of rank 16 adds 62,914,560 parameters of 16 bytes."""
    found = {memory.setup: memory for memory in common_setups(solar_model, 4096)}
    assert found["full, ZeRO-3, 8 GPUs"].state_bytes == 16 * 10_731_524_096 // 8
    assert found["full, FSDP2 in bf16 alone, 8 GPUs"].state_bytes == 10_731_524_096
    assert found["LoRA, bf16, 1 GPU"].state_bytes == 2 * 10_731_524_096 + 16 * 62_914_560
    assert found["full, fp32, 1 CPU"].state_bytes == 16 * 10_731_524_096
    assert all(memory.total_bytes > memory.state_bytes for memory in found.values())
