"""Test-only plugin for Axolotl: lets several ranks train on a CPU, and records what each rank holds.

Axolotl 0.21 assumes that several ranks have GPUs. Each step below removes one such assumption; none changes what is
tested: our plugin, Axolotl's loaders, the Trainer, accelerate, FSDP2 and DeepSpeed are the real ones.
"""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import torch
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))
RANK = int(os.environ.get("RANK", "0"))
EVIDENCE = "rank{rank}.json"


def make_writer_slow():
    """Let this rank write each shard of the upscaled checkpoint slowly; ``SLOW_WRITER`` holds the seconds.

    With ``DIES_ONCE`` it is killed while it writes, unless torchrun has restarted it.
    """
    from solar_plugins.axolotl_adapter import ranks
    from solar_plugins.upscaling import checkpoint

    ranks.MESSAGE_SECONDS = 2.0
    write_shard = checkpoint.write_shard

    def slow(*args, **kwargs):
        time.sleep(float(os.environ["SLOW_WRITER"]))
        if "DIES_ONCE" in os.environ and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return write_shard(*args, **kwargs)

    checkpoint.write_shard = slow


if "SLOW_WRITER" in os.environ:
    make_writer_slow()  # Not first in `register`: the plugin under test may be registered before this one.


class CpuRanksPlugin(BasePlugin):
    """Listed under ``plugins:`` in the recipes of these tests."""

    def register(self, cfg):
        assert not torch.distributed.is_initialized(), "a rank may wait here only while there is no process group"
        if WORLD_SIZE > 1:
            skip_axolotls_gpu_check()
            if cfg.get("fsdp_config") or cfg.get("deepspeed"):
                let_accelerate_use_gloo()

    def load_datasets(self, cfg, preprocess=False):
        if WORLD_SIZE > 1:
            cfg.device_map = {"": "cpu"}  # Axolotl forces cuda:LOCAL_RANK

    def get_training_args(self, cfg):
        return {"use_cpu": True}

    def post_trainer_create(self, cfg, trainer):
        # Without this a test could pass on single processes: accelerate silently trains alone without a group.
        assert trainer.accelerator.num_processes == WORLD_SIZE, trainer.accelerator.num_processes

    def add_callbacks_post_trainer(self, cfg, trainer):
        return [Evidence(trainer, Path(os.environ.get("EVIDENCE_DIR", ".")))]


def skip_axolotls_gpu_check():
    """``check_cuda_p2p_ib_support`` asks CUDA, which fails without a driver."""
    import axolotl.utils.trainer

    axolotl.utils.trainer.check_cuda_p2p_ib_support = lambda: True


def let_accelerate_use_gloo():
    """FSDP2 and DeepSpeed: accelerate chooses NCCL, and its mesh is of CUDA devices."""
    import torch.distributed.device_mesh as device_mesh
    from accelerate import state

    state.PartialState._prepare_backend = lambda *_, **__: ("gloo", state.DistributedType.MULTI_GPU)
    original = device_mesh.init_device_mesh

    def on_cpu(device_type, *args, **kwargs):
        return original("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    device_mesh.init_device_mesh = torch.distributed.init_device_mesh = on_cpu


class Evidence(TrainerCallback):
    """What this rank held: layer sums before the first step, a hash of every row, and the dtypes of the first step."""

    def __init__(self, trainer, folder):
        self.trainer, self.folder = trainer, folder
        self.seen = {"world_size": WORLD_SIZE, "layer_sums": {}, "rows": []}
        step = trainer.training_step

        def watched(model, inputs, *args, **kwargs):
            self.seen["rows"].append(sorted(hashed(row) for row in inputs["input_ids"]))
            return step(model, inputs, *args, **kwargs)

        trainer.training_step = watched

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.seen["layer_sums"] = layer_sums(self.trainer.model_wrapped)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if "gradients" not in self.seen:
            self.seen["gradients"] = elements_by_dtype(gradients(self.trainer.model_wrapped))

    def on_step_end(self, args, state, control, **kwargs):
        if "weights" not in self.seen:
            self.seen["weights"] = weights(self.trainer.model_wrapped)
            self.seen["optimizer"] = optimizer_elements(self.trainer.optimizer)
            if "LEARNING" in os.environ:  # Not under ZeRO-2, where DeepSpeed has no state of it on some ranks.
                self.seen["learning"] = learning(self.trainer.model_wrapped, self.trainer.optimizer)

    def on_train_end(self, args, state, control, **kwargs):
        self.seen["losses"] = [entry["loss"] for entry in state.log_history if "loss" in entry]
        (self.folder / EVIDENCE.format(rank=RANK)).write_text(json.dumps(self.seen))


def hashed(row):
    return hashlib.sha256(json.dumps(row.tolist()).encode()).hexdigest()[:12]


def layer_sums(model):
    """The sum of each decoder layer's parameters in float64, gathered from all ranks."""
    sums = {}
    for name, parameter in model.named_parameters():
        _, found, rest = name.partition("layers.")
        if found and "lora_" not in name:
            layer = rest.split(".")[0]
            sums[layer] = sums.get(layer, 0.0) + gathered(parameter).double().sum().item()
    return sums


def gathered(parameter):
    if hasattr(parameter, "full_tensor"):  # FSDP2
        return parameter.full_tensor().detach()
    if hasattr(parameter, "ds_id"):  # ZeRO-3
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach()


def weights(model):
    """The dtype of each parameter, and the number of its elements that this rank keeps between steps."""
    kept = {name.removeprefix("module."): kept_here(parameter) for name, parameter in model.named_parameters()}
    return {name: [dtype_name(tensor), tensor.numel()] for name, tensor in kept.items()}


def gradients(model):
    """The gradients that this rank keeps; DeepSpeed keeps them in its own buffers."""
    return [kept_here(p.grad) for p in model.parameters() if p.grad is not None]


def kept_here(tensor):
    """This rank's shard."""
    if hasattr(tensor, "to_local"):  # FSDP2
        return tensor.to_local()
    return getattr(tensor, "ds_tensor", tensor)  # ZeRO-3


def optimizer_elements(optimizer):
    """This rank's elements by dtype: of the tensors that the innermost optimizer updates, and of its states."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    updated = list(optimizer.state)
    states = [s for p in updated for s in optimizer.state[p].values() if torch.is_tensor(s) and s.shape == p.shape]
    return {
        "updated": elements_by_dtype(map(kept_here, updated)),
        "states": elements_by_dtype(map(kept_here, states)),
    }


def learning(model, optimizer):
    """The parameters with a state in Adam, and whether their gradient of the first step was not zero.

    Read from Adam's mean of the gradients, because DeepSpeed steps before a callback can read a gradient.
    """
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    means = {name.removeprefix("module."): mean_gradient(p, optimizer) for name, p in model.named_parameters()}
    return {name: bool(mean.any()) for name, mean in means.items() if mean is not None}


def mean_gradient(parameter, optimizer):
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, "exp_avg") if parameter.requires_grad else None
    mean = optimizer.state[parameter]["exp_avg"] if parameter in optimizer.state else None
    return mean.full_tensor() if hasattr(mean, "full_tensor") else mean


def elements_by_dtype(tensors):
    elements = {}
    for tensor in tensors:
        elements[dtype_name(tensor)] = elements.get(dtype_name(tensor), 0) + tensor.numel()
    return elements


def dtype_name(tensor):
    return str(tensor.dtype).removeprefix("torch.")
