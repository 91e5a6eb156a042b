"""Checkpoints to resume from: every part there and readable to its end."""

import json

import pytest
import torch
from safetensors.torch import save_file

from solar_plugins.running.training_checkpoints import damage, saves_model_only, training_checkpoints


@pytest.fixture
def checkpoint(tmp_path):
    """What the Trainer leaves on one process."""
    path = tmp_path / "out" / "checkpoint-30"
    path.mkdir(parents=True)
    save_file({"w": torch.zeros(100)}, path / "model.safetensors")
    torch.save({"state": {0: torch.zeros(500)}}, path / "optimizer.pt")
    torch.save({"last_epoch": 30}, path / "scheduler.pt")
    torch.save({"cpu": torch.zeros(8)}, path / "rng_state.pth")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": 30}))
    (path / "config.json").write_text("{}")
    return path


PARTS = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


def test_one_that_is_complete(checkpoint):
    assert damage(checkpoint) is None
    assert not saves_model_only(checkpoint)


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_part(checkpoint, name):
    (checkpoint / name).unlink()
    assert "missing" in damage(checkpoint)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_part_that_is_cut(checkpoint, name, share):
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: int(len(content) * share)])
    assert name in damage(checkpoint)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_pages_that_never_reached_the_disk(checkpoint, name):
    content = bytearray((checkpoint / name).read_bytes())
    torch_bytes = content.index(b"data/0") + 200
    content[torch_bytes : torch_bytes + 16] = b"\xff" * 16
    (checkpoint / name).write_bytes(content)
    assert name in damage(checkpoint)


def test_a_state_of_another_step(checkpoint):
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 29}))
    assert "29" in damage(checkpoint)


def test_a_shard_that_an_index_names(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    names = {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert damage(checkpoint) == "model-00002-of-00002.safetensors is missing"


def test_ranks(checkpoint):
    """DDP: a random state for each rank; ZeRO: a part of the optimizer too."""
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    torch.save({}, checkpoint / "rng_state_2.pth")
    assert damage(checkpoint) == "the random state of rank 1 is missing"
    torch.save({}, checkpoint / "rng_state_1.pth")
    assert damage(checkpoint) is None
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / "global_step30").mkdir()
    (checkpoint / "latest").write_text("global_step30")
    for rank in range(2):
        torch.save({}, checkpoint / "global_step30" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    assert damage(checkpoint) == "the optimizer of rank 2 is missing"
    torch.save({}, checkpoint / "global_step30" / "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt")
    assert damage(checkpoint) is None
    (checkpoint / "latest").write_text("global_step60")
    assert "global_step60" in damage(checkpoint)


def test_sharded_states_of_fsdp(checkpoint):
    from torch.distributed.checkpoint import FileSystemWriter, save

    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / "model.safetensors").unlink()
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        save({"w": torch.zeros(1000)}, storage_writer=FileSystemWriter(checkpoint / name), no_dist=True)
    assert damage(checkpoint) is None
    (shard,) = (checkpoint / "optimizer_0").glob("*.distcp")
    shard.write_bytes(shard.read_bytes()[:-100])
    assert damage(checkpoint) == f"optimizer_0/{shard.name} is missing or too short"
    (checkpoint / "optimizer_0" / ".metadata").unlink()
    assert damage(checkpoint) == "optimizer_0/.metadata is missing"


def test_the_newest_comes_first(checkpoint):
    output = checkpoint.parent
    for name in ("checkpoint-4", "checkpoint-100", "checkpoint-x", "damaged-checkpoint-200"):
        (output / name).mkdir()
    assert [path.name for path in training_checkpoints(output)] == ["checkpoint-100", "checkpoint-30", "checkpoint-4"]


def test_the_model_alone(checkpoint):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / name).unlink()
    assert saves_model_only(checkpoint)
