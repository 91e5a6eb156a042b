"""The weights of layers that do not start as copies, for the model in memory: as they will be in the upscaled files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from solar_plugins.errors import CheckpointError
from solar_plugins.evaluation.probe.replay import refusal
from solar_plugins.evaluation.probe.schedule import NewLayer
from solar_plugins.logs import logger
from solar_plugins.upscaling.base_model import BaseCheckpoint
from solar_plugins.upscaling.initializers.computed import base_tensors, new_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LOG = logger("probe")


class NewWeights:
    """The weights of new layers, made from the base's files and kept while there is room.

    Args:
        base: The base.
        max_bytes: For what is kept; one layer is in any case.
    """

    def __init__(self, base: BaseCheckpoint, max_bytes: int) -> None:
        self._base, self._max_bytes = base, max_bytes
        self._kept: OrderedDict[NewLayer, dict[str, Tensor]] = OrderedDict()
        self._bytes = 0
        self._said = False

    def __call__(self, new: NewLayer, source: torch.nn.Module) -> Mapping[str, Tensor]:
        """The parameters in which a new layer differs from its source, as loading the upscaled model would give them.

        Args:
            new: The layer.
            source: The loaded base layer that it comes from.

        Raises:
            SolarError: They cannot be computed, or are called otherwise when they are loaded.
        """
        if new not in self._kept:
            weights = self._made(new, source)
            self._bytes += _bytes(weights)
            while self._kept and self._bytes > self._max_bytes:
                self._bytes -= _bytes(self._kept.popitem(last=False)[1])
                self._say()
            self._kept[new] = weights
        self._kept.move_to_end(new)
        return self._kept[new]

    def _made(self, new: NewLayer, source: torch.nn.Module) -> dict[str, Tensor]:
        files, loaded = base_tensors(self._base), dict(source.named_parameters()) | dict(source.named_buffers())
        weights = {}
        for name, tensor in new_tensors(self._base, new.planned, new.position):
            there = loaded.get(name)
            if there is None or not there.equal(files.read(name, new.planned.source).to(there)):
                raise CheckpointError(refusal(f"loading gives {name} of a layer another name or other values"))
            weights[name] = tensor.to(there)
        return weights

    def _say(self) -> None:
        if not self._said:
            LOG.info(
                "new layers do not fit into --memory and are computed again for each document; give more if you can"
            )
            self._said = True


def _bytes(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in weights.values())
