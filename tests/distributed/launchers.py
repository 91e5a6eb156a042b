"""Several ranks, by torchrun or without a launcher, and the keys of each way of sharding on a CPU."""

import contextlib
import json
import socket
import subprocess
import time
from pathlib import Path

from commands import cold, ended, started, warm

HERE = Path(__file__).parent
TRAIN = ("python", "-m", "axolotl.cli.train", "recipe.yml")
GRACE_SECONDS = 30
"""How long the other ranks may keep running after one has failed."""
ZERO = {
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "zero_force_ds_cpu_optimizer": False,
    "zero_allow_untested_optimizer": True,
}
SHARDING = {
    "ddp": {},
    "fsdp2": {
        "fsdp_version": 2,
        "fsdp_config": {
            "offload_params": False,
            "cpu_ram_efficient_loading": True,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": "MistralDecoderLayer",
            "state_dict_type": "FULL_STATE_DICT",
            "reshard_after_forward": True,
        },
    },
    "zero2": {"deepspeed": ZERO | {"zero_optimization": {"stage": 2, "overlap_comm": False}}},
    "zero3": {
        "deepspeed": ZERO
        | {
            "zero_optimization": {
                "stage": 3,
                "overlap_comm": False,
                "stage3_gather_16bit_weights_on_model_save": True,
            }
        }
    },
}


def environment(sharding, folder, **more):
    """The environment of a CPU-only run; see also `cpu_ranks`."""
    return {
        "PYTHONPATH": str(HERE),
        "EVIDENCE_DIR": str(folder),
        **({"ACCELERATE_USE_CPU": "true"} if sharding in (None, "ddp") else {"ACCELERATE_TORCH_DEVICE": "cpu"}),
        **more,
    }


def train(folder, sharding, num_ranks, **env):
    """Train ``recipe.yml`` on ranks that are started as srun does, or on a single process without ``sharding``.

    Returns:
        The first exit status that is not 0, else 0, and the output of all ranks. If one fails, the others are stopped.
    """
    env = environment(sharding, folder, **env)
    places = ranks_of_a_node(num_ranks) if sharding else [{}]
    with (folder / "said.txt").open("w+") as said:
        running = [started(warm(*TRAIN), folder=folder, env=env | place, output=said) for place in places]
        while any(process.poll() is None for process in running) and not any(p.returncode for p in running):
            time.sleep(0.05)
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                ended(process, GRACE_SECONDS)
        said.seek(0)
        return next((process.returncode for process in running if process.returncode), 0), said.read()


def ranks_of_a_node(num_ranks):
    """The variables of each rank."""
    everywhere = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    everywhere |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
    return [everywhere | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)]


def single_rank(folder, rank, world_size, port, *, start=warm, **env):
    """Start one rank as srun does, on its own node."""
    place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": "1"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return started(start(*TRAIN), folder=folder, env=environment("ddp", folder, **place, **env))


def torchrun(folder, sharding, num_ranks, *options, start=warm, **env):
    """``torchrun -m axolotl.cli.train recipe.yml``; returns exit status and output.

    Args:
        folder: The recipe's folder.
        sharding: A key of `SHARDING`.
        num_ranks: On this machine.
        options: Of torchrun.
        start: `cold` or `warm`, for the ranks; torchrun itself always starts cold.
        env: Further variables.
    """
    launcher = ["torchrun", f"--nproc_per_node={num_ranks}", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    command = cold(*launcher, *options, "--no-python", *start(*TRAIN))
    return ended(started(command, folder=folder, env=environment(sharding, folder, **env)))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def evidence(folder, ranks):
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]
