"""Which files of tensors an upscaled checkpoint will have. Apart from the writer, so that a plan loads no locks."""

from __future__ import annotations

from solar_plugins.storage.safetensors import PlannedTensor, Shard, plan_shards
from solar_plugins.upscaling.base_model import BaseCheckpoint
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.tensor_names import tensor_copies

MAX_SHARD_BYTES = 5_000_000_000


def planned_shards(base: BaseCheckpoint, plan: LayerPlan) -> list[Shard]:
    """The files of tensors that the up-scaled checkpoint will have.

    Raises:
        CheckpointError: The base's tensors do not fit its config.
    """
    stored = base.tensors
    copies = tensor_copies(stored, base.decoder, plan)
    return plan_shards((PlannedTensor(copy.name, stored[copy.source], copy.zeroed) for copy in copies), MAX_SHARD_BYTES)
