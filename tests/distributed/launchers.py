"""The real launchers, and the keys of each way of sharding on a CPU."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
STARTED = []
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
    """What the processes of a CPU-only run need; see also `cpu_ranks`."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(HERE),
        "EVIDENCE_DIR": str(folder),
        "OMP_NUM_THREADS": "1",
        **({"ACCELERATE_USE_CPU": "true"} if sharding in (None, "ddp") else {"ACCELERATE_TORCH_DEVICE": "cpu"}),
        **more,
    }


def torchrun(folder, recipe, ranks, sharding, *options, env=None, timeout=500):
    """``torchrun -m axolotl.cli.train``; returns exit status and all that was said. Nothing is left running."""
    command = [
        str(Path(sys.executable).parent / "torchrun"),
        f"--nproc_per_node={ranks}",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=localhost:0",
        *options,
        "-m",
        "axolotl.cli.train",
        recipe,
    ]
    return finished(command, folder, environment(sharding, folder, **(env or {})), timeout)


def lone_rank(folder, recipe, rank, world_size, port, **env):
    """Start one rank as srun does: a process of its own on a node of its own, with the usual variables."""
    place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": "1"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = python_module("axolotl.cli.train", recipe)
    return started(command, folder, environment("ddp", folder, **place, **env))


def python_module(module, *arguments):
    return [sys.executable, "-m", module, *arguments]


def started(command, folder, env):
    """A process with a group of its own, which `end_all` ends at the latest."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def end_all():
    """Kill what a failed test left running."""
    while STARTED:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(STARTED.pop().pid, signal.SIGKILL)


def finished(command, folder, env, timeout=500):
    """Exit status of a command and all that it said."""
    return ended(started(command, folder, env), timeout)


def ended(process, timeout=500):
    """Exit status of a started process and what it said since somebody last read; its group is gone then."""
    try:
        said, _ = process.communicate(timeout=timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def evidence(folder, ranks):
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]
